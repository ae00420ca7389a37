"""The process is restored after a block."""

import logging
import os

import pytest

from mtray.errors import UsageError
from mtray.tasks.restored import process_restored


def test_folder_environment_and_logging_are_restored_also_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    folder, environment, logger = os.getcwd(), dict(os.environ), logging.getLogger("ray")
    before = (logger.level, logger.propagate, logger.handlers[:], logging.getLogger().level)

    def change():
        os.chdir(tmp_path)
        os.environ["CHANGED"], os.environ["ADDED"] = "now", "now"
        del os.environ["REMOVED"]
        logger.setLevel(5)
        logger.addHandler(logging.NullHandler())
        logger.propagate = not logger.propagate
        logging.getLogger().setLevel(7)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), process_restored():
        change()
    assert os.getcwd() == folder
    assert dict(os.environ) == environment
    assert (logger.level, logger.propagate, logger.handlers[:], logging.getLogger().level) == before


def test_a_folder_that_was_deleted_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="current folder was deleted"), process_restored():
        pass
