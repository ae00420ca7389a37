"""The owner of a run directory: one at a time, also within milliseconds; its lock dies with it."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.rundir.claim import LOCK, claim
from mtray.rundir.directory import own_run_dir

HOLD = """
import sys
from pathlib import Path
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.rundir.directory import own_run_dir
sys.stdin.readline()
try:
    with own_run_dir(Config(run_dir=Path(sys.argv[1]))) as held:
        held.keep()
        print("owner", flush=True)
        sys.stdin.readline()
except UsageError as error:
    print(error, flush=True)
"""


def holder(path):
    """A process that claims the directory when it is told to, and holds it until it is told again."""
    command = [sys.executable, "-c", HOLD, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(*processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_of_many_that_start_at_once_exactly_one_owns_the_directory(tmp_path):
    processes = [holder(tmp_path / "run") for _ in range(5)]
    try:
        tell(*processes)
        answers = {process: process.stdout.readline().strip() for process in processes}
        owners = [process for process, answer in answers.items() if answer == "owner"]
        assert len(owners) == 1, answers
        for process, answer in answers.items():
            if process not in owners:
                assert "in use" in answer
        tell(*owners)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_of_many_threads_exactly_one_owns_the_directory(tmp_path):
    start, end, owned, refused = threading.Barrier(8), threading.Barrier(8), [], []

    def work():
        start.wait()
        try:
            with claim(tmp_path) as held:
                owned.append(held)
                end.wait()
        except UsageError as error:
            refused.append(str(error))
            end.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owned), len(refused)) == (1, 7)
    # Nobody kept it.
    assert not list(tmp_path.iterdir())


def test_a_second_owner_is_refused_with_the_first_ones_process_and_the_lock_dies_with_it(tmp_path):
    process = holder(tmp_path / "run")
    try:
        tell(process)
        assert process.stdout.readline() == "owner\n"
        before = tree(tmp_path)
        with (
            pytest.raises(UsageError, match=rf"in use by process {process.pid} on \S+ since 20"),
            claim(tmp_path / "run"),
        ):
            pass
        assert tree(tmp_path) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        with claim(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("text", [b"", b"garbage", b"[]", b"{}"])
def test_an_owner_that_has_not_signed_yet_is_an_owner_too(tmp_path, text, monkeypatch):
    monkeypatch.setattr("mtray.rundir.claim._SIGN_SECONDS", 0.01)
    with claim(tmp_path):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(UsageError, match="in use by a run that is starting"), claim(tmp_path):
            pass


def test_an_owner_that_signs_a_moment_later_is_named(tmp_path):
    with claim(tmp_path):
        signature = (tmp_path / LOCK).read_bytes()
        (tmp_path / LOCK).write_bytes(b"")
        later = threading.Timer(0.2, (tmp_path / LOCK).write_bytes, [signature])
        later.start()
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()} on "), claim(tmp_path):
            pass
        later.join()


@pytest.mark.parametrize(
    "text", [None, b"", b'{"pid": 1, "host": "x", "start": "then, and much longer than now"}\n' * 3]
)
def test_a_claim_that_is_not_kept_leaves_every_byte_as_it_was(tmp_path, text):
    (tmp_path / "config.json").write_text("{}")
    if text is not None:
        (tmp_path / LOCK).write_bytes(text)
    before = tree(tmp_path)
    with claim(tmp_path):
        assert tree(tmp_path) != before
    # An empty lock's file was left by one that was refused before it could sign.
    assert tree(tmp_path) == {name: data for name, data in before.items() if data or name != LOCK}


def test_a_new_directory_that_is_refused_is_not_left_behind(tmp_path):
    path = tmp_path / "runs" / "deep" / "a"
    with pytest.raises(ZeroDivisionError), own_run_dir(Config(run_dir=path)):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    with pytest.raises(ZeroDivisionError), own_run_dir(Config(run_dir=path)):
        raise ZeroDivisionError
    assert [entry.name for entry in tmp_path.rglob("*")] == ["runs"]


def test_a_directory_with_nothing_but_a_lock_can_be_given_again(tmp_path):
    for _ in range(2):
        with own_run_dir(Config(run_dir=tmp_path / "a")) as held:
            held.keep()
    (tmp_path / "a" / "config.json").touch()
    with pytest.raises(UsageError, match="continue with --resume"), own_run_dir(Config(run_dir=tmp_path / "a")):
        pass


@pytest.mark.parametrize("name", ["x" * 300, "file", "file/below"])
def test_a_directory_that_can_not_be_made_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(UsageError, match=r"--run-dir .* can't be written.*choose a"),
        own_run_dir(Config(run_dir=tmp_path / name)),
    ):
        pass
    assert tree(tmp_path) == {"file": b"kept"}


@pytest.mark.parametrize("name", ["läufer-走る", "-x", "a b", "a\\b", "a\rb", "...", "a\udc80b"])
def test_a_directory_may_have_any_name(tmp_path, name):
    with own_run_dir(Config(run_dir=tmp_path / name)) as held:
        held.keep()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_resume_of_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not there"), own_run_dir(Config(resume=tmp_path / "nothing")):
        pass
    assert not list(tmp_path.iterdir())
