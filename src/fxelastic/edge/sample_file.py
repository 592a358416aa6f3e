"""The file of the samples of an unfinished measurement."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.files import read_regular
from fxelastic.spec.bounded_json import loads
from fxelastic.spec.json_document import write

_SCHEMA = "fxelastic.latency-samples/1"

logger = logging.getLogger(__name__)


class SampleFile:
    """Saves the samples so far to a file, and resumes from it."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        timings: Sequence[BranchTiming],
    ) -> None:
        """Create it.

        Args:
            path: The file; None for no file.
            settings: What the samples depend on, as data for ``json.dumps``.
            timings: The measurements, one for each of the sizes of inputs.
        """
        self._path = None if path is None else Path(path)
        self._settings = {"schema": _SCHEMA, **settings}
        self._timings = timings
        self._saved_s = timings[0].watch.wall_s()

    def resume(self) -> None:
        """Read samples from the file, if they belong to the same measurement."""
        if self._path is None or not self._path.exists():
            return
        try:
            value = loads(read_regular(self._path, follow=True))
            same = {k: value.get(k) for k in self._settings} == self._settings
            found = [_read(item) for item in (value, *value.get("others", ()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            same, found = False, []
        branches = [set(timing.samples_ms) for timing in self._timings]
        # A branch that was never run has no size.
        if (
            not same
            or [set(samples_ms) for samples_ms, _ in found] != branches
            or not all(
                n_bytes.keys() <= own for (_, n_bytes), own in zip(found, branches, strict=True)
            )
        ):
            logger.warning(
                "%s belongs to another measurement: starting from the beginning", self._path
            )
            return
        for timing, (samples_ms, n_bytes) in zip(self._timings, found, strict=True):
            timing.samples_ms.update(samples_ms)
            timing.activation_bytes.update(n_bytes)

    def save_now_and_then(self) -> None:
        """Write the file if the last write was long enough ago."""
        if self._timings[0].watch.wall_s() - self._saved_s > 2.0:
            self.save()

    def save(self) -> None:
        """Write the file."""
        if self._path is None:
            return
        first, *others = (
            {"samples_ms": timing.samples_ms, "activation_bytes": timing.activation_bytes}
            for timing in self._timings
        )
        value = {**self._settings, **first, "others": others}
        write(self._path, json.dumps(value).encode(), "the file of samples")
        self._saved_s = self._timings[0].watch.wall_s()

    def remove(self) -> None:
        """Remove the file: its samples are in the table."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _read(item: Mapping[str, Any]) -> tuple[dict[str, list[float]], dict[str, int]]:
    samples_ms = {k: [float(x) for x in v] for k, v in item["samples_ms"].items()}
    n_bytes = {k: int(v) for k, v in item["activation_bytes"].items()}
    if min(itertools.chain(*samples_ms.values(), n_bytes.values()), default=0) < 0:
        raise ValueError("a time or a size is negative")
    return samples_ms, n_bytes
