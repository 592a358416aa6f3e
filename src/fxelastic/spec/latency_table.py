"""How long each branch takes on one device, and how far that predicts whole subnets."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.spec.arch import Arch

SCHEMA = "fxelastic.latency/1"

#: The ways of running a subnet: as one model, or branch after branch.
MODES = ("assembled", "paged")

#: The largest errors of a mode that searches accept: the median, and the 90th percentile.
MOST_MEDIAN, MOST_P90 = 0.05, 0.15

#: What times are: of the clock on the wall, or of the processor, which leaves out other processes.
CLOCKS = ("wall", "processor")

#: Originals that take less, in ms, are too short for the errors of their subnets to tell much.
SHORT_MS = 1.0


@dataclass(frozen=True)
class BranchLatency:
    """What was measured of one branch, run behind and before other branches as in a subnet.

    Attributes:
        ms: The lower quartile: other programs make a run slower, never quicker.
        median_ms: The median.
        high_ms: The upper quartile.
        n: How many runs were timed.
        weight_bytes: Its weights.
        activation_bytes: What it reads and gives.
        resident_bytes: By how much making its session raised the process's memory; None where
            that was not measured.
    """

    ms: float
    median_ms: float
    high_ms: float
    n: int
    weight_bytes: int
    activation_bytes: int
    resident_bytes: int | None = None


@dataclass(frozen=True)
class ModelError:
    """How far predictions were from subnets that were measured but not fitted.

    What counts is the share of the original's latency that a subnet takes: each subnet was timed
    in turns with the original.

    Attributes:
        median: The median of ``|predicted - measured| / measured``.
        p90: Its 90th percentile.
        n_held_out: How many subnets that is.
    """

    median: float
    p90: float
    n_held_out: int

    def __str__(self) -> str:
        return (
            f"median error {self.median:.1%}, 90th percentile {self.p90:.1%}, of "
            f"{self.n_held_out} subnets"
        )


@dataclass(frozen=True)
class ModeLatency:
    """The costs of one way of running subnets: additive, so that dynamic programmes are exact.

    Attributes:
        overhead_ms: What a run takes besides its branches; may be below 0.
        costs: What each branch adds, in ms, by id.
        error: On subnets held out; None where none were measured.
        doubt: Why the measurement itself can't be relied on; empty where it can.
    """

    overhead_ms: float
    costs: Mapping[str, float]
    error: ModelError | None = None
    doubt: str = ""

    @property
    def original_ms(self) -> float:
        """What the original takes, in ms."""
        own = (cost for name, cost in self.costs.items() if name.startswith("original@"))
        return self.overhead_ms + sum(own)


@dataclass(frozen=True)
class LatencyTable:
    """The latencies of a bundle's branches on one device.

    Attributes:
        bundle_digest: Digest of the bundle that was measured, weights included.
        device: What tells the device: processor, cores, operating system, onnxruntime.
        batch_size: Samples of a run.
        threads: Threads computed with; 0 for one for each core.
        provider: Onnxruntime's execution provider.
        rows: What was measured of each branch, by id.
        modes: The costs by mode.
        structure_digest: Digest of that bundle without its weights; empty in tables of earlier
            versions, which are valid for that bundle only.
        clock: What the times are, one of `CLOCKS`.
    """

    bundle_digest: str
    device: Mapping[str, str]
    batch_size: int
    threads: int
    provider: str
    rows: Mapping[str, BranchLatency]
    modes: Mapping[str, ModeLatency]
    structure_digest: str = ""
    clock: str = "wall"

    def costs(self, mode: str = "assembled") -> Mapping[str, float]:
        """What each branch adds to a run, in ms; never below 0.

        Raises:
            UsageError: The table has no such mode.
        """
        return self._mode(mode).costs

    def overhead_ms(self, mode: str = "assembled") -> float:
        """What a run takes besides its branches, in ms.

        Raises:
            UsageError: The table has no such mode.
        """
        return self._mode(mode).overhead_ms

    def predict_ms(self, arch: Arch, mode: str = "assembled") -> float:
        """The latency of a subnet, in ms.

        Raises:
            UsageError: The table has no such mode, or does not have one of the branches.
        """
        model = self._mode(mode)
        missing = [branch for branch in arch if branch not in model.costs]
        if missing:
            raise UsageError(
                f"the latency table has no branch {missing[0]!r}",
                expected="branches of the bundle that was measured",
                got=str(arch),
                fix="measure this bundle: fxelastic profile BUNDLE",
            )
        return model.overhead_ms + math.fsum(model.costs[branch] for branch in arch)

    def error(self, mode: str = "assembled") -> ModelError | None:
        """How far predictions were off, if that was measured.

        Raises:
            UsageError: The table has no such mode.
        """
        return self._mode(mode).error

    def trusted(
        self, mode: str = "assembled", median: float = MOST_MEDIAN, p90: float = MOST_P90
    ) -> bool:
        """Whether predictions were measured to be near.

        Args:
            mode: A key of ``modes``.
            median: Largest median error.
            p90: Largest 90th percentile.
        """
        return self.error(mode) is not None and not self.problem(mode, median, p90)

    def problem(
        self, mode: str = "assembled", median: float = MOST_MEDIAN, p90: float = MOST_P90
    ) -> str:
        """Why the latencies of a mode are unusable; empty where nothing speaks against them.

        A mode whose error was not measured has no problem, and is not `trusted` either. Where the
        original takes less than `SHORT_MS`, larger errors are accepted in proportion: a call alone
        varies by as much.

        Args:
            mode: A key of ``modes``.
            median: Largest median error.
            p90: Largest 90th percentile.

        Raises:
            UsageError: The table has no such mode.
        """
        model = self._mode(mode)
        error = model.error
        short = max(1.0, SHORT_MS / max(model.original_ms, 1e-9))
        median, p90 = median * short, p90 * short
        if model.doubt or error is None or (error.median <= median and error.p90 <= p90):
            return model.doubt
        return f"{error}; at most {median:.0%} and {p90:.0%} are accepted"

    def check_usable(self, mode: str = "assembled", *, force: bool = False) -> None:
        """Refuse latencies that are known to be wrong.

        Args:
            mode: A key of ``modes``.
            force: Accept them all the same.

        Raises:
            UsageError: The table has no such mode, or a `problem` with it.
        """
        problem = self.problem(mode)
        if problem and not force:
            raise UsageError(
                f"the latency table is unusable for {mode} subnets",
                expected="latencies that predict whole subnets",
                got=problem,
                fix="measure again, for longer or while other programs use the machine less: "
                "fxelastic profile BUNDLE; or pass force=True (--force) to search all the same",
            )

    def fits(self, digest: str, structure: Callable[[], str] = lambda: "") -> bool:
        """Whether the table is valid for a bundle.

        It is if the bundle is the one that was measured, or differs from it in weights alone.

        Args:
            digest: The bundle's digest.
            structure: Returns the digest of the bundle's structure. It reads all files of the
                bundle, so it is called only where ``digest`` does not decide.
        """
        if digest == self.bundle_digest:
            return True
        return bool(self.structure_digest) and structure() == self.structure_digest

    def check_bundle(self, digest: str, structure: Callable[[], str] = lambda: "") -> None:
        """Refuse a bundle that the table is not valid for: see `fits`.

        Args:
            digest: The bundle's digest.
            structure: Returns the digest of the bundle's structure.

        Raises:
            UsageError: The table is of another one.
        """
        if self.fits(digest, structure):
            return
        if self.structure_digest:
            expected = "a table of a bundle with the same branches, shapes and operators"
            got = "one of other branches, shapes or operators"
        else:
            expected = f"a table of the bundle {digest[:12]}…, or one that records a structure"
            got = f"one of {self.bundle_digest[:12]}…, without its structure"
        raise UsageError(
            "the latency table is of another bundle",
            expected=expected,
            got=got,
            fix="measure this bundle: fxelastic profile BUNDLE",
        )

    def different_device(self, device: Mapping[str, str]) -> tuple[str, ...]:
        """In what another device differs from the one measured; empty where in nothing."""
        return tuple(
            f"{key}: {self.device.get(key, 'unknown')}, now {device.get(key, 'unknown')}"
            for key in dict.fromkeys((*self.device, *device))
            if self.device.get(key) != device.get(key)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, in one step.

        Raises:
            UsageError: The file can't be written; an old one is as it was.
        """
        try:
            replace_file(Path(path), self.to_json())
        except OSError as e:
            raise UsageError(
                f"the latency table can't be written to {path}",
                expected="a file in a folder that exists, on a disk with space",
                got=f"{type(e).__name__}: {e.strerror or e}",
            ) from e

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            UsageError: There is no such file, or it holds no table.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise _no_table(path, e.strerror or type(e).__name__) from e
        return cls.from_json(data, str(path))

    def to_json(self) -> bytes:
        """The table as JSON: equal bytes for equal tables."""
        value = {
            "schema": SCHEMA,
            "bundle_digest": self.bundle_digest,
            "structure_digest": self.structure_digest,
            "device": dict(self.device),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "provider": self.provider,
            "clock": self.clock,
            "rows": {name: asdict(row) for name, row in self.rows.items()},
            "modes": {
                name: {
                    "overhead_ms": mode.overhead_ms,
                    "costs": dict(mode.costs),
                    "error": None if mode.error is None else asdict(mode.error),
                    "doubt": mode.doubt,
                }
                for name, mode in self.modes.items()
            },
        }
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str = "the latency table") -> LatencyTable:
        """Read what `to_json` gives.

        Raises:
            UsageError: It is no table; the message names the field.
        """
        try:
            value = json.loads(data)
        except ValueError as e:
            raise _no_table(where, f"no JSON: {e}") from e
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            got = value.get("schema") if isinstance(value, dict) else value
            raise _no_table(where, f"schema {got!r}")
        try:
            rows = {name: BranchLatency(**row) for name, row in value["rows"].items()}
            modes = {name: _mode_latency(mode) for name, mode in value["modes"].items()}
            device = {str(k): str(v) for k, v in value["device"].items()}
            table = cls(
                str(value["bundle_digest"]),
                device,
                int(value["batch_size"]),
                int(value["threads"]),
                str(value["provider"]),
                rows,
                modes,
                str(value.get("structure_digest", "")),
                str(value.get("clock", CLOCKS[0])),
            )
            _check(table)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise _no_table(where, f"{type(e).__name__}: {e}") from e
        return table

    def _mode(self, mode: str) -> ModeLatency:
        if mode not in self.modes:
            raise UsageError(
                f"the latency table has no mode {mode!r}",
                expected="one of " + ", ".join(self.modes),
                got=repr(mode),
                fix="measure again: fxelastic profile BUNDLE",
            )
        return self.modes[mode]


def _mode_latency(value: dict[str, Any]) -> ModeLatency:
    error = value["error"]
    costs = {str(k): float(v) for k, v in value["costs"].items()}
    return ModeLatency(
        float(value["overhead_ms"]),
        costs,
        None if error is None else ModelError(**error),
        str(value.get("doubt", "")),
    )


def _check(table: LatencyTable) -> None:
    """Refuse numbers that are no latencies.

    Raises:
        ValueError: There are some.
    """
    numbers: list[Iterable[float]] = [(r.ms, r.median_ms, r.high_ms) for r in table.rows.values()]
    numbers += [mode.costs.values() for mode in table.modes.values()]
    for group in numbers:
        for number in group:
            if isinstance(number, bool) or not 0 <= number < math.inf:
                raise ValueError(f"{number!r} is no latency")
    for name, mode in table.modes.items():
        if not math.isfinite(mode.overhead_ms):
            raise ValueError(f"the overhead of {name} is no number")
        if set(mode.costs) != set(table.rows):
            raise ValueError(f"the branches of {name} are not those that were measured")


def _no_table(where: object, got: str) -> UsageError:
    return UsageError(
        f"{where} is no latency table",
        expected=f"a file of schema {SCHEMA}, as fxelastic profile writes it",
        got=got,
        fix="measure again: fxelastic profile BUNDLE",
    )
