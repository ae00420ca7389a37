"""Pacing: the two lines, the settings that would stop both sides, and that no interleaving does."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtray.errors import UsageError
from mtray.replay.pacing import Pacing


def make_pacing(**changes):
    fields = {"updates_per_step": 2.0, "step_frames": 3, "start_frames": 30, "slack_frames": 60, "round_frames": 12}
    return Pacing(**{**fields, **changes})


@pytest.mark.parametrize(
    ("frames", "updates"), [(0, 0), (29, 0), (30, 0), (31, 0), (32, 1), (33, 2), (36, 4), (330, 200)]
)
def test_updates_allowed_are_updates_per_step_of_every_task_after_warmup(frames, updates):
    assert make_pacing().updates_allowed(frames) == updates


@pytest.mark.parametrize(("updates", "frames"), [(0, 90), (1, 91.5), (2, 93), (200, 390)])
def test_frames_allowed_are_those_of_the_updates_and_the_slack(updates, frames):
    assert make_pacing().frames_allowed(updates) == frames


def test_fewer_than_one_update_per_step():
    pacing = make_pacing(updates_per_step=0.25, start_frames=0)
    assert [pacing.updates_allowed(frames) for frames in (0, 11, 12, 23, 24)] == [0, 0, 1, 1, 2]
    assert pacing.frames_allowed(2) == 24 + 60


def test_between_the_most_and_the_least_both_sides_are_free():
    pacing = make_pacing(least_updates_per_step=0.5)
    # 100 steps of every task after the warm-up.
    assert (pacing.updates_owed(330), pacing.updates_allowed(330)) == (50, 200)
    assert [pacing.frames_allowed(updates) for updates in (50, 200)] == [330 + 60, 1230 + 60]


def test_the_least_is_that_of_a_fixed_ratio_unless_it_is_given():
    assert make_pacing().least == 2.0
    assert make_pacing().updates_owed(330) == make_pacing().updates_allowed(330) == 200


@pytest.mark.parametrize("least", [0.0, -1.0, 2.5])
def test_a_least_that_is_none_or_more_than_the_most_is_refused(least):
    with pytest.raises(UsageError, match=f"at least {least:g} updates per step and at most 2"):
        make_pacing(least_updates_per_step=least)


def test_without_updates_collectors_are_never_held():
    pacing = make_pacing(updates_per_step=0.0, slack_frames=0)
    assert pacing.updates_allowed(10**9) == 0
    assert pacing.frames_allowed(0) == float("inf")


def test_slack_that_only_just_suffices_is_taken_and_one_less_refused():
    # A round of 12 frames, and an update that needs 3 / 2 frames: 12 + 1 + 1.
    assert make_pacing(slack_frames=14).frames_allowed(0) == 44
    with pytest.raises(UsageError, match=r"slack of 13 frames: .* 12 at a time, .* 1\.5, so at least 14"):
        make_pacing(slack_frames=13)


@pytest.mark.parametrize(
    "change", [{"updates_per_step": 1.0}, {"least_updates_per_step": 1.0}, {"step_frames": 6}], ids=str
)
def test_a_resumed_run_that_paces_by_other_steps_or_another_ratio_owes_nothing_of_before(change):
    """Another number of frames in a step: a task that was set aside is back."""
    saved, resumed = make_pacing(), make_pacing(**change).resumed(make_pacing(), 3000, 1980, lost_rows=False)
    assert saved.updates_allowed(3000) == 1980
    assert resumed.updates_allowed(3000) == resumed.updates_owed(3000) == 1980
    assert resumed.frames_allowed(1980) == 3000 + 60
    assert resumed.updates_allowed(3600) > 1980


def test_a_resumed_run_that_paces_as_before_owes_what_it_owed():
    assert make_pacing().resumed(make_pacing(start_frames=60), 3000, 5, lost_rows=False) == make_pacing(start_frames=60)
    assert make_pacing().resumed(make_pacing(), 3000, 5, lost_rows=True).start_frames == 3000 + 30


@pytest.mark.parametrize("change", [{"updates_per_step": -0.5}, {"step_frames": 0}, {"start_frames": -1}], ids=str)
def test_negative_setting_is_refused_with_its_value(change):
    [(name, value)] = change.items()
    with pytest.raises(UsageError, match=f"{name}={value}"):
        make_pacing(**change)


@st.composite
def settings_that_are_taken(draw):
    step_frames, round_frames = draw(st.integers(1, 30)), draw(st.integers(1, 200))
    updates_per_step = draw(st.one_of(st.floats(0.01, 16.0), st.sampled_from([0.1, 0.3, 1 / 3, 0.7, 1.0, 2.0, 3.0])))
    least_updates_per_step = updates_per_step * draw(st.sampled_from([1.0, 0.9, 0.1]))
    least = round_frames + int(step_frames / least_updates_per_step) + 1
    return Pacing(
        updates_per_step=updates_per_step,
        step_frames=step_frames,
        start_frames=draw(st.integers(0, 500)),
        slack_frames=least + draw(st.integers(0, 50)),
        round_frames=round_frames,
        least_updates_per_step=least_updates_per_step,
    )


# Who moves when both may, and how much of what is allowed.
SCHEDULES = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(settings_that_are_taken(), SCHEDULES)
def test_no_interleaving_stops_both_sides_or_crosses_a_line(pacing, schedule):
    total = pacing.start_frames + 3 * pacing.slack_frames
    frames = updates = 0
    moves = itertools.cycle(schedule)
    while frames < total:
        collector_first, share = next(moves)
        chunk = 1 + int(share * (pacing.round_frames - 1))
        behind = pacing.updates_allowed(frames) - updates
        collects = frames + chunk <= pacing.frames_allowed(updates)
        assert collects or behind > 0, f"both wait at {frames} frames and {updates} updates"
        if collects and (collector_first or behind <= 0):
            frames += chunk
        else:
            updates += 1 + int(share * (behind - 1))
        steps = (frames - pacing.start_frames) / pacing.step_frames
        assert updates <= max(0.0, pacing.updates_per_step * steps) + 1e-6
        ahead = steps - updates / pacing.least
        assert ahead * pacing.step_frames <= pacing.slack_frames + 1e-6


def test_without_updates_collectors_are_never_held_back():
    pacing = Pacing(updates_per_step=0, step_frames=1, start_frames=0, slack_frames=0, round_frames=10)
    assert pacing.frames_allowed(0) == float("inf")
    assert pacing.updates_allowed(1_000_000) == 0
