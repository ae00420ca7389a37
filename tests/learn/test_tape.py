"""Recorded functions against the same functions called again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtray.learn.execution.tape import Tape


def assert_same(make):
    """Check that recording and replaying a function changes its tensors as two calls do.

    ``make`` returns a new function and its tensors.
    """
    (recorded_function, *recorded), (called_function, *called) = make(), make()
    Tape(recorded_function).replay()
    called_function()
    called_function()
    for actual, expected in zip(recorded, called, strict=True):
        assert torch.equal(actual, expected)
        assert actual.dtype == expected.dtype


def test_autograd_and_in_place_steps_are_replayed():
    def make():
        torch.manual_seed(0)
        inputs, weight, bias = torch.randn(8, 5), torch.randn(5, 7, requires_grad=True), torch.randn(7)
        bias.requires_grad_(True)

        def function():
            hidden = torch.nn.functional.layer_norm((inputs @ weight + bias).relu_(), (7,))
            left, right = hidden.chunk(2, -1)[0], hidden.softmax(-1)
            loss = left.tanh().sum() + (right * right.log()).mean()
            gradients = torch.autograd.grad(loss, [weight, bias])
            with torch.no_grad():
                torch._foreach_add_([weight, bias], gradients, alpha=-0.1)

        return function, weight.detach(), bias.detach()

    assert_same(make)


def test_copies_casts_and_constants_are_replayed():
    def make():
        state = torch.arange(6.0).view(2, 3)

        def function():
            flags = (state > 2).float()
            counted = torch.arange(3, device=state.device) + torch.zeros_like(state) + torch.full((2, 1), 2.0)
            state.add_(flags.clone() * counted + state.new_ones(3)).masked_fill_(state > 100, 0)

        return function, state

    assert_same(make)


def test_random_numbers_continue():
    def make():
        generator, state = torch.Generator().manual_seed(1), torch.zeros(4)

        def function():
            state.add_(torch.empty_like(state).normal_(generator=generator))

        return function, state

    assert_same(make)


def test_a_result_used_outside_is_updated_and_keeps_its_memory():
    state, kept = torch.zeros(3), {}

    def function():
        state.add_(1)
        kept["square"] = state * state
        # A temporary of the same size must not get the memory of the kept result.
        (state + 5).sum()

    tape = Tape(function)
    for count in (2, 3):
        tape.replay()
        assert kept["square"].tolist() == [count**2] * 3


def test_reading_a_number_into_python_is_an_error():
    state = torch.ones(())
    with pytest.raises(NotImplementedError, match="can't be recorded"):
        Tape(lambda: state.item())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_memory_is_reused_only_once_it_is_free(program):
    kinds = [torch.add, torch.mul, torch.sub, torch.maximum, lambda a, b: a.t() @ b, lambda a, b: a[:1] + b]

    def make():
        torch.manual_seed(0)
        state = torch.randn(8, 4, 4)

        def function():
            values = list(state.clone().unbind())
            for kind, left, right in program:
                values[left] = torch.tanh(kinds[kind](values[left], values[right]))
            state.copy_(torch.stack(values))

        return function, state

    assert_same(make)
