"""Gradients compiled for the CPU beside the updates: the results of what is recorded, or none."""

import copy
import math
import os
import time

import psutil
import pytest
import torch

from mtray.cluster.session.checks import has_bfloat16
from mtray.errors import NotFiniteError
from mtray.learn.execution import compiled as module
from mtray.learn.execution import kept
from mtray.learn.execution.compiled import Compiled, Compiler, Program, error_of
from tests.learn.test_recorded import numbers, sampled_batches, trained
from tests.learn.trainers import batch_of, parameters, with_nan

WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def at_once(monkeypatch):
    """Compile at the first call, and look at each."""
    monkeypatch.setattr(module, "_FIRST_CALLS", 1)
    monkeypatch.setattr(module, "_CALLS", 1)


def gradients(learner):
    """What is compiled of a learner's updates."""
    return learner._runner._recorded[1]._compiled


def wait_until(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def check_kept(tasks, batches, precision, monkeypatch):
    """Check that a later run takes what is there at the call in which it looks, and that one of other code does not."""
    monkeypatch.setattr(module, "_LOOK_CALLS", 2)
    monkeypatch.setattr(module, "_FIRST_CALLS", 1000)
    later = trained(tasks, batches, precision=precision, balance=True, compile="inductor")
    assert all(each._run is not None and each._compiler is None for each in gradients(later))
    another = "float32" if precision == "bfloat16" else "bfloat16"
    other = trained(tasks, batches, precision=another, compile="inductor")
    assert not any(each._run for each in gradients(other))


# With what a run takes on this machine: a compiler has a core for minutes.
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.1) if has_bfloat16() else ("float32", 0.01)])
def test_compiled_gradients_are_taken_when_they_are_there_and_are_those_of_the_tape(
    tasks, replay, at_once, monkeypatch, precision, most
):
    batches = sampled_batches(replay)
    plain, learner = (
        trained(tasks, batches, precision=precision, balance=True, **changes)
        for changes in ({}, {"compile": "inductor"})
    )
    assert torch.equal(numbers(plain), numbers(learner)), "until then it is recorded as without a compiler"
    compilers = [each._compiler for each in gradients(learner)]
    folders = [compiler._folder.name for compiler in compilers]
    assert learner.finish_compiling()
    assert not plain.finish_compiling()
    for batch in (*batches, *batches):
        plain.update(batch)
        learner.update(batch)
    assert not any(map(os.path.exists, folders))
    check_kept(tasks, batches, precision, monkeypatch)
    start = numbers(trained(tasks, []))
    apart = (numbers(learner) - numbers(plain)).norm()
    assert 0 < apart < most * (numbers(plain) - start).norm()
    # What is saved goes on without it, and data that is not finite are found.
    state = copy.deepcopy(learner.state_dict())
    plain.load_state_dict(state)
    assert torch.equal(numbers(plain), numbers(learner))
    before, weights = parameters(learner.critic), learner.algorithm.balance.weights.clone()
    for value in (math.nan, math.inf, -math.inf):
        learner.update(with_nan(batch_of(replay), 1, value=value))
        learner.update(batch_of(replay))
        assert torch.equal(parameters(learner.critic), before)
        assert torch.equal(learner.algorithm.balance.weights, weights)
        with pytest.raises(NotFiniteError, match="data of right is not finite"):
            learner.weights()
    learner.update(batch_of(replay))
    learner.weights()
    assert not torch.equal(parameters(learner.critic), before)
    learner._runner.close()


def test_a_compiler_that_fails_leaves_what_is_recorded(at_once, monkeypatch, caplog):
    monkeypatch.setattr(module, "_PROGRAM", "raise SystemExit('no C++ compiler')")
    calls, target = [], torch.zeros(8, 8)

    def function():
        calls.append(target.copy_(WEIGHT * 2))

    compiled = Compiled("it", function, lambda: [WEIGHT * 2], lambda: [WEIGHT * 2], lambda: [target])
    compiled()
    wait_until(lambda: compiled._compiler.is_done)
    compiled()
    compiled()
    assert len(calls) == 3
    assert "it is not compiled, and slower: no C++ compiler" in caplog.text


def test_a_function_that_can_not_be_traced_leaves_what_is_recorded(at_once, caplog):
    compiled = Compiled("it", lambda: None, lambda: [WEIGHT * WEIGHT.sum().item()][len(str(WEIGHT)) :], list, list)
    compiled()
    compiled()
    assert "it is not compiled" in caplog.text


def made_of(monkeypatch, function):
    """Let the compiler end at once, and this be what it made."""
    monkeypatch.setattr(module, "_PROGRAM", "")
    monkeypatch.setattr(Compiler, "library", lambda compiler: compiler._log)
    monkeypatch.setattr(Program, "load", lambda program, library: function)


# Of float32 and of bfloat16: the error that a recorded function may have already.
@pytest.mark.parametrize(
    ("recorded", "compiled", "is_used"),
    [(1.0, 1.0005, True), (1.0, 1.005, False), (0.99, 1.015, True), (0.99, 1.03, False), (0.99, math.nan, False)],
)
def test_results_that_are_further_from_float32_than_rounding_puts_them_are_not_used(
    at_once, monkeypatch, caplog, recorded, compiled, is_used
):
    made_of(monkeypatch, lambda: [WEIGHT * compiled])
    target = torch.zeros(8, 8)
    function = Compiled(
        "it", lambda: target.copy_(WEIGHT * recorded), lambda: [WEIGHT], lambda: [WEIGHT], lambda: [target]
    )
    function()
    wait_until(lambda: function._compiler.is_done)
    function()
    function()
    assert torch.equal(target, WEIGHT * (compiled if is_used else recorded))
    assert ("it is not compiled, and slower: its results have a relative error" in caplog.text) == (not is_used)
    assert kept.has_any() == is_used


def test_what_was_compiled_waits_for_numbers_that_can_be_compared(monkeypatch):
    made_of(monkeypatch, lambda: [WEIGHT])
    target, factor = torch.zeros(8, 8), torch.tensor(math.nan)
    function = Compiled(
        "it",
        lambda: target.copy_(WEIGHT * factor),
        lambda: [WEIGHT * factor],
        lambda: [WEIGHT * factor],
        lambda: [target],
    )
    function()
    function.start()
    assert not function.finish()
    factor.fill_(1)
    function()
    assert function.finish()
    assert kept.has_any()


def test_what_is_kept_and_can_not_be_used_is_removed_and_compiled_anew(tmp_path, monkeypatch, caplog):
    target = torch.zeros(8, 8)
    function = Compiled(
        "it", lambda: target.copy_(WEIGHT * 2), lambda: [WEIGHT * 2], lambda: [WEIGHT * 2], lambda: [target]
    )
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"cut off")
    kept.keep(broken, Program(lambda: [WEIGHT * 2]).key)
    monkeypatch.setattr(module, "_LOOK_CALLS", 1)
    function()
    assert "removed, since it can't be used" in caplog.text
    assert not kept.has_any()
    monkeypatch.setattr(module, "_PROGRAM", "")
    function.start()
    assert function._compiler is not None
    function.close()
    # Nor is what has other results.
    made_of(monkeypatch, lambda: [WEIGHT * 3])
    kept.keep(broken, Program(lambda: [WEIGHT * 2]).key)
    assert not function._take_kept(Program(lambda: [WEIGHT * 2]))
    assert not kept.has_any()
    function()
    assert torch.equal(target, WEIGHT * 2)


def test_what_was_made_is_not_written_again_since_it_may_be_loaded(monkeypatch):
    made = "import sys, zipfile; zipfile.ZipFile(sys.argv[2], 'w').writestr('a/made.so', 'code')"
    monkeypatch.setattr(module, "_PROGRAM", made)
    compiler = Compiler(Program(lambda: [WEIGHT * 2]))
    compiler.wait()
    library = compiler.library()
    assert library.read_text() == "code"
    library.write_text("loaded")
    assert compiler.library().read_text() == "loaded"
    compiler.close()
    assert not library.exists()


def test_a_compiler_ends_with_whoever_started_it(monkeypatch):
    monkeypatch.setattr(module, "_PROGRAM", "import subprocess; subprocess.run(['sleep', '1000'])")
    compiler = Compiler(Program(lambda: [WEIGHT * 2]))
    process = psutil.Process(compiler._process.pid)
    wait_until(process.children)
    below = process.children()
    # As when this process is killed.
    os.close(compiler._lifeline)
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in below))
    compiler._lifeline = os.open(os.devnull, os.O_RDONLY)
    compiler.close()
    assert not process.is_running()


def test_errors_are_relative_and_a_number_that_is_missing_is_infinite():
    assert error_of([WEIGHT * 1.001, torch.zeros(2)], [WEIGHT, torch.zeros(2)]) == pytest.approx(1e-3, rel=1e-3)
    assert error_of([torch.tensor([1.0, float("nan")])], [torch.ones(2)]) == float("inf")
