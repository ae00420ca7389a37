"""What a run needs of the machine: devices, memory, open files."""

import dataclasses
import resource
from types import SimpleNamespace

import pytest
import torch

from mtray.cluster.session import checks
from mtray.cluster.session.checks import check_device, check_machine, choose_device, ring_bytes
from mtray.config.learner import LearnerConfig
from mtray.config.settings import Config
from mtray.errors import UsageError
from tests.makers import make_spec

SPECS = [make_spec("left", 30, 8), make_spec("right", 50, 8)]
ROW = 4 * sum(spec.row_size for spec in SPECS)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:1", "--device cuda, and choose the GPU by CUDA_VISIBLE_DEVICES=1"),
        ("quantum", "no such device"),
        ("mps", "the learner computes on cpu or cuda"),
    ],
)
def test_a_device_that_the_learner_can_not_have(device, message):
    for address in (None, "auto"):
        with pytest.raises(UsageError, match=f"--device {device}.*{message}"):
            check_device(Config(device=device, address=address))


def test_a_gpu_of_this_machine():
    check_device(Config(device="cuda", address="auto"))
    check_device(Config(device="cuda:0", address="auto"))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            check_device(Config(device="cuda"))


@pytest.mark.parametrize(
    ("config", "has_gpu", "chosen"),
    [
        (Config(), True, "cuda"),
        (Config(), False, "cpu"),
        (Config(device="cpu"), True, "cpu"),
        (Config(device="cuda"), False, "cuda"),
        (Config(deterministic=True), True, "cpu"),
    ],
)
def test_by_default_a_gpu_is_taken_if_there_is_one(config, has_gpu, chosen):
    assert choose_device(config, lambda: has_gpu) == chosen


@pytest.mark.parametrize(
    ("modules", "programs", "headers", "has"),
    [
        (["triton"], ["gcc"], True, True),
        (["triton"], ["clang"], True, True),
        (["triton"], ["own-cc"], True, True),
        ([], ["gcc"], True, False),
        (["triton"], [], True, False),
        (["triton"], ["gcc"], False, False),
    ],
)
def test_inductor_needs_triton_a_c_compiler_and_python_s_headers(
    monkeypatch, tmp_path, modules, programs, headers, has
):
    monkeypatch.setenv("CC", "own-cc")
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(checks.sysconfig, "get_path", lambda _: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    assert checks.has_compiler("cuda:1") == has


@pytest.mark.parametrize(("programs", "has"), [(["g++"], True), (["own-c++"], False), ([], False)])
def test_inductor_needs_a_cpp_compiler_for_the_cpu(monkeypatch, programs, has):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.delenv("CXX", raising=False)
    assert checks.has_compiler("cpu") == has
    monkeypatch.setenv("CXX", "own-c++")
    assert checks.has_compiler("cpu") == ("own-c++" in programs)


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fpu avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("fpu avx512f avx512_bf16x", False)],
)
def test_a_cpu_that_multiplies_bfloat16_says_so(tmp_path, flags, has):
    cpu = tmp_path / "cpuinfo"
    cpu.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert checks.has_bfloat16(cpu) == has


def test_a_machine_that_does_not_tell_has_none(tmp_path):
    assert not checks.has_bfloat16(tmp_path / "none")
    (tmp_path / "other").write_text("Features : fp asimd bf16\n")
    assert not checks.has_bfloat16(tmp_path / "other")


def test_a_machine_without_a_gpu_s_driver_is_not_asked_by_torch(monkeypatch):
    monkeypatch.setattr(checks, "_GPU_FILES", ("no-such-file*",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not checks.has_gpu()
    monkeypatch.setattr(checks, "_GPU_FILES", ("null",))
    assert checks.has_gpu()


@pytest.mark.parametrize("compiler", ["off", "inductor", None])
def test_torch_is_not_asked_for_the_compiler_that_it_always_has(monkeypatch, compiler):
    monkeypatch.setattr(torch.compiler, "list_backends", None)
    for device in ("cpu", "auto"):
        check_device(Config(device=device, learner=LearnerConfig(compile=compiler)))


def test_what_only_a_gpu_can_is_refused_once_there_is_none():
    config = Config(learner=LearnerConfig(precision="tfloat32"))
    with pytest.raises(UsageError, match="tfloat32 on cpu: only GPUs support it"):
        dataclasses.replace(config, device=choose_device(config, lambda: False))


@pytest.mark.parametrize(
    ("name", "whose"), [("usable_bytes", "this machine's"), ("available_bytes", "what others leave of it now,")]
)
def test_rings_that_do_not_fit_are_refused_with_what_would(monkeypatch, name, whose):
    monkeypatch.setattr(checks, "usable_bytes", lambda: 2**33)
    monkeypatch.setattr(checks, "available_bytes", lambda: 2**33)
    monkeypatch.setattr(checks, name, lambda: 2**30)
    config = Config(replay={"capacity_rows": 10**7}, total_frames=10**9)
    with pytest.raises(
        UsageError, match=rf"--replay\.capacity-rows 10000000.* of {whose} 1\.0 GiB .*capacity-rows \d+ would fit"
    ) as caught:
        check_machine(config, SPECS)
    fits = int(str(caught.value).split()[-3])
    assert 0.79 * 2**30 < fits * ROW <= 0.8 * 2**30
    check_machine(Config(replay={"capacity_rows": fits}, total_frames=10**9), SPECS)
    # On a cluster the replay may be on another machine; and a short run never fills its rings.
    check_machine(Config(replay={"capacity_rows": 10**7}, total_frames=10**9, address="auto"), SPECS)
    check_machine(Config(replay={"capacity_rows": 10**7}, total_frames=10**5), SPECS)


def test_rings_grow_with_the_run_up_to_their_capacity():
    config = Config(replay={"capacity_rows": 10**5}, total_frames=2 * 10**4)
    # A frame of each task at a time, each up to two rows.
    assert ring_bytes(config, SPECS) == 2 * 10**4 * ROW
    assert ring_bytes(Config(replay={"capacity_rows": 10**5}, total_frames=10**9), SPECS) == 10**5 * ROW


@pytest.mark.parametrize(
    ("soft", "hard", "workers", "limit"),
    [(1024, 4096, 2, 1024), (64, 4096, 2, 160), (64, -1, 100, 944), (-1, -1, 100, -1)],
)
def test_the_soft_limit_of_open_files_is_raised_where_it_is_too_low(monkeypatch, soft, hard, workers, limit):
    now = [soft, hard]
    fake = SimpleNamespace(
        RLIMIT_NOFILE=resource.RLIMIT_NOFILE,
        RLIM_INFINITY=-1,
        getrlimit=lambda _: tuple(now),
        setrlimit=lambda _, limits: now.__setitem__(slice(None), limits),
    )
    monkeypatch.setattr(checks, "resource", fake)
    check_machine(Config(workers=workers), SPECS)
    assert now == [limit, hard]


def test_a_hard_limit_of_open_files_that_is_too_low_is_refused(monkeypatch):
    fake = SimpleNamespace(RLIMIT_NOFILE=0, RLIM_INFINITY=-1, getrlimit=lambda _: (64, 64))
    monkeypatch.setattr(checks, "resource", fake)
    with pytest.raises(UsageError, match=r"allows 64 open files \(ulimit -n\), and 2 collectors need 160"):
        check_machine(Config(), SPECS)
