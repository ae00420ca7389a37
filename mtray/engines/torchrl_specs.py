"""The `TaskSpec` of a user's TorchRL environment, and checks that mtray can learn from it.

Enters: an environment before its first reset. Leaves: its spec, or a `UsageError` that names the task, the entry, its
shape and dtype, and a remedy.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torchrl.envs import EnvBase
from torchrl.envs.transforms import AutoResetTransform, Transform, VecGymEnvTransform

from mtray.data.specs import ACTION, OBSERVATION, REWARD, UNBOUNDED, TaskSpec
from mtray.engines.torchrl_inner import inner
from mtray.errors import UsageError

NAME = "torchrl"

# Entries of InitTracker, TrajCounter and Timer, which are no observations. StepCounter's and RewardSum's are states.
_BOOKKEEPING = ("is_init", "traj_count", "time_step", "time_policy", "time_reset")

# Classes of TorchRL and Gymnasium that normalise with running statistics; Gymnasium may not be installed.
_NORMALISING = {"VecNorm", "VecNormV2", "NormalizeObservation", "NormalizeReward"}


def read_spec(name: str, env: EnvBase) -> TaskSpec:
    """Return the environment's `TaskSpec`.

    Raises:
        UsageError: mtray can't learn from an entry, or would ignore it; or the environment resets itself or has running
            statistics.
    """
    _check_no_autoreset(name, env)
    _check_no_running_statistics(name, env)
    _check_reward(name, env)
    _check_ends(name, env)
    size = _observation_size(name, env)
    low, high = _action_bounds(name, env)
    return TaskSpec(
        name=name,
        engine=NAME,
        observation=((OBSERVATION, size),),
        action_low=low,
        action_high=high,
        horizon=None,
        time_step_seconds=None,
        info=tuple(info_entries(env)),
    )


def info_entries(env: EnvBase) -> dict[str, Any]:
    """Return the entries that report on an environment, sorted by name: numbers that nothing is learned from.

    They are those of Gymnasium's ``info`` that TorchRL reads (`auto_register_info_dict`, `set_info_dict_reader`), any
    under ``info``, and ``success``.
    """
    size, reported = math.prod(env.batch_size), _reported(env)
    found = {
        key if isinstance(key, str) else ".".join(key[1:]): key
        for key, spec in env.observation_spec.items(True, True)
        if key in reported and spec.shape.numel() == size
    }
    # TorchRL's order may be that of a set, which differs between processes.
    return {name: found[name] for name in sorted(found)}


def _reported(env: EnvBase) -> set[Any]:
    """Return all entries that report on an environment, numbers or not."""
    keys = list(env.observation_spec.keys(True, True))
    found = {key for key in keys if key == "success" or (isinstance(key, tuple) and key[0] == "info")}
    for part in inner(env):
        for reader in getattr(part, "__dict__", {}).get("_info_dict_reader", ()):
            spec: Any = getattr(reader, "info_spec", None)
            found |= set(() if spec is None else spec.keys(True, True)) & set(keys)
    return found - {OBSERVATION}


def _check_no_autoreset(name: str, env: EnvBase) -> None:
    for part in inner(env):
        resets_itself = (
            isinstance(part, AutoResetTransform | VecGymEnvTransform)
            or "autoreset" in type(part).__name__.lower()
            or getattr(part, "__dict__", {}).get("_torchrl_native_autoreset", False)
        )
        if resets_itself:
            raise UsageError(
                f"task {name!r}: {type(part).__name__} resets itself, which loses the last observation of each "
                "episode: return one unbatched environment (the maker is called once per copy), or a Gymnasium vector "
                "environment made with autoreset_mode=AutoresetMode.DISABLED"
            )


def _check_no_running_statistics(name: str, env: EnvBase) -> None:
    for part in inner(env):
        kind, bases = type(part).__name__, {base.__name__ for base in type(part).__mro__}
        if not bases & _NORMALISING:
            continue
        is_frozen = getattr(part, "frozen", False) or not getattr(part, "_update_running_mean", True)
        if not is_frozen:
            raise UsageError(
                f"task {name!r}: {kind} has running statistics, which differ between copies and are lost in evaluation "
                f"and after a resume; mtray normalises observations and scales rewards itself: drop {kind}"
            )


def _check_ends(name: str, env: EnvBase) -> None:
    specs = dict(env.full_done_spec.items(True, True))
    wrong = {key: spec for key, spec in specs.items() if spec.shape.numel() != math.prod(env.batch_size)}
    if not {"done", "terminated"} <= set(specs) or wrong:
        raise UsageError(
            f"task {name!r} ends its episodes with {_described(wrong or specs)}: its full_done_spec must have 'done', "
            f"'terminated' and, if it truncates, 'truncated', each of shape {(*env.batch_size, 1)}"
        )


def _check_reward(name: str, env: EnvBase) -> None:
    keys = list(env.reward_keys)
    if keys != [REWARD]:
        raise UsageError(
            f"task {name!r} has its reward under {', '.join(map(repr, keys)) or 'no key'}: it must be one number under "
            f"{REWARD!r} (rename it in the maker with TorchRL's RenameTransform)"
        )
    spec = env.full_reward_spec[REWARD]
    shape, batch = tuple(spec.shape), tuple(env.batch_size)
    if shape not in (batch, (*batch, 1)):
        raise UsageError(
            f"task {name!r} has a reward of shape {shape} {spec.dtype} under {REWARD!r}: it must be one number "
            f"per copy, {(*batch, 1)}; combine its entries in the maker, for example with TorchRL's LineariseRewards"
        )


def _observation_size(name: str, env: EnvBase) -> int:
    """Return the width of the vector under ``observation``."""
    specs = dict(env.observation_spec.items(True, True))
    spec = specs.get(OBSERVATION)
    rank = len(env.batch_size) + 1
    if spec is None or len(spec.shape) != rank or not spec.dtype.is_floating_point:
        raise UsageError(
            f"task {name!r} has no float vector under 'observation' (its observations: {_described(specs)}): "
            f"{_join(specs, rank)}"
        )
    used = _used_keys(env) | _reported(env)
    ignored = {key: spec for key, spec in specs.items() if key not in used}
    if ignored:
        raise UsageError(
            f"task {name!r} has observations beside 'observation', which would be ignored: {_described(ignored)}; "
            f"{_join({OBSERVATION: spec, **ignored}, rank)}, or drop them with ExcludeTransform"
        )
    return int(spec.shape[-1])


def _used_keys(env: EnvBase) -> set[Any]:
    """Return the entries that are learned from, are state, or that a transform computes another entry from."""
    keys = {OBSERVATION, *_BOOKKEEPING, *env.state_spec.keys(True, True)}
    for part in inner(env):
        if isinstance(part, Transform):
            keys |= set(part.in_keys or ()) - set(part.out_keys or ())
    return keys


def _join(specs: dict[Any, Any], rank: int) -> str:
    """Return the advice how to make one vector of these entries."""
    joinable = [key for key, spec in specs.items() if len(spec.shape) == rank and spec.dtype.is_floating_point]
    if len(joinable) == len(specs):
        return f"join them in the maker with TransformedEnv(env, CatTensors({joinable}, 'observation'))"
    return "make one float vector of them in the maker (TorchRL: DTypeCastTransform, FlattenObservation, CatTensors)"


def _action_bounds(name: str, env: EnvBase) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the lowest and the highest value of each action entry."""
    specs = dict(env.full_action_spec.items(True, True))
    spec = specs.get(ACTION)
    rank = len(env.batch_size) + 1
    if len(specs) != 1 or spec is None or len(spec.shape) != rank or not spec.dtype.is_floating_point:
        raise UsageError(
            f"task {name!r} has as action {_described(specs)}: mtray needs one vector of continuous actions under "
            "'action'"
        )
    size = spec.shape[-1]
    bounds = []
    for side, default in (("low", -math.inf), ("high", math.inf)):
        bound = torch.as_tensor(getattr(spec.space, side, default)).double().expand(spec.shape).reshape(-1, size)
        if not torch.equal(bound, bound[:1].expand_as(bound)) and not bound.isnan().any():
            raise UsageError(f"task {name!r}: its copies have different action bounds ({side}: {bound.tolist()})")
        bounds.append(bound[0].tolist())
    for index, (low, high) in enumerate(zip(*bounds, strict=True)):
        _check_bound(name, index, low, high)
    low, high = bounds
    return tuple(low), tuple(high)


def _check_bound(name: str, index: int, low: float, high: float) -> None:
    entry = f"task {name!r}: entry {index} of its action has the bounds [{low:g}, {high:g}]"
    if not low <= high:
        raise UsageError(f"{entry}, which no value satisfies: correct its action spec")
    if (low <= -UNBOUNDED) != (high >= UNBOUNDED):
        raise UsageError(
            f"{entry}, a limit on one side only: set both in the maker, for example with Gymnasium's RescaleAction or "
            f"TorchRL's ActionScaling (bounds beyond ±{UNBOUNDED:g} count as none; unbounded actions lie in [-1, 1])"
        )


def _described(specs: dict[Any, Any]) -> str:
    return "; ".join(f"{key!r} of shape {tuple(spec.shape)} {spec.dtype}" for key, spec in specs.items()) or "none"
