"""Command lines: what tyro reads is returned, what it refuses is one line with the value and what is allowed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import tyro

from mtray.config.command_line import parse
from mtray.config.settings import Config
from mtray.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every type."""

    folder: tyro.conf.Positional[Path]
    names: tuple[str, ...] = ()
    count: int = 1
    share: float | None = None
    colour: Literal["red", "green"] = "red"
    maybe: bool | None = None
    is_loud: bool = False


def refusal(arguments, cls=Options):
    with pytest.raises(UsageError) as caught:
        parse(cls, arguments, "program")
    text = str(caught.value)
    assert text.endswith(" (program --help lists all options)")
    return text.removesuffix(" (program --help lists all options)")


def test_values_of_every_type_are_read():
    text = "a --names b c --count 1e3 --share 0.5 --colour green --maybe False --is-loud"
    assert parse(Options, text.split(), "program") == Options(
        folder=Path("a"), names=("b", "c"), count=1000, share=0.5, colour="green", maybe=False, is_loud=True
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a --count few", "--count few: a whole number is needed"),
        ("a --count=1.5", "--count 1.5: a whole number is needed"),
        ("a --count inf", "--count inf: a whole number is needed"),
        ("a --count", "--count has no value: a whole number is needed"),
        ("a --count --is-loud", "--count has no value: a whole number is needed"),
        ("a --share few", "--share few: a number is needed"),
        ("a --share", "--share has no value: a number is needed"),
        ("a --colour blue", "--colour blue: choose from red, green"),
        ("a --maybe 3", "--maybe 3: choose from True, False"),
        ("a --coutn 3", "there is no option --coutn: did you mean --count?"),
        ("a --is_lod", "there is no option --is-lod: did you mean --is-loud?"),
        ("a --other", "there is no option --other"),
        ("a b", "b belongs to no option"),
        ("a --is-loud yes", "yes belongs to no option"),
        ("a -x", "-x belongs to no option"),
        ("", "FOLDER is missing: a path is needed"),
        ("--no-is-loud --count 3", "FOLDER is missing: a path is needed"),
        # The first from the left.
        ("a --names b --colour blue --share few", "--colour blue: choose from red, green"),
    ],
)
def test_what_is_refused_is_told_with_what_is_allowed(arguments, message):
    assert refusal(arguments.split()) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--deterministic=True", "--deterministic True: it takes no value, write --deterministic"),
        ("--deterministic=False", "--deterministic False: it takes no value, write --no-deterministic"),
        ("--deterministic False", "--deterministic False: it takes no value, write --no-deterministic"),
        ("--deterministic=", "--deterministic : it takes no value, write --deterministic or --no-deterministic"),
        ("--no-deterministic=True", "--no-deterministic True: it takes no value, write --no-deterministic"),
        ("--no-deterministic false", "--no-deterministic false: it takes no value, write --deterministic"),
        ("--replay.save False", "--replay.save False: it takes no value, write --replay.no-save"),
        ("--replay.no-save=1", "--replay.no-save 1: it takes no value, write --replay.save or --replay.no-save"),
        ("--no-replay.save", "there is no option --no-replay.save: write --replay.no-save"),
        ("--no-replay.save=True", "there is no option --no-replay.save: write --replay.no-save"),
        ("--deterministic --replay.no-save few", "few belongs to no option"),
    ],
)
def test_an_option_without_a_value_has_its_other_spelling_as_remedy(arguments, message):
    assert refusal(arguments.split(), Config) == message


@pytest.mark.parametrize(
    ("cls", "arguments", "name"),
    [(Config, ["--run-dir", ""], "--run-dir"), (Config, ["--resume="], "--resume"), (Options, [""], "FOLDER")],
)
def test_an_empty_path_is_not_the_current_folder(cls, arguments, name):
    """It is a shell's variable that is not set."""
    assert refusal(arguments, cls) == f"{name} is empty: a path is needed; . is the current folder"


def test_an_option_of_a_group_is_found_without_its_group():
    found = refusal(["--keep-checkpoints", "3"], Config)
    assert found == "there is no option --keep-checkpoints: did you mean --run.keep-checkpoints?"


def test_nothing_else_is_printed(capsys):
    refusal(["a", "--count", "few"])
    assert capsys.readouterr() == ("", "")


def test_a_refusal_of_another_kind_is_told_in_tyros_words(monkeypatch):
    monkeypatch.setattr("mtray.config.command_line._faults", lambda *_: iter(()))
    assert "few" in refusal(["a", "--count", "few"])


def test_help_ends_with_0(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Options, ["--help"], "program")
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith("usage: program ")


@pytest.mark.parametrize(("text", "expected"), [("1e6", 10**6), ("12", 12), ("2.0", 2), (str(10**18 + 1), 10**18 + 1)])
def test_whole_numbers_on_the_command_line(text, expected):
    assert parse(Config, ["--total-frames", text], "program").total_frames == expected


@pytest.mark.parametrize("text", ["1.5", "1e-3", "many", "nan", "inf", ""])
def test_an_invalid_whole_number_is_refused(text):
    assert refusal(["--total-frames", text], Config) == f"--total-frames {text}: a whole number is needed"
