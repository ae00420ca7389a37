"""The supervisor without Ray: what it puts into a checkpoint."""

import types

from mtray.cluster.plan import Shares
from mtray.cluster.supervisor import Supervisor
from mtray.config.presets import fill
from mtray.config.settings import Config
from mtray.rundir.checkpoints.checkpoint import read
from mtray.rundir.checkpoints.writer import CheckpointWriter
from mtray.rundir.screen import Picture, Screen
from mtray.tasks.registry import resolve

TASK = "cartpole-balance"


def test_a_checkpoint_has_the_faults_until_then(tmp_path):
    """Not those of the last line of figures."""
    config = fill(Config(tasks=(TASK,), workers=1, replay={"save": False}), 1)
    tasks = resolve([TASK])
    screen = Screen(Picture(None, 1.0), "none")
    supervisor = Supervisor(config, tasks, tmp_path, [], screen, shares=Shares(config, tasks))
    supervisor._writer = CheckpointWriter(tmp_path, 2, {})
    supervisor._answers = types.SimpleNamespace(state=(b"", b"", 3), snapshot={"frames": {TASK: 10}})
    supervisor._answers.collector_states = {}
    control = supervisor.control
    control.restarts, control.frames_lost, control.updates_lost = 2, 5, 7
    assert read(supervisor._writing(None)()).meta["metrics"]["faults"] == [2, 5, 7]
