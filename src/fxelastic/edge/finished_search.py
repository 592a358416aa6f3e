"""The answers of searches that ran to their end, so that the same search need not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxelastic.spec import Arch


@dataclass(frozen=True)
class FinishedSearch:
    """The answer of a search, which a pool keeps.

    Attributes:
        key: Identifies the search: see `key_of`.
        bests: The best subnet within each of the limits.
        histories: For each of the limits the improvements: the number of subnets, the latency in ms
            and the score.
        original: The original's scores, on the data of the search and on the samples held out.
    """

    key: str
    bests: tuple[Arch, ...]
    histories: tuple[tuple[tuple[int, float, float], ...], ...]
    original: tuple[float, float | None]

    def to_json(self) -> dict[str, Any]:
        """The fields as an object for ``json.dumps``."""
        return {
            "key": self.key,
            "bests": [str(arch) for arch in self.bests],
            "histories": self.histories,
            "original": self.original,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FinishedSearch:
        """The inverse of `to_json`."""
        accuracy, held_out = value["original"]
        histories = (
            tuple((int(n), float(ms), float(score)) for n, ms, score in history)
            for history in value["histories"]
        )
        return cls(
            str(value["key"]),
            tuple(Arch.parse(text) for text in value["bests"]),
            tuple(histories),
            (float(accuracy), None if held_out is None else float(held_out)),
        )


def key_of(table: Mapping[str, Any], limits: Sequence[Mapping[str, Any]], options: object) -> str:
    """Identify a search on given samples of a given bundle: all that its answer depends on.

    Args:
        table: The latency table as data for ``json.dumps``.
        limits: The limits.
        options: Anything whose ``repr`` tells the options apart.
    """
    parts = (table, [dict(bounds) for bounds in limits], repr(options))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
