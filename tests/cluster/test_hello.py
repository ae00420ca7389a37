"""How actors begin: what they print to, and the cores that they leave to the learner."""

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
from mtray.cluster.actors.hello import give_way

with subprocess.Popen(["sleep", "60"]) as child, subprocess.Popen(["true"]) as ended:
    ended.wait()
    give_way([child.pid, ended.pid])
    print(*(os.getpriority(os.PRIO_PROCESS, process) for process in (0, child.pid)))
    child.kill()
"""


def test_a_process_gives_way_with_those_that_it_started_before():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    own, child = map(int, done.stdout.split())
    assert own == child >= 10
