"""The process that trains: signals ask for a stop, and everything is as it was afterwards."""

import logging
import os
import signal
import threading

import pytest

from mtray.cluster import driver
from mtray.cluster.driver import process_restored, stop_signals
from mtray.errors import UsageError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_a_later_one_interrupts(monkeypatch, number):
    monkeypatch.setattr(driver, "_SAME_SECONDS", 0.0)
    before, asked = handlers(), []
    with stop_signals(asked.append):
        os.kill(os.getpid(), number)
        assert asked == ["interrupted"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before


def test_two_signals_within_an_instant_are_one_wish():
    asked = []
    with stop_signals(asked.append):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    assert asked == ["interrupted"]


def test_a_hang_up_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(lambda _: pytest.fail("asked")):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_leaves_signals_alone():
    before, found = handlers(), []

    def work():
        with stop_signals(found.append):
            found.extend(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before == handlers()


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


def test_a_folder_that_was_deleted_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="current folder was deleted"), process_restored():
        pass
