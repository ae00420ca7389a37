"""The library of matrix products."""

import itertools

import pytest
import torch

from mtray.learn.execution import products
from mtray.learn.execution.products import Library
from tests.learn.test_recorded import numbers, sampled_batches, trained

needs_avx512 = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="torch asks oneDNN on CPUs with AVX-512 only"
)


def measured(monkeypatch, seconds, errors):
    monkeypatch.setattr(products, "_seconds", lambda library, *_: next(seconds[library]))
    monkeypatch.setattr(products, "_error", lambda library, *_: errors[library])
    return products.fastest(128, 256)


@pytest.mark.parametrize(
    ("onednn_seconds", "onednn_error", "chosen"),
    [
        ([0.5] * 6, 1e-6, Library.ONEDNN),
        # Another process slowed all trials but one.
        ([3.0] * 5 + [0.5], 1e-6, Library.ONEDNN),
        # A gain that is noise, and none.
        ([0.95] * 6, 1e-6, Library.MKL),
        ([2.0] * 6, 1e-6, Library.MKL),
        # Factors are rounded to bfloat16.
        ([0.1] * 6, 1e-2, Library.MKL),
    ],
)
def test_onednn_is_chosen_where_it_is_faster_and_keeps_float32(monkeypatch, onednn_seconds, onednn_error, chosen):
    seconds = {Library.MKL: itertools.repeat(1.0), Library.ONEDNN: iter(onednn_seconds)}
    assert measured(monkeypatch, seconds, {Library.MKL: 1e-6, Library.ONEDNN: onednn_error}) is chosen


def test_measuring_changes_nothing():
    before = products.library()
    state = torch.get_rng_state()
    assert products.fastest(128, 64) in Library
    assert products.library() is before is Library.MKL
    assert torch.equal(torch.get_rng_state(), state)


def test_a_library_is_used_inside_and_the_one_before_afterwards_also_after_an_error():
    with pytest.raises(ValueError, match="ONEDNN"), products.using(Library.ONEDNN):
        raise ValueError(products.library().name)
    assert products.library() is Library.MKL


@needs_avx512
def test_onednn_is_used_for_float32_products_and_its_error_is_measured():
    """Sums in another order: different numbers, as near to the exact ones, if this CPU does not round factors."""
    inputs, weight = torch.randn(128, 256), torch.randn(256, 256)
    exact = inputs.double() @ weight.double()
    mkl = inputs @ weight
    with products.using(Library.ONEDNN):
        onednn = inputs @ weight
    assert not torch.equal(mkl, onednn)
    assert torch.equal(inputs @ weight, mkl)
    mkl_error, error = ((each - exact).norm().item() for each in (mkl, onednn))
    assert products._error(Library.ONEDNN, inputs, weight, exact) == pytest.approx(error)
    # Chosen only with errors of float32's size.
    assert products.fastest(128, 256) is Library.MKL or error < 4 * mkl_error


@needs_avx512
def test_updates_with_onednn_are_recorded_bit_for_bit_and_near_those_with_mkl(tasks, replay):
    batches = sampled_batches(replay)
    mkl = trained(tasks, batches, graphs=True)
    with products.using(Library.ONEDNN):
        eager, recorded = (trained(tasks, batches, graphs=graphs) for graphs in (False, True))
        shared = trained(tasks, batches, graphs=True, threads=2)
    assert torch.equal(numbers(eager), numbers(recorded))
    torch.testing.assert_close(numbers(shared), numbers(recorded), rtol=1e-3, atol=1e-4)
    start = numbers(trained(tasks, []))
    assert not torch.equal(numbers(recorded), numbers(mkl))
    assert (numbers(recorded) - numbers(mkl)).norm() < 0.02 * (numbers(mkl) - start).norm()
