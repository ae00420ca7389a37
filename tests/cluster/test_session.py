"""Where Ray of a run's own keeps its files: whatever the temporary folder and the home are."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from mtray.cluster import session
from mtray.cluster.session import cpus_per_actor
from mtray.errors import UsageError
from mtray.tasks.restored import process_restored

NAMES = ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_usual_folder_is_left_as_it_is():
    assert session._temporary_folder() is None


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("kind", ["long", "file"])
def test_a_folder_that_sockets_can_not_lie_in_is_replaced(tmp_path, monkeypatch, name, kind):
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / ("x" * 90 if kind == "long" else "file")))
    assert session._temporary_folder() == "/tmp"


def test_the_longest_folder_is_as_long_as_a_socket_allows():
    begin, sockets = "/" + "x" * (session._LONGEST_FOLDER - 1), "ray/session_2026-11-27_23-18-58_582929_4194304/sockets"
    assert len(os.path.join(begin, sockets, "plasma_store")) == 107


def test_a_folder_on_a_full_disk_is_replaced(monkeypatch):
    usage = shutil.disk_usage
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="f") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        assert session._temporary_folder() is None
        full = usage(folder)._replace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full if str(path) == folder else usage(path))
        assert session._temporary_folder() == "/tmp"


def test_no_folder_at_all_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(session, "_is_writable", lambda *_: False)
    with pytest.raises(UsageError, match="set RAY_TMPDIR to a folder that can be written"):
        session._temporary_folder()


@pytest.mark.parametrize("home", ["new", "file"])
def test_a_run_makes_a_token_of_its_own_and_leaves_none_in_the_home_folder(tmp_path, monkeypatch, home):
    """A token that stays there is asked for by every cluster that is started on this machine later."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    assert not session._has_token()
    with process_restored():
        session._set_environment()
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert session._token() == session._token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not (tmp_path / home / ".ray").exists()


def test_a_users_token_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert session._has_token()


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_users_own_way_of_authentication_is_kept(monkeypatch, name):
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setenv(name, "x")
    assert session._has_token()


@pytest.mark.parametrize(
    ("code", "how"),
    [("os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("sys.exit(3)", "ended with exit code 3")],
)
def test_a_process_of_rays_that_ended_is_told(code, how):
    with subprocess.Popen([sys.executable, "-c", f"import os, sys; input(); {code}"], stdin=subprocess.PIPE) as process:
        ray = session.Session(1.0, 1, {"raylet": process})
        assert ray.death() is None
        process.communicate(b"\n")
        assert ray.death() == f"Ray's process raylet {how}"


def test_a_ray_that_others_started_is_not_watched():
    assert session.Session(1.0, 1).death() is None


def test_a_share_of_cpus_is_the_largest_that_fits():
    assert cpus_per_actor([1.0], 3) == 0.333
