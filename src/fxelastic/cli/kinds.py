"""``--kind`` on a command line: from ``NAME:option=value`` to a kind of branches."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Union

from fxelastic.cli.reference import FORMS, load_reference
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.branches import Kind

_EXAMPLE = "e.g. --kind merged:spans=1,2 or --kind pruned:ratios=0.25,importance=bn"


def parse_kind(text: str) -> Kind:
    """Make the kind that ``--kind`` describes.

    Args:
        text: ``NAME``, or ``NAME:option=value[,option=value…]``. ``NAME`` is the name of a kind of
            this or another package, or refers to a class (``package.module:Class`` or
            ``path/file.py:Class``). An option with several values takes them separated by commas
            (``spans=1,2``).

    Returns:
        The kind.

    Raises:
        UsageError: There is no such kind or option, or a value has another type than its option.
    """
    kind, options = _split(text)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, texts in options.items():
        if name not in fields:
            raise UsageError(
                f"--kind {text}: {kind.__name__} has no option {name!r}",
                expected=f"one of {', '.join(fields)}" if fields else "no options",
                got=repr(name),
                fix=_EXAMPLE,
            )
        values[name] = _value(texts, hints[name], f"--kind {text}: {name}")
    made: Kind = kind(**values)
    return made


def _split(text: str) -> tuple[type[Any], dict[str, list[str]]]:
    """The kind's class, and the texts of each option's values."""
    from fxelastic.branches import branch_kind, branch_kinds

    name, _, rest = text.partition(":")
    found: Any
    if name in branch_kinds():
        found = branch_kind(name)
    elif rest and "=" not in rest.partition(":")[0]:
        attribute, _, rest = rest.partition(":")
        found = load_reference(f"{name}:{attribute}", "--kind")
    else:
        raise UsageError(
            f"--kind {text}: there is no branch kind {name!r}",
            expected=f"one of {', '.join(branch_kinds())}, or {FORMS}",
            got=repr(name),
            fix=_EXAMPLE,
        )
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and hasattr(found, "make")):
        raise UsageError(
            f"--kind {text} does not refer to a branch kind",
            expected="a dataclass with a method make(partition, seed)",
            got=repr(found),
        )
    options: dict[str, list[str]] = {}
    texts: list[str] = []
    for word in rest.split(",") if rest else []:
        option, equals, value = word.partition("=")
        if equals:
            if option.strip() in options:
                raise UsageError(
                    f"--kind {text} has the option {option.strip()!r} twice",
                    expected="each option once",
                    got=repr(rest),
                )
            texts = options.setdefault(option.strip(), [value.strip()])
        elif texts:
            # A further value of the last option: spans=1,2.
            texts.append(word.strip())
        else:
            raise UsageError(
                f"--kind {text}: {word!r} is not an option with a value",
                expected="NAME:option=value[,option=value]",
                got=repr(text),
                fix=_EXAMPLE,
            )
    return found, options


def _value(texts: Sequence[str], hint: Any, where: str) -> Any:
    """An option's value by its type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (tuple, list, collections.abc.Sequence):
        return tuple(_value([text], arguments[0], where) for text in texts if text)
    if len(texts) != 1:
        raise UsageError(f"{where} must be one value", expected=_named(hint), got=",".join(texts))
    (text,) = texts
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        if len(rest) == 1:
            return _value(texts, rest[0], where)
    if origin is Literal and text in map(str, arguments):
        return next(argument for argument in arguments if str(argument) == text)
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint is str:
        return text
    try:
        if hint in (int, float):
            return hint(text)
    except ValueError:
        pass
    if origin is Literal or hint in (bool, int, float):
        raise UsageError(f"{where} must be {_named(hint)}", expected=_named(hint), got=repr(text))
    raise UsageError(
        f"{where} can't be given on the command line",
        expected="an option of numbers, texts or booleans",
        got=f"an option of type {hint}",
        fix="pass the kind to fxelastic.expand in Python",
    )


def _named(hint: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return names.get(hint, str(hint))
