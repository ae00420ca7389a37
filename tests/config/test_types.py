"""Types of settings: values are converted without loss, or refused with the flag, the value and the choices."""

import dataclasses
import math
import typing
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.settings import CollectorConfig, Config, ReplayConfig, RunConfig
from mtray.errors import UsageError

GROUPS = (Config, CollectorConfig, ReplayConfig, NetworkConfig, LearnerConfig, RunConfig)
FIELDS = [(cls, name, hint) for cls in GROUPS for name, hint in typing.get_type_hints(cls).items()]
# Valid and invalid values of many types.
VALUES = (
    None, True, 3, 2.0, 2.5, math.nan, math.inf, -math.inf, "2", "", b"2", Path("a"), (), [], ("a", "b"), ["a"], {},
    {"a": 1}, {"a"}, np.int64(3), np.float32(2), np.float64(math.nan), np.array([1, 2]), np.array(3), np.bool_(True),
    np.str_("x"), torch.tensor(3), torch.tensor([1.0, 2.0]), Fraction(1, 2), 1j, object(), print, Config,
)  # fmt: skip


def flag_of(cls, name):
    group = cls.__name__.removesuffix("Config").lower()
    return f"--{group + '.' if group else ''}{name.replace('_', '-')}"


def has_type(value, hint):
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in options
    if typing.get_origin(hint) is tuple:
        return type(value) is tuple and all(type(entry) is str for entry in value)
    if options:
        return any(has_type(value, option) for option in options)
    return isinstance(value, hint) if hint is Path else type(value) is hint


@pytest.mark.parametrize(("cls", "name", "hint"), FIELDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_field_has_its_annotated_type_or_a_refusal_that_names_it(cls, name, hint):
    taken, refusals = 0, []
    for value in (*VALUES, *typing.get_args(hint)):
        try:
            config = cls(**{name: value})
        except UsageError as error:
            refusals.append(str(error))
        else:
            taken += 1
            assert has_type(getattr(config, name), hint), value
    assert taken
    for text in refusals:
        assert text.startswith(flag_of(cls, name)) or "has no setting named" in text
        assert "\n" not in text


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("total_frames", 1e6, 1_000_000),
        ("total_frames", np.int64(600), 600),
        ("total_frames", np.float32(600), 600),
        ("seed", np.uint8(3), 3),
        ("workers", torch.tensor(4), 4),
        ("tasks", "cartpole-balance", ("cartpole-balance",)),
        ("tasks", ["a", "b"], ("a", "b")),
        ("tasks", (name for name in "ab"), ("a", "b")),
        ("tasks", np.array(["a", "b"]), ("a", "b")),
        ("run_dir", "runs/a", Path("runs/a")),
        ("resume", PurePosixPath("runs/a"), Path("runs/a")),
        ("deterministic", np.bool_(True), True),
        ("learner", {"warmup_steps": 50}, LearnerConfig(warmup_steps=50)),
        ("learner", {"learning_rate": np.float32(0.5)}, LearnerConfig(learning_rate=0.5)),
        ("run", {"log_seconds": 1}, RunConfig(log_seconds=1.0)),
    ],
)
def test_values_are_converted(setting, value, expected):
    found = getattr(Config(**{setting: value}), setting)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(workers="1"), "--workers '1' is of the wrong type (str): a whole number is needed"),
        (lambda: Config(workers=1.5), "--workers 1.5 is of the wrong type (float): a whole number is needed"),
        (lambda: Config(workers=True), "--workers True is of the wrong type (bool): a whole number is needed"),
        (lambda: LearnerConfig(algorithm="ppo"), "--learner.algorithm ppo: choose from sac, td3"),
        (lambda: Config(host="remote"), "--host remote: choose from auto, parallel, inline"),
        (lambda: Config(device=0), "--device 0 is of the wrong type (int): text is needed"),
        (lambda: Config(run_dir=3), "--run-dir 3 is of the wrong type (int): a path is needed"),
        (lambda: Config(run_dir=""), "--run-dir is empty: a path is needed; . is the current folder"),
        (lambda: Config(run_dir="a\0b"), "--run-dir 'a\\x00b': a path can't have a NUL character"),
        (lambda: Config(tasks={"a": 1}), "--tasks {'a': 1} is of the wrong type (dict): a list or tuple is needed"),
        (lambda: Config(learner={"wramup": 1}), "LearnerConfig has no setting named wramup"),
        (lambda: Config(learner=NetworkConfig()), "a LearnerConfig or a dict of its settings is needed"),
        (lambda: LearnerConfig(learning_rate=math.nan), "--learner.learning-rate nan: must be finite"),
        (lambda: LearnerConfig(learning_rate=10**400), "of the wrong type (int): a number is needed"),
        (lambda: RunConfig(call_timeout_seconds=math.inf), "--run.call-timeout-seconds inf: must be finite"),
    ],
)
def test_a_refusal_says_what_is_needed(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)


def test_a_maker_given_as_a_task_names_register_task():
    with pytest.raises(UsageError, match=r"--tasks .* register a maker with mtray\.register_task"):
        Config(tasks=(print,))


@pytest.mark.parametrize(("cls", "name", "hint"), [field for field in FIELDS if field[2] is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(cls, name, hint, value):
    with pytest.raises(UsageError, match=rf"^{flag_of(cls, name)} {value}: must be finite"):
        cls(**{name: value})


@given(st.integers(1, 2**53))
def test_a_whole_float_is_its_integer(frames):
    assert Config(total_frames=float(frames)).total_frames == frames


def test_settings_of_the_right_type_are_not_copied():
    tasks, path = ("a", "b"), Path("x")
    config = Config(tasks=tasks, run_dir=path)
    assert config.tasks is tasks
    assert config.run_dir is path
    assert dataclasses.replace(config) == config
