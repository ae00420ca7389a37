"""Settings: conversion to JSON and back, defaults, and errors that name the flag."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.plain import from_dict, to_dict
from mtray.config.settings import CollectorConfig, Config, ReplayConfig, RunConfig
from mtray.errors import UsageError

GROUPS = {
    "collector": CollectorConfig,
    "replay": ReplayConfig,
    "network": NetworkConfig,
    "learner": LearnerConfig,
    "run": RunConfig,
}

# Every setting differs from its default.
CHANGED = Config(
    tasks=("cartpole-balance", "package.module:maker"),
    workers=7,
    envs_per_task=3,
    engine="envpool",
    host="inline",
    total_frames=123,
    total_minutes=1.5,
    run_dir=Path("runs/a"),
    resume=Path("runs/b"),
    on_task_failure="abort",
    seed=5,
    deterministic=True,
    preset="frugal",
    address="auto",
    device="cuda:1",
    collector=CollectorConfig(
        rollout_steps=3, action_repeat=4, tasks_each=5, noise_steps=1, random_episodes=0.5, random_steps=7,
        pushes_in_flight=2, push_timeout_seconds=1.5, max_restarts=0, least_noise=0.25, most_noise=2.5,
    ),
    replay=ReplayConfig(capacity_rows=77, recent_share=0.3, recent_rows=7, save=False),
    network=NetworkConfig(
        actor_output_norm=False, critic_output_norm=False,
        actor_width=1, actor_blocks=0, critic_width=2, critic_blocks=3, critics=2, embedding_size=0, adapter_size=5,
        head_layers=4, head_reads_observation=True,
    ),
    learner=LearnerConfig(
        batch_rows=1, updates_per_step=0.1, least_updates_per_step=0.1, warmup_steps=0, slack_steps=4,
        learning_rate=1e-5,
        temperature_learning_rate=1e-5, weight_decay=0.0, algorithm="td3", action_noise=0.1,
        polyak=1.0, actor_polyak=0.5, actor_period=1, atoms=2, value_limit=1 / 3, headroom=1.5, initial_temperature=2.0,
        batches_per_call=3, calls_ahead=1, slice_seconds=0.25, threads=2, loss_weights=("cartpole-balance=2",),
        row_weights=("cartpole-balance=2",), balance=True, actor_average=0.25,
        n_step=2, precision="bfloat16", graphs=False, compile="eager",
    ),
    run=RunConfig(
        log_seconds=0.5, checkpoint_frames=1, keep_checkpoints=1, cpus_per_actor=0.5, start_timeout_seconds=2.0,
        call_timeout_seconds=3.0, give_up_seconds=4.0, checkpoint_seconds=5.0, log_pushes=True, progress="none",
        evaluate_every=0.0, evaluate_episodes=3,
    ),
)  # fmt: skip


def leaves(config):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from ((f"{field.name}.{name}", leaf) for name, leaf in leaves(value))
        else:
            yield field.name, value


def test_every_setting_of_changed_differs_from_its_default():
    defaults = dict(leaves(Config()))
    assert [name for name, value in leaves(CHANGED) if value == defaults[name]] == []


@pytest.mark.parametrize("config", [Config(), CHANGED], ids=["defaults", "changed"])
def test_config_comes_back_from_json(config):
    found = from_dict(json.loads(json.dumps(to_dict(config))))
    assert found == config
    assert {name: type(value) for name, value in leaves(found)} == {name: type(value) for name, value in leaves(config)}


@pytest.mark.parametrize("group", GROUPS)
def test_group_comes_back_from_json_alone(group):
    config = getattr(CHANGED, group)
    assert from_dict(json.loads(json.dumps(to_dict(config))), GROUPS[group]) == config


def test_plain_values_have_the_fields_names():
    plain = to_dict(CHANGED)
    assert plain["tasks"] == ["cartpole-balance", "package.module:maker"]
    assert plain["run_dir"] == "runs/a"
    assert plain["collector"] == {
        "rollout_steps": 3, "action_repeat": 4, "tasks_each": 5, "pushes_in_flight": 2, "noise_steps": 1,
        "random_episodes": 0.5, "random_steps": 7, "push_timeout_seconds": 1.5, "max_restarts": 0,
        "least_noise": 0.25, "most_noise": 2.5,
    }  # fmt: skip


def test_missing_setting_has_its_default():
    assert from_dict({"workers": 3, "learner": {"atoms": 51}}) == Config(workers=3, learner=LearnerConfig(atoms=51))


def test_unknown_setting_is_refused_by_name():
    with pytest.raises(UsageError, match="Config has no setting named wrokers"):
        from_dict({"wrokers": 3})


def test_unknown_setting_of_a_group_is_refused_with_its_group():
    with pytest.raises(UsageError, match="LearnerConfig has no setting named atom, gamma"):
        from_dict({"learner": {"gamma": 0.99, "atom": 1, "atoms": 51}})


def test_invalid_value_is_refused_when_read():
    with pytest.raises(UsageError, match=r"--learner\.atoms 0"):
        from_dict({"learner": {"atoms": 0}})


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({}, (None, 60.0)),
        ({"total_frames": 9}, (9, None)),
        ({"total_minutes": 2}, (None, 2.0)),
        ({"total_frames": 9, "total_minutes": 2}, (9, 2.0)),
        ({"deterministic": True}, (1_000_000, None)),
        ({"deterministic": True, "total_minutes": 2}, (1_000_000, 2.0)),
    ],
)
def test_a_run_ends_after_its_frames_or_minutes_and_after_an_hour_if_neither_is_given(given, ends):
    config = Config(**given)
    assert (config.frames, config.minutes) == ends


def test_defaults_are_the_documented_ones():
    config = Config()
    assert (config.tasks, config.workers, config.engine, config.host) == (
        ("humanoid-stand", "humanoid-walk"), 2, "mujoco", "auto"
    )  # fmt: skip
    assert (config.run_dir, config.resume, config.address, config.envs_per_task) == (None, None, None, None)
    assert (config.total_frames, config.seed, config.deterministic, config.device) == (None, 0, False, "auto")
    learner = config.learner
    assert (learner.learning_rate, learner.polyak, learner.actor_period) == (3e-4, 0.01, 2)
    assert (learner.atoms, learner.value_limit) == (51, 10.0)
    assert config.network.embedding_size == 32
    assert config.network.sizes == (128, 1, 256, 1)


@pytest.mark.parametrize(
    ("workers", "given", "copies"), [(1, None, 16), (2, None, 8), (3, None, 5), (40, None, 1), (40, 4, 4)]
)
def test_collectors_share_sixteen_copies_of_each_task_by_default(workers, given, copies):
    assert Config(workers=workers, envs_per_task=given).copies() == copies


def test_settings_are_frozen():
    for config in (Config(), *(cls() for cls in GROUPS.values())):
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, getattr(config, name))


def test_every_group_of_the_config_is_tested_here():
    hints = typing.get_type_hints(Config)
    assert {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)} == GROUPS


@pytest.mark.parametrize(
    ("group", "setting", "value"),
    [
        (None, "tasks", ()),
        (None, "workers", 0),
        (None, "envs_per_task", 0),
        (None, "total_frames", 0),
        (None, "seed", -1),
        (None, "seed", 2**32),
        ("collector", "rollout_steps", 0),
        ("collector", "noise_steps", 0),
        ("collector", "least_noise", 0.0),
        ("collector", "most_noise", 0.0),
        ("collector", "most_noise", 100.1),
        ("collector", "random_episodes", -0.01),
        ("collector", "random_episodes", 1.01),
        ("collector", "random_steps", 0),
        ("collector", "pushes_in_flight", 0),
        ("collector", "push_timeout_seconds", 0.0),
        ("collector", "max_restarts", -1),
        ("replay", "capacity_rows", 1),
        ("network", "actor_width", 0),
        ("network", "critic_width", 0),
        ("network", "critics", 0),
        ("network", "actor_blocks", -1),
        ("network", "critic_blocks", -1),
        ("network", "embedding_size", -1),
        ("network", "adapter_size", -1),
        ("network", "head_layers", -1),
        ("learner", "batch_rows", 0),
        ("learner", "updates_per_step", -0.1),
        ("learner", "warmup_steps", -1),
        ("learner", "slack_steps", -1),
        ("learner", "learning_rate", 0.0),
        ("learner", "temperature_learning_rate", 0.0),
        ("learner", "weight_decay", -1e-9),
        ("learner", "polyak", 0.0),
        ("learner", "polyak", 1.01),
        ("learner", "actor_polyak", 0.0),
        ("learner", "actor_polyak", 1.01),
        ("learner", "actor_average", -0.01),
        ("learner", "actor_average", 1.01),
        ("learner", "headroom", 0.99),
        ("learner", "actor_period", 0),
        ("learner", "atoms", 0),
        ("learner", "value_limit", 0.0),
        ("learner", "initial_temperature", 0.0),
        ("learner", "action_noise", 0.0),
        ("learner", "batches_per_call", 0),
        ("learner", "calls_ahead", 0),
        ("learner", "slice_seconds", 0.0),
        ("learner", "threads", 0),
        ("run", "log_seconds", 0.0),
        ("run", "checkpoint_frames", 0),
        ("run", "keep_checkpoints", 0),
        ("run", "start_timeout_seconds", 0.0),
        ("run", "call_timeout_seconds", 0.0),
    ],
)
def test_invalid_value_is_refused_with_its_flag(group, setting, value):
    flag = "--" + (f"{group}." if group else "") + setting.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^{flag}\b"):
        (GROUPS[group] if group else Config)(**{setting: value})


@pytest.mark.parametrize(
    "config",
    [
        lambda: CollectorConfig(
            rollout_steps=1,
            noise_steps=1,
            least_noise=1e-3,
            most_noise=1e-3,
            random_episodes=0,
            random_steps=1,
            pushes_in_flight=1,
            push_timeout_seconds=1e-3,
            max_restarts=0,
        ),
        lambda: ReplayConfig(capacity_rows=2),
        lambda: NetworkConfig(actor_width=1, actor_blocks=0, embedding_size=0, head_layers=0),
        lambda: LearnerConfig(batch_rows=1, updates_per_step=0, warmup_steps=0, slack_steps=0, polyak=1.0, atoms=1),
        lambda: Config(workers=1, envs_per_task=1, total_frames=1, seed=2**32 - 1),
    ],
)
def test_smallest_values_are_accepted(config):
    assert to_dict(config())


def test_a_value_of_the_wrong_type_and_an_infinite_rate_are_refused():
    with pytest.raises(UsageError, match="wrong type"):
        from_dict({"workers": "two"})
    with pytest.raises(UsageError, match="updates-per-step"):
        LearnerConfig(updates_per_step=float("inf"))


@pytest.mark.parametrize("text", ["b", "b=0", "b=1.5", "b=-1", "=", "b=x"])
def test_invalid_row_weights_are_refused(text):
    with pytest.raises(UsageError, match=f"--learner.row-weights {text}: give a task and a whole number above 0"):
        LearnerConfig(row_weights=(text,))
