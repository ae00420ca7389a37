"""Pictures of a run: its screen after some minutes, and its policy at work as a film.

    python -m mtray.launch --workers 8 --run-dir runs/hour
    python docs/pictures/draw.py runs/hour --folder docs/pictures --minutes 1 10 60

Writes ``screen-<minutes>.png``, what the screen showed then, and ``<run>.webp``, an animated picture of one episode of
each task that dm_control can draw, played by the run's best policy. Drawing needs no display, but a driver of OpenGL
(EGL, which the CPU can do: Debian's libegl1 and libgl1-mesa-dri).
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")

# Characters of a line of the screen, and the height of a letter in the picture.
COLUMNS, LETTER = 104, 15
MARGIN = 14
INK, PAPER = "#dcdcdc", "#1e1e1e"
# Of the film: of each task's part.
PIXELS = 220


def screen(run_dir: Path, minutes: float) -> str:
    """Return what the screen showed after so many minutes."""
    from rich.console import Console

    from mtray.rundir.screen import picture_of

    console = Console(file=io.StringIO(), width=COLUMNS, record=True)
    console.print(picture_of(run_dir, until=60 * minutes))
    return console.export_text()


def draw_text(text: str, path: Path) -> None:
    """Draw lines of text as a terminal shows them."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), LETTER)
    lines = text.rstrip("\n").split("\n")
    step = round(1.35 * LETTER)
    width = max(round(font.getlength(line)) for line in lines) + 2 * MARGIN
    image = Image.new("RGB", (width, len(lines) * step + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + row * step), line, fill=INK, font=font)
    image.save(path, optimize=True)


def play(policy: Any, task: str, seconds: float, seed: int, camera: str) -> tuple[list[np.ndarray[Any, Any]], float]:
    """Play an episode's beginning; return a picture of each agent step, and the seconds of simulation between two."""
    import torch
    from tensordict import TensorDict

    from mtray.engines import dm_control

    spec = next(spec for spec in policy.specs if spec.name == task)
    env = dm_control.load(task, seed)
    cameras = [env.physics.model.camera(index).name for index in range(env.physics.model.ncam)]
    time_step, pictures = env.reset(), []
    between = env.control_timestep() * spec.action_repeat
    while len(pictures) * between < seconds and not time_step.last():
        pictures.append(env.physics.render(PIXELS, PIXELS, camera_id=camera if camera in cameras else 0))
        entries = [np.ravel(time_step.observation[name]) for name, _ in spec.observation]
        observation = torch.as_tensor(np.concatenate(entries), dtype=torch.float32)
        action = policy(TensorDict({f"observation_{task}": observation}))["action"].numpy()[: spec.action_size]
        for _ in range(spec.action_repeat):
            time_step = env.step(action)
            if time_step.last():
                break
    return pictures, between


def film(run_dir: Path, path: Path, seconds: float, seed: int, camera: str) -> None:
    """Write the episodes of all tasks side by side."""
    from PIL import Image

    import mtray
    from mtray.engines import dm_control

    policy = mtray.load_policy(run_dir, "best")
    tasks = [spec.name for spec in policy.specs if spec.name in dm_control.task_names()]
    played = [play(policy, task, seconds, seed, camera) for task in tasks]
    length = min(len(pictures) for pictures, _ in played)
    frames = [
        Image.fromarray(np.concatenate([pictures[index] for pictures, _ in played], 1)) for index in range(length)
    ]
    milliseconds = round(1000 * played[0][1])
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=50, method=6)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="for the pictures")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="of the run, at which the screen is drawn")
    parser.add_argument("--seconds", type=float, default=10.0, help="of simulation in the film; 0 for none")
    parser.add_argument("--seed", type=int, default=1, help="of the episodes")
    parser.add_argument("--camera", default="side", help="of the film, where a task has one of this name")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for minutes in options.minutes:
        path = options.folder / f"screen-{minutes:g}.png"
        draw_text(screen(options.run_dir, minutes), path)
        print(path)
    if options.seconds:
        path = options.folder / f"{options.run_dir.resolve().name}.webp"
        film(options.run_dir, path, options.seconds, options.seed, options.camera)
        print(path)


if __name__ == "__main__":
    main()
