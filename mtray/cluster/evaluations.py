"""Evaluations during a run: what the policy reaches without noise, played by a process beside the run.

Nothing of the run waits for it, and no failure of it ends the run: it is told, and the next one is tried by a new
process. Runs in the driver; called by the supervisor at every turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray

from mtray.cluster.answers import Answers
from mtray.cluster.control.protocol import Tell
from mtray.cluster.failures import failure_of
from mtray.cluster.processes import Processes
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec
from mtray.rundir.checkpoints.best import BestPolicy
from mtray.rundir.metrics import Metrics

# The first is made a little after the first frame, since all processes start until then.
_FIRST_SECONDS = 10.0
# Share of a core's time that evaluations may take.
_SHARE = 0.1
# How long one may take, at least and for each task, before its process counts as stuck: it has a low priority.
_STUCK_SECONDS, _TASK_SECONDS = 600.0, 60.0


class Evaluations:
    """When the policy is evaluated, and what comes of it."""

    def __init__(
        self,
        config: Config,
        specs: Sequence[TaskSpec],
        run_dir: Path,
        processes: Processes,
        answers: Answers,
        metrics: Metrics,
        tell: Callable[[Tell], None],
    ) -> None:
        """Plan the first."""
        self._every = config.evaluation_seconds
        self._config, self._specs, self._run_dir = config, specs, run_dir
        self._processes, self._answers, self._metrics, self._tell = processes, answers, metrics, tell
        self._best = BestPolicy(run_dir)
        self._begin_frames = metrics.frames
        # A new run's weights before its first update, which are evaluated first.
        self._untrained: Any = None
        self._is_new = answers.state.updates < 0
        self._next: float | None = None
        self._evaluator: Any = None
        self._hello: Future[Any] | None = None
        self._call: Future[Any] | None = None
        self._asked, self._longest = 0.0, 0.0
        # What is evaluated: its state if it was trained, the updates and frames it was made of, and the run's time.
        self._policy: tuple[bytes | None, int, int, float] = None, 0, 0, 0.0
        self._last_updates = -1
        self._is_last = False

    def turn(self, now: float) -> None:
        """Do what is due at this time of the driver's."""
        if self._every is None:
            return
        version, box = self._processes.weights
        if self._is_new and self._untrained is None and version == 0 and box:
            self._untrained = box[0]
        if self._call is not None:
            self._look(self._call, now)
        elif self._next is None:
            if self._metrics.frames > self._begin_frames:
                self._next = now + _FIRST_SECONDS
        elif now >= self._next:
            self._begin(now)

    @property
    def processes(self) -> list[int]:
        """The id of the process that evaluates, once it is known, if it is on this process's node."""
        hello = self._hello
        if self._evaluator is None or hello is None or not hello.done() or hello.exception() is not None:
            return []
        said = hello.result()
        return [said.process] if said.is_here else []

    def goes_on(self, now: float) -> bool:
        """Return whether an evaluation is under way, once the run has finished; the last one is of what it came to.

        A run that is too short for any other has no last one either.
        """
        self._untrained = None
        if self._call is not None:
            self._look(self._call, now)
        if self._call is None and self._asked and not self._is_last:
            self._is_last = True
            self._begin(now)
        return self._call is not None

    def _begin(self, now: float) -> None:
        state = self._answers.state
        weights: Any = state.average
        if self._untrained is not None:
            weights, self._policy = self._untrained, (None, 0, self._metrics.frames, self._metrics.seconds)
            self._is_new, self._untrained = False, None
        elif weights is not None and state.updates > self._last_updates:
            self._policy = state.policy, state.updates, *self._answers.made
        else:
            return
        if self._evaluator is None:
            self._evaluator = self._processes.start_evaluator()
            # Its file tells the cause of its death.
            self._hello = self._evaluator.hello.remote(self._run_dir / "logs", "evaluator").future()
        self._asked = now
        self._call = self._evaluator.evaluate.remote(weights, sorted(self._processes.aside)).future()

    def _look(self, call: Future[Any], now: float) -> None:
        """Take what an evaluation gave, if it has ended."""
        assert self._every is not None
        seconds = now - self._asked
        limit = max(_STUCK_SECONDS, _TASK_SECONDS * len(self._specs), 10 * self._longest)
        if not call.done() and seconds < limit:
            return
        self._call = None
        self._next = self._asked + max(self._every, seconds / _SHARE)
        if not call.done():
            self.fail(f"it did not end within {limit:.0f} s")
            return
        error = call.exception()
        if error is not None:
            self.fail(failure_of(-1, error).text)
            return
        self._longest = max(self._longest, seconds)
        found, failures, busy = call.result()
        # Most of the time it waits for a core that others have.
        self._next = self._asked + max(self._every, busy / _SHARE)
        self._take(found, failures, now)

    def fail(self, cause: str) -> None:
        """Tell that the evaluation under way has failed, and end its process."""
        which = "the last evaluation failed, all is saved" if self._is_last else "an evaluation failed, the run goes on"
        self._tell(Tell("evaluation_failed", {"cause": cause}, f"{which}: {cause}"))
        self.close()

    def _take(self, found: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str], now: float) -> None:
        _, updates, frames, then = self._policy
        self._last_updates = updates
        self._metrics.add_evaluation(updates, found)
        means = {task: figures["return_mean"] for task, figures in found.items()}
        is_best = False
        try:
            is_best = self._keep_best(means)
        except OSError as error:
            text = f"the best policy could not be written, the one before stays: {error.strerror or error}"
            self._tell(Tell("save_failed", {"cause": text}, text))
        assert self._next is not None
        fields = {
            "updates": updates,
            "frames": frames,
            "of_time": round(then, 3),
            "seconds": round(now - self._asked, 1),
            "next_in": 0.0 if self._is_last else round(self._next - now, 1),
            "is_best": is_best,
        }
        self._tell(Tell("evaluated", {**fields, "returns": {task: found[task]["returns"] for task in found}}))
        for task, text in failures.items():
            self._tell(Tell("evaluation_failed", {"task": task, "cause": text}, f"an evaluation failed: {text}"))

    def _keep_best(self, means: Mapping[str, float]) -> bool:
        """Keep the policy that was evaluated if it is the best; return whether it is."""
        state, updates, frames, seconds = self._policy
        missing = {spec.name for spec in self._specs} - means.keys() - set(self._processes.aside)
        if state is None or not updates or missing or not means:
            # Policies are compared over all tasks: with one whose evaluation failed, none is kept. Nor without updates.
            self._best.widen(means)
            return False
        meta = {
            "updates": updates,
            "frames": frames,
            "seconds": seconds,
            "config": to_dict(self._config),
            "specs": [spec.to_dict() for spec in self._specs],
        }
        return self._best.offer(state, means, meta)

    def leave_ray(self) -> None:
        """Forget the process, which ends with a Ray that has died."""
        self._every = self._evaluator = self._call = None

    def close(self) -> None:
        """End the process."""
        evaluator, self._evaluator, self._call = self._evaluator, None, None
        if evaluator is not None:
            with contextlib.suppress(Exception):
                ray.kill(evaluator)
