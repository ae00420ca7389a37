"""The README's commands, flags and links are valid."""

import re
import shlex
from pathlib import Path

import pytest

from mtray import launch
from mtray.config.settings import Config

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"^mtray launch .*$", README, re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--resume" not in command])
def test_launch_commands_parse(command):
    config = launch.parse(shlex.split(command)[2:])
    assert isinstance(config, Config)


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 4


def test_flags_in_the_table_exist(capsys):
    with pytest.raises(SystemExit):
        launch.parse(["--help"])
    shown = capsys.readouterr().out
    flags = re.findall(r"^\| `(--[a-z.-]+)`", README, re.MULTILINE)
    assert len(flags) >= 6
    for flag in flags:
        assert flag in shown


def test_linked_files_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        name, _, section = link.partition("#")
        file = Path(__file__).parents[1] / name
        assert file.exists(), link
        titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if section else []
        assert not section or section in [title.lower().replace(" ", "-") for title in titles], link


def test_tests_that_are_named_exist():
    root = Path(__file__).parents[1]
    pages = [page for pattern in ("README.md", "CONTRIBUTING.md", "*/*.md") for page in root.glob(pattern)]
    # Of a long name only the beginning is given.
    named = [
        (page.name, *found)
        for page in pages
        for found in re.findall(r"((?:\w+/)*test_\w+\.py)(?:::(\w+))?", page.read_text())
    ]
    assert len(named) > 30
    for page, name, test in named:
        file = root / "tests" / name.removeprefix("tests/")
        assert file.is_file(), f"{page}: {name}"
        assert f"def {test}" in file.read_text(), f"{page}: {name}::{test}"
