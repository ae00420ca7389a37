"""Who waits for what: shares of the time between two looks."""

from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.protocol import Failure, Method
from tests.cluster.control.script import Script, collector, counts


def waiting(script, replay_seconds=(0.0, 0.0)):
    return script.control.take_waits(script.now, replay_seconds)


def test_each_side_waits_for_the_start_the_warm_up_and_the_other_side():
    script = Script(ratio=1.0, slack=32, total=10**6)
    script.wait(2)
    assert waiting(script) == {"collectors": {}, "learner": {"start": 1.0}}
    script.all_up()
    script.answer(Method.COUNT, counts(0, warm=False))
    script.wait(2)
    assert waiting(script) == {"collectors": {}, "learner": {"warm-up": 1.0}}
    for _ in range(3):
        script.answer(Method.COLLECT)
    # Slack is used up, as far as rollouts fit; the learner is slow.
    script.answer(Method.COUNT, counts(30))
    script.wait(1)
    script.answer(Method.TRAIN, 10)
    script.answer(Method.STATE, 10)
    script.wait(3)
    assert waiting(script) == {"collectors": {"learner": 0.25}, "learner": {}}
    # Now the collector is slow.
    script.answer(Method.TRAIN, 30)
    script.wait(4)
    assert waiting(script) == {"collectors": {}, "learner": {"frames": 1.0}}


def test_who_is_ahead_waits_for_collectors_of_other_tasks():
    script = Script(tasks=({"a"}, {"b"}), total=10**6).all_up()
    for _ in range(3):
        script.answer(Method.COLLECT, part=collector(0))
    waiting(script)
    script.wait(2)
    # The other one has two calls under way.
    assert waiting(script)["collectors"] == {"collectors": 0.5}


def test_both_wait_for_a_replay_that_is_gone_and_for_its_answers():
    script = Script(ratio=1.0, total=10**6).all_up()
    script.answer(Method.COUNT, counts(0))
    waiting(script)
    script.wait(4)
    assert waiting(script, (1.0, 0.2)) == {"collectors": {"replay": 0.25}, "learner": {"frames": 1.0, "replay": 0.05}}
    script.answer(Method.COLLECT)
    script.answer(Method.COLLECT)
    script.fail(Method.COUNT, Failure.DIED)
    for _ in range(2):
        script.fail(Method.COLLECT, Failure.PEER)
    waiting(script)
    script.wait(1)
    assert waiting(script) == {"collectors": {"replay": 1.0}, "learner": {"replay": 1.0}}


def test_in_lockstep_one_side_waits_while_the_other_works():
    script = Script(tasks=({"a"}, {"a"}), ratio=1.0, total=10**6, kind=Lockstep).all_up()
    waiting(script)
    script.answer(Method.ACT)
    script.wait(1)
    assert waiting(script) == {"collectors": {"collectors": 0.5}, "learner": {"warm-up": 1.0}}
    script.answer(Method.ACT)
    script.answer(Method.PUSH)
    script.answer(Method.PUSH)
    script.wait(1)
    assert waiting(script)["collectors"] == {"replay": 1.0}
    script.answer(Method.COUNT, counts(20))
    script.wait(1)
    assert waiting(script) == {"collectors": {"learner": 1.0}, "learner": {}}
