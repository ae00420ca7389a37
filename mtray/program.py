"""What every command-line program does: exit codes, one line for wrong input."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mtray.errors import MtrayError, UsageError


def run_program(program: Callable[[], None]) -> int:
    """Run a command-line program: 0 done, 2 wrong input with one line on stderr, 1 anything else."""
    try:
        program()
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except MtrayError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 1
    return 0
