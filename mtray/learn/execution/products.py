"""Which library computes float32 matrix products on the CPU: MKL, which torch takes by default, or oneDNN.

MKL uses AVX-512 on Intel's CPUs only. On an AMD EPYC of 2025 oneDNN computes the products of an update in a little more
than half of the time. torch asks oneDNN only where it is allowed to round factors to bfloat16; oneDNN does that on CPUs
with AMX, which is why the choice compares errors first.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Trials of each library, alternating, and products in each.
_TRIALS, _PRODUCTS = 6, 8
# Larger products would only take longer: libraries differ in them by the same factor.
_MOST_ROWS = _MOST_WIDTH = 256
# oneDNN must be so many times as fast, and its error at most so many times MKL's. Rounding to bfloat16 would make that
# some ten thousand times as large.
_LEAST_GAIN, _MOST_ERROR = 1.1, 4.0


class Library(enum.Enum):
    """The libraries, and torch's names of the precisions that select them."""

    MKL = "ieee"
    ONEDNN = "bf16"


def library() -> Library:
    """Return the library that this process uses."""
    name = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return Library.ONEDNN if name == Library.ONEDNN.value else Library.MKL


def use(chosen: Library) -> None:
    """Use a library in all threads of this process."""
    torch.backends.mkldnn.matmul.fp32_precision = chosen.value  # type: ignore[attr-defined]


@contextmanager
def using(chosen: Library) -> Iterator[None]:
    """Use a library inside, and the one before afterwards."""
    before = library()
    use(chosen)
    try:
        yield
    finally:
        use(before)


def fastest(rows: int, width: int) -> Library:
    """Return oneDNN if it keeps float32 on this machine and is faster, else MKL; measured within some 50 ms.

    Args:
        rows: of an update.
        width: of the critic's layers.
    """
    if not torch.backends.mkldnn.is_available():
        return Library.MKL
    rows, width = min(rows, _MOST_ROWS), min(width, _MOST_WIDTH)
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(rows, width, generator=generator), torch.randn(width, width, generator=generator)
    exact = inputs.double() @ weight.double()
    if _error(Library.ONEDNN, inputs, weight, exact) > _MOST_ERROR * _error(Library.MKL, inputs, weight, exact):
        return Library.MKL
    # The minimum over trials, since other processes only make a trial slower.
    times: dict[Library, list[float]] = {each: [] for each in Library}
    for _ in range(_TRIALS):
        for each in Library:
            times[each].append(_seconds(each, inputs, weight))
    mkl, onednn = min(times[Library.MKL]), min(times[Library.ONEDNN])
    return Library.ONEDNN if onednn * _LEAST_GAIN < mkl else Library.MKL


def _error(which: Library, inputs: Tensor, weight: Tensor, exact: Tensor) -> float:
    with using(which):
        return float((inputs @ weight - exact).norm())


def _seconds(which: Library, inputs: Tensor, weight: Tensor) -> float:
    outputs = inputs @ weight
    with using(which):
        begin = time.perf_counter()
        for _ in range(_PRODUCTS):
            torch.mm(inputs, weight, out=outputs)
        return time.perf_counter() - begin
