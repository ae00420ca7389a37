"""Whole runs of control in a simulated cluster; faults of an earlier version, put back, must be found by it."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from mtray.cluster.control.free import Control
from mtray.cluster.control.parts.lifecycle import Lifecycle
from mtray.cluster.control.protocol import Failure
from tests.cluster.control import simulation
from tests.cluster.control.simulation import Broken, Saved, World, draw, play, tell

# Whole runs are about 2.5 times as many.
SEEDS, SLOW_SEEDS, FAULT_SEEDS = 800, 3000, 400


def play_all(seeds, worlds=None, **kwargs):
    for seed in seeds:
        try:
            play(seed, worlds=worlds, **kwargs)
        except Exception as error:
            command = f"python -m tests.cluster.control.simulation {seed}"
            pytest.fail(f"{error}\n\n{command} tells:\n{tell(seed, **kwargs)[-8000:]}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
def test_every_law_holds_in_many_more(part):
    play_all(range(SEEDS + part, SEEDS + SLOW_SEEDS, 4))


def test_the_same_seed_is_the_same_run():
    assert tell(7) == tell(7)
    assert tell(7) != tell(8)


def test_every_law_holds_in_whole_runs_which_meet_every_fault():
    """The simulation is worth what it plays: each fault and each end is there, and most runs come far."""
    ends, told, methods, worlds = Counter(), Counter(), Counter(), []
    play_all(range(SEEDS), worlds=worlds)
    for world in worlds:
        ends[world.ended.outcome if world.ended else "killed"] += 1
        told += world.told
        methods += world.faults
    assert ends.keys() == {"done", "failed", "input", "killed"}
    assert ends["done"] > 0.5 * ends.total()
    assert told.keys() >= {
        "placed", "up", "warm", "death", "replacement", "unreached", "waiting", "stop", "save",
        "save_failed", "unsaved", "restored", "set_aside", "spread", "draining", "left",
    }  # fmt: skip
    assert methods.keys() == {*simulation.FAULTS, "unfit"}
    assert sum(len(world.control.collectors) > 2 for world in worlds) > 100
    assert sum(world.begin > 0 for world in worlds) > 200


class ForgetsUnreached(Control):
    """A call that could not reach its process is dropped, and never asked about again."""

    def _failed(self, failure):
        if failure.kind is Failure.UNAVAILABLE:
            call, actor, _ = self._calls.pop(failure.call, (None, None, 0.0))
            if actor is not None:
                actor.calls.pop(call.id, None)
        else:
            Lifecycle._failed(self, failure)


class WaitsForUpdatesThatNoneMakes(Control):
    """The run waits for updates of its frames while one task is short of the warm-up, so that none is made."""

    def _is_done(self):
        made = self.updates >= self.pacing.updates_allowed(self.counts.frames)
        return self.is_ready and self.is_idle and self.counts.frames >= self.plan.total_frames and made


class CountsItsOwnLife(World):
    """A replay that starts empty counts what it has stored itself, and saves that."""

    def __init__(self, seed, scenario, saved, control=None, **kwargs):
        super().__init__(seed, scenario, saved, control, **kwargs)
        self.missing = saved.frames if saved.rows is None else Counter()

    def do_snapshot(self, process, call):
        super().do_snapshot(process, call)
        self.snapshot.frames -= self.missing


class BuildsAnewWhileCallsRun(Control):
    """A collector is told what to step next while what it was asked for before is under way."""

    def _settle_held(self):
        held, self._held = self._held, []
        for actor in held:
            if actor.is_up and actor.next_place is not None and self._ending is None:
                self.free.leave(actor)
                self._build_anew(actor, actor.next_place)


class LeavesUnsaved(Control):
    """Replay and learner leave a node that is drained without a checkpoint."""

    def _step_move(self):
        moving, self._moving = self._moving, {}
        for actor in moving.values():
            self._leave(actor, "its node is drained")


class GivesUpSlowWrites(Control):
    """A checkpoint that is under way as the run ends has as long as any other call."""

    def _patience(self, ending):
        return super()._patience(ending) if self._is_final else self.limits.stop_seconds


class CountsTheWarmUpFromTheStart(Control):
    """A replay that comes back without rows puts off updates by all frames before the first one."""

    def _replay_came_up(self, restored):
        before = self.pacing
        lost = super()._replay_came_up(restored)
        if not restored.has_rows:
            self.pacing = before.resumed(before, restored.counts.frames, self.updates, lost_rows=True)
        return lost


@pytest.mark.parametrize(
    "fault",
    [
        ForgetsUnreached,
        WaitsForUpdatesThatNoneMakes,
        BuildsAnewWhileCallsRun,
        GivesUpSlowWrites,
        CountsTheWarmUpFromTheStart,
    ],
)
def test_faults_of_control_are_found(fault):
    assert first_found(control=fault) is not None


def test_who_leaves_a_drained_node_unsaved_loses_what_was_made():
    assert lost_to_drains(LeavesUnsaved) > 0
    assert lost_to_drains(Control) == 0


def lost_to_drains(control):
    """Frames and updates that runs lost whose nodes were drained, and where nothing failed."""
    lost = 0
    for seed in range(270):
        generator = random.Random(seed)
        scenario = draw(generator, random.Random(seed))
        if not scenario.elastic or scenario.nodes < 2:
            continue
        rates = {**dict.fromkeys(scenario.rates, 0.0), "node_drains": 0.05}
        scenario = replace(scenario, rates=rates, faults_end=300.0, kill_driver_at=None, stop_at=None, saves_rows=True)
        world = World(seed, scenario, Saved(), control)
        world.run()
        lost += world.control.frames_lost + world.control.updates_lost
    return lost


def test_a_replay_that_counts_its_own_life_only_is_found():
    assert first_found(world=CountsItsOwnLife) is not None


def first_found(**kwargs):
    """How many seeds it takes until a law breaks; None if none does."""
    for seed in range(FAULT_SEEDS):
        try:
            play(seed, **kwargs)
        except Broken:
            return seed + 1
    return None
