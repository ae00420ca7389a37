"""Collectors that come and go, and nodes that are left before they go: control by hand."""

import pytest

from mtray.cluster.control.elastic import (
    ABSENT_SECONDS,
    CLOSE_SECONDS,
    LEAVE_SECONDS,
    SETTLE_SECONDS,
    SPREAD_SECONDS,
)
from mtray.cluster.control.parts.actor import Phase
from mtray.cluster.control.plan import TASK_ERRORS, Spread
from mtray.cluster.control.protocol import Draining, Failed, Failure, Method, Place, Room
from tests.cluster.control.script import LEARNER, REPLAY, Script, collector, counts

TASKS = ("a", "b", "c", "d")


def spread(collectors, without):
    rest = [task for task in TASKS if task not in without]
    shares = [rest[i::collectors] or rest[:1] for i in range(collectors)]
    places = [Place(task_frames=dict.fromkeys(share, 10)) for share in shares]
    return Spread(places=places, round_frames=30 * collectors, slack_frames=100 * collectors)


def begin(workers, *present, **settings):
    """A run of which these collectors found room."""
    tasks = [set(place.tasks) for place in spread(workers, ()).places]
    script = Script(tasks=tasks, spread=spread, total=10**6, shares_cluster=True, **settings)
    script.up(REPLAY, LEARNER, *map(collector, present))
    return script


def end_calls(script, part):
    while script.find(Method.COLLECT, part):
        script.answer(Method.COLLECT, part=part)


def steps(script, *places):
    return [set(script.control.collectors[place].tasks) for place in places]


def test_tasks_are_spread_over_those_that_found_room():
    script = begin(4, 0, 1)
    assert steps(script, 0, 1) == [{"a"}, {"b"}]
    script.wait(ABSENT_SECONDS + SETTLE_SECONDS)
    told = script.told[-1]
    assert (told.event, dict(told.fields)) == ("spread", {"collectors": 2, "waiting": 2})
    # What was asked for before is ended first, with the tasks of before.
    assert steps(script, 0, 1) == [{"a"}, {"b"}]
    assert script.find(Method.BUILD) is None
    end_calls(script, collector(0))
    call = script.answer(Method.BUILD, part=collector(0))
    assert (set(call.place.tasks), call.amount) == ({"a", "c"}, 1)
    assert steps(script, 0) == [{"a", "c"}]
    assert script.find(Method.COLLECT, collector(0))
    assert script.control.pacing.slack_frames == 200


def test_those_that_come_later_take_their_part_a_minute_after_the_last_spread_at_the_earliest():
    script = begin(4, 0, 1)
    script.wait(ABSENT_SECONDS + SETTLE_SECONDS)
    for part in map(collector, (0, 1)):
        end_calls(script, part)
        script.answer(Method.BUILD, part=part)
    script.up(collector(2), collector(3))
    # Until then they help.
    assert all(steps(script, 2, 3))
    script.wait(SPREAD_SECONDS - 1)
    assert script.events().count("spread") == 1
    script.wait(SETTLE_SECONDS)
    assert script.events().count("spread") == 2
    for part in map(collector, range(4)):
        end_calls(script, part)
    assert sorted(map(sorted, steps(script, 0, 1, 2, 3))) == [["a"], ["b"], ["c"], ["d"]]


def test_a_task_that_nobody_steps_is_not_left_for_a_minute():
    script = begin(2, 0, 1)
    script.wait(SPREAD_SECONDS)
    script.fail(Method.COLLECT, Failure.DIED, collector(1))
    script.wait(ABSENT_SECONDS + SETTLE_SECONDS)
    end_calls(script, collector(0))
    assert steps(script, 0) == [set(TASKS)]
    script.answer(Method.BUILD, part=collector(0))
    # The other waits for room; nobody is told that the run can't go on.
    script.wait(3600)
    assert script.end is None


def test_a_collector_all_of_whose_tasks_are_set_aside_steps_others():
    """Seed 34,381: it was given others, and never started."""
    script = begin(4, 0, 1, 2, 3, sets_aside=True)
    for part in map(collector, range(4)):
        script.answer(Method.COLLECT, part=part)
    script.wait(SPREAD_SECONDS)
    for life in range(TASK_ERRORS + 1):
        script.fail(Method.COLLECT, Failure.TASK, collector(0, life), task="a")
        if life < TASK_ERRORS:
            script.wait(10)
            script.up(collector(0, life + 1))
    assert "set_aside" in script.events()
    assert script.started[-1][1] == collector(0, TASK_ERRORS)
    script.wait(SPREAD_SECONDS + SETTLE_SECONDS)
    assert script.started[-1][1] == collector(0, TASK_ERRORS + 1)
    assert set(script.control.collectors[0].tasks) <= {"b", "c", "d"}
    assert script.control.collectors[0].tasks


def work(script, seconds, but=None):
    """Let time pass while every process, but this collector's, does at once what it is asked for."""
    until = script.now + seconds
    while script.now < until:
        script.wait(1)
        for call in list(script.open.values()):
            actor = script.control.collectors[call.part.place] if call.part.kind == "collector" else None
            if call.id not in script.open or (actor is not None and actor.index == but):
                continue
            match call.method:
                case Method.FLUSH:
                    script.answer(Method.FLUSH, actor.requested - actor.lost, call=call)
                case Method.FENCE:
                    script.answer(Method.FENCE, 0, call=call)
                case Method.COUNT:
                    script.answer(Method.COUNT, counts(script.control.asked - script.control.lost), call=call)
                case Method.HELLO | Method.BUILD | Method.COLLECT:
                    script.answer(call.method, call=call)


def partitioned(collectors, without):
    """One task each, of two."""
    rest = [task for task in ("a", "b") if task not in without]
    shares = [rest[i::collectors] or [rest[i % len(rest)]] for i in range(collectors)]
    places = [Place(task_frames=dict.fromkeys(share, 10)) for share in shares]
    return Spread(places=places, round_frames=30 * collectors, slack_frames=10**5)


def test_a_collector_that_pauses_as_its_only_task_is_set_aside_steps_others():
    tasks = [set(place.tasks) for place in partitioned(4, ()).places]
    script = Script(tasks=tasks, spread=partitioned, total=10**6, shares_cluster=True, sets_aside=True, slack=10**5)
    script.up(REPLAY, LEARNER, *map(collector, range(4)))
    script.answer(Method.COLLECT, part=collector(0))
    # Collector 0 fails too, and pauses before its next start.
    for place, lives in ((2, TASK_ERRORS), (0, 1)):
        for life in range(lives):
            script.fail(Method.COLLECT, Failure.TASK, collector(place, life), task="a")
            script.wait(5)
            script.up(collector(place, life + 1))
    script.fail(Method.COLLECT, Failure.TASK, collector(0, 1), task="a")
    assert script.control.collectors[0].phase is Phase.PAUSING
    script.fail(Method.COLLECT, Failure.TASK, collector(2, TASK_ERRORS), task="a")
    assert script.aside == ["a"]
    work(script, 2 * SPREAD_SECONDS)
    assert steps(script, 0, 1, 2, 3) == [{"b"}] * 4
    assert all(actor.is_up for actor in script.control.collectors)


def test_a_task_that_is_set_aside_is_not_taken_over():
    script = begin(4, 0, 1, sets_aside=True, slack=10**5)
    script.wait(ABSENT_SECONDS + SETTLE_SECONDS)
    for part in map(collector, (0, 1)):
        end_calls(script, part)
        script.answer(Method.BUILD, part=part)
        script.answer(Method.COLLECT, part=part)
    assert steps(script, 0, 1) == [{"a", "c"}, {"b", "d"}]
    script.wait(SPREAD_SECONDS)
    for life in range(TASK_ERRORS):
        script.fail(Method.COLLECT, Failure.TASK, collector(1, life), task="d")
        script.wait(3)
        script.up(collector(1, life + 1))
    script.up(collector(2))
    script.wait(SETTLE_SECONDS + 1)
    first = script.control.collectors[0]
    assert "d" in first.next_place.tasks, "it will step it once its calls have ended"
    script.fail(Method.COLLECT, Failure.TASK, collector(1, TASK_ERRORS), task="d")
    assert script.aside == ["d"]
    work(script, 2 * SPREAD_SECONDS, but=3)
    assert {task for tasks in steps(script, 0, 1, 2) for task in tasks} == {"a", "b", "c"}


def test_a_collector_that_comes_as_all_that_it_would_step_is_set_aside_steps_others():
    script = begin(4, 0, 1, 2, 3, sets_aside=True)
    script.answer(Method.COLLECT, part=collector(0))
    for life in range(TASK_ERRORS + 1):
        script.fail(Method.COLLECT, Failure.TASK, collector(0, life), task="a")
        if life < TASK_ERRORS:
            script.wait(3)
            script.up(collector(0, life + 1))
    assert script.aside == ["a"]
    script.event(Room(5))
    work(script, 2 * SPREAD_SECONDS)
    assert all(actor.is_up and actor.tasks for actor in script.control.collectors)
    assert len(script.control.collectors) == 5


def test_others_step_what_a_collector_can_not_be_built_for():
    script = begin(2, 0)
    script.answer(Method.COLLECT, part=collector(0))
    life = 0
    while script.now < 5 * SPREAD_SECONDS:
        if script.find(Method.HELLO, collector(1, life)):
            script.answer(Method.HELLO, part=collector(1, life))
            script.wait(5)
            script.fail(Method.BUILD, Failure.RAISED, collector(1, life), "libfoo.so is missing")
            life += 1
        work(script, 1, but=1)
    assert life > 5
    assert steps(script, 0) == [set(TASKS)]
    assert script.events().count("spread") == 1, "not anew with each process that is placed"
    # It works at last, and takes its part.
    work(script, 120)
    assert sorted(map(sorted, steps(script, 0, 1))) == [["a", "c"], ["b", "d"]]


def test_collectors_follow_the_room_there_is():
    script = begin(1, 0)
    script.event(Room(3))
    assert [part.place for _, part in script.started if part.kind == "collector"] == [0, 1, 2]
    script.up(collector(1))
    assert script.control.limits.start_seconds > CLOSE_SECONDS
    script.wait(script.control.limits.start_seconds - 1)
    script.event(Room(2))
    assert collector(2) not in script.killed, "it may have a core already, and be on its way"
    script.wait(1)
    script.event(Room(2))
    assert collector(2) in script.killed
    assert "death" not in script.events()
    script.event(Room(0))
    assert len(script.killed) == 1, "who runs has room"
    script.event(Room(3))
    assert script.started[-1][1] == collector(2, 1)


def test_a_collector_leaves_a_drained_node_with_all_it_made():
    script = begin(2, 0, 1)
    script.event(Draining({collector(0)}))
    assert script.killed == []
    end_calls(script, collector(0))
    assert script.find(Method.COLLECT, collector(0)) is None
    script.answer(Method.FLUSH, value=40, part=collector(0))
    assert script.killed == [collector(0)]
    assert script.started[-1][1] == collector(0, 1)
    assert script.control.restarts == 0
    assert {"draining", "left"} <= set(script.events())
    assert "death" not in script.events()


def test_a_collector_that_does_not_answer_leaves_in_time():
    script = begin(2, 0, 1)
    script.event(Draining({collector(0)}))
    script.wait(LEAVE_SECONDS)
    assert script.killed == [collector(0)]


def drain(script, parts):
    """Drain a node; what is under way ends, and a checkpoint is begun."""
    script.answer(Method.COLLECT)
    script.event(Draining(parts))
    end_calls(script, collector(0))
    assert script.find(Method.COLLECT) is None, "nothing is asked for that would not be saved"
    script.answer(Method.FLUSH, value=120)
    for _ in range(3):
        script.wait(1)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(120))


@pytest.mark.parametrize("drained", [{REPLAY, LEARNER}, {LEARNER}, {REPLAY}])
def test_replay_and_learner_leave_a_drained_node_with_a_checkpoint(drained):
    script = begin(1, 0)
    drain(script, drained)
    assert script.killed == []
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(120))
    script.answer(Method.WRITE)
    assert set(script.killed) == drained
    assert "death" not in script.events()
    assert {part.kind for _, part in script.started if part.life == 1} == {part.kind for part in drained}


def test_replay_and_learner_leave_a_drained_node_though_the_disk_is_full():
    script = begin(1, 0)
    script.answer(Method.COLLECT)
    script.event(Draining({REPLAY, LEARNER}))
    script.wait(LEAVE_SECONDS)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(40))
    script.fail(Method.WRITE, Failure.RAISED)
    assert set(script.killed) == {REPLAY, LEARNER}


def test_replay_does_not_leave_unsaved_since_the_learner_died_meanwhile():
    script = begin(1, 0)
    drain(script, {REPLAY})
    script.fail(Method.STATE, Failure.DIED, LEARNER)
    assert script.killed == [LEARNER]
    script.answer(Method.HELLO, part=LEARNER._replace(life=1))
    script.answer(Method.BUILD, 0, part=LEARNER._replace(life=1))
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(120))
    assert REPLAY not in script.killed
    script.answer(Method.WRITE)
    assert REPLAY in script.killed


def test_a_save_that_was_under_way_as_a_node_was_drained_is_not_enough():
    script = begin(1, 0, checkpoint=10)
    script.answer(Method.COLLECT)
    script.wait(1)
    script.answer(Method.COUNT, counts(40))
    assert script.find(Method.STATE)
    script.event(Draining({REPLAY}))
    end_calls(script, collector(0))
    for method, value in ((Method.STATE, None), (Method.SNAPSHOT, counts(40)), (Method.WRITE, None)):
        script.answer(method, value)
    assert REPLAY not in script.killed


def test_a_node_on_which_something_is_missing_does_not_end_a_run_that_works_elsewhere():
    script = begin(2, 0)
    script.answer(Method.COLLECT)
    script.answer(Method.HELLO, part=collector(1))
    call = script.find(Method.BUILD, collector(1))
    script.event(Failed(call.id, Failure.INPUT, "my_tasks can't be imported"))
    assert script.end is None
    assert "death" in script.events()
    # So it is with a replay that has come to such a node.
    script.wait(1)
    script.fail(Method.COUNT, Failure.DIED)
    moved = REPLAY._replace(life=1)
    script.answer(Method.HELLO, part=moved)
    call = script.find(Method.BUILD, moved)
    script.event(Failed(call.id, Failure.INPUT, "the replay on 10.0.0.7 has torch 2.12"))
    assert script.end is None
    script.wait(2)
    assert REPLAY._replace(life=2) in [part for _, part in script.started]
