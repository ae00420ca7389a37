"""A film of a policy at work in dm_control's suite.

Drawing needs no display, but a driver of OpenGL: EGL, which the CPU can do (Debian's libegl1 and libgl1-mesa-dri).
MuJoCo chooses how it draws when a simulator is first imported: MUJOCO_GL must be set before.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtray.errors import UsageError

if TYPE_CHECKING:
    from mtray.policy.policy import MultiTaskPolicy

Picture = npt.NDArray[np.uint8]

_FORMATS = (".webp", ".gif", ".png")
# Height and width of each task's part, and the number of parts side by side.
_PIXELS, _SIDE_BY_SIDE = 220, 4


def check_film(path: Path) -> None:
    """Raise a UsageError if a film can't be written to this path, or not on this machine."""
    if path.suffix not in _FORMATS:
        raise UsageError(f"--film {path}: the name must end in {', '.join(_FORMATS)}")
    try:
        from mtray.engines import dm_control

        dm_control.load("pendulum-swingup").physics.render(8, 8)
    except Exception as error:
        raise UsageError(
            f"--film {path}: MuJoCo can't draw here with MUJOCO_GL={os.environ.get('MUJOCO_GL')} "
            f"({type(error).__name__}: {error}): egl needs a driver of OpenGL (Debian: libegl1 and libgl1-mesa-dri)"
        ) from error


def drawable(tasks: Sequence[str]) -> list[str]:
    """Return the names of those tasks that can be drawn; raise a UsageError if there are none."""
    from mtray.engines import dm_control

    drawn = [task for task in tasks if task in dm_control.task_names()]
    if not drawn:
        raise UsageError(f"no film of {', '.join(tasks)}: only tasks of dm_control's suite can be drawn")
    return drawn


def write_film(
    policy: MultiTaskPolicy,
    tasks: Sequence[str],
    path: Path,
    *,
    seconds: float = 10.0,
    seed: int = 1,
    camera: str = "side",
) -> None:
    """Write the beginning of an episode of each task, side by side, as an animated picture.

    Args:
        policy: of `load_policy`; it acts deterministically in the film.
        tasks: names of the policy's tasks; those that can't be drawn are left out.
        path: of the film, which `check_film` has checked.
        seconds: of simulation, at most; the film ends with the shortest episode.
        seed: of the episodes.
        camera: where a task has one of this name; else its first.

    Raises:
        UsageError: none of the tasks can be drawn, or the file can't be written.
    """
    from PIL import Image

    played = [_play(policy, task, seconds, seed, camera) for task in drawable(tasks)]
    # Tasks have steps of different lengths.
    step = min(between for _, between in played)
    count = round(min(len(pictures) * between for pictures, between in played) / step)
    frames = [
        Image.fromarray(_side_by_side([pictures[index * step // between] for pictures, between in played]))
        for index in range(count)
    ]
    # Method 6 makes it a fourteenth smaller, and takes fourteen times as long: a minute for two tasks.
    options: dict[str, Any] = {"quality": 50, "method": 4} if path.suffix == ".webp" else {}
    # Whole before it is written: whoever stops this leaves no part of a film.
    film = io.BytesIO()
    kind = path.suffix[1:]
    frames[0].save(film, kind, save_all=True, append_images=frames[1:], duration=step, loop=0, **options)
    try:
        path.write_bytes(film.getvalue())
    except OSError as error:
        raise UsageError(f"--film {path} can't be written: {error.strerror or error}") from error


def _play(policy: MultiTaskPolicy, task: str, seconds: float, seed: int, camera: str) -> tuple[list[Picture], int]:
    """Return a picture of each agent step, and the milliseconds of simulation between two.

    Where the physics diverges the pictures end, as an episode does.
    """
    import torch
    from tensordict import TensorDict
    from torchrl.envs.utils import ExplorationType, set_exploration_type

    from mtray.engines import dm_control

    spec = next(spec for spec in policy.specs if spec.name == task)
    env = dm_control.load(task, seed)
    cameras = [env.physics.model.camera(index).name for index in range(env.physics.model.ncam)]
    camera_id = camera if camera in cameras else 0
    pictures: list[Picture] = []
    time_step = env.reset()
    between = round(1000 * env.control_timestep() * spec.action_repeat)
    while len(pictures) * between < 1000 * seconds and not time_step.last():
        pictures.append(env.physics.render(_PIXELS, _PIXELS, camera_id=camera_id))
        entries = [np.ravel(time_step.observation[name]) for name, _ in spec.observation]
        observation = torch.as_tensor(np.concatenate(entries), dtype=torch.float32)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            action = policy(TensorDict({spec.key: observation}))["action"].numpy()[: spec.action_size]
        try:
            for _ in range(spec.action_repeat):
                time_step = env.step(action)
                if time_step.last():
                    break
        except dm_control.PhysicsError:
            break
    return pictures, between


def _side_by_side(pictures: Sequence[Any]) -> Picture:
    """Return pictures of one size as one, in rows."""
    columns = min(_SIDE_BY_SIDE, len(pictures))
    empty = [np.zeros_like(pictures[0])] * (math.ceil(len(pictures) / columns) * columns - len(pictures))
    cells = [*pictures, *empty]
    rows = [np.concatenate(cells[begin : begin + columns], 1) for begin in range(0, len(cells), columns)]
    return np.concatenate(rows, 0)
