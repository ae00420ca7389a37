"""Films: drawn in a process of its own, where MuJoCo is told to draw before it is imported."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mtray.collect import film
from mtray.config.learner import NetworkConfig
from mtray.engines import dm_control
from mtray.errors import UsageError
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.plan import Task
from tests.makers import make_spec

SCRIPT = """
import sys
from pathlib import Path
from mtray.collect.film import check_film, write_film

paths = [Path(name) for name in sys.argv[1:]]
for path in paths:
    check_film(path)
from mtray.config.learner import NetworkConfig
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.registry import resolve

tasks = resolve(["cartpole-balance", "reacher"], "dm_control", 2)
policy = MultiTaskPolicy([task.spec for task in tasks], NetworkConfig(), deterministic=True)
for path in paths:
    write_film(policy, [*policy.names, "own"], path, seconds=0.2)
"""


def draw(backend, *paths):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, paths)],
        env={**os.environ, "MUJOCO_GL": backend},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_film_shows_an_episode_of_each_task(tmp_path):
    paths = [tmp_path / f"film.{suffix}" for suffix in ("webp", "gif")]
    drawn = draw("egl", *paths)
    if "can't draw here" in drawn.stderr:
        pytest.skip("this machine has no EGL")
    assert drawn.returncode == 0, drawn.stderr
    for path in paths:
        check_pictures(path)


def check_pictures(path):
    with Image.open(path) as pictures:
        assert pictures.size == (3 * film._PIXELS, film._PIXELS)
        first = np.asarray(pictures.convert("RGB"))
        durations = []
        for index in range(pictures.n_frames):
            pictures.seek(index)
            pictures.load()
            durations.append(pictures.info["duration"])
        # Agent steps of cartpole take 0.02 s, those of reacher 0.04. Pictures that look alike are kept as one.
        assert sum(durations) == 200
        assert min(durations) == 20
        assert (np.asarray(pictures.convert("RGB")) != first).any(), "something moves"
    parts = np.split(first, 3, axis=1)
    assert all(part.std() > 10 for part in parts)
    assert (parts[0] != parts[1]).any()


def test_the_callers_exploration_type_adds_no_noise(monkeypatch):
    policy = MultiTaskPolicy([Task("cartpole-balance", "dm_control").spec], NetworkConfig(actor_width=16))
    # The state stands for the picture: not every machine can draw.
    physics = type(dm_control.load("cartpole-balance").physics)
    monkeypatch.setattr(physics, "render", lambda physics, *_, **__: physics.get_state())

    def states(exploration_type):
        with set_exploration_type(exploration_type):
            return np.array(film._play(policy, "cartpole-balance", 0.1, 1, "side")[0])

    expected = states(ExplorationType.DETERMINISTIC)
    assert (states(ExplorationType.RANDOM) == expected).all()
    assert (states(None) == expected).all()


def test_a_film_ends_where_the_physics_diverges(monkeypatch):
    policy = MultiTaskPolicy([Task("cartpole-balance", "dm_control").spec], NetworkConfig(actor_width=16))
    physics = type(dm_control.load("cartpole-balance").physics)

    def render(physics, *_, **__):
        if physics.time() > 0.045:
            physics.data.qvel[:] = np.nan
        return physics.get_state()

    monkeypatch.setattr(physics, "render", render)
    assert len(film._play(policy, "cartpole-balance", 1.0, 1, "side")[0]) == 6


def test_a_machine_that_can_not_draw_is_one_line(tmp_path):
    drawn = draw("disabled", tmp_path / "film.webp")
    assert drawn.returncode == 1
    assert "MuJoCo can't draw here with MUJOCO_GL=disabled" in drawn.stderr.splitlines()[-1]


def test_a_format_that_is_unknown_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.webp, \.gif"):
        film.check_film(tmp_path / "film.mp4")


def test_tasks_that_can_not_be_drawn_are_named(tmp_path):
    with pytest.raises(UsageError, match="no film of left"):
        film.write_film(None, [make_spec().name], tmp_path / "film.webp")


def test_a_film_that_is_stopped_leaves_no_file(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(film, "_play", lambda *_: ([np.zeros((8, 8, 3), np.uint8)] * 2, 20))
    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        film.write_film(None, ["reacher-easy"], tmp_path / "film.webp")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "shape"), [(1, (2, 2)), (3, (2, 6)), (5, (4, 8))])
def test_pictures_stand_in_rows(count, shape):
    pictures = [np.full((2, 2, 3), index + 1, np.uint8) for index in range(count)]
    found = film._side_by_side(pictures)
    assert found.shape == (*shape, 3)
    assert found[0, 0, 0] == 1
    assert found.sum() == 12 * count * (count + 1) / 2
