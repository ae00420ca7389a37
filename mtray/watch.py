"""Show a run that goes on, here or elsewhere, from its files: ``mtray watch runs/a``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mtray.config.command_line import parse
from mtray.errors import RunError, UsageError
from mtray.program import run_program
from mtray.rundir.claim import is_owned
from mtray.rundir.files import whole_lines
from mtray.rundir.screen import duration, picture_of

_SECONDS = 1.0
# A run that goes on writes a line every few seconds; a network file system may show it a minute later.
_SILENT_SECONDS = 60.0
# Within which a run that is resumed has started Ray and told so.
_STARTING_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show a run that goes on, until it ends; where there is no terminal, once."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN-DIR")]
    """Run directory; on a folder that nodes share, that of a run on another machine."""


def watch(options: Options) -> None:
    """Show the live table until the run ends; once, where there is no terminal."""
    from rich.console import Console
    from rich.live import Live

    console, run_dir = Console(), options.run_dir
    if not console.is_terminal:
        console.print(_picture(run_dir))
        _check_alive(run_dir)
        return
    with Live(_picture(run_dir), console=console, auto_refresh=False) as live:
        begin = time.monotonic()
        while _is_going(run_dir, begin):
            _check_alive(run_dir)
            time.sleep(_SECONDS)
            live.update(_picture(run_dir), refresh=True)


def _is_going(run_dir: Path, begin: float) -> bool:
    """Return whether to go on watching, which began at a time of the monotonic clock."""
    # A run that has just been started again has told nothing since its last end.
    return not _is_over(run_dir) or (time.monotonic() < begin + _STARTING_SECONDS and is_owned(run_dir))


def _check_alive(run_dir: Path) -> None:
    """Raise a RunError if the run's process is gone and could not say so."""
    silence = 0.0
    with contextlib.suppress(OSError):
        silence = time.time() - max(path.stat().st_mtime for path in run_dir.iterdir())
    if silence > _SILENT_SECONDS and not is_owned(run_dir) and not _is_over(run_dir):
        raise RunError(
            f"the run's process is gone, it wrote last {duration(silence)} ago: mtray launch --resume {run_dir} goes "
            "on from the newest checkpoint"
        )


def _picture(run_dir: Path) -> Any:
    try:
        return picture_of(run_dir)
    except FileNotFoundError as error:
        raise UsageError(
            f"{run_dir} is no run directory: give the folder of a run, as --run-dir named it (it is there when the run "
            "has told its first line)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{run_dir} can't be read ({type(error).__name__}: {error}): restore what is damaged"
        ) from error


def _is_over(run_dir: Path) -> bool:
    events = whole_lines(run_dir / "events.jsonl")
    return bool(events) and events[-1]["event"] == "end"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def program() -> None:
        # Ctrl-C ends watching; the run goes on.
        try:
            watch(parse(Options, arguments, "mtray watch"))
        except KeyboardInterrupt:
            return

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
