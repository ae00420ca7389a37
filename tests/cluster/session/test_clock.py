"""The time that control lives in, where the driver sleeps."""

import pytest

from mtray.cluster.session.clock import SLEPT_SECONDS, DriverClock


def test_what_the_driver_slept_through_is_no_time_of_its_own():
    times = iter([100.0, 100.2, 100.4, 200.4, 200.6, 200.6 + SLEPT_SECONDS, 300.0])
    clock = DriverClock(lambda: next(times))
    found = [clock.now() for _ in range(6)]
    assert found == pytest.approx([100.2, 100.4, 100.4, 100.6, 100.6 + SLEPT_SECONDS, 100.6 + SLEPT_SECONDS])
