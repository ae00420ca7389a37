"""What was compiled is found by later runs, and by no other kind of machine; nothing of it fails a run."""

import os

import pytest
import torch

from mtray.learn.execution import kept


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mtray" / "compiled"


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "library.so"
    path.write_bytes(b"code")
    return path


def test_what_is_kept_is_found_by_its_key(folder, library):
    assert not kept.has_any()
    assert kept.find("a") is None
    kept.keep(library, "a")
    assert kept.has_any()
    assert kept.find("a").read_bytes() == b"code"
    assert kept.find("b") is None
    assert folder.stat().st_mode & 0o777 == 0o700
    library.write_bytes(b"newer")
    kept.keep(library, "a")
    assert kept.find("a").read_bytes() == b"newer"
    assert [path.name for path in folder.iterdir()] == ["a.so"]
    kept.remove(kept.find("a"))
    assert not kept.has_any()
    kept.remove(folder / "a.so")


def test_what_was_not_used_for_longest_goes_first(folder, library, monkeypatch):
    monkeypatch.setattr(kept, "_MOST_FILES", 3)
    for age, key in enumerate("abc"):
        kept.keep(library, key)
        os.utime(folder / f"{key}.so", (0, 1000 + age))
    (folder / f"{kept._PARTIAL}x").write_bytes(b"of a process that was killed")
    os.utime(folder / f"{kept._PARTIAL}x", (0, 0))
    assert kept.find("a")
    kept.keep(library, "d")
    assert sorted(path.name for path in folder.iterdir()) == ["a.so", "c.so", "d.so"]


def test_a_key_names_code_torch_and_cpu(tmp_path, monkeypatch):
    keys = [kept.key_of("code"), kept.key_of("code", ""), kept.key_of("other")]
    assert kept.key_of("code") == keys[0]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        keys.append(kept.key_of("code"))
    info = "processor : 0\nmodel name : A\ncpu MHz : {}\nflags : {}\n\nprocessor : 1\nmodel name : A\n"
    cpus = []
    for megahertz, flags in ((1, "avx2"), (2, "avx2"), (1, "avx512")):
        (tmp_path / "cpuinfo").write_text(info.format(megahertz, flags))
        cpus.append(kept._cpu(tmp_path / "cpuinfo"))
    assert cpus[0] == cpus[1] == "model name : A\nflags : avx2"
    assert cpus[2] != cpus[0]
    assert kept._cpu(tmp_path / "nothing") == ""
    with monkeypatch.context() as patch:
        patch.setattr(kept, "_cpu", lambda: "another")
        keys.append(kept.key_of("code"))
    assert len(set(keys)) == 5


def test_where_nothing_can_be_written_it_is_told(tmp_path, library, caplog, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    kept.keep(library, "a")
    assert "what was compiled is not kept" in caplog.text
    assert kept.find("a") is None
    assert not kept.has_any()
    # A user without a home.
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(kept.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    kept.keep(library, "a")
    assert kept.find("a") is None
    assert not kept.has_any()


def test_without_a_folder_of_its_own_the_cache_lies_in_the_home(tmp_path, library, monkeypatch):
    # A relative one is to be ignored, as its standard says.
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kept.keep(library, "a")
    assert kept.find("a") == tmp_path / "home" / ".cache" / "mtray" / "compiled" / "a.so"
