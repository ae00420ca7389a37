"""Command lines: parsed by tyro into a dataclass; what is refused is told in one line.

tyro prints an error as a box of several lines and ends the process. Here its output is dropped, and what it refused is
looked up among the dataclass's fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mtray.config.types import flag
from mtray.errors import UsageError

_Options = TypeVar("_Options")
# Words after an option without a value, to whether it is meant to be on.
_SWITCHED = {"true": True, "false": False}
_NEEDED = {int: "a whole number", float: "a number", Path: "a path", str: "text", bool: "True or False"}


def parse(cls: type[_Options], arguments: Sequence[str] | None, program: str, default: Any = None) -> _Options:
    """Return the dataclass that a command line describes; ``--help`` prints and exits with 0.

    Args:
        cls: its fields are the options.
        arguments: None for those of this process.
        program: the command as a user writes it.
        default: values of options that are left out, in place of the dataclass's.

    Raises:
        UsageError: names the option or the value that can't be, and what can.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = {} if default is None else {"default": default}
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            options: _Options = tyro.cli(cls, args=arguments, prog=program, registry=parsing_rules(), **given)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        found = next(_faults(cls, arguments), boxes.getvalue())
        raise UsageError(f"{found} ({program} --help lists all options)") from None
    return options


def _faults(cls: type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with a command line that was refused, from left to right."""
    options = dict(_options(cls))
    positional = {name: hint for name, hint in options.items() if typing.get_origin(hint) is typing.Annotated}
    places = [typing.get_args(hint)[0] for hint in positional.values()]
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            if not places:
                yield f"{token or 'an empty word'} belongs to no option"
            elif not token:
                name = next(name for name, hint in positional.items() if typing.get_args(hint)[0] == places[0])
                yield f"{name.removeprefix('--').upper()} is empty: {_NEEDED[Path]} is needed; . is the current folder"
            elif typing.get_origin(places[0]) is not tuple:
                places.pop(0)
            continue
        name, has_value, value = token.replace("_", "-", token.partition("=")[0].count("_")).partition("=")
        switches = _switches(name, options)
        hint = bool if name in switches else options.get(name)
        if switches and name not in switches:
            yield f"there is no option {name}: write {switches[1]}"
        elif hint is None:
            yield _unknown(name, [other for other in options if other not in positional])
        values = [value] if has_value else []
        if name in switches and has_value:
            yield _switched(name, value, switches)
        elif name in switches and not places and rest and rest[0].lower() in _SWITCHED:
            yield _switched(name, rest[0], switches)
        while not has_value and hint is not bool and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
            if typing.get_origin(hint) is not tuple:
                break
        if hint is not None and hint is not bool:
            yield from _misfits(name, values, hint)
    for name, hint in positional.items():
        if typing.get_args(hint)[0] in places and typing.get_origin(typing.get_args(hint)[0]) is not tuple:
            yield f"{name.removeprefix('--').upper()} is missing: {_NEEDED[typing.get_args(hint)[0]]} is needed"


def _switches(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return the two spellings, on and off, of the option without a value that a name means; none if it means none."""
    for option in (name, name.replace("no-", "", 1)):
        if options.get(option) is bool:
            group, dot, last = option.removeprefix("--").rpartition(".")
            return [option, f"--{group}{dot}no-{last}"]
    return []


def _switched(name: str, value: str, switches: Sequence[str]) -> str:
    """Return what to write in place of an option that takes no value and was given one."""
    on, off = switches
    is_on = _SWITCHED.get(value.lower())
    remedy = f"{on} or {off}" if is_on is None else on if is_on == (name == on) else off
    return f"{name} {value}: it takes no value, write {remedy}"


def _options(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield every option's flag and type, groups' included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _options(typing.cast(type[Any], hint))
        else:
            yield flag(cls, field.name), hint


def _misfits(name: str, values: Sequence[str], hint: Any) -> Iterator[str]:
    """Yield what is wrong with an option's values."""
    if typing.get_origin(hint) is tuple:
        return
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = hint if typing.get_origin(hint) is Literal or not kinds else kinds[0]
    is_choice = typing.get_origin(kind) is Literal
    # What a number may be instead.
    words = [word for other in kinds[1:] for word in typing.get_args(other)]
    choices = typing.get_args(kind) if is_choice else ("True", "False") if kind is bool else ()
    needed = f"choose from {', '.join(choices)}" if choices else f"{' or '.join([_NEEDED[kind], *words])} is needed"
    if not values:
        yield f"{name} has no value: {needed}"
    for value in values:
        if value in words or (value == "None" and type(None) in typing.get_args(hint)):
            continue
        if kind is Path and not value:
            yield f"{name} is empty: {needed}; . is the current folder"
        elif choices and value not in choices:
            yield f"{name} {value}: {needed}"
        elif kind in (int, float):
            try:
                _whole_number(value) if kind is int else float(value)
            except (ValueError, OverflowError):
                yield f"{name} {value}: {needed}"


def _unknown(name: str, options: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.7)
    # A group's option is often written without its group.
    nearest += [option for option in options if option.rpartition(".")[2] == name.removeprefix("--")]
    hint = f": did you mean {' or '.join(dict.fromkeys(nearest))}?" if nearest else ""
    return f"there is no option {name}{hint}"


def parsing_rules() -> ConstructorRegistry:
    """Return tyro's parsing rules, with ``1e6`` accepted as a whole number and no empty text as a path."""
    registry = ConstructorRegistry()
    for kind, name, from_text in ((Path, "PATH", _path), (int, "INT", _whole_number)):
        registry.primitive_rule(functools.partial(_rule, kind, name, from_text))
    return registry


def _rule(
    kind: type[Any], name: str, from_text: Callable[[str], Any], info: PrimitiveTypeInfo
) -> PrimitiveConstructorSpec[Any] | None:
    if info.type is not kind:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=name,
        instance_from_str=lambda texts: from_text(texts[0]),
        is_instance=lambda value: isinstance(value, kind) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _path(text: str) -> Path:
    if not text:
        # tyro takes a ValueError for a refusal.
        raise ValueError("an empty path")
    return Path(text)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(f"{text} is not a whole number") from None
        return int(number)
