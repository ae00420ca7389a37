"""The policy of a run, read from its directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtray.config import plain as config_module
from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.data.specs import TaskSpec
from mtray.rundir.checkpoints.checkpoint import POLICY, from_bytes, read_meta
from mtray.rundir.checkpoints.newest import read_chosen
from mtray.rundir.files import META, damaged, read_checked

if TYPE_CHECKING:
    from mtray.policy.policy import MultiTaskPolicy

# Of the learner's settings those that a policy is built by.
_OF_POLICY = ("algorithm", "action_noise")


def load_policy(path: str | Path) -> MultiTaskPolicy:
    """Return the policy of a run's newest checkpoint (or of one checkpoint's folder), acting deterministically.

    Raises:
        UsageError: there is no whole checkpoint, a file is damaged, or another version wrote it in another format.
    """
    return read_chosen(Path(path), _read_policy)


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
