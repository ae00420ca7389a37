"""A Ray of a run's own: where it keeps its files, whatever temporary folder and home are, and what it starts."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

from mtray.cluster.session import own
from mtray.errors import RunError, UsageError
from mtray.tasks.guarded import process_restored

NAMES = ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_usual_folder_is_left_as_it_is():
    assert own._temporary_folder() is None


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("kind", ["long", "file"])
def test_a_folder_that_sockets_can_not_lie_in_is_replaced(tmp_path, monkeypatch, name, kind):
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / ("x" * 90 if kind == "long" else "file")))
    assert own._temporary_folder() == "/tmp"


def test_the_longest_folder_is_as_long_as_a_socket_allows():
    begin, session_folder = (
        "/" + "x" * (own._LONGEST_FOLDER - 1),
        "mtray-4294967295/ray/session_2026-11-27_23-18-58_582929_4194304",
    )
    assert len(os.path.join(begin, session_folder, "sockets/plasma_store")) == 107


def test_a_folder_on_a_full_disk_is_replaced(monkeypatch):
    usage = shutil.disk_usage
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="f") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        assert own._temporary_folder() is None
        full = usage(folder)._replace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full if str(path) == folder else usage(path))
        assert own._temporary_folder() == "/tmp"


def test_no_folder_at_all_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(own, "_is_writable", lambda *_: False)
    with pytest.raises(UsageError, match="set RAY_TMPDIR to a folder that can be written"):
        own._temporary_folder()


def test_the_folder_of_sockets_is_closed_to_other_users(tmp_path):
    folder = own._private_folder(str(tmp_path))
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert own._private_folder(str(tmp_path)) == folder, "it is used again"


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_is_not_closed_is_not_used(tmp_path, kind):
    taken = tmp_path / f"mtray-{os.getuid()}"
    if kind == "open":
        taken.mkdir()
        taken.chmod(0o755)
    elif kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        taken.symlink_to(tmp_path / "theirs")
    else:
        taken.touch()
    folder = own._private_folder(str(tmp_path))
    assert folder != str(taken)
    assert os.stat(folder).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", ["new", "file", "token"])
def test_a_run_makes_a_token_of_its_own_and_leaves_none_in_the_home_folder(tmp_path, monkeypatch, home):
    """A token that stays there is asked for by every cluster that is started on this machine later."""
    (tmp_path / "file").touch()
    (tmp_path / "token" / ".ray").mkdir(parents=True)
    (tmp_path / "token" / ".ray" / "auth_token").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setattr("ray.init", lambda **_: None)
    with process_restored():
        own.start(1, {})
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert AuthenticationTokenLoader.instance().get_raw_token() == os.environ["RAY_AUTH_TOKEN"]
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert get_authentication_mode() == AuthenticationMode.TOKEN
        own.shut_down()
        assert "RAY_AUTH_MODE" not in os.environ
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert get_authentication_mode() == AuthenticationMode.DISABLED
    assert AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True) == (home == "token")
    assert (tmp_path / home / ".ray").exists() == (home == "token")


def test_a_users_token_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert own.has_token()


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_users_own_way_of_authentication_is_kept(monkeypatch, name):
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setenv(name, "x")
    assert own.has_token()


@pytest.mark.parametrize(
    ("errors", "starts"),
    [(["it timed out"], 2), (["it timed out"] * 2, None), (["no such option"], None), ([], 1)],
)
def test_ray_is_started_once_more_if_its_processes_were_slow(monkeypatch, errors, starts):
    calls = []

    def init(**_):
        calls.append(0)
        if len(calls) <= len(errors):
            raise RuntimeError(errors[len(calls) - 1])

    monkeypatch.setattr("ray.init", init)
    with process_restored():
        if starts is None:
            with pytest.raises(RunError, match=errors[-1]):
                own.start(1, {})
        else:
            own.start(1, {})
            own.shut_down()
    assert len(calls) == (starts or len(errors))


def test_what_ray_left_of_old_runs_is_removed_but_of_the_newest_and_of_those_that_go_on(tmp_path):
    def leave(day, process, hours):
        session = tmp_path / f"session_2026-01-{day:02d}_00-00-00_000000_{process}"
        (session / "logs").mkdir(parents=True)
        log = session / "logs" / "raylet.out"
        log.write_text("it worked")
        then = time.time() - 3600 * hours
        os.utime(log, (then, then))
        return session

    # No process has the last id.
    lives, writes, old = leave(1, os.getpid(), 99), leave(2, 2**22 + 1, 1), leave(3, 2**22 + 1, 99)
    newest = [leave(10 + day, 2**22 + 1, 99) for day in range(own._KEPT_SESSIONS)]
    own.remove_old_sessions(tmp_path)
    assert not old.exists()
    assert all(session.exists() for session in (lives, writes, *newest))
    own.remove_old_sessions(tmp_path / "nowhere")


def test_a_long_folder_for_simulators_is_replaced_where_ray_has_another(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with process_restored():
        own._set_environment()
        assert os.environ["TMPDIR"] == "/tmp"


def hook(runtime_env):
    """What Ray calls where the environment names it."""
    return {"env_vars": {"OF_THE_HOOK": "1"}}


STARTED = """
from mtray.cluster.session import own
own.outlive_the_raylet()
import ray
own.start(1, {"log_to_driver": False, "logging_level": "error"})
print(ray.get(ray.remote(lambda: 7).remote(), timeout=100))
own.shut_down()
"""


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR", "uv run"])
def test_no_environment_for_actors_is_asked_of_an_agent_that_is_not_there(monkeypatch, tmp_path, way):
    command = [sys.executable, "-c", STARTED]
    if way == "uv run":
        # Ray looks for it among the parents: here it is a shell with a script of this name.
        (tmp_path / "uv").symlink_to(shutil.which("bash"))
        (tmp_path / "run").write_text('"$@"; exit $?')
        command = [str(tmp_path / "uv"), "run", *command]
    else:
        monkeypatch.setenv(way, f"{__name__}.hook" if "HOOK" in way else '{"runtime_env": {"env_vars": {"A": "1"}}}')
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (run.returncode, run.stdout) == (0, "7\n"), run.stderr
