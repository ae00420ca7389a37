"""Seeds of the process's generators, from which a user's environment may draw.

They are those of ``random``, ``numpy.random`` and torch. All processes that a fork server or Ray starts have torch's in
the same state, so that without seeds every collector would get the same episodes.

`seed_generators` is for processes that mtray starts; in any other the user's draws come from the same generators, and
`generators_seeded` restores them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np

from mtray.tasks.plan import Task


def seed_generators(task: Task, seed: int) -> None:
    """Seed them from a simulator's seed, before it is built; tasks of engines have generators of their own."""
    if task.maker is None:
        return
    import torch

    # Three words, since two give the seed of a copy (`copy_seed`). Of its own for each, and none is the seed itself: a
    # maker may seed generators of its own with that.
    for_random, for_numpy, for_torch = np.random.SeedSequence([seed, 0, 2]).generate_state(3).tolist()
    random.seed(for_random)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


@contextlib.contextmanager
def generators_seeded(task: Task, seed: int) -> Iterator[None]:
    """Seed them as `seed_generators` does; restore them when the block ends."""
    if task.maker is None:
        yield
        return
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            seed_generators(task, seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
