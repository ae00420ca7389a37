"""Settings that depend on what a run is to save, minutes or frames, and on its device; a preset fills them."""

from __future__ import annotations

import dataclasses

from mtray.config.checks import require
from mtray.config.learner import LearnerConfig, Sizes
from mtray.config.settings import CollectorConfig, Config

# Updates per step of every task, the least and the most.
_RATIOS = {"fast": (0.25, 4.0), "frugal": (4.0, 4.0)}
# With --deterministic: rounds are equal.
_RATIO_OF_ROUNDS = {"fast": 0.5, "frugal": 4.0}
_N_STEP = {"fast": 3, "frugal": 1}
_ROWS = {"fast": 128, "frugal": 384}
# On a GPU an update of up to so many rows takes hardly longer than one of few.
_ROWS_ON_GPU = {"fast": 1024, "frugal": 384}
# Nor does a larger network: that of the run in docs/learning.md, "On a GPU".
_SIZES_ON_GPU = Sizes(actor_width=256, critic_width=512, critic_blocks=2)
# Factors of exploration noise, the least and the most.
_NOISE = {"fast": (0.5, 4.0), "frugal": (1.0, 1.0)}
# Share of rows that are drawn from the newest.
_RECENT_SHARE = {"fast": 0.5, "frugal": 0.0}
# Share of the actor's updates that its average spans.
_ACTOR_AVERAGE = {"fast": 0.02, "frugal": 0.0}
_LEAST_ROWS_PER_TASK = 16


def fill(config: Config, tasks: int, *, can_compile: bool = False, has_bfloat16: bool = False) -> Config:
    """Return the config of a run of so many tasks with its preset's values in place of settings that were not given.

    Args:
        config: as given; its device must be chosen, or counts as the CPU.
        tasks: number of tasks.
        can_compile: whether the learner's machine has what inductor needs for this device.
        has_bfloat16: whether the learner's CPU multiplies numbers of bfloat16.
    """
    learner, preset = config.learner, config.preset
    is_on_gpu = config.device.startswith("cuda")
    is_large = is_on_gpu and preset == "fast"
    least, most = _ratios(learner, preset, is_deterministic=config.deterministic)
    rows = _ROWS_ON_GPU if is_on_gpu else _ROWS
    # Neither changes what is learned from, and both how sums are rounded.
    is_quick = preset == "fast" and not config.deterministic and (is_on_gpu or learner.graphs is not False)
    compiler = "inductor" if is_quick and can_compile else "off"
    has_bfloat16 = has_bfloat16 and is_quick and not is_on_gpu
    filled = dataclasses.replace(
        learner,
        updates_per_step=most,
        least_updates_per_step=least,
        n_step=learner.n_step or _N_STEP[preset],
        actor_average=_ACTOR_AVERAGE[preset] if learner.actor_average is None else learner.actor_average,
        balance=preset == "fast" if learner.balance is None else learner.balance,
        batch_rows=learner.batch_rows or max(_LEAST_ROWS_PER_TASK * tasks, rows[preset]),
        compile=learner.compile or compiler,
        precision=learner.precision or ("bfloat16" if has_bfloat16 else None),
    )
    least_noise, most_noise = _noise(config.collector, preset)
    collector = dataclasses.replace(config.collector, least_noise=least_noise, most_noise=most_noise)
    network = config.network.filled(_SIZES_ON_GPU if is_large else Sizes())
    share = config.replay.recent_share
    replay = dataclasses.replace(config.replay, recent_share=_RECENT_SHARE[preset] if share is None else share)
    return dataclasses.replace(config, collector=collector, replay=replay, network=network, learner=filled)


def _noise(collector: CollectorConfig, preset: str) -> tuple[float, float]:
    usual, source = _NOISE[preset], f"--preset {preset}"
    if not collector.random_episodes:
        # There may be no random return to exceed, which would end the larger noise.
        usual, source = (1.0, 1.0), "--collector.random-episodes 0"
    least, most = (
        default if given is None else given
        for given, default in zip((collector.least_noise, collector.most_noise), usual, strict=True)
    )
    require(
        least <= most,
        f"--collector.least-noise {least:g} is above --collector.most-noise {most:g}, of which {source} sets one (they "
        f"are {usual[0]:g} and {usual[1]:g}): give both",
    )
    return least, most


def _ratios(learner: LearnerConfig, preset: str, *, is_deterministic: bool) -> tuple[float, float]:
    least, most = learner.least_updates_per_step, learner.updates_per_step
    if most is not None:
        return (most if least is None else least), most
    if is_deterministic and least is None:
        return _RATIO_OF_ROUNDS[preset], _RATIO_OF_ROUNDS[preset]
    least = _RATIOS[preset][0] if least is None else least
    return least, max(least, _RATIOS[preset][1])
