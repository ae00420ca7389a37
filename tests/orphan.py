"""Starts a run and ends before it does, as a shell with ``nohup`` does: the run's parent is the first process."""

import subprocess
import sys

subprocess.Popen([sys.executable, "-m", "mtray.launch", *sys.argv[1:]])
