"""Show a run that goes on, here or elsewhere, from its files: ``mtray watch runs/a``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mtray.config.command_line import parse
from mtray.errors import UsageError
from mtray.program import run_program
from mtray.rundir.screen import picture_of, whole_lines

_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show a run that goes on, until it ends; where there is no terminal, once."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN-DIR")]
    """Run directory; on a folder that nodes share, that of a run on another machine."""


def watch(options: Options) -> None:
    """Show the live table until the run ends; once, where there is no terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        console.print(_picture(options.run_dir))
        return
    with Live(_picture(options.run_dir), console=console, auto_refresh=False) as live:
        while not _is_over(options.run_dir):
            time.sleep(_SECONDS)
            live.update(_picture(options.run_dir), refresh=True)


def _picture(run_dir: Path) -> Any:
    try:
        return picture_of(run_dir)
    except FileNotFoundError as error:
        raise UsageError(
            f"{run_dir} is no run directory: give the folder of a run, as --run-dir named it (it is there when the run "
            "has told its first line)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run_dir} can't be read ({type(error).__name__}: {error})") from error


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
