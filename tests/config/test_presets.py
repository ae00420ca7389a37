"""Presets: what was not given is filled, what was given stays, and one ratio that was given is kept by both sides."""

import dataclasses

import pytest

from mtray.config.learner import LearnerConfig, NetworkConfig, Sizes
from mtray.config.presets import fill
from mtray.config.settings import CollectorConfig, Config, ReplayConfig
from mtray.errors import UsageError


def ratios(preset="fast", deterministic=False, **given):
    learner = fill(Config(preset=preset, deterministic=deterministic, learner=LearnerConfig(**given)), 2).learner
    return learner.least_updates_per_step, learner.updates_per_step


def test_the_frugal_preset_keeps_one_ratio_and_the_fast_one_leaves_both_sides_free():
    assert ratios("frugal") == (4.0, 4.0)
    assert ratios("fast") == (0.25, 4.0)


@pytest.mark.parametrize("preset", ["fast", "frugal"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_ratio_that_was_given_is_the_least_and_the_most(preset, deterministic):
    assert ratios(preset, deterministic, updates_per_step=0.3) == (0.3, 0.3)
    assert ratios(preset, deterministic, updates_per_step=0) == (0, 0)


def test_a_least_that_was_given_is_kept():
    assert ratios(least_updates_per_step=0.5) == (0.5, 4.0)
    assert ratios(least_updates_per_step=8.0) == (8.0, 8.0)
    assert ratios(least_updates_per_step=0.5, updates_per_step=2.0) == (0.5, 2.0)


@pytest.mark.parametrize("preset", ["fast", "frugal"])
def test_rounds_keep_one_ratio(preset):
    least, most = ratios(preset, deterministic=True)
    assert least == most


@pytest.mark.parametrize(("preset", "rows"), [("fast", 128), ("frugal", 384)])
def test_every_task_has_at_least_16_rows(preset, rows):
    filled = [fill(Config(preset=preset), tasks).learner.batch_rows for tasks in (1, 6, 50)]
    assert filled == [rows, rows, 800]


@pytest.mark.parametrize(
    ("group", "setting", "fast", "frugal", "others"),
    [
        ("learner", "balance", True, False, (True, False)),
        ("replay", "recent_share", 0.5, 0.0, (0.0, 0.7)),
        ("learner", "actor_average", 0.02, 0.0, (0.0, 0.2)),
    ],
)
def test_what_minutes_gain_is_the_default_unless_frames_are_to_be_saved_or_it_was_asked_for_otherwise(
    group, setting, fast, frugal, others
):
    kind = {"learner": LearnerConfig, "replay": ReplayConfig}[group]
    for preset, usual in (("fast", fast), ("frugal", frugal)):
        filled = [
            getattr(getattr(fill(Config(preset=preset, **{group: kind(**{setting: given})}), 2), group), setting)
            for given in (None, *others)
        ]
        assert filled == [usual, *others]


def test_an_update_has_more_rows_on_a_gpu():
    assert fill(Config(device="cuda"), 2).learner.batch_rows == 1024
    assert fill(Config(device="auto"), 2).learner.batch_rows == fill(Config(device="cpu"), 2).learner.batch_rows


def test_networks_are_larger_on_a_gpu_but_not_to_save_frames():
    assert fill(Config(device="cpu"), 2).network.sizes == Sizes(128, 1, 256, 1)
    assert fill(Config(device="cuda"), 2).network.sizes == Sizes(256, 1, 512, 2)
    assert fill(Config(device="cuda", preset="frugal"), 2).network.sizes == Sizes(128, 1, 256, 1)
    given = NetworkConfig(critic_width=64, actor_blocks=0)
    assert fill(Config(device="cuda", network=given), 2).network.sizes == Sizes(256, 0, 64, 2)


@pytest.mark.parametrize(
    ("config", "can_compile", "compiler"),
    [
        (Config(device="cuda"), True, "inductor"),
        (Config(device="cuda"), False, None),
        (Config(device="cpu"), True, "inductor"),
        (Config(device="cpu"), False, None),
        (Config(device="cpu", preset="frugal"), True, None),
        (Config(device="cpu", deterministic=True), True, None),
        # Updates that are not recorded would wait for it.
        (Config(device="cpu", learner=LearnerConfig(graphs=False)), True, None),
        (Config(device="cuda", learner=LearnerConfig(graphs=False)), True, "inductor"),
        (Config(device="cuda", preset="frugal"), True, None),
        (Config(device="cuda", deterministic=True), True, None),
        (Config(device="cuda", learner=LearnerConfig(compile="off")), True, None),
        (Config(device="cpu", learner=LearnerConfig(compile="eager")), False, "eager"),
    ],
)
def test_updates_are_compiled_where_that_is_possible(config, can_compile, compiler):
    learner = fill(config, 2, can_compile=can_compile).learner
    assert learner.compiler == compiler
    assert fill(dataclasses.replace(config, learner=learner), 2, can_compile=True).learner == learner


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        (Config(device="cpu"), "bfloat16"),
        (Config(device="cuda"), None),
        (Config(device="cpu", preset="frugal"), None),
        (Config(device="cpu", deterministic=True), None),
        (Config(device="cpu", learner=LearnerConfig(precision="float32")), "float32"),
        (Config(device="cpu", preset="frugal", learner=LearnerConfig(precision="bfloat16")), "bfloat16"),
    ],
)
def test_products_are_of_bfloat16_where_the_cpu_has_them(config, precision):
    assert fill(config, 2, has_bfloat16=True).learner.precision == precision
    assert fill(config, 2).learner.precision == config.learner.precision


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        ({}, (0.5, 4.0)),
        ({"most_noise": 1.0}, (0.5, 1.0)),
        ({"least_noise": 0.1}, (0.1, 4.0)),
        ({"least_noise": 1.0, "most_noise": 2.0}, (1.0, 2.0)),
    ],
)
def test_a_limit_of_noise_that_was_given_is_kept(given, filled):
    collector = CollectorConfig(**given)
    assert fill(Config(collector=collector), 2).collector.noise_factors == filled
    assert fill(Config(preset="frugal"), 2).collector.noise_factors == (1.0, 1.0)


@pytest.mark.parametrize(("given", "filled"), [({}, (1.0, 1.0)), ({"most_noise": 2.0}, (1.0, 2.0))])
def test_without_random_episodes_noise_is_not_enlarged_until_they_are_beaten(given, filled):
    collector = CollectorConfig(random_episodes=0, **given)
    assert fill(Config(collector=collector), 2).collector.noise_factors == filled
    with pytest.raises(UsageError, match=r"of which --collector\.random-episodes 0 sets one \(they are 1 and 1\)"):
        fill(Config(collector=CollectorConfig(random_episodes=0, most_noise=0.5)), 2)


@pytest.mark.parametrize("given", [{"most_noise": 0.25}, {"least_noise": 8.0}])
def test_a_limit_of_noise_beyond_the_other_one_of_the_preset_is_refused(given):
    with pytest.raises(UsageError, match=r"least-noise .* is above .*most-noise .* --preset fast .*: give both"):
        fill(Config(collector=CollectorConfig(**given)), 2)


def test_what_was_given_stays():
    config = Config(
        collector=CollectorConfig(least_noise=0.75, most_noise=0.75),
        replay=ReplayConfig(recent_share=0.1),
        network=NetworkConfig(actor_width=3, actor_blocks=0, critic_width=5, critic_blocks=4),
        learner=LearnerConfig(
            n_step=5,
            batch_rows=3,
            updates_per_step=1.0,
            least_updates_per_step=0.5,
            compile="off",
            balance=False,
            actor_average=0.5,
        ),
    )
    assert fill(config, 4) == config


def test_what_is_filled_has_no_gaps_left():
    config = fill(Config(), 2)
    assert fill(config, 2) == config
    frugal = fill(dataclasses.replace(config, preset="frugal"), 2)
    assert (frugal.learner, frugal.replay) == (config.learner, config.replay)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"least_updates_per_step": 2.0, "updates_per_step": 1.0}, "2: must be from 1e-06 to 1, the most updates"),
        ({"least_updates_per_step": 0.0, "updates_per_step": 1.0}, "0: must be from 1e-06"),
        ({"least_updates_per_step": 1e7}, r"1e\+07: must be from 1e-06 to 1e\+06"),
    ],
)
def test_a_least_that_can_t_be_is_refused(given, message):
    with pytest.raises(UsageError, match=f"--learner.least-updates-per-step {message}"):
        LearnerConfig(**given)


def test_two_ratios_with_deterministic_are_refused():
    with pytest.raises(UsageError, match=r"--learner.least-updates-per-step 0.5: with --deterministic"):
        Config(deterministic=True, learner=LearnerConfig(least_updates_per_step=0.5, updates_per_step=1.0))
