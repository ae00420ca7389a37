"""Trainers of two small tasks, and their replay."""

import torch

from mtray.collect.hosts.make import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.settings import ReplayConfig
from mtray.data.batch import Batch, unpack_batches
from mtray.data.messages import Push
from mtray.data.rollout import pack
from mtray.learn.trainer import Trainer
from mtray.policy.layout import PolicyLayout
from mtray.replay.buffer import ReplayBuffer
from mtray.tasks.makers import make_makers
from mtray.testing import CountingMaker

NETWORK = NetworkConfig(actor_width=32, critic_width=32, embedding_size=4)
# Two tasks of different widths whose best actions differ: one policy must tell them apart.
TARGETS = {"left": -0.6, "right": 0.4}
MAKERS = {
    "left": CountingMaker(target=-0.6, truncate_after=20, observation_size=2, action_size=1),
    "right": CountingMaker(target=0.4, truncate_after=20, observation_size=3, action_size=2),
}


def specs_of(tasks):
    return tuple(task.spec for task in tasks)


def filled_replay(tasks, rollouts=20, action_noise=None):
    specs = specs_of(tasks)
    host = make_host("inline", make_makers(tasks, 4, [1, 2]))
    discounts = {spec.name: spec.discount for spec in specs}
    collector = ActingLoop(host, PolicyLayout(specs, NETWORK, action_noise), rollout_steps=16, discounts=discounts)
    replay = ReplayBuffer(specs, ReplayConfig(capacity_rows=50_000))
    for _ in range(rollouts):
        extend(replay, collector.collect())
    return replay, collector


def extend(replay, rollout):
    rows = {task: pack(arrays) for task, arrays in rollout.tasks.items()}
    number = sum(replay.source_frames().values())
    replay.insert(Push(source="local", number=number, rows=rows, largest_returns=rollout.largest_returns))


def learner_of(tasks, **changes):
    settings = {"atoms": 21, "learning_rate": 3e-3, "initial_temperature": 0.01, **changes}
    return Trainer(specs_of(tasks), NETWORK, LearnerConfig(**settings))


def batch_of(replay, rows=32):
    return unpack_batches(replay.sample_rows(rows).rows, replay.specs)[0]


def with_nan(batch, task, name="reward", value=float("nan")):
    parts = {part: getattr(batch, part).clone() for part in vars(batch) if part != "tasks"}
    parts[name][task, 0] = value
    return Batch(batch.tasks, **parts)


def parameters(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def networks(learner):
    return learner.policy, learner.algorithm.average, learner.critic, learner.target
