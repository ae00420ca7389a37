"""The caller's process while users' code works in it: it is restored, and waits only so long."""

import logging
import os
import signal
import threading
import time

import pytest

from mtray.errors import UsageError
from mtray.tasks import guarded
from mtray.tasks.guarded import process_restored
from mtray.tasks.plan import Task
from mtray.testing import CountingMaker


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


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(guarded, "_TOLD_SECONDS", 0.1)
    monkeypatch.setattr(guarded, "_LIMIT_SECONDS", 0.3)


class Sleeper(CountingMaker):
    def __call__(self, num_envs, seed):
        time.sleep(100)


# pytest-timeout's other method uses the alarm.
@pytest.mark.timeout(60, method="thread")
def test_a_maker_that_hangs_is_named_and_given_up(soon, caplog):
    with pytest.raises(UsageError, match=r"task 'mine': its maker, and the first .* not done after 0.3 s"):
        _ = Task("mine", "torchrl", Sleeper()).spec
    assert caplog.messages == [
        "task 'mine': its maker, and the first reset and steps of its environment: waited for since 0.1 s"
    ]
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_ends_in_time_is_not_told(soon, caplog):
    with guarded.limited("it"):
        pass
    time.sleep(0.4)
    assert not caplog.messages


@pytest.mark.parametrize("where", ["in a thread", "where the caller has an alarm"])
def test_elsewhere_it_is_only_told(soon, caplog, where):
    def wait():
        with guarded.limited("it"):
            time.sleep(0.5)

    if where == "in a thread":
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    else:
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        wait()
        signal.signal(signal.SIGALRM, before)
    assert caplog.messages == ["it: waited for since 0.1 s"]
