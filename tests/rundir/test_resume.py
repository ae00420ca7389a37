"""What a resumed run may change: whatever the saved state would not fit is refused by its flag."""

import dataclasses

import pytest

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.learn.trainer import Trainer
from mtray.rundir.checkpoints.checkpoint import from_bytes, to_bytes
from mtray.rundir.resume import AUTO, FIXED, changes, check_network, check_resume
from tests.config.test_config import CHANGED
from tests.makers import make_spec

SAVED = Config(tasks=("left",), network=NetworkConfig(actor_width=8, critic_width=8, embedding_size=4, adapter_size=2))
CHANGES = [
    (group, field.name)
    for group in ("network", "learner")
    for field in dataclasses.fields(getattr(SAVED, group))
    if getattr(getattr(CHANGED, group), field.name) != getattr(getattr(SAVED, group), field.name)
]


def changed(group, name):
    value = getattr(getattr(CHANGED, group), name)
    # The spec below is of this task.
    value = ("left=2",) if name in ("loss_weights", "row_weights") else value
    return dataclasses.replace(SAVED, **{group: dataclasses.replace(getattr(SAVED, group), **{name: value})})


def check(given):
    check_resume(given, SAVED)
    check_network(given.network, SAVED.network, given.resume)


def test_the_same_settings_are_taken(tmp_path):
    check(dataclasses.replace(SAVED, resume=tmp_path, run_dir=tmp_path))
    check(dataclasses.replace(SAVED, resume=tmp_path, total_frames=9, workers=7, host="inline"))
    gaps = dataclasses.replace(SAVED.network, actor_width=None, critic_width=None)
    check(dataclasses.replace(SAVED, resume=tmp_path, network=gaps))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"tasks": ("left", "right")}, "--tasks left right differs from the left"),
        ({"engine": "envpool"}, "--engine envpool differs from the mujoco"),
        ({"seed": 1}, "--seed 1 differs from the 0"),
        ({"network": NetworkConfig(actor_width=9)}, "--network.actor-width 9 differs from the 8"),
        ({"collector": {"action_repeat": 3}}, "--collector.action-repeat 3 differs from the 2"),
        ({"learner": {"atoms": 21}}, "--learner.atoms 21 differs from the 51"),
    ],
)
def test_a_change_that_can_not_be_is_refused_with_both_values(tmp_path, changes, flag):
    with pytest.raises(UsageError) as caught:
        check(dataclasses.replace(SAVED, resume=tmp_path, **changes))
    assert str(caught.value).startswith(flag)


def test_a_resume_of_whatever_is_there_names_its_run_directory(tmp_path):
    given = dataclasses.replace(SAVED, resume=AUTO, run_dir=tmp_path, seed=1)
    with pytest.raises(UsageError, match=f"differs from the 0 that {tmp_path} was made with"):
        check_resume(given, SAVED)


@pytest.mark.parametrize(("group", "name"), CHANGES)
def test_every_setting_of_the_learner_loads_what_was_saved_or_is_refused(tmp_path, group, name):
    now = changed(group, name)
    try:
        check(dataclasses.replace(now, resume=tmp_path))
    except UsageError as error:
        assert f"--{group}.{name.replace('_', '-')} " in str(error)  # noqa: PT017
        return
    assert group == "learner", f"learner.{name} in {FIXED}"
    if name in ("compile", "precision"):
        return
    specs = [make_spec("left")]
    state = from_bytes(to_bytes(Trainer(specs, SAVED.network, SAVED.learner).state_dict()))
    Trainer(specs, now.network, now.learner).load_state_dict(state)


def test_what_a_resume_changes_is_told_with_its_flag(tmp_path):
    assert changes(dataclasses.replace(SAVED, resume=tmp_path, run_dir=tmp_path, total_minutes=9), SAVED) == []
    now = dataclasses.replace(SAVED, preset="frugal", learner=LearnerConfig(n_step=5, loss_weights=("left=2",)))
    assert changes(now, SAVED) == [
        "--preset frugal (fast)", "--learner.n-step 5 (None)", "--learner.loss-weights left=2 ()",
    ]  # fmt: skip


def test_a_learner_of_other_atoms_would_not_fit():
    specs = [make_spec("left")]
    state = Trainer(specs, SAVED.network, LearnerConfig()).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        Trainer(specs, SAVED.network, LearnerConfig(atoms=21)).load_state_dict(state)
