"""Slots: the arrays through which a collector and a task's simulators exchange a step, under every host."""

from __future__ import annotations

from dataclasses import dataclass

from mtray.data.specs import FloatArray
from mtray.engines.base import LOGGER, TASK_FAILURES, BatchSim, BoolArray, StepArrays, task_error


@dataclass(frozen=True)
class Slot:
    """One task's place in a host: arrays that are the same at every step.

    Attributes:
        observation: [K, obs_t] float32, the state to act on.
        action: [K, act_t] float32, written by the collector.
        next_observation: [K, obs_t] float32, the true state reached.
        reward: [K] float32.
        terminated: [K] bool.
        truncated: [K] bool.
    """

    observation: FloatArray
    action: FloatArray
    next_observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray


def receive(sim: BatchSim, slot: Slot, out: StepArrays) -> None:
    """End a step that was sent; copies whose episode ended start the next one.

    Args:
        sim: a task's copies.
        slot: where its observations and outcome go.
        out: the slot's arrays of the outcome.
    """
    sim.recv(out)
    slot.observation[:] = out.observation
    ended = out.terminated | out.truncated
    if ended.any():
        sim.reset(ended, slot.observation)


def close_sim(sim: BatchSim, name: str) -> None:
    """Free a task's simulators; what they raise is a warning."""
    try:
        sim.close()
    except TASK_FAILURES as error:
        LOGGER.warning("%s", task_error(name, "close", error))
