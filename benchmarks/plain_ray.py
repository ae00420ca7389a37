"""A Ray for contenders that are not mtray's, which starts one of its own."""

from __future__ import annotations

import logging
import os
from typing import Any


def start(cpus: int) -> Any:
    """Start a Ray on this machine that prints nothing; return a context manager that ends it.

    Args:
        cpus: logical CPUs.
    """
    import ray

    # With a token, Ray would leave it in the home folder.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    return ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
