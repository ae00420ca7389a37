"""Rows in checkpoints: each is written once, every checkpoint is whole by itself, overwritten rows end with it."""

import os
import shutil

import numpy as np
import pytest

from mtray.rundir.checkpoints import writer as writer_module
from mtray.rundir.checkpoints.checkpoint import Checkpoint, checkpoints_of, latest, read
from mtray.rundir.checkpoints.writer import CheckpointWriter

ROW_BYTES = 8


class Ring:
    """Rows that hold their own numbers, as a replay reads them."""

    def __init__(self, capacity):
        self.capacity, self.written, self.first, self.fetched = capacity, 0, 0, []

    @property
    def start(self):
        return max(self.first, self.written - self.capacity)

    def fetch(self, task, begin, end):
        self.fetched.append((begin, end))
        begin = min(max(begin, self.start), end)
        return begin, np.repeat(np.arange(begin, end, dtype=np.float32)[:, None], 2, 1)


def save(writer, ring, frames):
    replay = {"written": {"a": ring.written}, "start": {"a": ring.start}}
    return writer.write(Checkpoint(frames, {"specs": []}, b"", b"", replay), ring.fetch)


def numbers(path):
    rows = [chunk.load()[:, 0] for chunk in read(path).rows["a"]]
    return np.concatenate(rows).astype(int).tolist() if rows else []


@pytest.mark.parametrize("steps", [(5, 5, 5, 5), (100, 1, 1, 1, 50), (1, 2, 4, 8, 16, 32), (0, 3, 0)])
def test_every_checkpoint_holds_every_row(tmp_path, steps):
    writer, ring = CheckpointWriter(tmp_path, 2, {"a": ROW_BYTES}), Ring(10**6)
    for frames, step in enumerate(steps):
        ring.written += step
        assert numbers(save(writer, ring, frames)) == list(range(ring.written))


def test_rows_are_written_a_few_times_at_most_and_there_are_few_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", 256 * ROW_BYTES)
    writer, ring = CheckpointWriter(tmp_path, 2, {"a": ROW_BYTES}), Ring(10**6)
    for frames in range(200):
        ring.written += 16
        path = save(writer, ring, frames)
    assert numbers(path) == list(range(3200))
    assert sum(end - begin for begin, end in ring.fetched) < 5 * 3200
    assert len(read(path).rows["a"]) < 3200 // 256 + 8


def test_what_was_written_before_is_a_link_and_stays_when_older_checkpoints_go(tmp_path):
    writer, ring = CheckpointWriter(tmp_path, 1, {"a": ROW_BYTES}), Ring(10**6)
    ring.written = 1000
    first = save(writer, ring, 1)
    (file,) = first.glob("rows_*")
    number = file.stat().st_ino
    ring.written += 10
    second = save(writer, ring, 2)
    assert not first.exists()
    assert number in {path.stat().st_ino for path in second.glob("rows_*")}
    assert ring.fetched == [(0, 1000), (1000, 1010)]
    assert numbers(second) == list(range(1010))


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    writer, ring = CheckpointWriter(tmp_path, 1, {"a": ROW_BYTES}), Ring(10**6)
    ring.written = 1000
    save(writer, ring, 1)
    ring.written += 10
    assert numbers(save(writer, ring, 2)) == list(range(1010))
    assert ring.fetched == [(0, 1000), (1000, 1010)]


def test_chunks_whose_rows_were_all_overwritten_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", 8 * ROW_BYTES)
    writer, ring = CheckpointWriter(tmp_path, 1, {"a": ROW_BYTES}), Ring(32)
    for frames in range(30):
        ring.written += 8
        path = save(writer, ring, frames)
    assert numbers(path) == list(range(ring.written - 32, ring.written))
    assert len(list(path.glob("rows_*"))) == 4


def test_rows_that_are_overwritten_while_they_are_saved_are_left_out(tmp_path):
    ring = Ring(32)
    ring.written = 100
    saved = Ring(32)
    saved.written = 110
    writer = CheckpointWriter(tmp_path, 1, {"a": ROW_BYTES})
    replay = {"written": {"a": 100}, "start": {"a": 68}}
    path = writer.write(Checkpoint(1, {"specs": []}, b"", b"", replay), saved.fetch)
    assert numbers(path) == list(range(78, 100))


def test_a_resumed_run_links_what_was_saved_before(tmp_path):
    ring = Ring(10**6)
    ring.written = 500
    save(CheckpointWriter(tmp_path, 2, {"a": ROW_BYTES}), ring, 1)
    (tmp_path / "fork").mkdir()
    for run_dir in (tmp_path, tmp_path / "fork"):
        ring.fetched.clear()
        ring.written = 510
        path = save(CheckpointWriter(run_dir, 2, {"a": ROW_BYTES}, read(latest(tmp_path))), ring, 2)
        assert numbers(path) == list(range(510))
        assert ring.fetched == ([(500, 510)] if run_dir == tmp_path else [])


@pytest.mark.parametrize("chunk_rows", [100, 10**6])
def test_rows_whose_files_are_gone_are_written_again_as_far_as_the_ring_holds_them(tmp_path, monkeypatch, chunk_rows):
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", chunk_rows * ROW_BYTES)
    ring = Ring(600)
    ring.written = 500
    parent = save(CheckpointWriter(tmp_path, 2, {"a": ROW_BYTES}), ring, 1)
    (tmp_path / "fork").mkdir()
    fork = CheckpointWriter(tmp_path / "fork", 2, {"a": ROW_BYTES}, read(parent))
    # The parent run has saved twice since.
    shutil.rmtree(parent)
    for frames, written in ((2, 510), (3, 700)):
        ring.written = written
        path = save(fork, ring, frames)
        # Overwritten rows of a chunk stay while others of it are held.
        assert numbers(path)[-600:] == list(range(ring.start, written))[-600:]
    for chunk in read(path).rows["a"][:1]:
        chunk.path.unlink()
    assert numbers(save(fork, ring, 4)) == list(range(100, 700))


def test_a_write_that_failed_is_made_again_whole(tmp_path, monkeypatch):
    writer, ring = CheckpointWriter(tmp_path, 2, {"a": ROW_BYTES}), Ring(10**6)
    ring.written = 10
    save(writer, ring, 1)
    ring.written = 30
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "_write_rest", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            save(writer, ring, 2)
    assert numbers(latest(tmp_path)) == list(range(10))
    ring.written = 40
    assert numbers(save(writer, ring, 3)) == list(range(40))


def test_a_checkpoint_that_can_not_be_removed_is_no_failure_and_is_tried_again(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(39, "Directory not empty")

    first = CheckpointWriter(tmp_path, 9, {"a": ROW_BYTES})
    paths = [save(first, Ring(10), frames) for frames in (1, 2, 3)]
    # Both checkpoints after the one that it goes on from are superseded.
    writer = CheckpointWriter(tmp_path, 2, {"a": ROW_BYTES}, read(paths[0]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        path = save(writer, Ring(10), 1)
    assert latest(tmp_path) == path
    assert all(old.exists() for old in paths)
    newest = save(writer, Ring(10), 2)
    assert checkpoints_of(tmp_path) == [path, newest]
