"""The recipe of a run, ``fxelastic.toml``: options that are written once for all commands."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fxelastic.errors import UsageError
from fxelastic.extras import required
from fxelastic.files import read_regular, replace_file

#: The file of a run's options, and the file of what the run found out about its inputs.
NAME, FOUND = "fxelastic.toml", "inputs.toml"

#: The value of an option. A list stands for an option that is given several times.
Value: TypeAlias = str | int | float | bool | list[Any]

#: The sections that each command reads; a later one wins.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "explain": ("model",),
    "check": ("model",),
    "train": ("model", "train"),
    "specialise": ("model",),
    "export": ("model", "export"),
    "profile": ("profile",),
    "plan": ("search",),
    "search": ("search",),
    "prepare": ("prepare",),
    "serve": (),
}

# No option is as large, and nobody writes so many.
_MOST, _MOST_CHARACTERS, _MOST_BYTES = 2**63, 4096, 2**20

_HEADER = """\
# The recipe of a run, written by fxelastic run. Each key is an option of a command without its
# dashes. The commands read it where they work in this folder; an option on the command line wins.

"""

# Options that exclude or extend one another: one on the command line stands for all of them.
_TOGETHER = ("kinds", "kind", "spans", "prune")
# Where a command writes is not up to a file that may come with a bundle.
_WRITES = ("out", "force", "prepared", "dot", "golden", "update")
_FILES = ("model", "data", "weights", "supernet-weights", "calibration", "loss", "score", "pool")


@dataclass(frozen=True)
class Recipe:
    """The options of a run.

    Attributes:
        folder: The run's folder. Paths in the options are relative to it.
        sections: The options by section and name.
    """

    folder: Path
    sections: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, *names: str) -> Recipe:
        """Read a folder's recipe.

        Args:
            folder: The run's folder.
            names: The files to read if they exist, `NAME` by default; options of later ones win.

        Raises:
            UsageError: A file can't be read, or has another form.
        """
        sections: dict[str, dict[str, Value]] = {}
        for name in names or (NAME,):
            if not (folder / name).is_file():
                continue
            for section, options in _parsed(folder / name).items():
                if not isinstance(options, Mapping):
                    raise _malformed(folder / name, f"{section} outside of a section")
                for key, value in options.items():
                    if not all(map(_is_word, value if isinstance(value, list) else [value])):
                        raise _malformed(folder / name, f"[{section}] {key} = {value!r}")
                sections.setdefault(section, {}).update(options)
        return cls(folder, sections)

    def options(self, *names: str) -> dict[str, Value]:
        """The options of some sections; those of later sections win."""
        return {key: value for name in names for key, value in self.sections.get(name, {}).items()}

    def changed(self, changes: Mapping[str, Mapping[str, Value]]) -> Recipe:
        """A recipe with other options, whose paths are relative to the current folder."""
        sections = {name: dict(options) for name, options in self.sections.items()}
        for name, options in changes.items():
            own = {key: moved(key, value, Path(), self.folder) for key, value in options.items()}
            sections.setdefault(name, {}).update(own)
        return Recipe(self.folder, {name: options for name, options in sections.items() if options})

    def with_option(self, section: str, key: str, value: Value) -> Recipe:
        """A recipe with one option that is already relative to its folder."""
        own = {**self.sections.get(section, {}), key: value}
        return Recipe(self.folder, {**self.sections, section: own})

    def differences(self, other: Recipe) -> list[str]:
        """The options that another recipe changes, one a line."""
        lines = []
        for name in dict.fromkeys((*self.sections, *other.sections)):
            lines += changes(self.options(name), other.options(name), f"[{name}] ")
        return lines

    def write(self, name: str = NAME) -> None:
        """Write the recipe to its folder, atomically.

        Raises:
            UsageError: The package that writes TOML is not installed.
            OSError: The folder can't be written.
        """
        tomli_w = required("tomli_w", "writing fxelastic.toml needs tomli_w", "torch")
        sections = {key: dict(options) for key, options in self.sections.items()}
        text: str = tomli_w.dumps(sections)
        replace_file(self.folder / name, (_HEADER + text).encode())


def changes(old: Mapping[str, Any], new: Mapping[str, Any], before: str = "") -> list[str]:
    """What differs between two mappings, one key a line: ``gamma: 0.1 -> 0.25``."""
    keys = dict.fromkeys((*old, *new))
    return [
        f"{before}{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return "(default)"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def moved(key: str, value: Any, old: Path, new: Path) -> Any:
    """An option whose path, if it is one, is relative to another folder.

    Args:
        key: The option's name.
        value: Its value, or a list of values.
        old: The folder that paths are relative to.
        new: The folder that they shall be relative to.
    """
    if isinstance(value, list):
        return [moved(key, item, old, new) for item in value]
    if not isinstance(value, str):
        return value
    path, colon, rest = value.partition(":")
    name, equals, behind = path.rpartition("=")
    place = os.path.normpath(old / behind)  # the folder itself may be new
    is_file = path.endswith(".py") or key in _FILES
    if not is_file or os.path.isabs(behind) or not os.path.exists(place):
        return value
    return f"{name}{equals}{os.path.relpath(place, new)}{colon}{rest}"


def words_of(options: Mapping[str, Value], parser: argparse.ArgumentParser) -> list[str]:
    """Options as words of a command line; those that the command does not have are left out."""
    known = parser._option_string_actions
    words = []
    for key, value in options.items():
        if value is False and f"--no-{key}" in known:
            words.append(f"--no-{key}")
        elif f"--{key}" not in known or value is False:
            continue
        elif value is True:
            words.append(f"--{key}")
        else:
            words += [f"--{key}={item}" for item in (value if isinstance(value, list) else [value])]
    return words


def check_keys(recipe: Recipe, section: str, parsers: Iterable[argparse.ArgumentParser]) -> None:
    """Check that a section has only options of some commands.

    Raises:
        UsageError: It has another one.
    """
    known = {"model"} if section == "model" else set()
    for parser in parsers:
        known |= {word.removeprefix("--") for word in parser._option_string_actions}
    for key in recipe.sections.get(section, {}):
        if key not in known:
            close = difflib.get_close_matches(key, known)
            raise UsageError(
                f"{recipe.folder / NAME} has an unknown option {key!r} in [{section}]",
                expected="the long name of an option, without its dashes",
                got=repr(key),
                fix=f"did you mean {' or '.join(close)}?" if close else None,
            )


def with_recipe(parser: argparse.ArgumentParser, command: str, argv: Sequence[str]) -> list[str]:
    """Complete a command line with the recipe of the folder that the command works in.

    Args:
        parser: The command's parser; its arguments MODEL and BUNDLE become optional where the
            folder has them.
        command: The command's name.
        argv: Its arguments.

    Returns:
        Further arguments, from the recipe.

    Raises:
        UsageError: The recipe can't be read.
    """
    folder = _folder(argv) if command in SECTIONS else None
    if folder is None or "-h" in argv or "--help" in argv:
        return []
    recipe = Recipe.read(folder, NAME, FOUND)
    options = recipe.options(*SECTIONS[command])
    if (folder / "bundle.pool.json").exists():
        options.setdefault("pool", "bundle.pool.json")
    options = {key: moved(key, value, folder, Path()) for key, value in options.items()}
    given = [word.partition("=")[0] for word in argv if word.startswith("--")]
    kept = {
        key: value
        for key, value in options.items()
        if key not in _WRITES
        and not any(f"--{name}".startswith(word) for word in given for name in _group(key))
    }
    places: dict[str, Any] = {"model": options.get("model")}
    if (folder / "bundle").is_dir():
        places["bundle"] = os.path.relpath(folder / "bundle")
    for action in parser._actions:
        if not action.option_strings and places.get(action.dest) is not None:
            action.nargs, action.required = "?", False
            action.default = places[action.dest]
    return words_of(kept, parser)


def _group(key: str) -> tuple[str, ...]:
    return _TOGETHER if key in _TOGETHER else (key,)


def _folder(argv: Sequence[str]) -> Path | None:
    """The folder of the run that a command works in, if it works in one."""
    given = [Path(word) for word in argv if not word.startswith("-")]
    folders = [folder for path in given for folder in (path, path.parent)]
    for folder in (*folders, Path()):
        # Unlike pathlib, this takes words that can't be paths.
        if os.path.isfile(folder / NAME):
            return folder
    return None


def _parsed(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = required("tomli", "reading fxelastic.toml needs tomli", "torch")
    try:
        data = read_regular(path, follow=True)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has {len(data):,} bytes, and at most {_MOST_BYTES:,} are read")
        return tomllib.loads(data.decode())
    except RecursionError as e:
        raise _malformed(path, "arrays nested hundreds deep") from e
    except (OSError, ValueError) as e:
        raise _malformed(path, f"{type(e).__name__}: {e}") from e


def _is_word(value: object) -> bool:
    """Whether a value can be a word of a command line."""
    if isinstance(value, str):
        return "\0" not in value and len(value) <= _MOST_CHARACTERS
    return isinstance(value, (int, float)) and abs(value) < _MOST


def _malformed(path: Path, got: str) -> UsageError:
    return UsageError(
        f"{path} can't be read",
        expected='sections of options, such as [model] and gamma = 0.1, or budget = ["60%"]',
        got=got,
        fix="correct it, or delete it and pass the options again",
    )
