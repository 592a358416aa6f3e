"""The argument MODEL: load a ``torch.nn.Module`` from a reference."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fxelastic.cli.reference import describe, load_reference
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import torch


def load_model(text: str, arguments: Sequence[str] = ()) -> torch.nn.Module:
    """Build the model that MODEL names.

    Args:
        text: ``package.module:name`` or ``path/file.py:name``; it names a module object, or a
            function or class that returns one.
        arguments: ``key=value`` keyword arguments for the call.

    Returns:
        The model.

    Raises:
        UsageError: There is no such object, calling it fails, or it does not return a module.
    """
    # First: without torch, the reason is this, and not the import in the user's file.
    import torch

    found = load_reference(text, "MODEL")
    keywords = _keywords(arguments)
    if isinstance(found, torch.nn.Module):
        if keywords:
            raise UsageError(
                f"MODEL {text} is already a model and takes no --model-arg",
                expected="a function or class that builds the model",
                got=f"an instance of {type(found).__name__}",
                fix="leave --model-arg out, or name a function",
            )
        return found
    if not callable(found):
        raise UsageError(
            f"MODEL {text} is neither a model nor callable",
            expected="a torch.nn.Module, or a function or class that returns one",
            got=_kind(found),
            fix="name a function that builds the model",
        )
    model = _call(found, keywords, text)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"MODEL {text} did not return a model",
            expected="a torch.nn.Module",
            got=_kind(model),
            fix="return the module itself",
        )
    return model


def _call(build: Any, keywords: dict[str, Any], text: str) -> Any:
    try:
        inspect.signature(build).bind(**keywords)
    except TypeError as e:
        raise UsageError(
            f"MODEL {text} can't be called with these arguments",
            expected=f"arguments for {_signature(build)}",
            got=str(e),
            fix="pass arguments with --model-arg KEY=VALUE",
        ) from e
    except ValueError:
        pass  # Some builtins have no signature to check.
    try:
        return build(**keywords)
    except (Exception, SystemExit) as e:
        raise UsageError(
            f"MODEL {text} raised an error while building the model",
            expected="a torch.nn.Module",
            got=describe(e),
            fix="correct it, or its --model-arg; --debug shows the traceback",
        ) from e


def _keywords(arguments: Sequence[str]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"--model-arg must be KEY=VALUE, got {argument!r}",
                fix="e.g. --model-arg num_classes=10",
            )
        if key in keywords:
            raise UsageError(
                f"--model-arg {key} is given twice",
                expected="each argument once",
                got=repr(argument),
                fix="leave one out",
            )
        try:
            keywords[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            keywords[key] = value
    return keywords


def _signature(build: Any) -> str:
    return f"{getattr(build, '__qualname__', 'it')}{inspect.signature(build)}"


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__}"
    cls = type(value)
    return (
        f"{cls.__qualname__}"
        if cls.__module__ == "builtins"
        else (f"{cls.__module__}.{cls.__qualname__}")
    )
