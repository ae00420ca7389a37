"""Which collectors run ahead of others."""

from types import SimpleNamespace

import pytest

from mtray.cluster.control.parts.queues import Levels


def actors(count):
    return [SimpleNamespace(index=index, life=0) for index in range(count)]


def advance(levels, actor, rollouts):
    for _ in range(rollouts):
        levels.advance(actor)


def test_who_is_ahead_is_held_back_and_let_go_by_the_slowest_ones_next_rollout():
    levels, (slow, fast) = Levels(lead=2), actors(2)
    levels.enter(slow)
    levels.enter(fast)
    advance(levels, fast, 2)
    assert not levels.holds_back(slow, 1)
    assert not levels.holds_back(fast, 0)
    assert levels.holds_back(fast, 1)
    assert levels.advance(slow) == [fast]


@pytest.mark.parametrize("missed", [10, 64, 65, 1000])
def test_one_that_is_later_than_the_others_catches_up_within_a_limit(missed):
    levels, (first, late) = Levels(lead=2, missed=64), actors(2)
    levels.enter(first)
    advance(levels, first, missed)
    levels.enter(late)
    assert levels.holds_back(first, 0)
    advance(levels, late, min(missed, 64) - 2)
    assert not levels.holds_back(first, 0)
    # Its place in the row is that of what it has made, not of what it missed.
    advance(levels, late, 4)
    assert levels.holds_back(late, 1)
    assert levels.lowest == missed


def test_one_that_is_back_alone_waits_for_nobody():
    # Simulation seed 6468.
    levels, (slow, fast) = Levels(lead=2, missed=64), actors(2)
    levels.enter(slow)
    levels.enter(fast)
    advance(levels, fast, 2)
    levels.leave(fast)
    levels.leave(slow)
    levels.enter(fast)
    assert not levels.holds_back(fast, 1)


def test_one_that_was_away_goes_on_from_where_it_left_and_nobody_waits_for_it_meanwhile():
    levels, (stays, goes) = Levels(lead=2, missed=64), actors(2)
    levels.enter(stays)
    levels.enter(goes)
    advance(levels, stays, 2)
    assert levels.holds_back(stays, 1)
    assert levels.leave(goes) == [stays]
    assert not levels.holds_back(stays, 1)
    advance(levels, stays, 20)
    goes.life = 1
    levels.enter(goes)
    assert levels.holds_back(stays, 0)
    advance(levels, goes, 20)
    assert not levels.holds_back(stays, 0)
