"""Rows of a replaced replay: from the newest checkpoint, or none where its files are gone; without Ray."""

import shutil
import types

import numpy as np
import pytest
from ray.exceptions import ObjectLostError

from mtray.cluster import rows as rows_module
from mtray.cluster.actors.replay import Replay
from mtray.cluster.rows import RowsKeeper
from mtray.config.settings import Config, ReplayConfig
from mtray.data.messages import Push
from mtray.data.rows import TRANSITION, row_flags
from mtray.errors import RunError, UnreachableError, UsageError
from mtray.rundir.checkpoints.checkpoint import Checkpoint, read
from mtray.rundir.checkpoints.writer import CheckpointWriter
from tests.makers import make_spec

SPECS = (make_spec("left"), make_spec("right"))
CONFIG = Config(tasks=("left", "right"), replay=ReplayConfig(capacity_rows=1000))
ROW_BYTES = {spec.name: 4 * spec.row_size for spec in SPECS}


class Remote:
    """A replay whose methods are called as an actor's; its memory is out of the driver's reach."""

    def __init__(self):
        self.replay = Replay(SPECS, CONFIG)
        self.memory = types.SimpleNamespace(remote=self._unreachable)

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=getattr(self.replay, name))

    def _unreachable(self):
        raise OSError("on another node")


def push(replay, number, steps=16):
    rows = {spec.name: np.zeros((steps + 1, spec.row_size), np.float32) for spec in SPECS}
    for of in rows.values():
        row_flags(of)[:-1] = TRANSITION
    replay.insert.remote(Push(source="one", number=number, rows=rows))


def transitions(replay):
    return {task: figures["transitions"] for task, figures in replay.replay._replay.stats().items()}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run's writer, its keeper of rows and its first replay, which has saved 160 steps of each task."""
    monkeypatch.setattr(rows_module, "ray", types.SimpleNamespace(get=lambda answer: answer))
    keeper, replay, writer = RowsKeeper(SPECS, CONFIG), Remote(), CheckpointWriter(tmp_path, 2, ROW_BYTES)
    assert keeper.fill(replay, None) == ("nothing", True)
    for number in range(10):
        push(replay, number)
    save(writer, keeper, replay)
    return writer, keeper, replay


def save(writer, keeper, replay):
    state = replay.snapshot.remote()[1]
    saved = Checkpoint(sum(state["frames"].values()), {"specs": []}, b"", b"", state)
    return writer.write(saved, keeper.reader(replay))


def test_rows_of_another_node_that_are_lost_are_told_as_such(begun, monkeypatch):
    _, keeper, replay = begun
    with pytest.raises(RunError, match="the replay was on another node, and its rows with it"):
        keeper.take_over()
    with pytest.raises(RunError, match="nothing was collected yet"):
        RowsKeeper(SPECS, CONFIG).take_over()

    def lost(answer):
        raise ObjectLostError("ff" * 28, None, "a call")

    monkeypatch.setattr(rows_module, "ray", types.SimpleNamespace(get=lost))
    with pytest.raises(UnreachableError, match="the replay is gone"):
        keeper.reader(replay)("left", 0, 8)


def test_a_replaced_replay_has_the_newest_checkpoints_rows(begun):
    writer, keeper, _ = begun
    replay = Remote()
    assert keeper.fill(replay, writer.newest) == ("checkpoint", True)
    assert transitions(replay) == {"left": 160, "right": 160}


def test_a_replaced_replay_whose_rows_files_are_gone_has_counts_only_and_what_follows_is_saved(begun):
    writer, keeper, _ = begun
    # The rows of the other task are there, and are put back before it is found.
    writer.newest.rows["right"][0].path.unlink()
    replay = Remote()
    assert keeper.fill(replay, writer.newest) == ("checkpoint", False)
    assert transitions(replay) == {"left": 0, "right": 0}
    assert replay.count.remote()["frames"] == {"left": 160, "right": 160}
    push(replay, 11)
    saved = read(save(writer, keeper, replay))
    assert {task: [(chunk.begin, chunk.end) for chunk in of] for task, of in saved.rows.items()} == {
        "left": [(0, 17)],
        "right": [(0, 17)],
    }


def test_rows_that_are_overwritten_between_two_pieces_are_not_joined(begun, monkeypatch):
    """What lies before a gap would lead to what lies behind it: a transition that never was."""
    _, keeper, replay = begun
    while replay.replay._replay.held("left")[1] < 1000:
        push(replay, replay.replay._replay.held("left")[1], steps=89)
    begin, end = replay.replay._replay.held("left")
    monkeypatch.setattr(rows_module, "_PIECE_BYTES", 4 * SPECS[0].row_size * 100)
    read, calls = replay.replay.read_rows, []

    def read_rows(task, first, last):
        found = read(task, first, last)
        calls.append(first)
        if len(calls) == 1:
            # The ring's start moves from within this piece to within the next one.
            push(replay, 10_000, steps=149)
        return found

    replay.replay.read_rows = read_rows
    found, rows = keeper.reader(replay)("left", begin, end)
    assert calls[:2] == [begin, begin + 100]
    assert begin + 100 < found
    assert len(rows) == end - found
    assert (found, rows.tobytes()) == (found, read("left", found, end)[1].tobytes())


def test_a_run_does_not_begin_with_a_checkpoint_whose_rows_are_gone(begun):
    writer, _, _ = begun
    shutil.rmtree(writer.newest.path)
    with pytest.raises(UsageError, match=r"can't be read \(No such file"):
        RowsKeeper(SPECS, CONFIG).fill(Remote(), writer.newest)
