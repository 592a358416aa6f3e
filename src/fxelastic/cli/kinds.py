"""Parse ``NAME:option=value`` on the command line into a branch kind or a search strategy."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union

from fxelastic.cli.reference import FORMS, describe, load_reference
from fxelastic.errors import FxElasticError, UsageError

if TYPE_CHECKING:
    from fxelastic.branches import Kind
    from fxelastic.edge.searching.study import Strategy


@dataclasses.dataclass(frozen=True)
class _Family:
    """The dataclasses that a flag accepts.

    Attributes:
        flag: The flag.
        what: What to call the classes in messages.
        names: The names of the classes.
        get: Returns the class with a name.
        method: A method that each class must have.
        contract: The signature of the method, for messages.
        example: How to use the flag, for messages.
    """

    flag: str
    what: str
    names: Sequence[str]
    get: Callable[[str], Any]
    method: str
    contract: str
    example: str


def parse_kind(text: str) -> Kind:
    """Create the branch kind that ``--kind`` describes.

    Args:
        text: ``NAME``, or ``NAME:option=value[,option=value…]``. ``NAME`` is the name of a kind of
            this or another package, or refers to a class (``package.module:Class`` or
            ``path/file.py:Class``). Values of an option are separated by commas (``spans=1,2``).

    Returns:
        The kind.

    Raises:
        UsageError: There is no such kind or option, or a value has the wrong type.
    """
    from fxelastic.branches import branch_kind, branch_kinds

    example = "e.g. --kind merged:spans=1,2 or --kind pruned:ratios=0.25,importance=bn"
    contract = "make(partition, seed)"
    kinds = _Family("--kind", "branch kind", branch_kinds(), branch_kind, "make", contract, example)
    made: Kind = _made(text, kinds)
    return made


def parse_strategy(text: str) -> Strategy:
    """Create the search strategy that ``--strategy`` describes; see `parse_kind`.

    Raises:
        UsageError: There is no such strategy or option, or a value has the wrong type.
    """
    from fxelastic.edge.searching.study import strategy, strategy_names

    example = "e.g. --strategy annealing:width=0.2"
    strategies = _Family(
        *("--strategy", "search strategy", strategy_names(), strategy),
        *("run", "run(study)", example),
    )
    made: Strategy = _made(text, strategies)
    return made


def _made(text: str, source: _Family) -> Any:
    found, options = _split(text, source)
    fields = {field.name: field for field in dataclasses.fields(found) if field.init}
    values: dict[str, Any] = {}
    for name, texts in options.items():
        if name not in fields:
            raise UsageError(
                f"{source.flag} {text}: {found.__name__} has no option {name!r}",
                expected=f"one of {', '.join(fields)}" if fields else "no options",
                got=repr(name),
                fix=source.example,
            )
        values[name] = _value(texts, _type(fields[name], found), f"{source.flag} {text}: {name}")
    try:
        return found(**values)
    except FxElasticError:
        raise
    except Exception as e:
        raise UsageError(
            f"{source.flag} {text}: {found.__name__} can't be created",
            expected="a value for each option without a default, and values that it accepts",
            got=describe(e),
            fix=source.example,
        ) from e


def _type(field: dataclasses.Field[Any], owner: type[Any]) -> Any:
    """The type of an option; that of its default if its annotation can't be evaluated."""
    try:
        return typing.get_type_hints(owner)[field.name]
    except (NameError, TypeError, AttributeError):
        return type(field.default)


def _split(text: str, source: _Family) -> tuple[type[Any], dict[str, list[str]]]:
    """Split a text into the class and the texts of each option's values."""
    name, _, rest = text.partition(":")
    found: Any
    if name in source.names:
        found = source.get(name)
    elif rest and "=" not in rest.partition(":")[0]:
        attribute, _, rest = rest.partition(":")
        found = load_reference(f"{name}:{attribute}", source.flag)
    else:
        raise UsageError(
            f"{source.flag} {text}: there is no {source.what} {name!r}",
            expected=f"one of {', '.join(source.names)}, or {FORMS}",
            got=repr(name),
            fix=source.example,
        )
    if not (
        isinstance(found, type)
        and dataclasses.is_dataclass(found)
        and hasattr(found, source.method)
    ):
        raise UsageError(
            f"{source.flag} {text} does not refer to a {source.what}",
            expected=f"a dataclass with a method {source.contract}",
            got=repr(found),
        )
    options: dict[str, list[str]] = {}
    texts: list[str] = []
    for word in rest.split(",") if rest else []:
        option, equals, value = word.partition("=")
        if equals:
            if option.strip() in options:
                raise UsageError(
                    f"{source.flag} {text} has the option {option.strip()!r} twice",
                    expected="each option once",
                    got=repr(rest),
                )
            texts = options.setdefault(option.strip(), [value.strip()])
        elif texts:
            # A further value of the last option: spans=1,2.
            texts.append(word.strip())
        else:
            raise UsageError(
                f"{source.flag} {text}: {word!r} is not an option with a value",
                expected="NAME:option=value[,option=value]",
                got=repr(text),
                fix=source.example,
            )
    return found, options


def _value(texts: Sequence[str], hint: Any, where: str) -> Any:
    """Convert the texts of an option to its type."""
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
        expected="an option of numbers, strings or booleans",
        got=f"an option of type {hint}",
        fix="pass the object in Python",
    )


def _named(hint: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return names.get(hint, str(hint))
