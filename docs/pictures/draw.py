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

# Characters of a line of the screen, and the height of a letter in the picture.
COLUMNS, LETTER = 104, 15
MARGIN = 14
INK, PAPER = "#dcdcdc", "#1e1e1e"


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
        # Before MuJoCo is imported.
        os.environ.setdefault("MUJOCO_GL", "egl")
        import mtray
        from mtray.collect.film import write_film

        path = options.folder / f"{options.run_dir.resolve().name}.webp"
        policy = mtray.load_policy(options.run_dir, "best")
        write_film(policy, policy.names, path, seconds=options.seconds, seed=options.seed, camera=options.camera)
        print(path)


if __name__ == "__main__":
    main()
