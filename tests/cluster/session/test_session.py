"""What a run may use of Ray, and that it is told of its death."""

import subprocess
import sys

import pytest

from mtray.cluster.session import session
from mtray.cluster.session.session import cpus_per_actor


@pytest.mark.parametrize(
    ("code", "how"),
    [("os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("sys.exit(3)", "ended with exit code 3")],
)
def test_a_process_of_rays_that_ended_is_told(code, how):
    with subprocess.Popen([sys.executable, "-c", f"import os, sys; input(); {code}"], stdin=subprocess.PIPE) as process:
        ray = session.Session(1.0, 1, processes={"raylet": process})
        assert ray.death() is None
        process.communicate(b"\n")
        assert ray.death() == f"Ray's process raylet {how}"


def test_a_ray_that_others_started_is_not_watched():
    assert session.Session(1.0, 1).death() is None


def test_a_share_of_cpus_is_the_largest_that_fits():
    assert cpus_per_actor([1.0], 3) == 0.333
