"""Shared by all tests: nothing is drawn, one thread of maths, small helpers for bitwise comparison."""

import os

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

HUMANOIDS = ("humanoid-stand", "humanoid-walk")
# Three observation widths, three action widths.
MIXED = ("cartpole-swingup", "cheetah-run", "humanoid-walk")


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """What runs compile is kept for this session only: a test must not depend on what was run before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def humanoids():
    from mtray.tasks.registry import resolve

    return resolve(HUMANOIDS)


@pytest.fixture(scope="session")
def mixed():
    from mtray.tasks.registry import resolve

    return resolve(MIXED)
