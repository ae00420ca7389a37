"""The registry: names, sets and makers, and the errors of wrong names and wrong makers."""

import dataclasses
import pickle
import tomllib
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from dm_control import suite

from mtray.data.specs import TaskSpec
from mtray.errors import TaskError, UnknownTaskError, UsageError
from mtray.tasks import plan as tasks_module
from mtray.tasks import registry
from mtray.tasks.plan import Task
from mtray.tasks.registry import register_task, resolve, resolve_like, task_names, task_sets
from tests import makers
from tests.makers import observing, vector


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Start with no registered task, and restore the registry."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    return registry._REGISTERED


def resolved_names(*names):
    return [task.name for task in resolve(names, "dm_control")]


def full_names(pairs):
    return ["-".join(pair) for pair in pairs]


# Names and sets


def test_name_is_a_task_of_the_engine():
    assert resolve(["humanoid-walk"]) == (Task("humanoid-walk", "mujoco"),)
    assert resolve(["humanoid-walk"], "dm_control", 3) == (Task("humanoid-walk", "dm_control", action_repeat=3),)


def test_engine_before_the_task_replaces_the_default():
    assert resolve(["dm_control/humanoid-walk"], "envpool") == (Task("humanoid-walk", "dm_control"),)
    assert [task.name for task in resolve(["dm_control/walker"], "envpool")] == resolved_names("walker")


def test_domain_is_the_set_of_its_tasks():
    assert resolved_names("walker") == ["walker-stand", "walker-walk", "walker-run"]
    assert resolved_names("humanoid") == full_names(("humanoid", task) for task in suite.TASKS_BY_DOMAIN["humanoid"])
    assert {"humanoid-stand", "humanoid-walk", "humanoid-run"} <= set(resolved_names("humanoid"))


def test_every_domain_is_a_set():
    sets = task_sets()
    assert set(suite.TASKS_BY_DOMAIN) <= set(sets)
    assert all(name.startswith(f"{domain}-") for domain in suite.TASKS_BY_DOMAIN for name in sets[domain])


def test_dmc_is_the_benchmark_and_dmc_all_the_suite():
    assert resolved_names("dmc") == full_names(suite.BENCHMARKING)
    assert resolved_names("dmc_all") == full_names(suite.ALL_TASKS) == list(task_names())
    assert len(resolved_names("dmc")) == 28 < len(resolved_names("dmc_all"))


def test_tasks_keep_the_order_of_the_names_and_come_once():
    names = ("walker-walk", "dm_control/cartpole-balance", "walker", "cartpole-balance", "walker-walk")
    assert resolved_names(*names) == ["walker-walk", "cartpole-balance", "walker-stand", "walker-run"]


def test_no_name_is_refused_with_an_example():
    with pytest.raises(UsageError, match="--tasks humanoid"):
        resolve([])


@pytest.mark.parametrize(
    ("wrong", "match"), [("humanoid-wlk", "humanoid-walk"), ("wakler", "walker"), ("mujoco/cheeta", "cheetah")]
)
def test_error_of_an_unknown_name_lists_close_matches(wrong, match):
    with pytest.raises(UnknownTaskError) as caught:
        resolve(["walker-walk", wrong])
    message = str(caught.value)
    assert f"unknown task {wrong.rpartition('/')[2]!r} of engine 'mujoco': did you mean" in message
    assert match in message.partition("did you mean ")[2].rstrip("?").split(", ")


def test_error_of_a_name_without_close_match_lists_the_sets():
    with pytest.raises(UnknownTaskError, match=r"task sets: .*dmc, dmc_all.*humanoid"):
        resolve(["qqqqqq"])


def test_registered_name_is_a_close_match_too():
    register_task("gripper-lift", makers.point)
    with pytest.raises(UnknownTaskError, match="gripper-lift"):
        resolve(["griper-lift"])


@pytest.mark.parametrize(("name", "engine"), [("walker-walk", "mujocco"), ("mujocco/walker-walk", "dm_control")])
def test_error_of_an_unknown_engine_lists_the_engines(name, engine):
    with pytest.raises(UsageError, match=r"unknown engine 'mujocco': choose from .*dm_control"):
        resolve([name], engine)


def test_engine_that_is_not_installed_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(tasks_module.ENGINES, "other", "mtray.engines.not_there")
    with pytest.raises(UsageError, match=r"engine 'other' can't be loaded here .*not_there"):
        resolve(["other/walker-walk"])


# Users' tasks


def test_maker_is_found_by_its_path_and_named_after_it():
    assert resolve(["tests.makers:point"]) == (Task("point", "torchrl", makers.point),)
    assert resolve(["tests.makers:Nested.point"]) == (Task("Nested.point", "torchrl", makers.point),)


def test_maker_twice_is_one_task():
    assert len(resolve(["tests.makers:point", "walker-walk", "tests.makers:point"])) == 2


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("tests.nowhere:point", "ModuleNotFoundError"),
        ("tests.makers:nothing", "AttributeError"),
    ],
)
def test_maker_that_can_not_be_imported_is_refused_with_its_path(path, why):
    with pytest.raises(UsageError, match=rf"maker '{path}' can't be imported \({why}.*package\.module:maker"):
        resolve([path])


@pytest.mark.parametrize("path", [":point", "tests.makers:", ":"])
def test_a_makers_path_of_which_a_part_is_missing_is_refused_with_an_example(path):
    with pytest.raises(UsageError, match=rf"maker '{path}' is not whole: write package\.module:maker, for example"):
        resolve([path])


def test_path_of_a_value_that_is_not_callable_is_refused():
    with pytest.raises(UsageError, match=r"maker 'tests\.makers:NOT_CALLABLE' is of type int: a function maker\("):
        resolve(["tests.makers:NOT_CALLABLE"])


def test_registered_task_is_found_among_the_engines():
    register_task("gripper-lift", makers.point)
    assert resolve(["gripper-lift", "walker-walk"]) == (
        Task("gripper-lift", "torchrl", makers.point),
        Task("walker-walk", "mujoco"),
    )
    assert "gripper-lift" in task_names()


def test_registering_the_same_maker_again_changes_nothing(registered):
    register_task("gripper-lift", makers.point)
    register_task("gripper-lift", makers.point)
    assert registered == {"gripper-lift": makers.point}


def test_name_that_is_registered_already_is_refused(registered):
    register_task("gripper-lift", makers.point)
    with pytest.raises(UsageError, match="'gripper-lift' is registered already"):
        register_task("gripper-lift", makers.single_point)
    assert registered == {"gripper-lift": makers.point}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "a\tb"])
def test_name_with_a_separator_is_refused(registered, name):
    with pytest.raises(UsageError, match="give a name without"):
        register_task(name, makers.point)
    assert registered == {}


def test_registering_a_value_that_is_not_callable_is_refused(registered):
    with pytest.raises(UsageError, match="the maker of task 'gripper' is of type str: a function maker"):
        register_task("gripper", "tests.makers:point")
    assert registered == {}


# Built tasks


def test_spec_of_a_suites_task():
    spec = Task("cartpole-balance", "dm_control").spec
    assert spec == TaskSpec(
        name="cartpole-balance",
        engine="dm_control",
        observation=(("position", 3), ("velocity", 2)),
        action_low=(-1.0,),
        action_high=(1.0,),
        horizon=1000,
        time_step_seconds=0.01,
    )


@pytest.mark.parametrize("maker", [makers.point, makers.single_point], ids=lambda maker: maker.__name__)
def test_spec_of_a_users_task(maker):
    assert Task("mine", "torchrl", maker).spec == TaskSpec(
        name="mine",
        engine="torchrl",
        observation=(("observation", 2),),
        action_low=(-0.5,),
        action_high=(0.5,),
        horizon=None,
        time_step_seconds=None,
    )


@pytest.mark.parametrize("maker", [makers.point, makers.single_point], ids=lambda maker: maker.__name__)
def test_copies_of_a_users_task_step_and_reset_one_by_one(maker):
    sim = Task("mine", "torchrl", maker).make_sim(3, seed=5)
    out = makers.started(sim)
    start = out.observation.copy()
    assert len(set(start[:, 0].tolist())) == 3
    sim.step(np.array([[0.5], [-0.5], [0.0]], np.float32), out)
    np.testing.assert_allclose(out.observation, start + np.array([[0.5, 1], [-0.5, 1], [0, 1]]), rtol=1e-6)
    np.testing.assert_array_equal(out.reward, out.observation[:, 0])
    before = out.observation.copy()
    sim.reset(np.array([False, True, False]), out.observation)
    assert out.observation[1, 1] == 0.0
    np.testing.assert_array_equal(out.observation[[0, 2]], before[[0, 2]])
    for _ in range(4):
        sim.step(np.array([[0.5], [0.0], [0.0]], np.float32), out)
    # Copy 0 is beyond 2 after five steps, copy 2 reaches its time limit, copy 1 was reset later.
    assert out.terminated.tolist() == [True, False, False]
    assert out.truncated.tolist() == [False, False, True]
    sim.close()


@pytest.mark.parametrize("name", ["cartpole-balance", "tests.makers:point"])
def test_fewer_than_one_copy_is_refused(name):
    [task] = resolve([name])
    with pytest.raises(UsageError, match=f"'{task.name}': 0 copies"):
        task.make_sim(0)


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (makers.garbage, r"returned dict, expected a torchrl EnvBase"),
        (makers.wrong_batch, r"built an environment of batch size \(3,\): it must be \(2,\)"),
        (observing(position=vector(2)), r"no float vector under 'observation' .*position"),
        (
            observing(observation=vector(2, dtype=torch.int64)),
            r"no float vector under 'observation' .*int64",
        ),
        (observing(observation=vector(8, 8)), r"no float vector under 'observation' .*\(2, 8, 8\)"),
        (makers.discrete_action, r"has as action 'action' of shape \(2,\) torch\.int64"),
    ],
)
def test_maker_of_an_unusable_environment_is_refused_with_the_task(maker, message):
    with pytest.raises(UsageError, match=message) as caught:
        Task("mine", "torchrl", maker).make_sim(2, seed=7)
    assert "task 'mine'" in str(caught.value)


def test_maker_that_raises_is_a_usage_error_where_the_spec_is_read_and_a_task_error_elsewhere():
    task, message = Task("mine", "torchrl", makers.raising), r"task 'mine': its maker, called as maker\(2, {}\)"
    with pytest.raises(TaskError, match=message.format(7) + r".* raised FileNotFoundError: no arena\.xml \(makers\.py"):
        task.make_sim(2, seed=7)
    with pytest.raises(UsageError, match=message.format(0)):
        _ = task.spec


@pytest.mark.parametrize("maker", [lambda num_envs: None, makers.PointEnv(1, 0).reset, makers.later])
def test_error_of_a_wrong_signature_says_how_the_maker_was_called(maker):
    with pytest.raises(
        UsageError, match=r"'mine'.*(called as maker\(2, 0\) \(number of copies, seed\)|coroutine)"
    ) as caught:
        _ = Task("mine", "torchrl", maker).spec
    assert "torchrl.py" not in str(caught.value), "the place of the call is none of the user's"


@pytest.mark.parametrize(
    ("name", "engine"), [("Ant-v5", "envpool"), ("metaworld-drawer-open", "envpool"), ("cartpole-two_poles", "mujoco")]
)
def test_task_of_another_engine_names_that_engine(name, engine):
    requested = "mujoco" if engine == "envpool" else "envpool"
    if requested == "envpool" and "envpool" not in registry._installed():
        pytest.skip("envpool is not installed")
    with pytest.raises(UnknownTaskError, match=rf"--engine {engine} or write {engine}/{name}"):
        resolve([name], requested)


def test_a_policys_set_is_of_the_engine_that_has_it():
    if "envpool" not in registry._installed():
        pytest.skip("envpool is not installed")
    # The first engine has no such set.
    names = task_sets("envpool")["gymnasium"]
    learned = [Task("cartpole-balance", "mujoco").spec, *(Task(name, "envpool").spec for name in names)]
    assert resolve_like(["gymnasium"], learned) == tuple(Task(name, "envpool") for name in names)
    with pytest.raises(UsageError, match="'cartpole-swingup' was not learned by this policy"):
        resolve_like(["cartpole-swingup"], learned)


def test_a_policys_tasks_are_found_where_another_of_its_engines_is_missing(monkeypatch):
    task = Task("point", "torchrl", makers.point)
    learned = [Task("cartpole-balance", "mujoco").spec, dataclasses.replace(task.spec, name="Ant-v5", engine="envpool")]
    monkeypatch.setattr(registry, "_installed", lambda: frozenset({"mujoco"}))
    loaded = []
    monkeypatch.setattr(registry, "load_engine", lambda name: loaded.append(name) or tasks_module.load_engine(name))
    assert resolve_like(["tests.makers:point"], [*learned, task.spec]) == (task,)
    assert "envpool" not in loaded


def test_task_of_an_engine_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr(registry, "_installed", lambda: frozenset({"mujoco", "dm_control"}))
    with pytest.raises(UnknownTaskError, match=r'envpool/Ant-v5 \(pip install -e "\.\[envpool\]"\)'):
        resolve(["Ant-v5"])


def test_extras_that_errors_name_exist():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {*tasks_module.EXTRAS, "gym"} <= set(project["optional-dependencies"])
    assert set(tasks_module.EXTRAS) < set(tasks_module.ENGINES)


# Pickling


@pytest.mark.parametrize("name", ["cartpole-balance", "tests.makers:point"])
def test_task_pickles(name):
    [task] = resolve([name])
    for copy in (cloudpickle.loads(cloudpickle.dumps(task)), pickle.loads(pickle.dumps(task))):
        assert copy == task
        assert copy.spec == task.spec


def test_task_with_a_local_maker_and_its_spec_pickles_with_cloudpickle():
    offset = 3

    def maker(num_envs, seed):
        return makers.PointEnv(num_envs, seed + offset)

    task = Task("mine", "torchrl", maker)
    spec = task.spec
    copy = cloudpickle.loads(cloudpickle.dumps(task))
    assert (copy.name, copy.engine, copy.spec) == ("mine", "torchrl", spec)
    expected = makers.PointEnv(2, 1 + offset).reset()["observation"].numpy()
    np.testing.assert_array_equal(makers.started(copy.make_sim(2, seed=1)).observation, expected)


def test_tasks_are_equal_by_name_engine_and_maker():
    assert len({Task("a", "x"), Task("a", "x"), Task("a", "y"), Task("b", "x"), Task("a", "x", makers.point)}) == 4


def test_a_maker_need_not_be_hashable():
    class Maker:
        __hash__ = None

        def __call__(self, num_envs, seed):
            raise NotImplementedError

    register_task("unhashable", Maker())
    assert [task.name for task in resolve(["unhashable", "unhashable"])] == ["unhashable"]


def test_a_registered_name_of_the_suite_is_refused():
    register_task("walker-walk", lambda num_envs, seed: None)
    with pytest.raises(UsageError, match="also a task of engine"):
        resolve(["walker-walk"])
