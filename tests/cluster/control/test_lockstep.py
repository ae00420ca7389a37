"""Checkpoints in lockstep: what is asked for, in which order, and who is cut."""

import pytest

from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.protocol import Failure, Method, Stop
from tests.cluster.control.script import Script, collector, counts


def at_multiple(**settings):
    """Two collectors that have brought as many frames as lie between two checkpoints."""
    script = Script(kind=Lockstep, tasks=({"a"}, {"a"}), checkpoint=20, **settings).all_up()
    for method in (Method.ACT, Method.ACT, Method.PUSH, Method.PUSH):
        script.answer(method)
    script.answer(Method.COUNT, counts(20, warm=False))
    return script


def save(script):
    for method, value in ((Method.STATE, None), (Method.SNAPSHOT, counts(20, warm=False)), (Method.WRITE, None)):
        script.answer(method, value)


def cut_parts(script):
    return [call.part.name for call in script.open.values() if call.method is Method.CUT]


def test_collectors_give_their_states_before_the_learner_does():
    script = at_multiple(total=10**6)
    assert [call.part.kind for call in script.open.values() if call.method is Method.STATE] == ["collector"] * 2
    script.answer(Method.STATE, True)
    assert len(script.open) == 1
    script.answer(Method.STATE, True)
    assert script.find(Method.STATE).part.kind == "learner"
    save(script)
    assert script.control.is_at_cut
    assert cut_parts(script) == ["the learner"]


def test_all_collectors_are_cut_if_one_has_no_state():
    script = at_multiple(total=10**6)
    script.answer(Method.STATE, False)
    script.answer(Method.STATE, True)
    save(script)
    assert cut_parts(script) == ["the learner", "collector 0", "collector 1"]


@pytest.mark.parametrize(
    ("state", "cut"), [(True, ["the learner"]), (False, ["the learner", "collector 0", "collector 1"])]
)
def test_a_checkpoint_that_can_not_be_written_changes_no_number_of_the_run(state, cut):
    script = at_multiple(total=10**6)
    script.answer(Method.STATE, state)
    script.answer(Method.STATE, state)
    script.answer(Method.STATE)
    script.answer(Method.SNAPSHOT, counts(20, warm=False))
    script.fail(Method.WRITE, Failure.RAISED, text="no space left")
    assert cut_parts(script) == cut


def test_the_last_checkpoint_holds_the_collectors_states_if_it_is_at_a_multiple():
    script = at_multiple(total=20)
    script.answer(Method.STATE, True)
    script.answer(Method.STATE, True)
    save(script)
    assert script.control.has_states
    assert script.end.outcome == "done"


def test_a_collector_that_dies_before_its_state_has_come_ends_the_run():
    for first in (True, False):
        script = at_multiple(total=10**6)
        if first:
            script.answer(Method.STATE, True)
        script.fail(Method.STATE, Failure.DIED, text="exit code 137")
        assert script.end.outcome == "failed"
        assert "exit code 137" in script.end.reason


@pytest.mark.parametrize("stop", [Stop("interrupted"), Stop("finished after 60 minutes", is_due=True)])
def test_a_stop_waits_for_the_round_and_saves(stop):
    script = Script(kind=Lockstep, ratio=1.0, total=10**6, call_seconds=300.0).all_up()
    script.answer(Method.ACT)
    script.answer(Method.PUSH)
    script.answer(Method.COUNT, counts(10))
    script.event(stop)
    script.wait(60)
    assert script.end is None
    script.answer(Method.TRAIN, 10)
    save(script)
    assert script.end.outcome == "done"
    assert "save" in script.events()


def test_a_round_that_does_not_end_is_told_and_is_no_success():
    script = Script(kind=Lockstep, ratio=1.0, total=10**6, call_seconds=300.0).all_up()
    script.event(Stop("interrupted"))
    script.wait(200)
    script.answer(Method.ACT)
    script.wait(101)
    assert script.end.outcome == "failed"
    assert "unsaved" in script.events()


def test_a_collector_that_does_not_give_its_state_at_the_end_is_named():
    script = at_multiple(total=10**6)
    script.event(Stop("SIGINT"))
    script.wait(60)
    assert script.end.outcome == "failed"
    assert "a collector did not answer" in script.end.reason
    assert collector() not in script.killed
