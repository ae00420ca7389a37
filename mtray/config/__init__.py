"""Settings of a run: frozen dataclasses, their checks, and their conversion to plain JSON."""

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.settings import CollectorConfig, Config, ReplayConfig, RunConfig

__all__ = ["CollectorConfig", "Config", "LearnerConfig", "NetworkConfig", "ReplayConfig", "RunConfig"]
