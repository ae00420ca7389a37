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


@pytest.fixture(scope="session")
def humanoids():
    from mtray.tasks.registry import resolve

    return resolve(HUMANOIDS)


@pytest.fixture(scope="session")
def mixed():
    from mtray.tasks.registry import resolve

    return resolve(MIXED)
