"""The policy of a run, read from its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mtray.config import plain as config_module
from mtray.config.settings import LearnerConfig, NetworkConfig
from mtray.data.specs import TaskSpec
from mtray.errors import UsageError

if TYPE_CHECKING:
    from mtray.policy.policy import MultiTaskPolicy

from mtray.rundir.checkpoint import DAMAGED, META, POLICY, check_format, from_bytes, latest

# Of the learner's settings those that a policy is built by.
_OF_POLICY = ("algorithm", "action_noise")


def load_policy(path: str | Path) -> MultiTaskPolicy:
    """The policy of a run directory's newest checkpoint (or of one checkpoint's folder), acting deterministically.

    Raises:
        UsageError: there is no whole checkpoint, or another version wrote it in another format.
    """
    from mtray.policy.policy import MultiTaskPolicy

    path = Path(path)
    folder = path if (path / META).is_file() else latest(path)
    try:
        meta, data = json.loads((folder / META).read_text()), (folder / POLICY).read_bytes()
        check_format(folder, meta)
        specs = [TaskSpec.from_dict(spec) for spec in meta["specs"]]
        network: NetworkConfig = config_module.from_dict(meta["config"]["network"], NetworkConfig)
        saved = {name: value for name, value in meta["config"]["learner"].items() if name in _OF_POLICY}
        noise = LearnerConfig(**saved).policy_noise
        policy = MultiTaskPolicy(specs, network, action_noise=noise, deterministic=True)
        policy.load_state_dict(from_bytes(data))
    except DAMAGED as error:
        raise UsageError(f"checkpoint {folder} can't be read: {type(error).__name__}: {error}") from error
    policy.requires_grad_(False).eval()
    return policy
