"""The replay: against a plain list as oracle, under any order of pushes, retries, samples and reloads."""

import json

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.random import default_rng
from scipy.stats import chisquare
from tensordict import LazyStackedTensorDict
from torchrl.data import ListStorage
from torchrl.data import ReplayBuffer as TorchReplayBuffer

from mtray.config.settings import ReplayConfig
from mtray.data.batch import unpack_batches
from mtray.data.messages import Push
from mtray.data.rows import TRANSITION, row_flags, sampled_shape
from mtray.data.schema import by_task
from mtray.data.specs import observation_width
from mtray.data.statistics import TaskStatistics
from mtray.errors import RunError, SchemaError, TaskError, UsageError
from mtray.replay.buffer import ReplayBuffer
from tests.makers import (
    assert_same_bits,
    leaf_bits,
    make_spec,
    numbered_rollout,
    pack_data,
    random_rollout,
    random_transitions,
)

SPECS = (make_spec("left", 3, 2), make_spec("right", 1, 3), make_spec("wide", 5, 1))
WIDTH = observation_width(SPECS)
NAMES = tuple(spec.name for spec in SPECS)
BY_NAME = {spec.name: spec for spec in SPECS}


def make_replay(capacity=100, seed=0, specs=SPECS, **settings):
    return ReplayBuffer(specs, ReplayConfig(capacity_rows=capacity, **settings), seed)


def stack_of(*elements):
    return LazyStackedTensorDict.lazy_stack(list(elements), 0)


def push_of(number, source="local", **data):
    return Push(
        source=source, number=number, rows={task: pack_data(part, BY_NAME[task], WIDTH) for task, part in data.items()}
    )


def rollout_of(task, seed=0, lanes=2, steps=4):
    return random_rollout(BY_NAME[task], WIDTH, lanes, steps, default_rng(seed), finite=True)[0]


def fill(replay, pushes=3, lanes=2, steps=4, seed=0):
    for number in range(pushes):
        replay.extend(stack_of(*(rollout_of(task, seed + number, lanes, steps) for task in NAMES)))


def held_transitions(replay, task):
    """Every transition the replay holds, oldest first, as one TensorDict [N]."""
    rows, spec = replay.rows(task), BY_NAME[task]
    at = np.flatnonzero(row_flags(rows) & TRANSITION)
    sampled = np.concatenate([rows[at], rows[at + 1, : spec.observation_size]], -1)[None]
    return unpack_batches({task: sampled}, SPECS)[0].to_stack(BY_NAME)[0]


def fingerprints(data):
    """Each transition of a TensorDict [N] as bytes."""
    leaves = [
        value.reshape(len(data), -1) for _, value in sorted(leaf_bits(data).items(), key=lambda item: str(item[0]))
    ]
    return [b"|".join(leaf[index].tobytes() for leaf in leaves) for index in range(len(data))]


def saved_and_loaded(replay, capacity, seed=99):
    """The replay as a new process has it after a checkpoint."""
    state = json.loads(json.dumps(replay.state()))
    loaded = make_replay(capacity, seed)
    for task in NAMES:
        begin, end = replay.held(task)
        middle = (begin + end) // 2
        for part in ((begin, middle), (middle, end)):
            loaded.write_rows(task, *replay.read_rows(task, *part))
    loaded.load(state)
    return loaded


class ReplayMachine(RuleBasedStateMachine):
    """Against lists of slots: a step's slot holds its transition, a break's slot the state reached."""

    @initialize(capacity=st.integers(8, 24), seed=st.integers(0, 1000))
    def start(self, capacity, seed):
        self.capacity = capacity
        self.replay = make_replay(capacity, seed)
        self.slots = {name: [] for name in NAMES}
        self.expected = {name: {} for name in NAMES}
        self.frames = dict.fromkeys(NAMES, 0)
        self.observed = {name: [] for name in NAMES}
        self.next_state = dict.fromkeys(NAMES, 1)
        self.sent = {}

    @rule(
        source=st.sampled_from(["one", "two"]),
        tasks=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        lanes=st.integers(1, 2),
        steps=st.integers(1, 4),
        seed=st.integers(0, 1000),
    )
    def push(self, source, tasks, lanes, steps, seed):
        generator = default_rng(seed)
        rows, parts = {}, {}
        for task in tasks:
            breaks = generator.random((lanes, steps)) < 0.25
            data, record, self.next_state[task] = numbered_rollout(BY_NAME[task], WIDTH, breaks, self.next_state[task])
            rows[task], parts[task] = pack_data(data, BY_NAME[task], WIDTH), (data.reshape(-1), record)
        number = sum(1 for known, _ in self.sent if known == source)
        push = Push(source=source, number=number, rows=rows)
        if max(map(len, rows.values())) > self.capacity:
            with pytest.raises(SchemaError, match=f"does not fit a ring of {self.capacity}"):
                self.replay.insert(push)
            return
        receipt = self.replay.insert(push)
        frames = {task: len(record) for task, (_, record) in parts.items()}
        assert (receipt.source, receipt.number, dict(receipt.frames)) == (source, number, frames)
        self.sent[source, number] = (push, receipt)
        for task, (data, record) in parts.items():
            self.frames[task] += len(record)
            for transition, (state, _, broken) in zip(data, record, strict=True):
                self.expected[task][state] = transition
                self.observed[task].append(transition[BY_NAME[task].key].numpy())
                self.slots[task] += [state, None] if broken else [state]
            self.slots[task] = self.slots[task][-self.capacity :]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def retry(self, data):
        push, receipt = self.sent[data.draw(st.sampled_from(sorted(self.sent)))]
        before = json.dumps(self.replay.state()), {task: self.replay.rows(task).tobytes() for task in NAMES}
        again = self.replay.insert(push)
        assert (again.source, again.number, dict(again.frames)) == (receipt.source, receipt.number, receipt.frames)
        assert before == (
            json.dumps(self.replay.state()),
            {task: self.replay.rows(task).tobytes() for task in NAMES},
        )

    @rule(count=st.integers(1, 20), tasks=st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    def sample(self, count, tasks):
        if not all(self.held(task) for task in tasks):
            with pytest.raises(UsageError, match="no transition of task"):
                self.replay.sample(count, tuple(tasks))
            return
        found = by_task(self.replay.sample(count, tuple(tasks)), NAMES)
        assert list(found) == tasks
        for task, data in found.items():
            assert data.batch_size == (count,)
            for row in data:
                state = int(row[BY_NAME[task].key][0])
                assert state in self.held(task)
                assert_same_bits(row, self.expected[task][state])

    @rule(more=st.integers(0, 6))
    def reload(self, more):
        before = self.replay
        self.replay = saved_and_loaded(before, self.capacity + more)
        if not more and all(self.held(task) for task in NAMES):
            assert_same_stacks(self.replay.sample(7), before.sample(7))
        self.capacity += more

    def held(self, task):
        return {state for state in self.slots[task] if state is not None}

    @invariant()
    def counts_are_the_oracles(self):
        stats = self.replay.stats()
        for task in NAMES:
            assert stats[task]["frames"] == self.frames[task] == self.replay.frames()[task]
            assert stats[task]["transitions"] == len(self.held(task))
            assert stats[task]["bytes"] == len(self.slots[task]) * 4 * BY_NAME[task].row_size

    @invariant()
    def rows_hold_what_the_oracle_holds_in_its_order(self):
        for task in NAMES:
            rows = self.replay.rows(task)
            held = [
                int(row[0]) if flags & TRANSITION else None for row, flags in zip(rows, row_flags(rows), strict=True)
            ]
            assert held == self.slots[task]

    def teardown(self):
        for task, observed in getattr(self, "observed", {}).items():
            if observed:
                [count, mean, square, *_] = self.replay.state()["statistics"][task]
                assert count == len(observed)
                np.testing.assert_allclose(mean, np.mean(observed, 0, dtype=np.float64))
                np.testing.assert_allclose(square, np.var(observed, 0, dtype=np.float64) * count, atol=1e-6)


TestReplayAgainstLists = ReplayMachine.TestCase
TestReplayAgainstLists.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)


def assert_same_stacks(found, expected):
    assert len(found.tensordicts) == len(expected.tensordicts)
    for one, other in zip(found.tensordicts, expected.tensordicts, strict=True):
        assert_same_bits(one, other)


# What goes in


@pytest.mark.parametrize("order", [("left", "right", "wide"), ("wide", "left"), ("right",)], ids="-".join)
def test_rollout_of_any_tasks_in_any_order_is_held_bit_for_bit(order):
    replay = make_replay()
    data = {task: rollout_of(task) for task in order}
    receipt = replay.extend(stack_of(*data.values()))
    assert dict(receipt.frames) == dict.fromkeys(order, 8)
    for task in NAMES:
        if task in order:
            assert_same_bits(held_transitions(replay, task), data[task].reshape(-1))
        else:
            assert len(replay.rows(task)) == 0


def test_one_tasks_rollout_needs_no_stack():
    replay, data = make_replay(), rollout_of("right")
    replay.extend(data)
    assert_same_bits(held_transitions(replay, "right"), data.reshape(-1))


def test_retried_push_gives_the_same_receipt_and_changes_nothing():
    replay = make_replay()
    push = push_of(0, left=rollout_of("left"))
    receipt = replay.insert(push)
    replay.insert(push_of(1, left=rollout_of("left", 1)))
    before = json.dumps(replay.state()), replay.rows("left").tobytes(), replay.stats(), replay.source_frames()
    assert replay.insert(push) == receipt
    assert before == (
        json.dumps(replay.state()),
        replay.rows("left").tobytes(),
        replay.stats(),
        replay.source_frames(),
    )


def test_same_number_of_another_source_is_another_push():
    replay = make_replay()
    for source in ("one", "two"):
        replay.insert(push_of(0, source, left=rollout_of("left")))
    assert replay.stats()["left"]["transitions"] == 16
    assert replay.source_frames() == {"one": 8, "two": 8}


def test_push_older_than_every_receipt_kept_is_an_error_that_names_it():
    replay = make_replay(capacity=8)
    data = rollout_of("right", lanes=1, steps=1)
    for number in range(300):
        replay.insert(push_of(number, right=data))
    with pytest.raises(RunError, match="push 3 of local"):
        replay.insert(push_of(3, right=data))
    assert replay.frames()["right"] == 300


def test_largest_return_is_kept_over_pushes():
    replay = make_replay()
    for number, largest in enumerate([3.0, 7.5, 1.0]):
        rows = {"left": pack_data(rollout_of("left"), SPECS[0], WIDTH)}
        replay.insert(Push(source="local", number=number, rows=rows, largest_returns={"left": largest}))
    statistics = replay.sample_rows(1, tasks=("left",)).statistics
    assert (statistics["left"].largest_return, statistics["right"].largest_return) == (7.5, 0.0)


def test_an_outlier_counts_while_its_data_are_held_and_not_for_ever():
    replay = make_replay(capacity=32)
    rows = {"left": pack_data(rollout_of("left"), SPECS[0], WIDTH)}
    rows["left"][:, -2] = 1.0
    outlier = {"left": rows["left"].copy()}
    outlier["left"][0, -2] = 1e6
    held, found = 0, []
    for number in range(40):
        pushed = outlier if number == 3 else rows
        largest = {"left": 5e6 if number == 3 else 2.0}
        replay.insert(Push(source="local", number=number, rows=pushed, largest_returns=largest))
        statistics = replay.sample_rows(1, tasks=("left",)).statistics["left"]
        found.append((statistics.largest_reward == 1e6, statistics.largest_return == 5e6))
        held += float(np.abs(replay.rows("left")[:, -2]).max()) == 1e6
        # A process that goes on from a checkpoint forgets at the same moment.
        replay = saved_and_loaded(replay, 32)
    counted = [reward for reward, _ in found]
    assert found == [(one, one) for one in counted]
    assert held <= sum(counted) <= 2 * held + 2
    assert not counted[-1]


def test_statistics_are_those_of_every_observation_inserted_also_of_those_overwritten():
    replay, generator = make_replay(capacity=16), default_rng(3)
    inserted = {task: [] for task in NAMES}
    for _ in range(6):
        elements = []
        for spec in SPECS:
            data = random_transitions(spec, WIDTH, int(generator.integers(2, 7)), generator)
            values = generator.normal(
                100.0, [0.1, 1.0, 10.0, 3.0, 5.0][: spec.observation_size], (len(data), spec.observation_size)
            )
            for key in ("observation", spec.key):
                data[key][:, : spec.observation_size] = torch.from_numpy(values)
            for key in ("action", ("next", "reward"), ("next", "observation"), ("next", spec.key)):
                data[key].zero_()
            elements.append(data)
            inserted[spec.name].append(data[spec.key].numpy())
        for data in elements:
            replay.extend(data)
    assert replay.stats()["wide"]["transitions"] < sum(map(len, inserted["wide"]))
    statistics = replay.sample_rows(1).statistics
    for task in NAMES:
        every = np.concatenate(inserted[task]).astype(np.float64)
        assert statistics[task].count == len(every)
        np.testing.assert_allclose(statistics[task].mean, every.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics[task].square / (len(every) - 1), every.var(0, ddof=1), rtol=1e-9)


def test_statistics_that_come_with_a_push_are_those_the_replay_would_take():
    given_with, taken = make_replay(1000), make_replay(1000)
    for number in range(3):
        # More rows than are looked at in one go, with breaks among them.
        rows = {"wide": pack_data(rollout_of("wide", number, lanes=4, steps=100), BY_NAME["wide"], WIDTH)}
        statistics = {"wide": TaskStatistics.of(rows["wide"], 5)}
        given_with.insert(Push(source="local", number=number, rows=rows, statistics=statistics))
        taken.insert(Push(source="local", number=number, rows=rows))
    assert given_with.state()["statistics"] == taken.state()["statistics"]
    assert taken.state()["statistics"]["wide"][0] == 1200


def test_statistics_of_chunks_are_those_of_all():
    generator = default_rng(0)
    data = random_transitions(SPECS[0], WIDTH, 1000, generator)
    data["observation_left"] = torch.from_numpy(generator.normal(1000.0, [0.1, 1.0, 10.0], (1000, 3))).float()
    data["observation"][:, :3] = data["observation_left"]
    for key in (("next", "observation"), ("next", "observation_left")):
        data[key].zero_()
    data["next", "reward"].fill_(2.5)[700] = -50.0
    rows, observed = pack_data(data, SPECS[0], WIDTH), data["observation_left"].double().numpy()
    found = TaskStatistics.of(rows, 3)
    assert (found.count, len(rows) > 1000) == (1000, True)
    np.testing.assert_allclose(found.mean, observed.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.square, observed.var(0) * 1000, rtol=1e-9)
    assert found.largest_reward == 50.0


def test_transitions_are_those_that_torchrls_list_storage_holds():
    replay, oracle = make_replay(1000), TorchReplayBuffer(storage=ListStorage(100), collate_fn=list)
    generator = default_rng(0)
    for order in (NAMES, NAMES[::-1], ("wide",), ("right", "left")):
        rollout = stack_of(*(random_rollout(BY_NAME[task], WIDTH, 2, 5, generator, finite=True)[0] for task in order))
        replay.extend(rollout)
        oracle.extend(rollout)
    expected = {task: set() for task in NAMES}
    for element in oracle[:]:
        [(task, data)] = by_task(element, NAMES).items()
        expected[task].update(fingerprints(data.reshape(-1)))
    for task in NAMES:
        assert len(expected[task]) == replay.stats()[task]["transitions"]
        assert set(fingerprints(held_transitions(replay, task))) == expected[task]


# What is refused


def test_unknown_task_is_refused_and_nothing_of_its_push_is_stored():
    replay = make_replay()
    rows = pack_data(rollout_of("left"), SPECS[0], WIDTH)
    with pytest.raises(SchemaError, match=r"'middle'.*left, right, wide"):
        replay.insert(Push(source="one", number=0, rows={"left": rows, "middle": rows}))
    assert replay.frames() == dict.fromkeys(NAMES, 0)
    assert {stats["transitions"] for stats in replay.stats().values()} == {0}
    assert replay.source_frames() == {}


@pytest.mark.parametrize(
    "rows",
    [np.zeros((4, 6), np.float32), np.zeros((4, 7), np.float64), np.zeros(7, np.float32)],
    ids=["narrow", "float64", "flat"],
)
def test_rows_of_another_shape_are_refused_and_nothing_of_their_push_is_stored(rows):
    replay = make_replay()
    good = pack_data(rollout_of("right"), SPECS[1], WIDTH)
    with pytest.raises(SchemaError, match=r"'left': rows of shape .* the schema says \(any, 7\) float32"):
        replay.insert(Push(source="one", number=0, rows={"right": good, "left": rows}))
    assert replay.frames() == dict.fromkeys(NAMES, 0)
    # The id is free still: the same push, put right, is stored.
    replay.insert(Push(source="one", number=0, rows={"right": good}))
    assert replay.frames()["right"] == 8


@pytest.mark.parametrize("rows", [0, 3])
def test_rows_that_do_not_end_with_the_observation_reached_are_refused(rows):
    packed = pack_data(rollout_of("left", lanes=1), SPECS[0], WIDTH)[:-1][:rows]
    with pytest.raises(SchemaError, match="'left': the last row must hold the observation reached"):
        make_replay().insert(Push(source="one", number=0, rows={"left": packed[:1] if rows else packed}))


def test_push_larger_than_the_ring_is_refused_and_nothing_of_it_is_stored():
    replay = make_replay(capacity=10)
    small, large = rollout_of("left", lanes=1, steps=2), rollout_of("right", lanes=1, steps=10)
    rows = {"left": pack_data(small, SPECS[0], WIDTH), "right": pack_data(large, SPECS[1], WIDTH)}
    with pytest.raises(SchemaError, match=rf"'right'.*{len(rows['right'])} rows .* ring of 10.*--replay.capacity-rows"):
        replay.insert(Push(source="one", number=0, rows=rows))
    assert replay.frames() == dict.fromkeys(NAMES, 0)


def test_push_as_large_as_the_ring_replaces_all():
    replay = make_replay(capacity=10)
    replay.extend(rollout_of("left", lanes=1, steps=3))
    data, _, _ = numbered_rollout(SPECS[0], WIDTH, np.zeros((1, 9), bool), first=1)
    replay.extend(data)
    assert_same_bits(held_transitions(replay, "left"), data.reshape(-1))


def test_statistics_of_other_rows_are_refused_and_nothing_of_their_push_is_stored():
    replay = make_replay()
    before = json.dumps(replay.state())
    rows = {"left": pack_data(rollout_of("left"), SPECS[0], WIDTH)}
    other = {"left": TaskStatistics.of(rows["left"][2:], 3)}
    with pytest.raises(SchemaError, match=r"'left': statistics of \d transitions came with rows of 8"):
        replay.insert(Push(source="one", number=0, rows=rows, statistics=other))
    assert json.dumps(replay.state()) == before


def spoil_key(data):
    data.set("bonus", torch.zeros(2, 4, 1))


def spoil_shape(data):
    data["action"] = torch.zeros(2, 4, 3)


def spoil_dtype(data):
    data["next", "reward"] = data["next", "reward"].double()


def spoil_observation(data):
    data["observation"][1, 2, 0] = 7.0


def spoil_padding(data):
    data["next", "observation"][1, 2, -1] = 7.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_key, r"key 'bonus' of shape \(2, 4, 1\) is not in"),
        (spoil_shape, r"key 'action' has shape \(2, 4, 3\).*\(2, 4, 2\)"),
        (spoil_dtype, r"key \('next', 'reward'\) has shape .*float64.*float32"),
        (spoil_observation, "'observation' and 'observation_left' differ"),
        (spoil_padding, "'observation' has nonzero values after the task's 3 entries"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_tensordicts_that_break_their_schema_are_refused_and_nothing_is_stored(spoil, message, first):
    replay, data = make_replay(), rollout_of("left")
    spoil(data)
    before = json.dumps(replay.state())
    with pytest.raises(SchemaError, match=f"'left': {message}"):
        replay.extend(stack_of(*([data, rollout_of("right")] if first else [rollout_of("right"), data])))
    assert json.dumps(replay.state()) == before
    assert not len(replay.rows("right"))


def test_no_transition_is_refused():
    with pytest.raises(SchemaError, match="'left'"):
        make_replay().extend(random_transitions(BY_NAME["left"], WIDTH, 0, default_rng(0)))


# What comes out


def test_every_task_gets_the_same_number_of_rows_whatever_it_holds():
    replay = make_replay(1000)
    for task, steps in zip(NAMES, (2, 20, 200), strict=True):
        replay.extend(rollout_of(task, lanes=1, steps=steps))
    found = replay.sample(64)
    assert [data.batch_size for data in found.tensordicts] == [(64,)] * 3
    assert list(by_task(found, NAMES)) == list(NAMES)


def test_sampled_tasks_come_in_the_order_asked_for():
    replay = make_replay()
    fill(replay)
    assert list(by_task(replay.sample(4, ("wide", "left")), NAMES)) == ["wide", "left"]


def test_batches_are_drawn_on_their_own():
    replay = make_replay(1000)
    fill(replay, pushes=5, lanes=5, steps=20)
    rows = replay.sample_rows(32, batches=3).rows
    assert {task: part.shape for task, part in rows.items()} == {
        spec.name: (3, 32, spec.row_size + spec.observation_size) for spec in SPECS
    }
    assert len({rows["left"][batch].tobytes() for batch in range(3)}) == 3


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_transition_held_is_drawn_equally_often(wrapped):
    replay = make_replay(capacity=64, seed=7)
    state = 1
    for _ in range(5 if wrapped else 1):
        # Breaks here and there, so that rows without a transition are not evenly spread.
        breaks = np.zeros((2, 10), bool)
        breaks[0, 3:7] = True
        data, _, state = numbered_rollout(SPECS[0], WIDTH, breaks, state)
        replay.extend(data)
    held = [int(value) for value in held_transitions(replay, "left")["observation_left"][:, 0]]
    assert len(replay.rows("left")) == (64 if wrapped else 26)
    drawn = replay.sample(20_000, ("left",))[0]["observation_left"][:, 0].int().tolist()
    counts = [drawn.count(value) for value in held]
    assert sum(counts) == 20_000
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_is_drawn_from_the_newest_rows(share, wrapped):
    replay, state = make_replay(capacity=64, seed=5, recent_share=share, recent_rows=22), 1
    for _ in range(8 if wrapped else 2):
        data, _, state = numbered_rollout(SPECS[0], WIDTH, np.zeros((2, 10), bool), state)
        replay.extend(data)
    held = [int(value) for value in held_transitions(replay, "left")["observation_left"][:, 0]]
    # A push has two copies' rollouts, each of ten transitions and the observation that it reached.
    recent = held[-20:]
    assert len(held) > 2 * len(recent) - 5
    batches = replay.sample_rows(100, 200, ("left",)).rows["left"][..., 0]
    of_batch = np.isin(batches, recent).mean(1)
    usual = share + (1 - share) * len(recent) / len(held)
    assert of_batch.mean() == pytest.approx(usual, abs=0.02)
    assert len(set(of_batch)) > 1 or share == 1, "drawn row by row"
    drawn = batches.ravel().astype(int).tolist()
    for part in (recent, held[:-20]) if share < 1 else (recent,):
        assert chisquare([drawn.count(value) for value in part]).pvalue > 0.01


def test_newest_rows_without_a_transition_are_not_waited_for():
    replay = make_replay(capacity=100, recent_share=1.0, recent_rows=2)
    fill(replay, pushes=2)
    assert len(replay.sample_rows(8, 4).rows["left"]) == 4
    # What was lost before the newest push leaves a hole.
    end = len(replay.rows("left"))
    rows = replay.rows("left")[:4].copy()
    row_flags(rows)[:] = 0
    replay.write_rows("left", end, rows)
    assert np.isfinite(replay.sample_rows(8, 4).rows["left"]).all()


@pytest.mark.parametrize("batch", [0, 3, 7])
def test_every_batch_is_drawn_from_the_whole_ring(batch):
    # Rows lie in a batch in the ring's order, and a call's batches must not share the ring out between them.
    replay = make_replay(capacity=64, seed=3)
    data, _, _ = numbered_rollout(SPECS[0], WIDTH, np.zeros((1, 20), bool), 1)
    replay.extend(data)
    drawn = [replay.sample_rows(8, 8, ("left",)).rows["left"][batch, :, 0] for _ in range(500)]
    assert chisquare(np.unique(np.concatenate(drawn), return_counts=True)[1]).pvalue > 0.01
    first = [rows[0] for rows in drawn]
    # The batch's oldest of eight draws among twenty states: about the second of them, seldom one of the upper half.
    assert np.mean(first) < 5


def test_last_slots_transition_leads_to_the_first_slot_however_often_that_is_overwritten():
    replay, state = make_replay(capacity=12), 1
    seen = set()
    for _ in range(40):
        # Five rows at a time: the ring's end falls everywhere in a push.
        data, record, state = numbered_rollout(SPECS[0], WIDTH, np.zeros((1, 4), bool), state)
        replay.extend(data)
        expected = {acted: after for acted, after, _ in record} | {state_: state_ + 1 for state_ in seen}
        rows = replay.sample_rows(200, tasks=("left",)).rows["left"][0]
        assert all(expected[int(row[0])] == int(after) for row in rows for after in row[SPECS[0].row_size :])
        seen |= {int(acted) for acted in expected}


@pytest.mark.parametrize("steps", [2, 3, 10])
@pytest.mark.parametrize("ended", ["terminated", "truncated"])
def test_returns_of_several_steps_end_with_the_episode_and_the_rollout(steps, ended):
    # Five rollouts of two copies; the ring holds the newest four and a half, from some place in the middle.
    spec = SPECS[0]
    replay, generator, expected, state = make_replay(capacity=80, seed=5), default_rng(0), {}, 1
    for _ in range(5):
        breaks = generator.random((2, 8)) < 0.2
        data, _, state = numbered_rollout(spec, WIDTH, breaks, state)
        for key in ("done", ended):
            data["next", key][..., 0] = torch.from_numpy(breaks)
        # One episode's end is no break: the next begins where it ended.
        data["next", "done"][0, 2] = data["next", ended][0, 2] = True
        replay.extend(data)
        rewards, done = data["next", "reward"][..., 0].numpy(), data["next", "done"][..., 0].numpy()
        acted, reached = data[spec.key][..., 0].int().numpy(), data["next", spec.key][..., 0].int().numpy()
        for lane in range(2):
            for first in range(8):
                stop = next((at for at in range(first, 8) if done[lane, at]), 7)
                last = min(first + steps - 1, stop)
                powers = spec.discount ** np.arange(last - first + 1)
                total = float((rewards[lane, first : last + 1] * powers).sum())
                key = int(acted[lane, first])
                expected[key] = (total, int(reached[lane, last]), last - first + 1, bool(done[lane, last]))
    batch = unpack_batches(replay.sample_rows(500, 1, ("left",), steps=steps).rows, SPECS)[0]
    starts = batch.observation[0, :, 0].int().tolist()
    assert len(set(starts)) == len(held_transitions(replay, "left"))
    totals, reached, counts, ends = map(list, zip(*(expected[start] for start in starts), strict=True))
    np.testing.assert_allclose(batch.reward[0], totals, rtol=1e-5, atol=1e-6)
    assert batch.next_observation[0, :, 0].int().tolist() == reached
    assert batch.steps[0].tolist() == counts
    assert max(counts) > 1
    assert batch.flag(ended)[0].tolist() == batch.flag("done")[0].tolist() == ends
    one = unpack_batches(replay.sample_rows(64, 1, ("left",)).rows, SPECS)[0]
    assert one.steps.unique().tolist() == [1]


def test_rows_are_drawn_into_arrays_that_are_given():
    one, other = make_replay(seed=4), make_replay(seed=4)
    for replay in (one, other):
        fill(replay)
    out = {spec.name: np.full(sampled_shape(spec, 6, 5), np.nan, np.float32) for spec in SPECS}
    found = one.sample_rows(6, 5, out=out).rows
    for task, rows in other.sample_rows(6, 5).rows.items():
        assert found[task] is out[task]
        assert rows.tobytes() == out[task].tobytes()


def test_same_seed_draws_the_same_and_another_does_not():
    replays = [make_replay(seed=seed) for seed in (1, 1, 2)]
    for replay in replays:
        fill(replay)
    first, same, other = (replay.sample_rows(32).rows["left"].tobytes() for replay in replays)
    assert first == same != other


def test_sampled_rows_are_not_the_rings():
    replay = make_replay()
    fill(replay)
    before = replay.rows("left").tobytes()
    replay.sample_rows(8).rows["left"][:] = 0
    replay.rows("left")[:] = 0
    assert replay.rows("left").tobytes() == before


@pytest.mark.parametrize("pushes", [2, 7])
def test_ages_count_the_rows_written_since(pushes):
    replay = make_replay(capacity=40)
    fill(replay, pushes)
    sampled = replay.sample_rows(16, 3)
    for task, drawn in sampled.rows.items():
        held = [row.tobytes() for row in replay.rows(task)]
        size = BY_NAME[task].row_size
        ages = [len(held) - 1 - held.index(row.tobytes()) for row in drawn.reshape(-1, drawn.shape[-1])[:, :size]]
        assert sampled.ages[task] == pytest.approx(np.mean(ages))


def test_sampling_a_task_without_data_is_an_error_that_names_it():
    replay = make_replay()
    replay.extend(stack_of(rollout_of("left"), rollout_of("wide")))
    with pytest.raises(UsageError, match=r"task 'right'.*'left': 8, 'right': 0, 'wide': 8"):
        replay.sample(4)
    assert len(replay.sample(4, ("left", "wide")).tensordicts) == 2


def test_sampling_an_unknown_task_is_an_error_that_names_it():
    replay = make_replay()
    fill(replay)
    with pytest.raises(UsageError, match="task 'middle'"):
        replay.sample(4, ("middle",))


# Saving and loading


@pytest.mark.parametrize("pushes", [1, 4, 9], ids=["filling", "wrapping", "wrapped"])
def test_loaded_replay_goes_on_as_the_saved_one_does(pushes):
    replay = make_replay(capacity=40, seed=5)
    fill(replay, pushes)
    replay.sample(3)
    loaded = saved_and_loaded(replay, 40)
    assert loaded.stats() == replay.stats()
    for number in range(4):
        assert_same_stacks(loaded.sample(50), replay.sample(50))
        for one in (loaded, replay):
            one.extend(stack_of(*(rollout_of(task, 100 + number) for task in NAMES)))
        for task in NAMES:
            assert loaded.rows(task).tobytes() == replay.rows(task).tobytes()
    assert json.dumps(loaded.state()) == json.dumps(replay.state())


@pytest.mark.parametrize("pushes", [1, 9], ids=["filling", "wrapped"])
def test_larger_ring_keeps_every_transition(pushes):
    replay = make_replay(capacity=40)
    fill(replay, pushes)
    loaded = saved_and_loaded(replay, 60)
    for task in NAMES:
        assert_same_bits(held_transitions(loaded, task), held_transitions(replay, task))
    assert loaded.stats() == replay.stats()
    before = set(fingerprints(held_transitions(replay, "left")))
    assert set(fingerprints(loaded.sample(400, ("left",))[0])) == before
    for _ in range(9):
        fill(loaded, 1, seed=50)
    assert {len(loaded.rows(task)) for task in NAMES} == {60}


def test_a_smaller_ring_keeps_the_newest_rows():
    replay = make_replay(capacity=40)
    fill(replay, 1)
    loaded = saved_and_loaded(replay, 20)
    assert_same_bits(held_transitions(loaded, "wide"), held_transitions(replay, "wide"))
    fill(replay, 9)
    loaded = saved_and_loaded(replay, 20)
    for task in NAMES:
        assert loaded.rows(task).tobytes() == replay.rows(task)[-20:].tobytes()
    assert loaded.frames() == replay.frames()
    # It goes on as any ring does.
    fill(loaded, 1, seed=50)
    assert {len(loaded.rows(task)) for task in NAMES} == {20}


@pytest.mark.parametrize("lost", [1, 13, 30, 70])
@pytest.mark.parametrize("end", [50, 57], ids=["after a push", "within a push"])
def test_rows_after_a_gap_make_no_transitions_that_never_were(end, lost):
    spec, push_rows = BY_NAME["left"], 10
    numbers = np.arange(200)
    rows = np.zeros((200, spec.row_size), np.float32)
    rows[:, 0] = numbers
    row_flags(rows)[:] = np.where(numbers % push_rows == push_rows - 1, 0, TRANSITION)
    replay = make_replay(capacity=40)
    replay.write_rows("left", 0, rows[:end])
    replay.write_rows("left", end + lost, rows[end + lost : end + lost + 23])
    sampled = replay.sample_rows(2000, 1, ("left",)).rows["left"][0]
    before, after = sampled[:, 0], sampled[:, spec.row_size]
    assert (after == before + 1).all()
    # All that are held are drawn, also by the process that takes the memory over.
    held = np.concatenate([numbers[:end], numbers[end + lost : end + lost + 23]])
    held = held[(held >= end + lost + 23 - 40) & (held % push_rows != push_rows - 1) & (held != end - 1)]
    held = held[held != end + lost + 22]
    assert np.unique(before).tolist() == held.tolist()
    flags = row_flags(replay.rows("left"))
    assert np.count_nonzero(flags & TRANSITION) == replay.stats()["left"]["transitions"]


def test_loaded_replay_knows_the_pushes_it_has_acknowledged():
    replay = make_replay()
    push = push_of(0, "one", left=rollout_of("left"))
    receipt = replay.insert(push)
    loaded = saved_and_loaded(replay, 100)
    again = loaded.insert(push)
    assert (again.source, again.number, dict(again.frames)) == (receipt.source, receipt.number, dict(receipt.frames))
    assert loaded.frames()["left"] == 8


def test_task_that_was_empty_when_saved_is_empty_when_loaded():
    replay = make_replay()
    replay.extend(rollout_of("left"))
    loaded = saved_and_loaded(replay, 100)
    with pytest.raises(UsageError, match="'right'"):
        loaded.sample(1, ("right",))
    loaded.extend(rollout_of("right"))
    assert loaded.sample(5, ("right",)).batch_size == (1, 5)


def test_rows_of_another_width_are_refused_when_loading():
    replay = make_replay()
    fill(replay)
    with pytest.raises(SchemaError, match=r"'left': rows of shape .*\(any, 7\)"):
        make_replay().write_rows("left", 0, replay.rows("wide"))


def test_push_that_arrives_before_an_earlier_one_is_no_retry():
    replay = make_replay(capacity=64)
    spec = SPECS[0]
    rows = pack_data(random_rollout(spec, WIDTH, 1, 2, default_rng(0), finite=True)[0], spec, WIDTH)
    later = replay.insert(Push(source="a", number=1, rows={spec.name: rows}))
    earlier = replay.insert(Push(source="a", number=0, rows={spec.name: rows}))
    assert later.frames == earlier.frames == {spec.name: 2}
    assert replay.frames()[spec.name] == 4


def test_refused_push_leaves_everything_as_it_was():
    replay = make_replay(capacity=64)
    before = json.dumps(replay.state())
    with pytest.raises(SchemaError):
        replay.insert(Push(source="a", number=0, rows={"unknown": np.zeros((1, 2), np.float32)}))
    assert json.dumps(replay.state()) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["action", ("next", "reward"), "exclusive", ("next", "exclusive")])
def test_values_that_are_not_finite_are_refused_with_the_push_and_the_task(key, value):
    replay, spec = make_replay(capacity=64), SPECS[0]
    data = random_rollout(spec, WIDTH, 1, 3, default_rng(0), finite=True)[0]
    keys = {
        "exclusive": (spec.key, "observation"),
        ("next", "exclusive"): (("next", spec.key), ("next", "observation")),
    }
    for each in keys.get(key, (key,)):
        data[each][0, 1, 0] = value
    before = json.dumps(replay.state())
    with pytest.raises(TaskError, match=f"task '{spec.name}': its data is not finite; nothing of push 0 of local"):
        replay.extend(data)
    assert json.dumps(replay.state()) == before


def test_statistics_do_not_stand_for_data_that_is_not_finite():
    replay, rows = make_replay(), pack_data(rollout_of("left"), SPECS[0], WIDTH)
    statistics = {"left": TaskStatistics.of(rows, 3)}
    rows[-1, 0] = np.inf
    before = json.dumps(replay.state())
    with pytest.raises(TaskError, match="task 'left': its data is not finite"):
        replay.insert(Push(source="local", number=0, rows={"left": rows}, statistics=statistics))
    assert json.dumps(replay.state()) == before


def test_the_largest_finite_values_are_stored():
    replay, rows = make_replay(), pack_data(rollout_of("left"), SPECS[0], WIDTH)
    rows[:, :-1] = np.finfo(np.float32).max
    replay.insert(Push(source="local", number=0, rows={"left": rows}))
    assert replay.rows("left").tobytes() == rows.tobytes()


# What control asks for


def test_a_source_that_is_fenced_pushes_nothing_more_and_others_do():
    replay = make_replay()
    first, late = (push_of(number, "gone", left=rollout_of("left", seed=number)) for number in range(2))
    stored = sum(replay.insert(first).frames.values())
    assert replay.fence("gone") == stored > 0
    before = replay.frames()
    for push in (first, late):
        with pytest.raises(RunError, match="of gone is refused: its process was replaced"):
            replay.insert(push)
    assert replay.frames() == before
    assert replay.fence("gone") == stored
    assert replay.fence("never came") == 0
    replay.insert(push_of(0, "other", left=rollout_of("left")))
    assert replay.frames() != before


def test_a_replay_holds_so_many_transitions_once_every_task_does_or_its_ring_is_full():
    replay = make_replay(capacity=60)
    assert not replay.holds(1)
    replay.extend(stack_of(rollout_of("left"), rollout_of("wide")))
    assert not replay.holds(1), "one task has none"
    replay.extend(stack_of(rollout_of("right")))
    count = min(ring["transitions"] for ring in replay.stats().values())
    assert replay.holds(count)
    assert not replay.holds(10_000)
    for seed in range(20):
        replay.extend(stack_of(*(rollout_of(task, seed=seed) for task in NAMES)))
    assert replay.holds(10_000), "rings are full: more they can't hold"


def test_a_task_that_is_set_aside_may_hold_nothing():
    replay = make_replay()
    replay.extend(stack_of(rollout_of("left"), rollout_of("wide")))
    assert replay.holds(1, aside={"right"})
    assert not replay.holds(10_000, aside={"right"})
    assert [task for task in NAMES if replay.holds_any(task)] == [task for task in NAMES if task != "right"]


def test_what_is_loaded_without_rows_counts_but_is_not_held():
    replay = make_replay()
    replay.extend(stack_of(*(rollout_of(task) for task in NAMES)))
    loaded = make_replay()
    loaded.load(json.loads(json.dumps(replay.state())))
    assert loaded.frames() == replay.frames()
    assert not loaded.holds(1)
    sizes = {task: statistics.count for task, statistics in loaded._account.statistics.items()}
    assert sizes == {task: statistics.count for task, statistics in replay._account.statistics.items()}
    with pytest.raises(UsageError, match="no transition of task"):
        loaded.sample_rows(1)
