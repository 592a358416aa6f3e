"""Compare a partition's text with a golden text, and describe the changes in words.

The comparison reads text only (`fxelastic.ir.text` writes it), so the golden file of another
version of this package, or of another model, still gives a readable answer.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property

_TITLE = "fxelastic partition text, format "
_NOTES = ("soft fusions", "unused parameters")
_SOURCED = ("input", "context", "result")
_FEW = 10
_Entries = dict[str, list[str]]


@dataclass(frozen=True)
class Change:
    """One entry that differs.

    Attributes:
        name: The block's name; empty in the header.
        key: The entry, e.g. ``params``.
        golden: The value in the golden text, or empty.
        actual: The value in the partition, or empty.
    """

    name: str
    key: str
    golden: str
    actual: str

    def __str__(self) -> str:
        where = f"{self.name}: {self.key}" if self.name else self.key
        if self.key == "operators":
            counts = " -> ".join(text.partition(":")[0] for text in (self.golden, self.actual))
            return f"{where} {counts} (see the diff)"
        return f"{where} {self.golden or '(none)'} -> {self.actual or '(none)'}"


@dataclass(frozen=True)
class TextDiff:
    """The differences between a partition's text and a golden text.

    Attributes:
        golden: The golden text.
        actual: The partition's text.
    """

    golden: str
    actual: str

    @property
    def equal(self) -> bool:
        """Whether the texts are the same apart from line ends."""
        return self.golden.splitlines() == self.actual.splitlines()

    @cached_property
    def _parsed(self) -> tuple[_Text, _Text]:
        return _parse(self.golden), _parse(self.actual)

    @cached_property
    def renamed(self) -> tuple[tuple[str, str], ...]:
        """Blocks that differ in their names only: (golden, actual).

        Many blocks of a model look alike, so a block with the same content counts as the same
        block only if it is between the same blocks as before.
        """
        old, new = self._parsed
        place_before, place_now = _places(old, new), _places(new, old)
        fresh = [name for name in new.blocks if name not in old.blocks]
        pairs = []
        for name, place in place_before.items():
            for other in fresh:
                same = _body(old.blocks[name]) == _body(new.blocks[other])
                if same and place == place_now[other]:
                    pairs.append((name, other))
                    fresh.remove(other)
                    break
        return tuple(pairs)

    @cached_property
    def vanished(self) -> tuple[str, ...]:
        """Blocks that are only in the golden text."""
        old, new = self._parsed
        renamed = {name for name, _ in self.renamed}
        return tuple(name for name in old.blocks if name not in new.blocks and name not in renamed)

    @cached_property
    def appeared(self) -> tuple[str, ...]:
        """Blocks that are not in the golden text."""
        old, new = self._parsed
        renamed = {name for _, name in self.renamed}
        return tuple(name for name in new.blocks if name not in old.blocks and name not in renamed)

    @cached_property
    def changed(self) -> tuple[Change, ...]:
        """Different entries of blocks that are in both texts."""
        old, new = self._parsed
        names = dict(self.renamed)
        changes: list[Change] = []
        for name, entries in old.blocks.items():
            if name in new.blocks:
                changes += _changes(name, _renamed(entries, names), new.blocks[name])
        return tuple(changes)

    @cached_property
    def settings(self) -> tuple[Change, ...]:
        """Different entries of the header: settings, P0, the model's inputs and results."""
        old, new = self._parsed
        return tuple(_changes("", _renamed(old.header, dict(self.renamed)), new.header))

    @cached_property
    def moved(self) -> bool:
        """Whether the blocks of both texts are in another order."""
        old, new = self._parsed
        return [n for n in old.blocks if n in new.blocks] != [
            n for n in new.blocks if n in old.blocks
        ]

    def summary(self) -> list[str]:
        """The changes, a line for each; empty if there are none."""
        if self.equal:
            return []
        old, new = self._parsed
        if not old.version:
            return ["the golden file is not a partition text of fxelastic"]
        if old.version != new.version:
            what = f"the golden file has format {old.version}, fxelastic writes {new.version} now"
            return [f"{what}: the golden file must be written again"]
        lines = [str(change) for change in self.settings]
        lines += _list("renamed", [f"{golden} -> {actual}" for golden, actual in self.renamed])
        lines += _list("vanished", [_short(name, old) for name in self.vanished])
        lines += _list("appeared", [_short(name, new) for name in self.appeared])
        lines += _list("changed", [str(change) for change in self.changed])
        if self.moved:
            lines.append("the blocks are in another order")
        if old.notes != new.notes:
            lines.append("soft fusions or unused parameters changed")
        return lines or ["the texts differ in layout only"]

    def unified(self, golden_name: str = "golden", actual_name: str = "now") -> str:
        """The differing lines as a unified diff."""
        lines = difflib.unified_diff(
            self.golden.splitlines(),
            self.actual.splitlines(),
            golden_name,
            actual_name,
            lineterm="",
            n=2,
        )
        return "\n".join(lines)

    def report(self, golden_name: str = "golden", max_lines: int = 400) -> str:
        """The summary and the unified diff, for a terminal or a test's message.

        Args:
            golden_name: What to call the golden text, e.g. its path.
            max_lines: A longer diff is cut, with a note.
        """
        if self.equal:
            return ""
        diff = self.unified(golden_name).splitlines()
        if len(diff) > max_lines:
            diff[max_lines:] = [f"... and {len(diff) - max_lines} more lines of diff"]
        return "\n".join([*(f"  {line}" for line in self.summary()), "", *diff])


@dataclass(frozen=True)
class _Text:
    """The parts of a partition text; keys may repeat, so the values of entries are lists."""

    version: str
    header: _Entries
    blocks: dict[str, _Entries]
    notes: list[str]


def settings(text: str) -> dict[str, str]:
    """The header of a partition text: ``gamma``, ``fusion`` etc.; empty for any other text."""
    parsed = _parse(text)
    return {key: values[0] for key, values in parsed.header.items()} if parsed.version else {}


def _parse(text: str) -> _Text:
    """Parse a partition text; any other text gives an empty version."""
    lines = text.splitlines()
    first = lines[0] if lines else ""
    version = first.removeprefix(_TITLE).strip() if first.startswith(_TITLE) else ""
    parsed = _Text(version, {}, {}, [])
    section: _Entries | None = parsed.header
    last: list[str] = []
    for line in lines[1:]:
        if line.startswith("block "):
            section = parsed.blocks.setdefault(line.removeprefix("block "), {})
        elif line in _NOTES:
            section = None
            parsed.notes.append(line)
        elif section is None:
            parsed.notes.append(line)
        elif line.startswith("   ") and last:
            last[-1] += f" {line.strip()}"
        elif line.strip():
            key, _, value = line.strip().partition(" ")
            last = section.setdefault(key, [])
            last.append(value.strip())
    return parsed


def _changes(name: str, old: _Entries, new: _Entries) -> list[Change]:
    keys = dict.fromkeys([*old, *new])
    return [
        Change(name, key, "; ".join(old.get(key, [])), "; ".join(new.get(key, [])))
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _renamed(entries: _Entries, names: dict[str, str]) -> _Entries:
    """The entries with the new names of the blocks that they name."""

    def rename(value: str) -> str:
        head, separator, source = value.rpartition(" from ")
        block, output, i = source.partition(" output ")
        return f"{head}{separator}{names.get(block, block)}{output}{i}" if separator else value

    return {
        key: [rename(value) for value in values] if key in _SOURCED else values
        for key, values in entries.items()
    }


def _places(text: _Text, other: _Text) -> dict[str, int]:
    """For each block that only ``text`` has, how many blocks of both texts come before it."""
    places: dict[str, int] = {}
    common = 0
    for name in text.blocks:
        if name in other.blocks:
            common += 1
        else:
            places[name] = common
    return places


def _body(entries: _Entries) -> _Entries:
    """A block's entries without the names of blocks."""
    return {
        key: [value.partition(" from ")[0] for value in values] if key in _SOURCED else values
        for key, values in entries.items()
        if key not in ("path", "shared")
    }


def _list(what: str, items: list[str]) -> list[str]:
    """The first blocks with the same change, and the number of the others."""
    rest = [f"blocks {what}: {len(items) - _FEW} more"] if len(items) > _FEW else []
    return [f"block {what}: {item}" for item in items[:_FEW]] + rest


def _short(name: str, text: _Text) -> str:
    entries = text.blocks[name]
    kind = " ".join(entries.get("kind", ["?"]))
    params = " ".join(entries.get("params", ["?"]))
    outputs = ", ".join(entries.get("output", ["?"]))
    return f"{name} ({kind}, {params} parameters, output {outputs})"
