"""Stop signals: the first asks, a later one interrupts."""

import os
import signal
import threading

import pytest

from mtray.cluster.session import signals
from mtray.cluster.session.signals import stop_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_a_later_one_interrupts(monkeypatch, number):
    monkeypatch.setattr(signals, "_SAME_SECONDS", 0.0)
    before, asked = handlers(), []
    with stop_signals(asked.append):
        os.kill(os.getpid(), number)
        assert asked == ["interrupted"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before


def test_what_follows_is_told(capfd):
    with stop_signals(lambda _: None, lambda: "it is evaluated"):
        os.kill(os.getpid(), signal.SIGINT)
    assert "stopping: it is evaluated (once more to end at once)\n" in capfd.readouterr().err


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
