"""Memory that outlives the replay's process: what was acknowledged is there, whenever that process was killed."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from numpy.random import default_rng

from mtray.config.settings import ReplayConfig
from mtray.data.messages import Push
from mtray.data.rows import TRANSITION, row_flags
from mtray.errors import RunError
from mtray.replay import journal as journal_module
from mtray.replay.buffer import ReplayBuffer
from mtray.replay.journal import Journal
from mtray.replay.memory import RingMemory, end_process, process_identity
from tests.makers import make_spec

SPECS = (make_spec("left", 3, 2), make_spec("right", 1, 3))
CAPACITY = 50
CONTEXT = multiprocessing.get_context("fork")


def make_push(number, source="here", steps=6):
    """Return a push of different rows every time."""
    generator = default_rng([number, len(source)])
    rows = {}
    for spec in SPECS:
        rows[spec.name] = generator.normal(size=(steps, spec.row_size)).astype(np.float32)
        row_flags(rows[spec.name])[:] = [TRANSITION] * (steps - 1) + [0]
    return Push(source=source, number=number, rows=rows, largest_returns={"left": float(number)})


def make_replay(memory=None, capacity=CAPACITY):
    replay = ReplayBuffer(SPECS, ReplayConfig(capacity_rows=capacity), 7, memory)
    if memory is not None:
        replay.begin_journal()
    return replay


def taken_over(memory):
    """Return the replay as the next process has it."""
    replay = ReplayBuffer(SPECS, ReplayConfig(capacity_rows=CAPACITY), 7, RingMemory.attach(memory.address))
    replay.take_over()
    return replay


def contents(replay):
    state = replay.state()
    del state["generator"]
    return json.dumps(state), {spec.name: replay.rows(spec.name).tobytes() for spec in SPECS}, replay.stats()


@pytest.mark.parametrize("pushes", [0, 1, 5, 40], ids=["empty", "one", "filling", "wrapped"])
def test_the_next_process_has_every_row_count_statistic_and_receipt(pushes):
    memory = RingMemory.new(SPECS, CAPACITY)
    replay = make_replay(memory)
    for number in range(pushes):
        replay.insert(make_push(number))
    found = taken_over(memory)
    assert contents(found) == contents(replay)
    if pushes:
        # A push whose receipt was lost is sent again, and is known.
        again = make_push(pushes - 1)
        assert found.insert(again) == replay.insert(again)
        found.insert(make_push(pushes))
        replay.insert(make_push(pushes))
        assert contents(found) == contents(replay)
        assert found.sample_rows(8).rows["left"].shape[:2] == (1, 8)


def test_taking_over_provides_no_memory_that_was_never_written():
    memory = RingMemory.new(SPECS, 10**6)
    replay = ReplayBuffer(SPECS, ReplayConfig(capacity_rows=10**6), 7, memory)
    replay.begin_journal()
    replay.insert(make_push(0))
    found = ReplayBuffer(SPECS, ReplayConfig(capacity_rows=10**6), 7, RingMemory.attach(memory.address))
    found.take_over()
    # Of 28 MB for the rings' rows.
    assert sum(512 * os.fstat(block.file.descriptor).st_blocks for block in memory._blocks.values()) < 10**6
    assert found.stats() == replay.stats()


def test_it_is_taken_over_again_and_again_and_after_the_journal_was_begun_anew(monkeypatch):
    monkeypatch.setattr(journal_module, "_FILE_BYTES", 4000)
    memory = RingMemory.new(SPECS, CAPACITY)
    replay, oracle = make_replay(memory), make_replay()
    for number in range(60):
        replay.insert(make_push(number))
        oracle.insert(make_push(number))
        if number % 7 == 0:
            replay = taken_over(memory)
            assert contents(replay) == contents(oracle)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("state_bytes", [100, 5000])
def test_a_state_is_not_written_again_with_every_record_however_long_it_is(monkeypatch, state_bytes):
    monkeypatch.setattr("mtray.replay.journal._FILE_BYTES", 1000)
    journal = Journal()
    begun = 0
    for _ in range(2000):
        if not begun or journal.is_long:
            journal.begin(bytes(state_bytes))
            begun += 1
        journal.add(bytes(20))
        journal.done()
    assert 2 <= begun <= 1 + 2000 * 40 / max(1000, 2 * state_bytes)


@pytest.mark.parametrize("pushes", [3, 8, 30])
@pytest.mark.parametrize("at", ["before the rows", "between two tasks", "after the rows"])
def test_a_push_that_was_being_stored_is_not_there_and_only_what_it_overwrote_is_lost(monkeypatch, pushes, at):
    memory = RingMemory.new(SPECS, CAPACITY)
    replay = make_replay(memory)
    oracle = make_replay()
    for number in range(pushes):
        replay.insert(make_push(number))
        oracle.insert(make_push(number))
    ring = replay._rings["left" if at == "before the rows" else "right"]
    if at == "after the rows":
        monkeypatch.setattr(memory.journal, "done", lambda: (_ for _ in ()).throw(KilledError))
    else:
        monkeypatch.setattr(ring, "insert", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        replay.insert(make_push(pushes))
    found = taken_over(memory)
    assert contents(found)[0] == contents(oracle)[0]
    for task in ("left", "right"):
        held, expected = found.rows(task), oracle.rows(task)
        torn = max(0, len(expected) + 6 - CAPACITY)
        assert held[torn:].tobytes() == expected[torn:].tobytes()
        assert not held[:torn].any()
    # Nothing of the torn rows is drawn, and the push is stored when it is sent again.
    drawn = found.sample_rows(500).rows["left"][0]
    assert (row_flags(drawn[:, : SPECS[0].row_size]) & TRANSITION).all()
    assert found.insert(make_push(pushes)).frames == oracle.insert(make_push(pushes)).frames
    assert found.frames() == oracle.frames()


def test_a_state_that_was_being_written_counts_for_nothing():
    journal = Journal()
    journal.begin(b"first")
    journal.add(b"one")
    journal.done()
    journal.begin(b"second")
    file = journal._files[journal._generation % 2]
    os.ftruncate(file.descriptor, 12)
    assert journal.read() == (b"first", [(b"one", True)])
    with pytest.raises(RunError, match="holds no state"):
        Journal().read()


def fill_for_ever(pipe):
    memory = RingMemory.new(SPECS, CAPACITY)
    replay = make_replay(memory)
    pipe.send(memory.address)
    for number in range(10**9):
        replay.insert(make_push(number))
        pipe.send(number)


@pytest.mark.parametrize("moment", range(4))
def test_what_a_killed_process_has_acknowledged_is_there(moment):
    """A real process is killed with SIGKILL while it stores pushes one after the other."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=fill_for_ever, args=(there,))
    process.start()
    memory = RingMemory.attach(here.recv())
    acknowledged = [here.recv() for _ in range(20 + 7 * moment)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while here.poll():
        acknowledged = here.recv()
    replay = ReplayBuffer(SPECS, ReplayConfig(capacity_rows=CAPACITY), 7, memory)
    replay.take_over()
    oracle = make_replay()
    stored = replay.frames()["left"] // 5
    assert stored in (acknowledged + 1, acknowledged + 2), "one may be stored whose acknowledgement did not come"
    for number in range(stored):
        oracle.insert(make_push(number))
    assert contents(replay)[0] == contents(oracle)[0]
    for task in ("left", "right"):
        assert replay.rows(task)[6:].tobytes() == oracle.rows(task)[6:].tobytes()


def test_a_writer_that_is_still_there_is_ended_before_the_memory_is_taken_over():
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=fill_for_ever, args=(there,))
    process.start()
    memory = RingMemory.attach(here.recv())
    here.recv()
    replay = ReplayBuffer(SPECS, ReplayConfig(capacity_rows=CAPACITY), 7, memory)
    replay.take_over()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_another_process_that_got_the_same_id_is_left_alone():
    process = CONTEXT.Process(target=time.sleep, args=(60,))
    process.start()
    end_process([process.pid, 1])
    assert process.is_alive()
    process.kill()
    process.join()
    # This process itself took the memory over from itself.
    end_process(process_identity())


def test_memory_whose_holders_have_ended_is_not_found():
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=fill_for_ever, args=(there,))
    process.start()
    address = here.recv()
    process.kill()
    process.join()
    with pytest.raises(OSError, match=r"No such file|holds no block"):
        RingMemory.attach(address)


def test_memory_of_other_rings_is_refused():
    memory = RingMemory.new(SPECS, CAPACITY)
    with pytest.raises(ValueError, match="reshape"):
        make_replay(memory, capacity=CAPACITY + 1)
