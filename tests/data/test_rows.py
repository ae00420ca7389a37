"""Rows: packed data comes out bit for bit, with the smallest number of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from tensordict import LazyStackedTensorDict

from mtray.data.batch import Batch, unpack_batches
from mtray.data.rollout import TaskRollout, pack
from mtray.data.rows import NEXT_BITS, ROOT_BITS, TRANSITION, holds_transition, is_finite, row_flags
from mtray.data.schema import validate
from mtray.data.specs import observation_width
from mtray.errors import SchemaError
from tests.makers import (
    assert_same_bits,
    bits,
    make_spec,
    numbered_rollout,
    pack_data,
    random_rollout,
    random_transitions,
)

SPEC = make_spec("left", observation=3, action=2)


def drawn(rows, spec):
    """Return every transition with its next observation, in order, as one batch [1, N, row_size + obs_t]."""
    at = np.flatnonzero(row_flags(rows) & TRANSITION)
    return np.concatenate([rows[at], rows[at + 1, : spec.observation_size]], -1)[None]


def round_trip(data, spec, width, specs=None):
    rows = pack_data(data, spec, width)
    [batch] = unpack_batches({spec.name: drawn(rows, spec)}, specs or [spec])
    return batch.to_stack({spec.name: spec})[0]


@st.composite
def runs(draw):
    """Draw one to three tasks of any widths, with rollouts of the same size."""
    widths = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3))
    specs = [make_spec(f"task{index}", *sizes) for index, sizes in enumerate(widths)]
    width = observation_width(specs)
    lanes, steps = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    ends, shared = draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.booleans())
    generator = default_rng(draw(st.integers(0, 2**32 - 1)))
    rollouts = [random_rollout(spec, width, lanes, steps, generator, ends=ends, shared=shared) for spec in specs]
    return specs, width, rollouts


@settings(max_examples=80, deadline=None)
@given(runs())
def test_rollouts_of_any_tasks_come_out_bit_for_bit(run):
    specs, width, rollouts = run
    packed = {spec.name: pack_data(data, spec, width) for spec, (data, _) in zip(specs, rollouts, strict=True)}
    [batch] = unpack_batches({spec.name: drawn(packed[spec.name], spec) for spec in specs}, specs)
    stack = batch.to_stack({spec.name: spec for spec in specs})
    assert isinstance(stack, LazyStackedTensorDict)
    for spec, (data, _), found in zip(specs, rollouts, stack.tensordicts, strict=True):
        validate(found, spec, width)
        assert_same_bits(found, data.reshape(-1))


@settings(max_examples=60, deadline=None)
@given(runs())
def test_a_row_is_added_only_where_the_next_observation_differs(run):
    specs, width, rollouts = run
    for spec, (data, breaks) in zip(specs, rollouts, strict=True):
        rows = pack_data(data, spec, width)
        assert rows.dtype == np.float32
        assert rows.shape == (breaks.size + breaks.sum(), spec.row_size)
        acted = holds_transition(rows)
        assert acted.sum() == breaks.size
        expected = [kind for broken in breaks.reshape(-1) for kind in ([True, False] if broken else [True])]
        assert acted.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_unordered_transitions_come_out_bit_for_bit(count, size, seed):
    spec = make_spec("left", size, 2)
    data = random_transitions(spec, size + 1, count, default_rng(seed))
    found = round_trip(data, spec, size + 1, [spec, make_spec("wide", size + 1, 2)])
    assert_same_bits(found, data)


@settings(max_examples=40, deadline=None)
@given(runs(), st.integers(0, 2))
def test_dense_batch_comes_back_from_its_stack(run, wider):
    specs, _, _ = run
    generator = default_rng(wider)
    specs = [*specs, make_spec("other", observation_width(specs) + wider, 2)]
    width = observation_width(specs)
    elements = [random_transitions(spec, width, 4, generator) for spec in specs]
    stack = LazyStackedTensorDict.lazy_stack(elements[::-1], 0)
    batch = Batch.from_stack(stack, specs)
    assert batch.tasks == tuple(spec.name for spec in specs[::-1])
    for found, expected in zip(batch.to_stack({s.name: s for s in specs}).tensordicts, elements[::-1], strict=True):
        assert_same_bits(found, expected)


@pytest.mark.parametrize(("lanes", "steps"), [(1, 1), (1, 7), (5, 1), (3, 4)])
def test_a_contiguous_copy_takes_one_row_more_than_its_steps(lanes, steps):
    data, _ = random_rollout(SPEC, 3, lanes, steps, default_rng(0), ends=0.0)
    assert len(pack_data(data, SPEC, 3)) == lanes * (steps + 1)


def test_rows_have_the_documented_layout():
    data, _, _ = numbered_rollout(SPEC, 4, np.array([[False, True, False]]), first=1)
    rows = pack_data(data, SPEC, 4)
    # observation | action | reward
    np.testing.assert_array_equal(
        rows[:, :-1],
        [
            [1.0, 1.0, 1.0, 0.5, 0.5, -1.0],
            [2.0, 2.0, 2.0, 1.0, 1.0, -2.0],
            [3.0, 3.0, 3.0, 0.0, 0.0, 0.0],
            [4.0, 4.0, 4.0, 2.0, 2.0, -4.0],
            [5.0, 5.0, 5.0, 0.0, 0.0, 0.0],
        ],
    )
    # 1 transition, 2 done, 8 truncated
    assert row_flags(rows).tolist() == [1, 1 + 2 + 8, 0, 1, 0]


def test_next_observation_that_differs_only_by_the_sign_of_zero_takes_a_row():
    data, _, _ = numbered_rollout(SPEC, 3, np.zeros((1, 4), bool), first=-2)
    # States -2, -1, 0, 1 and 2: the third step starts at +0.0.
    assert len(pack_data(data, SPEC, 3)) == 5
    for key in ("observation", "observation_left"):
        data["next", key][0, 1] = -0.0
    rows = pack_data(data, SPEC, 3)
    assert len(rows) == 6
    found = round_trip(data, SPEC, 3)
    assert np.signbit(found["next", "observation"][1].numpy()).all()
    assert not np.signbit(found["observation"][2].numpy()).any()


def test_an_equal_nan_takes_no_extra_row():
    data, _, _ = numbered_rollout(SPEC, 3, np.zeros((1, 3), bool), first=0)
    for key in ("observation", "observation_left"):
        data[key][0, 1] = float("nan")
        data["next", key][0, 0] = float("nan")
    assert len(pack_data(data, SPEC, 3)) == 4
    assert_same_bits(round_trip(data, SPEC, 3), data.reshape(-1))


def test_flags_add_no_row():
    data, _, _ = numbered_rollout(SPEC, 3, np.zeros((1, 5), bool), first=0)
    for key in ("done", "terminated", "truncated"):
        data["next", key][:] = True
        data[key][:] = True
    assert len(pack_data(data, SPEC, 3)) == 6


@pytest.mark.parametrize("root", [True, False], ids=["root", "next"])
@pytest.mark.parametrize("key", ["done", "terminated", "truncated"])
def test_each_flag_has_its_own_bit(key, root):
    data = random_transitions(SPEC, 3, 6, default_rng(0))
    where = torch.tensor([True, False, False, True, True, False])
    for name in ("done", "terminated", "truncated"):
        data[name][:] = False
        data["next", name][:] = False
    data[key if root else ("next", key)][:, 0] = where
    [batch] = unpack_batches({"left": drawn(pack_data(data, SPEC, 3), SPEC)}, [SPEC])
    for name in ("done", "terminated", "truncated"):
        for side in (True, False):
            found = (batch.flags[0] & (ROOT_BITS if side else NEXT_BITS)[name]) != 0
            assert side or torch.equal(found, batch.flag(name)[0])
            assert torch.equal(found, where if (name, side) == (key, root) else torch.zeros(6, dtype=torch.bool))


def test_batch_is_padded_with_zeros_to_the_widest_task():
    specs = [SPEC, make_spec("wide", 6, 4)]
    data = {spec.name: random_transitions(spec, 6, 5, default_rng(0)) for spec in specs}
    [batch] = unpack_batches({spec.name: drawn(pack_data(data[spec.name], spec, 6), spec) for spec in specs}, specs)
    assert batch.tasks == ("left", "wide")
    assert batch.observation.shape == batch.next_observation.shape == (2, 5, 6)
    assert batch.action.shape == (2, 5, 4)
    assert batch.reward.shape == batch.flags.shape == (2, 5)
    for padding in (batch.observation[0, :, 3:], batch.next_observation[0, :, 3:], batch.action[0, :, 2:]):
        assert padding.numel()
        assert not bits(padding).any()
    assert bits(batch.action[0, :, :2]).tolist() == bits(data["left"]["action"]).tolist()


def test_subset_of_tasks_is_padded_to_the_whole_run():
    specs = [SPEC, make_spec("wide", 6, 4)]
    rows = drawn(pack_data(random_transitions(SPEC, 6, 5, default_rng(0)), SPEC, 6), SPEC)
    [batch] = unpack_batches({"left": rows}, specs)
    assert (batch.observation.shape, batch.action.shape) == ((1, 5, 6), (1, 5, 4))


def test_many_batches_are_split_in_order():
    data = random_transitions(SPEC, 3, 12, default_rng(0))
    rows = drawn(pack_data(data, SPEC, 3), SPEC).reshape(3, 4, -1)
    batches = unpack_batches({"left": rows}, [SPEC])
    assert len(batches) == 3
    for index, batch in enumerate(batches):
        assert_same_bits(batch.to_stack({"left": SPEC})[0], data[4 * index : 4 * index + 4])


def test_read_only_rows_are_unpacked_into_memory_of_their_own():
    rows = drawn(pack_data(random_transitions(SPEC, 3, 4, default_rng(0)), SPEC, 3), SPEC)
    before = rows.copy()
    rows.flags.writeable = False
    [batch] = unpack_batches({"left": rows}, [SPEC])
    batch.observation.zero_()
    np.testing.assert_array_equal(rows.view(np.int32), before.view(np.int32))


def test_batch_on_a_device_holds_the_same():
    [batch] = unpack_batches(
        {"left": drawn(pack_data(random_transitions(SPEC, 3, 4, default_rng(0)), SPEC, 3), SPEC)}, [SPEC]
    )
    moved = batch.to("meta")
    assert moved.tasks == ("left",)
    assert {tensor.device.type for tensor in (moved.observation, moved.action, moved.reward, moved.flags)} == {"meta"}
    assert_same_bits(batch.to("cpu").to_stack({"left": SPEC})[0], batch.to_stack({"left": SPEC})[0])


@pytest.mark.parametrize(("copies", "steps"), [(0, 3), (2, 0), (0, 0)])
def test_a_rollout_without_steps_takes_no_row(copies, steps):
    assert pack(TaskRollout.zeros(SPEC, copies, steps)).shape == (0, SPEC.row_size)


def test_packing_does_not_change_the_rollout_or_share_its_memory():
    data, _ = random_rollout(SPEC, 5, 2, 4, default_rng(0), shared=True)
    before = data.clone()
    rows = pack_data(data, SPEC, 5)
    rows[:] = 7.0
    assert_same_bits(data, before)


# Refused data


def test_extra_key_is_refused_by_name():
    data = random_transitions(SPEC, 3, 4, default_rng(0)).set("bonus", torch.zeros(4, 1))
    with pytest.raises(SchemaError, match=r"'left'.*'bonus' of shape \(4, 1\)"):
        pack_data(data, SPEC, 3)


@pytest.mark.parametrize("key", ["observation_left", ("next", "reward"), "truncated"], ids=str)
def test_missing_key_is_refused_by_name(key):
    data = random_transitions(SPEC, 3, 4, default_rng(0))
    del data[key]
    with pytest.raises(SchemaError, match=r"'left'.* is missing") as caught:
        pack_data(data, SPEC, 3)
    assert repr(key) in str(caught.value)


def test_wrong_dtype_is_refused_by_name():
    data = random_transitions(SPEC, 3, 4, default_rng(0))
    data["action"] = data["action"].double()
    with pytest.raises(SchemaError, match=r"'left'.*'action'.*float64.*float32"):
        pack_data(data, SPEC, 3)


def test_wrong_common_width_is_refused_with_both_shapes():
    with pytest.raises(SchemaError, match=r"'observation' has shape \(4, 3\).*\(4, 5\)"):
        pack_data(random_transitions(SPEC, 3, 4, default_rng(0)), SPEC, 5)


@pytest.mark.parametrize("place", [(), ("next",)], ids=["root", "next"])
def test_observation_that_is_not_the_padded_exclusive_one_is_refused(place):
    data = random_transitions(SPEC, 5, 4, default_rng(0))
    data[(*place, "observation")][2, 1] = 0.0
    data[(*place, "observation_left")][2, 1] = -0.0
    with pytest.raises(SchemaError, match=r"'left': 'observation' and 'observation_left' differ"):
        pack_data(data, SPEC, 5)


@pytest.mark.parametrize("place", [(), ("next",)], ids=["root", "next"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("value", [1e-45, float("nan")])
def test_value_in_the_padding_is_refused(place, shared, value):
    data, _ = random_rollout(SPEC, 5, 2, 3, default_rng(0), shared=shared)
    data[(*place, "observation")][1, 2, 4] = value
    with pytest.raises(SchemaError, match=r"'left': 'observation' has nonzero values after the task's 3 entries"):
        pack_data(data, SPEC, 5)


@pytest.mark.parametrize("size", [(), (2, 3, 2)])
def test_batch_size_of_other_than_one_or_two_axes_is_refused(size):
    data = random_transitions(SPEC, 3, 12, default_rng(0))
    with pytest.raises(SchemaError, match=r"'left'.*expected \[K, L\] or \[N\]"):
        pack_data(data[0] if not size else data.reshape(*size), SPEC, 3)


def test_stack_that_does_not_match_its_tasks_schema_is_refused():
    data = random_transitions(SPEC, 3, 4, default_rng(0))
    data["action"] = torch.zeros(4, 5)
    with pytest.raises(SchemaError, match=r"'left'.*'action'.*\(4, 5\).*\(4, 2\)"):
        Batch.from_stack(LazyStackedTensorDict.lazy_stack([data], 0), [SPEC])


def test_minus_zero_in_the_padding_is_refused():
    spec = make_spec("left", 3, 2)
    data = random_transitions(spec, 5, 4, default_rng(0))
    data["observation"][1, 4] = -0.0
    with pytest.raises(SchemaError, match="after the task's 3 entries"):
        pack_data(data, spec, 5)


def test_a_stack_whose_common_key_differs_from_the_exclusive_one_is_refused():
    spec = make_spec("left", 3, 2)
    data = random_transitions(spec, 3, 4, default_rng(0))
    data["observation_left"][1, 1] = 7
    with pytest.raises(SchemaError, match="differ"):
        Batch.from_stack(LazyStackedTensorDict.lazy_stack([data], 0), [spec])


def test_a_stack_of_unequal_rows_or_of_rollouts_is_refused_as_a_batch():
    left, right = make_spec("left", 3, 2), make_spec("right", 3, 2)
    parts = [random_transitions(left, 3, 4, default_rng(0)), random_transitions(right, 3, 5, default_rng(0))]
    with pytest.raises(SchemaError, match="same number of rows"):
        Batch.from_stack(LazyStackedTensorDict.lazy_stack(parts, 0), [left, right])
    rollout = random_transitions(left, 3, 6, default_rng(0)).reshape(2, 3)
    with pytest.raises(SchemaError, match="same number of rows"):
        Batch.from_stack(LazyStackedTensorDict.lazy_stack([rollout], 0), [left])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (49, 6), (23, 3)])
def test_a_single_non_finite_number_is_found(bad, at):
    rows = default_rng(0).standard_normal((50, 7)).astype(np.float32)
    assert is_finite(rows)
    rows[at] = bad
    assert not is_finite(rows)


@pytest.mark.filterwarnings("error")
def test_numbers_whose_squares_overflow_are_finite():
    rows = np.full((50, 7), 3e38, np.float32)
    assert is_finite(rows)
    rows[1] = np.nan
    assert not is_finite(rows)
