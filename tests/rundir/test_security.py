"""A stranger's run directory: nothing in it is executed or imported when its policy is loaded or its state is read."""

import contextlib
import json
import os
import pickle
import sys
import zlib

import numpy as np
import pytest
import torch

import mtray
from mtray.errors import UsageError
from mtray.rundir.checkpoints.checkpoint import from_bytes, read
from tests.rundir.test_checkpoint import CONFIG, EVERY_FILE, make_checkpoint, policy, write

__all__ = ["policy"]


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def forge(folder, name, data):
    """Replace a file of a checkpoint, with its checksum."""
    (folder / name).write_bytes(data)
    meta = json.loads((folder / "meta.json").read_text())
    meta["crc32"][name] = zlib.crc32(data)
    (folder / "meta.json").write_text(json.dumps(meta))


def pickled(evil):
    return pickle.dumps(evil, protocol=2)


def saved_by_torch(evil):
    path = evil.path.with_suffix(".pt")
    torch.save({"weights": evil}, path)
    return path.read_bytes()


def saved_by_numpy(evil):
    path = evil.path.with_suffix(".npy")
    np.save(path, np.array([evil], dtype=object), allow_pickle=True)
    return path.read_bytes()


@pytest.mark.parametrize("make", [pickled, saved_by_torch, saved_by_numpy])
@pytest.mark.parametrize("name", EVERY_FILE[1:])
def test_code_in_a_file_is_not_run(tmp_path, policy, name, make):
    (tmp_path / "run").mkdir()
    folder = write(tmp_path / "run", make_checkpoint(7, policy), 2)
    mark = tmp_path / "was_here"
    forge(folder, name, make(Evil(mark)))
    for attempt in (
        lambda: mtray.load_policy(folder),
        lambda: [chunk.load() for chunks in read(folder).rows.values() for chunk in chunks],
        lambda: from_bytes(read(folder).learner),
        lambda: from_bytes(read(folder).policy),
    ):
        # Some of them do not look into this file.
        with contextlib.suppress(UsageError, pickle.UnpicklingError):
            attempt()
    assert not mark.exists()
    # The file would have left its mark where code is run.
    if make is pickled:
        pickle.loads((folder / name).read_bytes())
        assert mark.exists()


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/passwd", "sub/rows.npy"])
def test_rows_outside_of_the_checkpoint_are_refused(tmp_path, name):
    folder = write(tmp_path, make_checkpoint(7), 2)
    meta = json.loads((folder / "meta.json").read_text())
    meta["rows"]["left"][0][2] = name
    meta["crc32"][name] = 0
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="outside of the checkpoint"):
        read(folder)


def test_loading_a_policy_imports_no_module_that_the_run_names(tmp_path, policy, monkeypatch):
    folder = write(tmp_path, make_checkpoint(7, policy), 2)
    config = {"config": {**json.loads((folder / "meta.json").read_text())["config"], "tasks": ["evil_maker:maker"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil_maker.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert mtray.load_policy(tmp_path).names == CONFIG.tasks
    assert "evil_maker" not in sys.modules
