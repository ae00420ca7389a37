"""Messages between processes: pushes and their receipts, samples, collectors' reports.

Frozen dataclasses of numpy arrays, which Ray passes within a node without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtray.data.specs import FloatArray
from mtray.data.statistics import TaskStatistics
from mtray.errors import TaskError


@dataclass(frozen=True, kw_only=True)
class Push:
    """A rollout's rows, sent by a collector to the replay.

    Attributes:
        source: name of the collector process, unique in the run.
        number: 0, 1, 2, ... per source; (source, number) is the push's id.
        rows: task to [n, row_size] float32, packed by `mtray.data.rollout.pack`.
        statistics: task to statistics of its rows, computed by the collector to offload the replay; the replay computes
            the missing ones.
        largest_returns: task to the largest absolute discounted return of any step of its episodes so far.
    """

    source: str
    number: int
    rows: Mapping[str, FloatArray]
    statistics: Mapping[str, TaskStatistics] = field(default_factory=dict)
    largest_returns: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """The replay's acknowledgement of a push: task to stored frames. A push that is sent again has the same receipt."""

    source: str
    number: int
    frames: Mapping[str, int]


@dataclass(frozen=True)
class Sampled:
    """Batches drawn from the replay.

    Attributes:
        rows: task to [N, B, row_size + obs_t] float32.
        statistics: task to statistics of all inserted rows; the learner normalises by them.
        ages: task to the mean number of its rows written after the drawn ones.
    """

    rows: Mapping[str, FloatArray]
    statistics: Mapping[str, TaskStatistics]
    ages: Mapping[str, float]


@dataclass(frozen=True)
class Episode:
    """An episode that ended in a collector.

    Attributes:
        episode_return: undiscounted return.
        steps: number of agent steps.
        random_steps: number of steps with random actions (a random episode, or before the first weights arrived).
        info: what the environment reported, by name: its value at the last step; of a name with ``success`` in it, the
            highest of the episode.
    """

    task: str
    episode_return: float
    steps: int
    random_steps: int = 0
    info: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_policy(self) -> bool:
        """Whether the policy chose every action."""
        return self.random_steps == 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """A collector's report to the supervisor after a rollout.

    Attributes:
        episodes: episodes that ended in the rollout.
        weights_version: version of the policy that acted.
        seconds: the collector's time since its last report, by part: ``policy``, ``simulate`` and ``copy`` while
            stepping, ``push`` (packing, sending), ``receipt`` (waiting for the replay), ``idle`` (waiting for calls).
        broken: task to its steps that failed in the rollout, and with each the episode of a copy.
        failures: the error of each simulator that failed in the rollout and was built anew.
    """

    episodes: tuple[Episode, ...]
    weights_version: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    broken: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[TaskError, ...] = ()
