"""Blocks: the same memory in another process, found by its address only, gone with its owner."""

import gc
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mtray.data import blocks as shared
from mtray.data.blocks import Block, SharedRows

# Reads pickled rows, doubles the first array and says what the second held.
OTHER = """
import pickle, sys
rows = pickle.load(sys.stdin.buffer)
rows["left"][:] *= 2
print(list(rows), rows["right"].tolist(), rows["left"].shape)
"""


def in_another_process(rows):
    done = subprocess.run([sys.executable, "-c", OTHER], input=pickle.dumps(rows), capture_output=True, check=False)
    return done.stdout.decode().strip(), done.stderr.decode()


def make_rows(begin=0):
    rows = SharedRows(Block.new(100), begin)
    rows.add("left", (2, 3))[:] = 1.5
    rows.add("right", (4,))[:] = [1, 2, 3, 4]
    return rows


@pytest.mark.parametrize("begin", [0, 7])
def test_another_process_reads_and_writes_the_same_memory(begin):
    rows = make_rows(begin)
    found, errors = in_another_process(rows)
    assert found == "['left', 'right'] [1.0, 2.0, 3.0, 4.0] (2, 3)", errors
    assert (rows["left"] == 3.0).all()


def test_the_message_does_not_hold_the_rows():
    rows = SharedRows(Block.new(10_000))
    rows.add("left", (100, 100))
    assert len(pickle.dumps(rows)) < 300


def test_the_owner_finds_its_own_memory():
    rows = make_rows()
    again = pickle.loads(pickle.dumps(rows))
    assert np.shares_memory(again["right"], rows["right"])


def test_a_block_is_gone_with_its_last_rows():
    rows = make_rows()
    message, address = pickle.dumps(rows), rows.__reduce__()[1][0]
    assert address.exists()
    descriptors = len(os.listdir("/proc/self/fd"))
    del rows
    gc.collect()
    assert not address.exists()
    assert len(os.listdir("/proc/self/fd")) < descriptors
    with pytest.raises(FileNotFoundError, match=address.name):
        pickle.loads(message)


def test_a_process_of_another_node_is_not_taken_for_the_owner():
    block = Block.new(10)
    for elsewhere in (
        # Ids count from one on every node: there may be such a process, and it may have such a block.
        replace(block.address, name="mtray-other"),
        replace(block.address, descriptor=0),
        replace(block.address, process=2**22 + 1),
    ):
        assert not elsewhere.exists()
        assert not shared.reaches(elsewhere)
    assert shared.reaches(block.address)


def test_what_was_mapped_of_an_owner_that_is_gone_is_let_go(monkeypatch):
    # As in another process, which does not own them.
    monkeypatch.setattr(shared, "_own", {})
    monkeypatch.setattr(shared, "_others", {})
    kept, gone, late = make_rows(), make_rows(), make_rows()
    shared._own.clear()
    for rows in (kept, gone):
        assert (pickle.loads(pickle.dumps(rows))["right"] == [1, 2, 3, 4]).all()
    mapped = pickle.loads(pickle.dumps(gone))
    assert len(shared._others) == 2
    del gone, rows
    gc.collect()
    pickle.loads(pickle.dumps(late))
    assert len(shared._others) == 2
    # Who still reads it may.
    assert (mapped["left"] == 1.5).all()


def test_arrays_that_do_not_fit_are_an_error():
    rows = make_rows()
    with pytest.raises(ValueError, match="reshape"):
        rows.add("wide", (91,))
