"""Control by hand: what is asked for and when, and each fault that the simulation once found, as a test of its own."""

import pytest

from mtray.cluster.control.free import KEEP_SECONDS, MOST_UPDATES
from mtray.cluster.control.parts.lifecycle import RETRY_SECONDS
from mtray.cluster.control.plan import CALLS, TASK_ERRORS
from mtray.cluster.control.protocol import Answered, Collected, Failed, Failure, Method, Part, Restored, Stop
from mtray.cluster.control.recovery import ROOM_SECONDS
from tests.cluster.control.script import LEARNER, REPLAY, Script, collector, counts


def finish(script, frames, warm=True):
    """Answer what is left to be asked at the end of a run."""
    for _ in range(100):
        if script.end is not None:
            return
        for call in list(script.open.values()):
            value = {
                Method.FLUSH: 10,
                Method.CONNECT: 0,
                Method.COUNT: counts(frames, warm=warm),
                Method.SNAPSHOT: counts(frames, warm=warm),
            }.get(call.method)
            if call.method is not Method.HELLO:
                script.answer(call.method, value, call=call)
        script.wait(0.2)
    raise AssertionError(f"it does not end: {script.open}")


def collect_all(script, rollouts, part=None):
    """Answer so many rollouts."""
    for _ in range(rollouts):
        script.answer(Method.COLLECT, part=part)


# Asking.


def test_nothing_is_collected_before_the_replay_is_up_and_in_a_resumed_run_the_learner():
    for frames in (0, 20):
        script = Script(frames=frames)
        script.up(collector())
        assert script.find(Method.COLLECT) is None
        script.up(REPLAY)
        # Without weights actions are random, as they are in a new run until its first update.
        assert (script.find(Method.COLLECT) is None) == (frames > 0)
        script.up(LEARNER)
        assert [call.method for call in script.open.values()].count(Method.COLLECT) == 2


def test_collectors_that_are_warm_wait_for_a_learner_that_is_not_up():
    script = Script(ratio=1.0, warmup=20, slack=40, total=10**6)
    script.up(REPLAY, collector())
    asked = 0
    while script.find(Method.COLLECT):
        script.answer(Method.COLLECT)
        asked += 10
        script.wait(1)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(asked, warm=asked >= 20))
    assert 20 < asked <= 60
    script.up(LEARNER)
    assert script.find(Method.TRAIN)


def stopped_before_the_learner_is_up(**stop):
    script = Script(total=10**6)
    script.up(REPLAY, collector())
    script.answer(Method.COLLECT)
    script.answer(Method.COUNT, counts(10))
    script.event(Stop("enough", **stop))
    while script.find(Method.COLLECT):
        script.answer(Method.COLLECT)
    script.answer(Method.FLUSH, 30)
    script.answer(Method.COUNT, counts(30))
    script.wait(9)
    assert script.end is None
    return script


def test_what_was_collected_before_the_learner_is_up_is_saved_once_it_is():
    script = stopped_before_the_learner_is_up()
    script.up(LEARNER)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(30))
    script.answer(Method.WRITE)
    assert (script.end.outcome, script.end.reason) == ("done", "enough")
    assert "save" in script.events()


@pytest.mark.parametrize("is_due", [True, False])
def test_a_run_whose_learner_is_not_up_in_time_has_not_finished(is_due):
    script = stopped_before_the_learner_is_up(is_due=is_due)
    script.wait(1)
    assert script.told[-1].sentence == "the run ends unsaved: the learner was not ready"
    assert script.end.outcome == ("failed" if is_due else "done")
    assert not script.end.is_finished
    more = ", before the learner was ready, since starting took all of the time: give more" if is_due else ""
    assert script.end.reason == "enough" + more


def test_a_learner_that_can_not_be_built_ends_the_run_at_once_whatever_was_collected():
    script = Script(total=10**6)
    script.up(REPLAY, collector())
    script.answer(Method.COLLECT)
    script.answer(Method.COUNT, counts(10))
    script.answer(Method.HELLO, part=LEARNER)
    script.fail(Method.BUILD, Failure.INPUT, part=LEARNER, text="no such device")
    assert (script.end.outcome, script.end.reason) == ("input", "no such device")


def test_a_collector_has_two_calls_under_way_and_no_more_is_asked_than_wanted():
    script = Script(total=35).all_up()
    asked = 0
    while script.find(Method.COLLECT):
        assert len([c for c in script.open.values() if c.method is Method.COLLECT]) <= 2
        script.answer(Method.COLLECT)
        asked += 1
    assert asked == 4
    assert script.find(Method.FLUSH)


def test_collectors_that_have_nothing_to_do_are_asked_first():
    script = Script(tasks=({"a"}, {"a"}), total=30)
    script.up(collector(0), collector(1), REPLAY, LEARNER)
    parts = [call.part.place for call in script.open.values() if call.method is Method.COLLECT]
    assert sorted(parts[:2]) == [0, 1]


def test_the_learner_is_asked_for_what_is_owed_and_collectors_wait_for_it():
    script = Script(ratio=1.0, warmup=20, total=10**6).all_up()
    assert script.find(Method.TRAIN) is None
    collect_all(script, 5)
    script.answer(Method.COUNT, counts(50))
    assert script.find(Method.TRAIN).amount == 30
    # Slack is 1,000 frames beyond the warm-up's 20.
    while script.find(Method.COLLECT):
        script.answer(Method.COLLECT)
    assert script.control.asked == 1020
    script.answer(Method.TRAIN, 30)
    assert script.find(Method.COLLECT)


def test_a_run_that_goes_on_with_all_its_frames_makes_the_updates_that_it_owes_and_ends():
    script = Script(ratio=1.0, warmup=20, total=500, frames=500).all_up()
    script.answer(Method.COUNT, counts(500))
    assert script.find(Method.COLLECT) is None
    assert script.answer(Method.TRAIN, 480).amount == 480
    finish(script, 500)
    assert (script.end.reason, script.end.outcome, script.end.is_finished) == ("finished", "done", True)
    assert script.events()[-1] == "save"


def test_no_update_is_asked_for_before_the_warm_ups_rows_are_held():
    """A run that goes on without its rows has the frames, but nothing to learn from."""
    script = Script(ratio=1.0, warmup=20, total=1000, frames=500).all_up()
    script.answer(Method.COUNT, counts(500, warm=False))
    assert script.find(Method.TRAIN) is None
    collect_all(script, 2)
    script.wait(0.2)
    script.answer(Method.COUNT, counts(520, warm=True))
    assert script.find(Method.TRAIN).amount == 500


def test_collectors_do_not_wait_for_a_learner_that_waits_for_the_warm_up():
    script = Script(ratio=1.0, warmup=20, total=10**6).all_up()
    for frames in range(0, 3000, 10):
        script.answer(Method.COLLECT)
        script.wait(0.2)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(frames, warm=False))
    assert script.control.asked > 2500


def test_one_that_is_ahead_waits_where_not_all_step_the_same_and_not_for_one_that_is_gone():
    script = Script(tasks=({"a"}, {"b"}), total=10**6).all_up()
    while script.find(Method.COLLECT, collector(0)):
        script.answer(Method.COLLECT, part=collector(0))
    assert script.control.collectors[0].requested == 30
    script.fail(Method.COLLECT, Failure.DIED, part=collector(1))
    assert script.find(Method.COLLECT, collector(0))
    script.up(collector(1, 1))
    script.answer(Method.FENCE, 0)
    # The other made four while it was gone.
    for _ in range(2):
        script.answer(Method.COLLECT, part=collector(0))
    assert not script.find(Method.COLLECT, collector(0))
    for _ in range(4):
        script.answer(Method.COLLECT, part=collector(1, 1))
    for _ in range(5):
        script.answer(Method.COLLECT, part=collector(0))
        script.answer(Method.COLLECT, part=collector(1, 1))


# Ends.


def test_a_run_ends_once_all_is_acknowledged_and_saved():
    script = Script(total=20).all_up()
    collect_all(script, 2)
    script.answer(Method.FLUSH, 20)
    assert script.end is None
    finish(script, 20)
    assert (script.end.reason, script.end.outcome) == ("finished", "done")
    assert "save" in script.events()


def test_frames_that_were_lost_are_asked_for_again():
    script = Script(total=20).all_up()
    collect_all(script, 2)
    script.answer(Method.FLUSH, 10)
    assert script.control.lost == 10
    script.answer(Method.COLLECT)
    script.answer(Method.FLUSH, 20)
    finish(script, 20)
    assert script.end.reason == "finished"


def test_a_run_whose_tasks_are_not_all_warm_ends_without_the_updates_that_none_can_make():
    script = Script(ratio=1.0, warmup=5, total=20).all_up()
    collect_all(script, 2)
    script.answer(Method.FLUSH, 20)
    finish(script, 20, warm=False)
    assert script.end.reason == "finished"


def test_a_stop_while_everything_starts_ends_at_once():
    script = Script()
    script.event(Stop("interrupted"))
    assert (script.end.reason, script.end.outcome) == ("interrupted", "done")


def test_a_stop_before_the_first_count_waits_for_what_is_under_way_and_saves_it():
    script = Script().all_up()
    script.answer(Method.COUNT, counts(0, warm=False))
    script.event(Stop("interrupted"))
    assert script.end is None
    collect_all(script, 2)
    script.answer(Method.FLUSH, 20)
    finish(script, 20)
    assert script.end.outcome == "done"
    assert "save" in script.events()


def test_a_collector_that_hangs_does_not_keep_a_stop_from_saving():
    script = Script(stop_seconds=10).all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    script.event(Stop("interrupted"))
    script.wait(9.9)
    assert script.find(Method.STATE) is None
    script.wait(0.2)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(10))
    script.answer(Method.WRITE)
    assert (script.end.reason, script.end.outcome) == ("interrupted", "done")


def test_a_learner_that_hangs_ends_a_stop_unsaved_and_it_is_told():
    script = Script(stop_seconds=10).all_up()
    collect_all(script, 2)
    script.event(Stop("interrupted"))
    script.wait(10)
    assert script.find(Method.STATE)
    script.wait(10)
    assert script.end.outcome == "failed"
    assert "the learner did not answer" in script.end.reason


@pytest.mark.parametrize("is_ending", [False, True])
@pytest.mark.parametrize("method", [Method.STATE, Method.SNAPSHOT])
def test_a_part_of_a_checkpoint_that_raises_is_asked_for_once_more_and_the_run_is_saved(method, is_ending):
    """As after an update that was not finite: its failure is raised once, and the state before it is whole."""
    script = Script(total=10**6, checkpoint=10, stop_seconds=10).all_up()
    collect_all(script, 1)
    script.wait(0.2)
    script.answer(Method.COUNT, counts(10))
    if is_ending:
        script.event(Stop("interrupted"))
    if method is Method.SNAPSHOT:
        script.answer(Method.STATE)
    script.fail(method, Failure.RAISED, text="update 7: not finite")
    while script.find(Method.COLLECT):
        script.answer(Method.COLLECT)
    finish(script, 10)
    assert script.events().count("save") == 1
    assert script.end.outcome == "failed"
    assert script.end.reason.endswith("failed: update 7: not finite")
    assert script.now < 10


@pytest.mark.parametrize("method", [Method.STATE, Method.SNAPSHOT])
def test_a_part_of_a_checkpoint_that_keeps_raising_ends_the_run_at_once_and_is_named(method):
    script = Script(total=10, stop_seconds=10).all_up()
    collect_all(script, 1)
    script.answer(Method.FLUSH, 10)
    for _ in range(2):
        while script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(10))
        if method is Method.SNAPSHOT:
            script.answer(Method.STATE)
        script.fail(method, Failure.RAISED, text="no memory left")
    [unsaved] = [told for told in script.told if told.event == "unsaved"]
    assert "failed as it was to be saved: no memory left" in unsaved.sentence
    assert script.end.reason.endswith("failed: no memory left")
    assert script.now < 1


@pytest.mark.parametrize("stop", [Stop("interrupted"), Stop("finished after 60 minutes", is_due=True), None])
def test_a_checkpoint_that_is_under_way_as_the_run_ends_is_waited_for(stop):
    """Its frames are those of the end, so that nothing else would be saved."""
    script = Script(total=10**6 if stop else 10, checkpoint=10, call_seconds=300.0, stop_seconds=10).all_up()
    collect_all(script, 1)
    if stop:
        script.wait(0.2)
    else:
        script.answer(Method.FLUSH, 10)
    script.answer(Method.COUNT, counts(10))
    if stop:
        script.event(stop)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(10))
    script.wait(200)
    assert script.end is None, "a slow disk"
    script.answer(Method.WRITE)
    for _ in range(3):
        if script.end is None:
            script.wait(11)
            finish(script, 10)
    assert script.end.outcome == "done"


def test_a_checkpoint_that_is_never_written_is_named():
    script = Script(call_seconds=300.0).all_up()
    collect_all(script, 1)
    script.event(Stop("interrupted"))
    script.wait(11)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(10))
    script.wait(301)
    assert "the checkpoint was not written in time" in script.end.reason


@pytest.mark.parametrize(("is_due", "is_waited_for"), [(True, True), (False, False)])
def test_parts_are_waited_for_at_the_end_of_a_run_whose_time_is_over(is_due, is_waited_for):
    script = Script(stop_seconds=10, call_seconds=300).all_up()
    collect_all(script, 1)
    script.event(Stop("enough", is_due=is_due))
    script.wait(11)
    assert script.find(Method.STATE)
    script.wait(100)
    assert (script.end is None) == is_waited_for


def test_a_full_disk_in_the_middle_is_told_and_the_run_goes_on_at_the_end_it_fails():
    script = Script(total=20, checkpoint=10).all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(10))
    script.fail(Method.WRITE, Failure.RAISED, text="no space left")
    assert script.end is None
    assert "save_failed" in script.events()
    collect_all(script, 1)
    script.answer(Method.FLUSH, 20)
    for _ in range(20):
        script.wait(0.2)
        for call in list(script.open.values()):
            if call.method is Method.WRITE:
                script.fail(Method.WRITE, Failure.RAISED, text="no space left")
            elif call.method in (Method.COUNT, Method.SNAPSHOT):
                script.answer(call.method, counts(20), call=call)
            elif call.method is Method.STATE:
                script.answer(Method.STATE, call=call)
    assert script.end.outcome == "failed"
    assert "no space left" in script.end.reason


def test_a_failure_saves_what_replay_and_learner_have():
    script = Script().all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    script.fail(Method.COLLECT, Failure.INPUT, text="widths differ")
    script.answer(Method.COLLECT)
    script.answer(Method.FLUSH, 10)
    finish(script, 10)
    assert (script.end.reason, script.end.outcome) == ("widths differ", "input")
    assert "save" in script.events()


# A replay or a learner that dies.


def restored(frames, *, stored=None, source="memory", has_rows=True, warm=True):
    return Restored(counts(frames, warm=warm), source, stored or {}, has_rows)


def settle(script, frames):
    """Answer flushes and counts until nobody asks for one."""
    while any(call.method in (Method.FLUSH, Method.COUNT) for call in script.open.values()):
        if script.find(Method.FLUSH):
            script.answer(Method.FLUSH, frames)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(frames))
        script.wait(0.2)


def revive(script, part, value):
    """Bring up the next process of a part."""
    script.answer(Method.HELLO, part=part)
    script.answer(Method.BUILD, value, part=part)


def with_ten_frames(**settings):
    """A run whose replay holds one rollout of ten frames, and whose next two are under way."""
    script = Script(**settings).all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    script.wait(0.2)
    return script


def test_a_replay_that_died_is_replaced_and_every_part_is_connected_to_the_next():
    script = with_ten_frames()
    script.fail(Method.COUNT, Failure.DIED, text="exit code 137")
    assert script.end is None
    revive(script, Part("replay", 0, 1), restored(10, stored={collector(): 10}))
    connected = [call.part for call in script.open.values() if call.method is Method.CONNECT]
    assert connected == [LEARNER, collector()]
    # What was under way is settled by the answer: one of two rollouts arrived.
    script.answer(Method.CONNECT, 20, part=collector())
    assert (script.control.asked, script.control.lost) == (50, 10)
    assert script.control.frames_lost == 0


def test_nothing_is_collected_while_there_is_no_replay_and_everything_while_there_is_no_learner():
    script = with_ten_frames(ratio=1.0)
    before = script.control.asked
    script.fail(Method.TRAIN, Failure.DIED)
    script.answer(Method.COLLECT)
    assert script.control.asked == before + 10
    script.fail(Method.COUNT, Failure.DIED)
    script.answer(Method.COLLECT)
    assert script.control.asked == before + 10


def test_a_replay_that_comes_back_without_rows_repeats_the_warm_up_whenever_updates_began():
    script = Script(warmup=30, total=10**6, ratio=1.0, slack=10**6).all_up()
    for life, frames in enumerate((500, 800), 1):
        script.fail(Method.COUNT, Failure.DIED)
        script.wait(5)
        revive(script, Part("replay", 0, life), restored(frames, source="checkpoint", has_rows=False, warm=False))
        assert script.control.pacing.start_frames == frames + 30
        for index in (LEARNER, collector()):
            script.answer(Method.CONNECT, 0, part=index)
        script.wait(1)


def test_frames_that_a_replay_could_not_restore_are_asked_for_again():
    script = with_ten_frames(total=30)
    script.answer(Method.COLLECT)
    script.answer(Method.COLLECT)
    script.wait(0.2)
    script.fail(Method.FLUSH, Failure.PEER)
    script.fail(Method.COUNT, Failure.DIED)
    revive(script, Part("replay", 0, 1), restored(0, source="nothing"))
    assert script.control.frames_lost == 10
    script.answer(Method.CONNECT, 0, part=collector())
    assert script.control.lost == 30
    assert script.find(Method.COLLECT)


def test_a_replay_that_comes_back_without_rows_is_told_also_if_no_frame_is_lost():
    script = with_ten_frames()
    script.fail(Method.COUNT, Failure.DIED)
    revive(script, Part("replay", 0, 1), restored(10, source="checkpoint", has_rows=False, warm=False))
    (told,) = [told for told in script.told if told.event == "restored"]
    assert told.fields["cause"] == "0 frames lost, without rows"
    assert "it has no rows, so that the warm-up is repeated" in told.sentence


def test_frames_of_a_collector_that_is_gone_are_lost_with_the_replay():
    script = with_ten_frames()
    script.fail(Method.COLLECT, Failure.DIED, part=collector())
    script.answer(Method.FENCE, 10)
    lost = script.control.lost
    script.fail(Method.COUNT, Failure.DIED)
    revive(script, Part("replay", 0, 1), restored(0, source="checkpoint"))
    assert script.control.lost == lost + 10


def test_a_learner_that_died_goes_on_from_the_state_that_was_kept():
    script = with_ten_frames(ratio=1.0, total=10**6)
    script.answer(Method.TRAIN, 4)
    script.wait(KEEP_SECONDS)
    script.answer(Method.COUNT, counts(10))
    script.answer(Method.STATE, 4)
    script.answer(Method.TRAIN, 9)
    script.wait(0.2)
    script.answer(Method.COUNT, counts(100))
    script.fail(Method.TRAIN, Failure.DIED)
    revive(script, Part("learner", 0, 1), 4)
    assert (script.control.updates, script.control.updates_lost) == (4, 5)
    assert script.find(Method.TRAIN).amount == 96


def test_a_state_that_was_kept_before_is_not_the_last_checkpoints():
    """Its answer came after the run's last state was asked for."""
    script = with_ten_frames(ratio=1.0, total=10)
    script.wait(KEEP_SECONDS)
    script.answer(Method.TRAIN, 4)
    kept = script.find(Method.STATE)
    script.answer(Method.TRAIN, 10)
    settle(script, 10)
    assert len([call for call in script.open.values() if call.method is Method.STATE]) == 2
    script.answer(Method.STATE, 4, call=kept)
    assert script.find(Method.SNAPSHOT) is None
    script.answer(Method.STATE, 10)
    assert script.find(Method.SNAPSHOT)


def test_a_run_that_had_finished_goes_on_where_the_last_save_meets_a_replay_that_lost_frames():
    script = Script(total=20).all_up()
    collect_all(script, 2)
    settle(script, 20)
    script.answer(Method.STATE)
    script.fail(Method.SNAPSHOT, Failure.DIED)
    revive(script, Part("replay", 0, 1), restored(10, source="checkpoint", stored={collector(): 10}))
    script.answer(Method.CONNECT, 10, part=collector())
    script.answer(Method.COLLECT)
    settle(script, 20)
    finish(script, 20)
    assert (script.end.reason, script.end.outcome) == ("finished", "done")


def test_a_stop_that_came_as_a_finished_run_was_saved_is_not_forgotten_if_the_replay_loses_frames():
    script = Script(total=20).all_up()
    collect_all(script, 2)
    settle(script, 20)
    script.answer(Method.STATE)
    script.event(Stop("interrupted"))
    script.fail(Method.SNAPSHOT, Failure.DIED)
    revive(script, Part("replay", 0, 1), restored(10, source="checkpoint", stored={collector(): 10}))
    script.answer(Method.CONNECT, 10, part=collector())
    assert script.find(Method.COLLECT) is None
    finish(script, 10)
    assert (script.end.reason, script.end.outcome) == ("interrupted", "done")


def test_a_stop_waits_a_while_for_a_replay_that_is_being_replaced():
    script = with_ten_frames()
    script.fail(Method.COUNT, Failure.DIED)
    script.event(Stop("interrupted"))
    assert script.end is None
    revive(script, Part("replay", 0, 1), restored(10, stored={collector(): 10}))
    script.answer(Method.CONNECT, 10, part=collector())
    script.answer(Method.CONNECT, 0, part=LEARNER)
    settle(script, 10)
    finish(script, 10)
    assert (script.end.reason, script.end.outcome) == ("interrupted", "done")
    assert "save" in script.events()


def test_a_stop_without_a_replay_ends_unsaved_and_says_so():
    script = with_ten_frames()
    script.fail(Method.COUNT, Failure.DIED)
    script.event(Stop("interrupted"))
    script.wait(20)
    assert script.end.outcome == "failed"
    assert "the replay was not back in time" in script.end.reason


@pytest.mark.parametrize("rooms", [1, 3])
def test_a_replay_that_finds_no_room_is_given_that_of_one_collector_after_the_other(rooms):
    script = with_ten_frames(tasks=({"a"},) * 4, shares_cluster=True)
    script.fail(Method.COUNT, Failure.DIED)
    killed = len(script.killed)
    for _ in range(rooms):
        script.wait(ROOM_SECONDS)
    assert script.killed[killed:] == [collector(3 - index) for index in range(rooms)]
    # Those wait until the replay has its place.
    assert collector(3, 1) not in [part for _, part in script.started]
    script.answer(Method.HELLO, part=Part("replay", 0, 1))
    assert collector(3, 1) in [part for _, part in script.started]


def test_a_learner_that_can_not_reach_the_replay_is_not_blamed():
    """The replay died while the learner drew: the count that is asked at once tells which part it was."""
    script = Script(ratio=1.0).all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    script.fail(Method.TRAIN, Failure.PEER, text="the replay is gone")
    assert script.end is None
    script.wait(0.2)
    script.fail(Method.COUNT, Failure.DIED, text="exit code 137")
    assert [told.fields["part"] for told in script.told if told.event == "death"] == ["the replay"]


def test_checkpoints_are_paced_by_time_too_where_there_is_something_new():
    script = with_ten_frames(checkpoint_seconds=60.0, total=10**6)
    script.wait(61)
    script.answer(Method.COLLECT)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(10))
    script.answer(Method.WRITE)
    script.wait(61)
    script.answer(Method.COUNT, counts(10))
    assert script.find(Method.STATE) is None
    script.wait(0.2)
    script.answer(Method.COUNT, counts(20))
    assert script.find(Method.STATE)


# Tasks.


def test_an_error_of_a_task_before_its_first_rollout_is_wrong_input():
    script = Script(tasks=({"a", "b"},)).all_up()
    script.answer(Method.COUNT, counts(10))
    script.fail(Method.COLLECT, Failure.TASK, text="b: no licence", task="b")
    assert script.end is None, "what is under way is waited for and saved"
    script.answer(Method.COLLECT)
    script.answer(Method.FLUSH, 0)
    finish(script, 10)
    assert (script.end.reason, script.end.outcome) == ("b: no licence", "input")


def test_a_task_that_keeps_failing_is_set_aside_and_the_run_goes_on_with_the_others():
    script = Script(tasks=({"a", "b"}, {"b"}), sets_aside=True, total=10**6).all_up()
    for place in (0, 1):
        script.answer(Method.COLLECT, part=collector(place))
    script.answer(Method.COUNT, counts(20))
    for life in range(TASK_ERRORS + 1):
        script.fail(Method.COLLECT, Failure.TASK, part=collector(0, life), text="b: it melted", task="b")
        script.answer(Method.FENCE, 10 if life == 0 else 0)
        script.wait(10)
        if life < TASK_ERRORS:
            script.up(collector(0, life + 1))
    assert script.aside == ["b"]
    deaths = [told.fields for told in script.told if told.event == "death"]
    assert [death["cause"] for death in deaths] == ["b: it melted"] * TASK_ERRORS
    left = [told.fields["cause"] for told in script.told if told.event == "left"]
    assert left == ["b is set aside"] * 2, "neither the last failure nor a planned start is a death"
    (told,) = [told for told in script.told if told.event == "set_aside"]
    assert told.sentence == "task 'b' failed 4 times in a row and the run goes on without it: b: it melted"
    # The one that steps nothing else is not started again, the other one steps what is left.
    assert collector(1, 1) not in [part for _, part in script.started]
    script.answer(Method.FENCE, 10)
    script.up(collector(0, TASK_ERRORS + 1))
    asked = script.control.asked
    script.answer(Method.COLLECT, part=collector(0, TASK_ERRORS + 1))
    assert script.control.asked == asked + 5
    assert script.end is None


@pytest.mark.parametrize(("is_due", "outcome"), [(True, "failed"), (False, "done")])
def test_a_run_whose_time_is_over_before_anything_was_collected_has_failed(is_due, outcome):
    script = Script(total=10**6)
    script.event(Stop("enough", is_due=is_due))
    assert script.end.outcome == outcome
    assert ("before anything was collected" in script.end.reason) == is_due
    assert not script.end.is_finished


@pytest.mark.parametrize(("is_due", "outcome"), [(True, "failed"), (False, "done")])
def test_a_run_without_a_task_has_failed_when_its_time_is_over_but_not_when_it_is_interrupted(is_due, outcome):
    script = Script(tasks=({"a", "b"},), sets_aside=True, total=10**6).all_up()
    script.answer(Method.COLLECT)
    for life in range(TASK_ERRORS + 1):
        script.fail(Method.COLLECT, Failure.TASK, part=collector(0, life), text="b: it melted", task="b")
        script.answer(Method.FENCE, 0)
        script.wait(10)
        script.up(collector(0, life + 1))
    script.event(Stop("enough", is_due=is_due))
    finish(script, 10)
    assert (script.end.reason, script.end.outcome) == ("enough without b, which failed: b: it melted", outcome)
    assert script.end.is_finished == is_due


def test_a_run_that_has_finished_without_a_task_has_failed_also_if_it_is_interrupted_while_it_saves():
    script = Script(tasks=({"a", "b"},), sets_aside=True, total=100).all_up()
    script.answer(Method.COLLECT)
    for life in range(TASK_ERRORS + 1):
        script.fail(Method.COLLECT, Failure.TASK, part=collector(0, life), text="b: it melted", task="b")
        script.answer(Method.FENCE, 10 if life == 0 else 0)
        script.wait(10)
        script.up(collector(0, life + 1))
    for _ in range(60):
        if script.find(Method.COLLECT):
            script.answer(Method.COLLECT)
        if script.find(Method.FLUSH):
            script.answer(Method.FLUSH, script.control.collectors[0].requested)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(script.control.asked - script.control.lost))
        script.wait(0.2)
    assert script.find(Method.STATE), "it has all its frames and is being saved"
    script.event(Stop("interrupted"))
    finish(script, 100)
    assert (script.end.reason, script.end.outcome) == ("finished without b, which failed: b: it melted", "failed")


def test_collectors_that_fail_at_the_same_moment_do_not_fail_in_a_row():
    """A machine that stands still for a while: every simulator seems to hang."""
    script = Script(tasks=({"a", "b"},) * 8, total=10**6, sets_aside=True).all_up()
    for index in range(8):
        script.answer(Method.COLLECT, part=collector(index))
    for index in range(8):
        failures = (("a", "the process that steps it hangs"), ("b", "the process that steps it hangs"))
        script.answer(Method.COLLECT, Collected(10, failures), part=collector(index))
    assert script.aside == []
    assert script.end is None
    assert script.events().count("rebuilt") == 16


def test_a_task_that_fails_again_and_again_in_its_first_rollout_is_wrong_input():
    """A maker that works for two copies, and not for eight: the run would never learn."""
    script = Script(tasks=({"a", "b"},), total=10**6, sets_aside=True).all_up()
    failures = (("b", "it needs two copies"),) * (TASK_ERRORS + 1)
    script.answer(Method.COLLECT, Collected(10, failures))
    assert script.aside == []
    script.wait(200)
    assert (script.end.reason, script.end.outcome) == ("it needs two copies", "input")


def test_what_the_learner_could_have_made_is_not_owed_once_a_task_is_set_aside():
    """Between two ratios far apart it could have made many thousand updates, for which collectors must not wait."""
    script = Script(tasks=({"a", "b"},), sets_aside=True, total=10**6, ratio=4.0, least=0.01, slack=10_000).all_up()
    script.answer(Method.COLLECT)
    script.answer(Method.COUNT, counts(50_000))
    script.answer(Method.TRAIN, 300)
    assert script.control.updates_owed == 0
    for life in range(TASK_ERRORS + 1):
        script.fail(Method.COLLECT, Failure.TASK, part=collector(0, life), text="b: it melted", task="b")
        script.answer(Method.FENCE, 0)
        script.wait(10)
        if life < TASK_ERRORS:
            script.up(collector(0, life + 1))
    assert script.aside == ["b"]
    assert script.control.updates_owed <= CALLS * MOST_UPDATES
    script.up(collector(0, TASK_ERRORS + 1))
    # What two calls may still make is waited for.
    script.answer(Method.TRAIN, 300 + MOST_UPDATES)
    script.answer(Method.TRAIN, 300 + CALLS * MOST_UPDATES)
    assert script.find(Method.COLLECT), "collectors go on"


def test_a_task_that_fails_later_has_its_process_replaced_until_it_fails_too_often():
    script = Script().all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    for life in range(TASK_ERRORS):
        script.fail(Method.COLLECT, Failure.TASK, part=collector(0, life), text="a: fell over", task="a")
        assert script.end is None
        script.answer(Method.FENCE, 0)
        script.wait(5)
        script.up(collector(0, life + 1))
    script.fail(Method.COLLECT, Failure.TASK, text="a: fell over", task="a")
    script.wait(40)
    assert script.end.outcome == "failed"
    assert "a: fell over (4 times in a row)" in script.end.reason
    assert [told.fields["life"] for told in script.told if told.event == "death"] == [0, 1, 2, 3]


def test_errors_of_a_task_with_a_minute_between_are_accidents():
    script = Script().all_up()
    collect_all(script, 1)
    script.answer(Method.COUNT, counts(10))
    for life in range(3 * TASK_ERRORS):
        script.fail(Method.COLLECT, Failure.TASK, part=collector(0, life), text="a: fell over", task="a")
        script.answer(Method.FENCE, 0)
        script.wait(61)
        script.up(collector(0, life + 1))
    assert script.end is None
    assert script.find(Method.COLLECT)


# Faults that the simulation found.


def test_a_call_that_may_have_run_is_settled_by_a_flush():
    script = Script(total=20).all_up()
    script.fail(Method.COLLECT)
    assert script.find(Method.FLUSH) is None
    script.wait(RETRY_SECONDS)
    script.answer(Method.FLUSH, 10)
    assert script.control.lost == 10
    collect_all(script, 1)
    assert script.find(Method.COUNT)


def test_a_start_that_could_not_be_reached_is_asked_again():
    script = Script()
    script.up(REPLAY, LEARNER)
    script.answer(Method.HELLO, part=collector())
    script.fail(Method.BUILD, part=collector())
    script.wait(RETRY_SECONDS)
    script.answer(Method.BUILD, part=collector())
    assert script.find(Method.COLLECT)


def test_a_flush_that_is_answered_after_later_rollouts_loses_none_of_them():
    script = Script(total=40).all_up()
    script.fail(Method.COLLECT)
    script.wait(RETRY_SECONDS)
    flush = script.find(Method.FLUSH)
    # The second rollout was asked for before the flush, which has it.
    script.answer(Method.FLUSH, 20, call=flush)
    assert script.control.lost == 0
    collect_all(script, 2)
    assert script.control.asked == 40


def test_a_request_to_connect_that_is_answered_after_a_later_one_does_not_bring_back_what_was_lost_since():
    # Simulation, seed 26,893: the run counted frames that a second replay had lost, and hung.
    script = with_ten_frames(total=30)
    script.answer(Method.COLLECT)
    script.answer(Method.COLLECT)
    script.fail(Method.COUNT, Failure.DIED)
    revive(script, Part("replay", 0, 1), restored(30, stored={collector(): 30}))
    late = script.find(Method.CONNECT, collector())
    script.fail(Method.COUNT, Failure.DIED)
    script.wait(1)
    revive(script, Part("replay", 0, 2), restored(10, stored={collector(): 10}))
    newest = [call for call in script.open.values() if call.method is Method.CONNECT and call.part == collector()][-1]
    assert newest.id > late.id
    script.answer(Method.CONNECT, 10, call=newest)
    assert script.control.lost == 20
    script.event(Answered(late.id, 30))
    assert script.control.lost == 20
    assert script.control.wanted == 0
    assert len([call for call in script.open.values() if call.method is Method.COLLECT]) == 2


def test_a_count_that_comes_late_does_not_take_counts_back():
    script = Script(total=100).all_up()
    late = script.find(Method.COUNT)
    collect_all(script, 3)
    script.answer(Method.COUNT, counts(30))
    script.event(Answered(late.id, counts(0)))
    assert script.control.counts.frames == 30


def test_an_answer_that_comes_twice_counts_once():
    script = Script(total=100).all_up()
    call = script.answer(Method.COLLECT)
    before = script.control.asked
    script.event(Answered(call.id))
    script.event(Failed(call.id, Failure.DIED, "late"))
    assert script.control.asked == before
    assert script.killed == []


def test_collectors_that_are_held_back_are_flushed_at_the_end():
    script = Script(tasks=({"a"}, {"b"}), total=40).all_up()
    while script.find(Method.COLLECT, collector(0)):
        script.answer(Method.COLLECT, part=collector(0))
    collect_all(script, 1, collector(1))
    assert script.find(Method.FLUSH, collector(0))


def test_late_pushes_of_a_process_that_died_are_fenced_off_before_its_frames_are_asked_for_again():
    script = Script(total=20).all_up()
    script.answer(Method.COLLECT)
    script.fail(Method.COLLECT, Failure.DIED)
    assert script.find(Method.FENCE).of == collector()
    script.up(collector(0, 1))
    assert script.find(Method.COLLECT) is None, "what the old one pushed is not known yet"
    script.answer(Method.FENCE, 10)
    assert script.control.lost == 10
    assert script.find(Method.COLLECT)


def test_one_that_died_with_its_last_pushes_is_noticed_while_pacing_holds_it_back():
    script = Script(ratio=1.0, slack=32, total=10**6).all_up()
    collect_all(script, 3)
    assert script.control.asked == 30
    # None of the three arrives, so no update is owed, and slack is used up.
    begin = script.now
    while script.find(Method.FLUSH) is None:
        assert script.find(Method.COLLECT) is None
        assert script.now < begin + 6
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(0))
        script.wait(0.1)
    script.fail(Method.FLUSH, Failure.DIED)
    script.answer(Method.FENCE, 0)
    script.up(collector(0, 1))
    assert script.find(Method.COLLECT)


def test_a_collector_that_was_flushed_is_asked_again_when_another_lost_frames():
    script = Script(tasks=({"a"}, {"a"}), total=40).all_up()
    collect_all(script, 2, collector(0))
    collect_all(script, 2, collector(1))
    assert script.control.wanted == 0
    script.answer(Method.FLUSH, 20, part=collector(0))
    script.fail(Method.FLUSH, Failure.DIED, part=collector(1))
    assert script.find(Method.COLLECT) is None
    script.answer(Method.FENCE, 10)
    assert script.find(Method.COLLECT).part == collector(0)


def test_the_end_of_a_run_does_not_count_a_dead_process_twice():
    script = Script(total=20).all_up()
    collect_all(script, 2)
    script.event(Stop("interrupted"))
    script.fail(Method.FLUSH, Failure.DIED)
    script.answer(Method.FENCE, 20)
    assert script.control.lost == 0
    finish(script, 20)
    assert script.end.outcome == "done"


def test_a_state_that_a_checkpoint_waits_for_is_not_forgotten_when_a_later_call_is_answered_first():
    """Seed 48,549: no checkpoint was made any more."""
    script = Script(checkpoint=10, ratio=1.0).all_up()
    script.answer(Method.COLLECT)
    script.wait(0.2)
    script.answer(Method.COUNT, counts(10))
    script.fail(Method.TRAIN)
    script.wait(RETRY_SECONDS)
    state, status = script.find(Method.STATE), script.find(Method.STATUS)
    assert state is not None
    assert state.id < status.id
    script.answer(Method.STATUS, call=status)
    script.answer(Method.STATE, call=state)
    assert script.find(Method.SNAPSHOT)
