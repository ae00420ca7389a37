"""The policy of a run, read from its directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtray.config import plain as config_module
from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.types import to_path
from mtray.data.specs import TaskSpec
from mtray.errors import UsageError
from mtray.rundir.checkpoints.best import best_of
from mtray.rundir.checkpoints.checkpoint import POLICY, from_bytes, read_meta
from mtray.rundir.checkpoints.newest import is_checkpoint, read_chosen
from mtray.rundir.files import META, damaged, read_checked

if TYPE_CHECKING:
    from mtray.policy.policy import MultiTaskPolicy

# Of the learner's settings those that a policy is built by.
_OF_POLICY = ("algorithm", "action_noise")


def load_policy(path: str | Path, checkpoint: Literal["newest", "best"] = "newest") -> MultiTaskPolicy:
    """Return the policy of a run, acting deterministically.

    Args:
        path: a run directory, or the folder of one checkpoint.
        checkpoint: of a run directory: the newest one, or the policy with the best evaluation during the run.

    Raises:
        UsageError: there is no whole checkpoint, a file is damaged, or another version wrote it in another format.
    """
    path = to_path(path, "path")
    if checkpoint not in ("newest", "best"):
        raise UsageError(f"checkpoint {checkpoint!r}: must be 'newest' or 'best'")
    if checkpoint == "best" and not is_checkpoint(path):
        return _read_policy(best_of(path))
    return read_chosen(path, _read_policy)


def _read_policy(folder: Path) -> MultiTaskPolicy:
    from mtray.policy.policy import MultiTaskPolicy

    meta = read_meta(folder)
    data = read_checked(folder / POLICY, meta)
    with damaged(folder / META):
        specs = [TaskSpec.from_dict(spec) for spec in meta["specs"]]
        network: NetworkConfig = config_module.from_dict(meta["config"]["network"], NetworkConfig)
        saved = {name: value for name, value in meta["config"]["learner"].items() if name in _OF_POLICY}
        noise = LearnerConfig(**saved).policy_noise
    with damaged(folder / POLICY):
        policy = MultiTaskPolicy(specs, network, action_noise=noise, deterministic=True)
        policy.load_state_dict(from_bytes(data))
    policy.requires_grad_(False).eval()
    return policy
