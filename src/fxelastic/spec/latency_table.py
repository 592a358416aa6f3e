"""What a bundle's branches take on one device, and how well that predicts whole subnets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.arch import Arch
from fxelastic.spec.costs import BranchCosts, Costs, ModelError
from fxelastic.spec.json_document import JsonDocument
from fxelastic.spec.resources import LATENCY, WEIGHTS

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
        n: The number of timed runs.
        weight_bytes: The size of its weights.
        activation_bytes: The size of the values that it reads and writes.
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
class LatencyTable(JsonDocument):
    """The costs of a bundle's branches on one device.

    Attributes:
        bundle_digest: Digest of the bundle that was measured, weights included.
        device: Identifies the device: processor, cores, operating system, onnxruntime.
        batch_size: Samples of a run.
        threads: Threads computed with; 0 for one for each core.
        provider: Onnxruntime's execution provider.
        rows: The measurements of each branch, by id.
        modes: The costs of branches by mode.
        structure_digest: Digest of that bundle without its weights; empty in tables of earlier
            versions, which are valid for that bundle only.
        clock: How times were measured, one of `CLOCKS`.
    """

    what = "latency table"
    # The first schema had latencies alone.
    schemas = "fxelastic.latency/2", "fxelastic.latency/1"
    command = "fxelastic profile BUNDLE"

    bundle_digest: str
    device: Mapping[str, str]
    batch_size: int
    threads: int
    provider: str
    rows: Mapping[str, BranchLatency]
    modes: Mapping[str, Costs]
    structure_digest: str = ""
    clock: str = "wall"

    def costs_of(self, mode: str = "assembled") -> Costs:
        """The costs of branches by resource.

        Raises:
            UsageError: The table has no such mode.
        """
        if mode not in self.modes:
            raise UsageError(
                f"the latency table has no mode {mode!r}",
                expected="one of " + ", ".join(self.modes),
                got=repr(mode),
                fix="measure again: fxelastic profile BUNDLE",
            )
        return self.modes[mode]

    def costs(self, mode: str = "assembled", resource: str = LATENCY) -> Mapping[str, float]:
        """What each branch adds to a run, by default in ms; never below 0.

        Raises:
            UsageError: The table has no such mode, or no such resource.
        """
        return self.costs_of(mode)[resource].costs

    def overhead_ms(self, mode: str = "assembled") -> float:
        """What a run takes besides its branches, in ms.

        Raises:
            UsageError: The table has no such mode.
        """
        return self.costs_of(mode)[LATENCY].overhead

    def predict(
        self, arch: Arch, sizes: Mapping[str, int] | None = None, mode: str = "assembled"
    ) -> dict[str, float]:
        """What a run of a subnet takes of each resource.

        Args:
            arch: The subnet.
            sizes: Sizes of the inputs; only None, the sizes that were measured, is supported.
            mode: A key of ``modes``.

        Returns:
            The costs by the resource's name, for a run of ``batch_size`` samples.

        Raises:
            UsageError: The table has no such mode, lacks one of the branches, or sizes are given.
        """
        if sizes is not None:
            raise UsageError(
                "costs are known for the sizes that were measured only",
                expected=f"sizes=None, which stands for batch size {self.batch_size}",
                got=f"sizes={sizes!r}",
                fix="profile the bundle with these inputs: edge.profile(bundle, inputs=...)",
            )
        return self.costs_of(mode).predict(arch)

    def predict_ms(self, arch: Arch, mode: str = "assembled") -> float:
        """The latency of a subnet, in ms.

        Raises:
            UsageError: The table has no such mode, or lacks one of the branches.
        """
        return self.costs_of(mode).total(LATENCY, arch)

    def including(self, resources: Mapping[str, BranchCosts]) -> LatencyTable:
        """The table with the costs of other resources added or replaced, in each mode."""
        modes = {mode: costs.including(resources) for mode, costs in self.modes.items()}
        return replace(self, modes=modes)

    def mapped(
        self, change: Callable[[BranchCosts], BranchCosts], resource: str = LATENCY
    ) -> LatencyTable:
        """The table with the costs of one resource changed in each mode."""
        modes = {
            mode: costs.including({resource: change(costs[resource])})
            for mode, costs in self.modes.items()
        }
        return replace(self, modes=modes)

    def error(self, mode: str = "assembled", resource: str = LATENCY) -> ModelError | None:
        """How far predictions were off; None where that was not measured.

        Raises:
            UsageError: The table has no such mode, or no such resource.
        """
        return self.costs_of(mode)[resource].error

    def trusted(
        self, mode: str = "assembled", median: float = MOST_MEDIAN, p90: float = MOST_P90
    ) -> bool:
        """Whether the error of latencies was measured and is small.

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
        latency = self.costs_of(mode)[LATENCY]
        error = latency.error
        short = max(1.0, SHORT_MS / max(original_cost(latency), 1e-9))
        median, p90 = median * short, p90 * short
        if latency.doubt or error is None or (error.median <= median and error.p90 <= p90):
            return latency.doubt
        return f"{error}; at most {median:.0%} and {p90:.0%} are accepted"

    def check_usable(self, mode: str = "assembled", *, force: bool = False) -> None:
        """Raise an error if latencies are known to be wrong.

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
        """Raise an error if the table is not valid for a bundle: see `fits`.

        Args:
            digest: The bundle's digest.
            structure: Returns the digest of the bundle's structure.

        Raises:
            UsageError: The table belongs to another bundle.
        """
        if self.fits(digest, structure):
            return
        if self.structure_digest:
            expected = "a table of a bundle with the same branches, shapes and operators"
            got = "a table of other branches, shapes or operators"
        else:
            expected = f"a table of the bundle {digest[:12]}…, or one that records a structure"
            got = f"a table of {self.bundle_digest[:12]}…, without its structure"
        raise UsageError(
            "the latency table belongs to another bundle",
            expected=expected,
            got=got,
            fix="measure this bundle: fxelastic profile BUNDLE",
        )

    def different_device(self, device: Mapping[str, str]) -> tuple[str, ...]:
        """The differences between another device and the measured one; empty if there are none."""
        return tuple(
            f"{key}: {self.device.get(key, 'unknown')}, now {device.get(key, 'unknown')}"
            for key in dict.fromkeys((*self.device, *device))
            if self.device.get(key) != device.get(key)
        )

    def to_dict(self) -> dict[str, Any]:
        """The table as data for ``json.dumps``."""
        return {
            "bundle_digest": self.bundle_digest,
            "structure_digest": self.structure_digest,
            "device": dict(self.device),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "provider": self.provider,
            "clock": self.clock,
            "rows": {name: asdict(row) for name, row in self.rows.items()},
            "modes": {
                mode: {name: found.to_json() for name, found in costs.items()}
                for mode, costs in self.modes.items()
            },
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LatencyTable:
        """Read the data that `to_dict` returns; see `JsonDocument`."""
        rows = {name: BranchLatency(**row) for name, row in value["rows"].items()}
        read = _costs if value["schema"] == cls.schemas[0] else _first_costs
        table = cls(
            str(value["bundle_digest"]),
            {str(k): str(v) for k, v in value["device"].items()},
            int(value["batch_size"]),
            int(value["threads"]),
            str(value["provider"]),
            rows,
            {str(mode): read(found, rows) for mode, found in value["modes"].items()},
            str(value.get("structure_digest", "")),
            str(value.get("clock", CLOCKS[0])),
        )
        _check(table)
        return table


def original_cost(costs: BranchCosts) -> float:
    """What the original takes of a resource that adds up as a sum."""
    own = (cost for name, cost in costs.costs.items() if name.startswith("original@"))
    return costs.overhead + math.fsum(own)


def _costs(value: Mapping[str, Any], rows: Mapping[str, BranchLatency]) -> Costs:
    return Costs({name: BranchCosts.from_json(found) for name, found in value.items()})


def _first_costs(value: Mapping[str, Any], rows: Mapping[str, BranchLatency]) -> Costs:
    """The costs of a table of the first version, whose rows have the weights."""
    latency = BranchCosts.from_json({**value, "overhead": value["overhead_ms"]})
    weights = {name: float(row.weight_bytes) for name, row in rows.items()}
    return Costs({LATENCY: latency, WEIGHTS: BranchCosts(weights)})


def _check(table: LatencyTable) -> None:
    """Check that the numbers are latencies and that all branches have costs.

    Raises:
        ValueError: Something is not.
    """
    for row in table.rows.values():
        for number in (row.ms, row.median_ms, row.high_ms):
            if isinstance(number, bool) or not 0 <= number < math.inf:
                raise ValueError(f"{number!r} is not a latency")
    for mode, costs in table.modes.items():
        for name, found in {LATENCY: costs[LATENCY], **costs}.items():
            if set(found.costs) != set(table.rows):
                raise ValueError(f"the {name} of {mode} and the rows have different branches")
