"""Resolve references: ``package.module:name`` and ``path/file.py:name``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from fxelastic.errors import UsageError

FORMS = "package.module:name or path/file.py:name"


def load_reference(text: str, option: str) -> Any:
    """Import the object that a reference names.

    Modules are searched for in the current folder first, as with ``python -m``; the imports of a
    file are searched for in its own folder first, as with ``python file.py``.

    Args:
        text: The reference. ``name`` may have dots (``module:Class.method``).
        option: The argument with the reference, e.g. ``MODEL``, for messages.

    Returns:
        The object.

    Raises:
        UsageError: There is no such object; the message says which part fails and why.
    """
    source, colon, name = text.rpartition(":")
    if not source or not name:
        missing = "a colon" if not colon else "a module before the colon"
        raise UsageError(
            f"{option} must name an object in a module, got {text!r}",
            expected=FORMS,
            got=f"{text!r}, without {'a name after the colon' if source else missing}",
            fix=f"add it, e.g. {_example(text)}",
        )
    is_file = source.endswith(".py") or "/" in source or os.sep in source
    module = _import_file(source, option) if is_file else _import_module(source, option)
    return _attribute(module, source, name, option)


def describe(error: BaseException) -> str:
    """Describe an error in the user's code in one line, with the place where it was raised."""
    text = " ".join(str(error).split())
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    return f"{message} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else message


def _example(text: str) -> str:
    source, _, name = text.partition(":")
    return f"{source or 'package.module'}:{name or 'build_model'}"


def _import_module(name: str, option: str) -> ModuleType:
    _search_first(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and (name == e.name or name.startswith(f"{e.name}.")):
            raise UsageError(
                f"{option}: there is no module {e.name!r}",
                expected=f"{FORMS}, importable from here",
                got=f"{name!r} (searched in {os.getcwd()} and the installed packages)",
                fix="check the name, install the package, or change to the project's folder",
            ) from e
        raise _not_importable(name, option, e) from e
    except (Exception, SystemExit) as e:
        raise _not_importable(name, option, e) from e


def _import_file(path: str, option: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        close = difflib.get_close_matches(file.name, _python_files(file.parent))
        raise UsageError(
            f"{option}: there is no file {path!r}",
            expected=f"a Python file, as in {FORMS}",
            got="a folder" if file.is_dir() else f"no such file, seen from {os.getcwd()}",
            fix=f"did you mean {file.parent / close[0]}?" if close else "check the path",
        )
    _search_first(str(file.resolve().parent))
    # Use a distinct name: a model file is often named like a package (transformers.py).
    name = f"fxelastic_model_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(
            f"{option}: {path!r} is not a Python file",
            expected="a file that ends in .py",
            got=file.name,
            fix="rename it, or refer to its module",
        )
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look the module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise _not_importable(path, option, e) from e
    return module


def _not_importable(source: str, option: str, error: BaseException) -> UsageError:
    fix = "correct it; --debug shows the traceback"
    if isinstance(error, SystemExit):
        fix = 'guard what runs on import with `if __name__ == "__main__":`'
    elif isinstance(error, ModuleNotFoundError):
        fix = f"install {error.name!r} in this environment, or correct the import"
    elif isinstance(error, ImportError) and "relative import" in str(error):
        fix = "refer to it as package.module:name: a file by its path belongs to no package"
    return UsageError(
        f"{option}: importing {source!r} failed",
        expected="a module that can be imported",
        got=describe(error),
        fix=fix,
    )


def _attribute(module: ModuleType, source: str, name: str, option: str) -> Any:
    value: Any = module
    done = source
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as e:
            raise UsageError(
                f"{option}: {done!r} has no {part!r}",
                expected="the name of a function, a class or an object in it",
                got=repr(part),
                fix=_suggestion(value, part),
            ) from e
        done = f"{done}:{part}" if done == source else f"{done}.{part}"
    return value


def _suggestion(owner: Any, name: str) -> str:
    names = [known for known in dir(owner) if not known.startswith("_")]
    close = difflib.get_close_matches(name, names)
    if close:
        return f"did you mean {' or '.join(close)}?"
    own = [known for known in names if _is_own(owner, known)]
    return f"it defines {', '.join(own[:8])}" if own else "check the name"


def _is_own(owner: Any, name: str) -> bool:
    """Whether a module defines a callable of this name rather than importing it."""
    value = getattr(owner, name, None)
    return callable(value) and getattr(value, "__module__", None) == getattr(
        owner, "__name__", None
    )


def _python_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py")) if folder.is_dir() else []


def _search_first(folder: str) -> None:
    """Search a folder first for imports; the command restores the path when it ends."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
