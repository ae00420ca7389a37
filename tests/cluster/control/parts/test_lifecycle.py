"""Starts, deaths, deadlines and pauses of a run's processes, on a clock that the test moves."""

from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.protocol import Failure, Method, Stop
from tests.cluster.control.script import LEARNER, REPLAY, Script, collector, counts


def starts(script, place=0):
    return [round(when, 3) for when, part in script.started if part.kind == "collector" and part.place == place]


def worked(script, part=None):
    """Have a collector bring something, so that its process has worked."""
    script.answer(Method.COLLECT, part=part)


def test_the_first_replacement_is_immediate_and_later_ones_back_off_to_a_minute():
    script = Script(tasks=({"a"}, {"a"}), give_up_seconds=10**6)
    script.up(REPLAY, LEARNER, collector(0), collector(1))
    worked(script, collector(1))
    for life in range(10):
        script.fail(Method.COLLECT if life == 0 else Method.HELLO, Failure.DIED, part=collector(0, life))
        script.wait(61)
    times = starts(script)
    # Each start fails at once; the next one waits.
    assert times[:2] == [0, 0]
    assert [round(time - 61 * (life + 1)) for life, time in enumerate(times[2:])] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_collectors_of_different_tasks_start_at_once_also_on_one_machine():
    script = Script(tasks=({"a"}, {"b"}), total=10**6)
    assert [part.place for _, part in script.started if part.kind == "collector"] == [0, 1]


def test_on_one_machine_the_first_collector_starts_before_the_others_but_they_do_not_wait_for_ever():
    begun = [REPLAY, LEARNER, collector(0)]
    alone, soon, cluster = (
        Script(tasks=({"a"},) * 3, shares_cluster=shares, first_seconds=20.0) for shares in (False, False, True)
    )
    assert [part for _, part in alone.started] == begun
    assert [part for _, part in cluster.started] == [*begun, collector(1), collector(2)]
    alone.wait(19)
    assert [part for _, part in alone.started] == begun
    alone.wait(1)
    assert [part for _, part in alone.started] == [*begun, collector(1), collector(2)]
    # They would take the cores from its first rollout.
    soon.up(*begun)
    assert [part for _, part in soon.started] == begun
    soon.answer(Method.COLLECT)
    assert soon.started == [(0.0, part) for part in [*begun, collector(1), collector(2)]]
    # One that is not yet started when the run ends never is.
    ended = Script(tasks=({"a"},) * 2, first_seconds=20.0)
    ended.up(REPLAY, LEARNER)
    ended.event(Stop("interrupted"))
    ended.wait(40)
    assert [part for _, part in ended.started] == begun


def test_a_death_is_one_sentence_that_says_why_and_what_the_run_does_now():
    script = Script(tasks=({"a"}, {"a"})).all_up()
    worked(script, collector(1))
    for life in range(2):
        script.fail(Method.COLLECT if life == 0 else Method.HELLO, Failure.DIED, part=collector(0, life), text="why")
    script.fail(Method.TRAIN if script.find(Method.TRAIN) else Method.COLLECT, Failure.DIED, text="why")
    assert [told.sentence for told in script.told if told.event == "death"][:2] == [
        "collector 0 died and is replaced now: why",
        "collector 0 died and is replaced in 1 s: why",
    ]
    assert [told.event for told in script.told if told.event in ("death", "replacement")] == [
        "death",
        "replacement",
    ] * 3
    assert all(told.sentence == "" for told in script.told if told.event != "death")


def test_a_minute_of_health_forgives():
    script = Script().all_up()
    worked(script)
    script.fail(Method.COLLECT, Failure.DIED)
    script.answer(Method.FENCE, 10)
    script.up(collector(0, 1))
    script.answer(Method.COLLECT)
    script.wait(61)
    script.fail(Method.COLLECT, Failure.DIED)
    assert starts(script)[-1] == script.now, "again at once"


def test_the_death_of_processes_that_had_worked_never_ends_a_run():
    script = Script(total=10**9).all_up()
    for life in range(200):
        script.answer(Method.COLLECT, part=collector(0, life))
        script.fail(Method.COLLECT, Failure.DIED, part=collector(0, life))
        script.answer(Method.FENCE, 10)
        script.wait(61)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(10 * life))
        script.up(collector(0, life + 1))
    assert script.end is None
    assert script.control.restarts == 200


def test_a_part_that_can_not_be_started_for_ten_minutes_ends_the_run():
    script = Script(give_up_seconds=600.0)
    script.up(REPLAY, LEARNER)
    for life in range(100):
        if script.end:
            break
        script.fail(Method.HELLO, Failure.DIED, part=collector(0, life), text="exit code 1")
        script.wait(61)
    assert 600 <= script.now < 800
    assert script.end.outcome == "failed"
    assert "collector 0 could not be started for 10 minutes: exit code 1" in script.end.reason


def test_others_that_step_the_same_tasks_go_on_without_it_and_it_is_told_once():
    script = Script(tasks=({"a"}, {"a", "b"}), total=10**9)
    script.up(REPLAY, LEARNER, collector(1))
    for life in range(30):
        script.fail(Method.HELLO, Failure.DIED, part=collector(0, life))
        script.wait(61)
    assert script.end is None
    assert script.events().count("without") == 1


def test_a_process_that_waits_for_room_in_a_cluster_has_not_died():
    script = Script(tasks=({"a"}, {"a"}), shares_cluster=True, call_seconds=10**6, total=10**9)
    script.up(REPLAY, LEARNER, collector(1))
    script.wait(5000)
    assert script.killed == []
    assert script.events().count("waiting") == 1
    assert script.end is None
    script.up(collector(0))
    assert script.find(Method.COLLECT, collector(0))


def test_a_learner_without_room_ends_the_run_after_ten_minutes():
    script = Script(shares_cluster=True)
    script.up(REPLAY, collector())
    script.wait(1000)
    assert script.end.outcome == "failed"
    assert "the learner could not be started" in script.end.reason


def test_a_process_that_does_not_come_up_on_a_ray_of_the_runs_own_is_replaced():
    script = Script(tasks=({"a"}, {"a"}), start_seconds=180.0, total=10**9)
    script.up(REPLAY, LEARNER, collector(1))
    script.wait(181)
    assert script.killed == [collector(0)]
    assert len(starts(script)) == 2


def test_what_a_part_raises_before_any_of_its_kind_has_worked_ends_the_run_at_once():
    script = Script(tasks=({"a"}, {"a"}))
    script.up(REPLAY, LEARNER)
    script.answer(Method.HELLO, part=collector(0))
    script.fail(Method.BUILD, Failure.RAISED, part=collector(0), text="no module named x")
    script.answer(Method.COUNT, counts(0))
    assert script.end.reason == "collector 0 failed: no module named x"


def test_what_one_raises_where_others_worked_is_that_ones():
    script = Script(tasks=({"a"}, {"a"}), total=10**9).all_up()
    worked(script, collector(1))
    script.fail(Method.COLLECT, Failure.RAISED, part=collector(0), text="disk quota")
    assert script.end is None
    assert starts(script) == [0, 0]


def test_a_call_that_is_not_answered_has_a_deadline_since_the_process_was_last_heard_of():
    script = Script(call_seconds=300.0, total=10**9).all_up()
    script.wait(200)
    script.answer(Method.COLLECT)
    script.answer(Method.COUNT, counts(10))
    script.wait(250)
    # The replay was asked to count again: it is the first to be overdue.
    script.answer(Method.COUNT, counts(10))
    assert collector() not in script.killed
    script.wait(51)
    assert script.killed == [collector()]


def test_one_that_can_not_be_reached_for_long_is_replaced():
    script = Script(call_seconds=30.0, total=10**9).all_up()
    script.answer(Method.COUNT, counts(0))
    script.fail(Method.COLLECT)
    for _ in range(60):
        script.wait(1.0)
        if script.find(Method.FLUSH):
            script.fail(Method.FLUSH)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(0))
        if script.killed:
            break
    assert script.killed == [collector()]
    assert 30 <= script.now < 35


def test_an_answer_that_is_lost_while_others_come_is_asked_for_again():
    """The replay goes on answering counts, so it is no process that hangs."""
    script = Script(total=10**9, call_seconds=300.0).all_up()
    worked(script)
    script.fail(Method.COLLECT, Failure.DIED)
    lost = script.find(Method.FENCE)
    del script.open[lost.id]
    for _ in range(650):
        script.wait(1.0)
        if script.find(Method.COUNT):
            script.answer(Method.COUNT, counts(10))
        if script.find(Method.FENCE):
            break
    assert 300 <= script.now <= 640
    script.answer(Method.FENCE, 10)
    assert script.control.lost == 20


def test_lockstep_does_not_go_on_while_a_count_is_made_again():
    script = Script(kind=Lockstep, ratio=1.0, total=10**6).all_up()
    script.answer(Method.ACT)
    script.answer(Method.PUSH)
    script.fail(Method.COUNT)
    assert script.find(Method.TRAIN) is None
    script.wait(1)
    script.answer(Method.COUNT, counts(10))
    assert script.find(Method.TRAIN).amount == 10
    script.answer(Method.TRAIN, 10)
    assert script.find(Method.ACT)


def test_a_death_in_lockstep_ends_the_run_with_the_remedy():
    script = Script(kind=Lockstep).all_up()
    script.fail(Method.ACT, Failure.DIED, text="exit code 137")
    assert script.end.outcome == "failed"
    assert "collector 0 died: exit code 137" in script.end.reason
    assert "--resume" in script.end.reason
    (death,) = [told for told in script.told if told.event == "death"]
    assert death.sentence == "collector 0 died and is not replaced: exit code 137"


def test_a_call_is_stuck_once_it_takes_much_longer_than_any_of_its_kind():
    script = Script(call_seconds=300, stuck_seconds=30).all_up()
    script.wait(2)
    script.answer(Method.COLLECT)
    script.wait(1)
    # The longest took 2 s: 30 s and ten times as many are the limit.
    script.answer(Method.COLLECT)
    script.wait(48)
    assert collector() not in script.killed
    script.wait(5)
    assert collector() in script.killed
    death = next(told for told in script.told if told.event == "death")
    assert "it has not answered for 5" in death.fields["cause"]


def test_a_collector_has_the_time_of_its_longest_build_beside_since_a_step_may_reset_every_copy():
    script = Script(call_seconds=300, stuck_seconds=30)
    script.up(REPLAY, LEARNER)
    script.answer(Method.HELLO, part=collector())
    script.wait(40)
    script.answer(Method.BUILD, part=collector())
    script.wait(2)
    script.answer(Method.COLLECT)
    script.wait(85)
    assert collector() not in script.killed
    script.wait(10)
    assert collector() in script.killed


def test_collectors_are_not_blamed_for_the_time_in_which_the_replay_was_silent():
    """A link that was cut for a while comes back to some sooner than to others."""
    script = Script(call_seconds=300, stuck_seconds=30).all_up()
    script.wait(1)
    script.answer(Method.COLLECT)
    script.answer(Method.COUNT, counts(10))
    script.wait(1)
    script.answer(Method.COLLECT)
    assert script.find(Method.COUNT)
    script.wait(25)
    script.answer(Method.COUNT, counts(20))
    script.wait(25)
    # Only once: a replay that is slow now and then does not hide a collector that hangs.
    script.answer(Method.COUNT, counts(20))
    script.wait(10)
    assert script.killed == []
    script.wait(10)
    assert script.killed == [collector()]


def test_the_first_call_of_a_kind_has_the_whole_time_of_a_call():
    script = Script(call_seconds=300, stuck_seconds=30).all_up()
    script.wait(290)
    assert script.killed == []
    script.wait(20)
    assert collector() in script.killed
