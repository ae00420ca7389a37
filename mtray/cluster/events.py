"""What a run tells of its events: lines of events.jsonl, sentences on the screen, tracebacks in the processes' files.

Runs in the driver; fed by the supervisor.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mtray.cluster.actors.hello import Hello
from mtray.cluster.control.protocol import Part, Tell
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.sinks import Guarded, JsonLines

_LOGGER = logging.getLogger("mtray")


class EventLog:
    """The events of one run, and the files that its processes print to."""

    def __init__(self, run_dir: Path, seconds: Callable[[], float]) -> None:
        """Write nothing yet.

        Args:
            run_dir: of the run.
            seconds: the run's time.
        """
        self._seconds = seconds
        self._logs = run_dir / "logs"
        self._path = run_dir / "events.jsonl"
        self._lines = Guarded(JsonLines(self._path), str(self._path))
        # The process of each part that is there, by the part's name.
        self._processes: dict[str, Hello] = {}

    def add_process(self, part: Part, process: Hello) -> None:
        """Take what a part's newest process said of itself."""
        self._processes[part.name] = process

    def tell(self, told: Tell) -> None:
        """Write an event's line, and show its sentence."""
        fields = dict(told.fields)
        if told.event in ("placed", "death"):
            process = self._processes.get(fields["part"])
            fields["process"] = process.process if process else None
            fields |= {"address": process.address} if process else {}
            fields |= {"log": f"logs/{process.log}"} if process and process.log else {}
        if told.event in ("death", "left"):
            # The next one may die before it has said where it is.
            self._processes.pop(fields["part"], None)
        self._lines.write({"time": round(self._seconds(), 3), "event": told.event, **fields})
        if told.sentence:
            _LOGGER.warning("%s", told.sentence)

    def tell_resume(self, resume: Checkpoint, skipped: Iterable[str], superseded: Iterable[Path]) -> None:
        """Write what a run continues from, and which checkpoints it leaves."""
        for cause in skipped:
            self.tell(Tell("skipped", {"cause": cause}))
        names = [path.name for path in superseded]
        self.tell(Tell("resume", {"checkpoint": str(resume.path), "frames": resume.frames, "superseded": names}))

    def keep_trace(self, part: Part | None, trace: str) -> str:
        """Append a traceback to the file of the part's process; return where it is, for the end of the error's line."""
        if not trace or part is None:
            return ""
        process = self._processes.get(part.name)
        # Of a process on another machine there is no file yet.
        path = self._logs / ((process and process.log) or f"{part.name.replace(' ', '-')}.log")
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(trace.rstrip() + "\n")
        except OSError:
            return ""
        return f"; the traceback is in {path}"

    def touch(self) -> None:
        """Have those who watch from another node see that the run is there, though it has nothing to tell."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def close(self) -> None:
        """Close events.jsonl."""
        self._lines.close()
