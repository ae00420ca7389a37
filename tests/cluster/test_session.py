"""Where Ray of a run's own keeps its files: whatever the temporary folder and the home are."""

import os
import shutil
import tempfile

import pytest

from mtray.cluster import session
from mtray.cluster.session import cpus_per_actor
from mtray.errors import UsageError

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


def test_a_home_that_can_not_be_written_has_a_token_in_the_environment(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert not session._can_keep_token()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert session._can_keep_token()
    assert session._token() == session._token()


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_users_own_way_of_authentication_is_kept(monkeypatch, name):
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setenv(name, "x")
    assert session._can_keep_token()


def test_a_share_of_cpus_is_the_largest_that_fits():
    assert cpus_per_actor([1.0], 3) == 0.333
