"""The measured costs of a bundle's branches on one device, and their error on whole subnets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.arch import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.cascade import Servable
from fxelastic.spec.costs import BranchCosts, Costs, ModelError
from fxelastic.spec.costs_by_size import CostsBySize, Sizes, repeated
from fxelastic.spec.json_document import JsonDocument
from fxelastic.spec.latency_table_checks import check_costs, check_setting
from fxelastic.spec.resources import LATENCY, WEIGHTS

#: How a subnet is run: as one model, or branch by branch.
MODES = ("assembled", "paged")

#: The largest median and 90th percentile of a mode's error that searches accept.
MOST_MEDIAN, MOST_P90 = 0.05, 0.15

#: Clocks for timing: wall-clock time, or processor time, which excludes other processes.
CLOCKS = ("wall", "processor")

# A property of devices that tables of earlier releases lack.
_NEW = ("int8",)

#: If the original takes less, in ms, relative errors are dominated by noise.
SHORT_MS = 1.0

_ORIGINAL = "original@"


@dataclass(frozen=True)
class LatencyTable(JsonDocument):
    """The costs of a bundle's branches on one device.

    Attributes:
        bundle_digest: Digest of the bundle that was measured, weights included.
        device: What identifies the device: processor, cores, operating system, onnxruntime.
        batch_size: The number of samples in a run.
        threads: The number of threads; 0 means one for each core.
        provider: The execution provider of onnxruntime.
        rows: The measurements of each branch, by id.
        modes: The costs of branches by mode.
        structure_digest: Digest of that bundle without its weights; empty in tables of earlier
            versions, which are valid only for that bundle.
        clock: The clock that measured times, one of `CLOCKS`.
        sizes: The sizes of inputs that ``modes`` holds the costs for; several if they are the mean
            over as many inputs; empty if only the batch size varies.
        extrapolation: Which of these sizes is outside of those measured; empty if none is.
        by_size: The costs as functions of the sizes, for `at`; None if the table is for ``sizes``
            alone.
        refused: The 8-bit branches that the device does not use, by id, and why.
    """

    what = "latency table"
    # The first schema had only latencies.
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
    sizes: tuple[Sizes, ...] = ()
    extrapolation: str = ""
    by_size: CostsBySize | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

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
        """The cost that each branch adds to a run, by default its latency in ms; at least 0.

        Raises:
            UsageError: The table has no such mode, or no such resource.
        """
        return self.costs_of(mode)[resource].costs

    def overhead_ms(self, mode: str = "assembled") -> float:
        """The latency of a run besides its branches, in ms.

        Raises:
            UsageError: The table has no such mode.
        """
        return self.costs_of(mode)[LATENCY].overhead

    def predict(
        self, arch: Arch, sizes: Sizes | None = None, mode: str = "assembled"
    ) -> dict[str, float]:
        """The cost of a run of a subnet in each resource.

        Args:
            arch: The subnet.
            sizes: The sizes of the inputs that may vary besides the batch size, such as
                ``{"seq": 100}``; None for the table's ``sizes``: the example's, unless it is the
                result of `at` or `mean_over`.
            mode: A key of ``modes``.

        Returns:
            The costs by resource name, for a run of ``batch_size`` samples.

        Raises:
            UsageError: The table has no such mode, lacks one of the branches, or does not hold for
                these sizes; see `at`.
        """
        table = self if sizes is None else self.at(sizes)
        return table.costs_of(mode).predict(arch)

    def predict_ms(
        self, arch: Servable, mode: str = "assembled", sizes: Sizes | None = None
    ) -> float:
        """The latency of a subnet, in ms; takes the arguments of `predict`.

        For a cascade, it is the latency of a sample that runs all branches.

        Raises:
            UsageError: The table has no such mode, lacks one of the branches, or does not hold for
                these sizes; see `at`.
        """
        costs = self.costs_of(mode)
        if sizes is not None:
            if self.by_size is not None:
                checked = self.by_size.checked(sizes)
                return self.by_size.predict_ms(mode, arch, checked)
            self._check_own(sizes)
        return costs.total(LATENCY, arch)

    def at(self, sizes: Sizes) -> LatencyTable:
        """The table for inputs of given sizes, whose costs no longer depend on them.

        If a size is outside of those measured, the costs are extrapolated, and the table says so in
        ``extrapolation`` and is not `trusted`.

        Args:
            sizes: Each size that may vary besides the batch size, by its name: ``{"seq": 100}``.

        Raises:
            UsageError: A name is unknown or missing, a size is out of the model's range, or the
                table holds for other sizes alone.
        """
        if self.by_size is None:
            self._check_own(sizes)
            return self
        return self._mean(self.by_size, [sizes])

    def mean_over(self, sizes: Iterable[Sizes]) -> LatencyTable:
        """The table of the mean costs over inputs of given sizes, such as the samples of a dataset.

        The peak memory is the highest instead. The costs no longer depend on sizes.

        Args:
            sizes: The sizes of each input, as for `at`.

        Raises:
            UsageError: The costs depend on sizes, and there are none; for others see `at`.
        """
        each = list(sizes)
        if self.by_size is not None:
            return self._mean(self.by_size, each)
        for own in each:
            self._check_own(own)
        return self

    def at_percentile(
        self, sizes: Iterable[Sizes], percentile: float, mode: str = "assembled"
    ) -> LatencyTable:
        """The table for the input whose original latency is a percentile of those given.

        At 95, at least 95 % of the inputs take no longer.

        Args:
            sizes: The sizes of each input, as for `at`.
            percentile: The percentile, from 0 to 100.
            mode: The mode of the latency.

        Raises:
            UsageError: The percentile is out of range, or the costs depend on sizes, and there are
                none; for others see `at`.
        """
        number = isinstance(percentile, (int, float)) and not isinstance(percentile, bool)
        if not number or not 0 <= percentile <= 100:
            raise UsageError(
                "the percentile is out of range", expected="from 0 to 100", got=repr(percentile)
            )
        each = list(sizes)
        if self.by_size is None or not each:
            return self.mean_over(each)
        original = [name for name in self.rows if name.startswith(_ORIGINAL)]
        counts = Counter(tuple(self.by_size.checked(own).items()) for own in each)
        latencies = sorted(
            (self.predict_ms(Arch(tuple(original)), mode, dict(own)), own) for own in counts
        )
        left = max(1, math.ceil(percentile / 100 * len(each)))
        for _, own in latencies:
            left -= counts[own]
            if left <= 0:
                break
        return self.at(dict(own))

    def _mean(self, by_size: CostsBySize, each: Iterable[Sizes]) -> LatencyTable:
        """The mean costs over inputs."""
        sizes = tuple(sorted(map(by_size.checked, each), key=lambda own: tuple(own.values())))
        counts = Counter(tuple(own.values()) for own in sizes)
        if not counts:
            raise UsageError(
                "the mean over no inputs is not defined",
                expected="the sizes of at least one input",
                got="none",
            )
        modes = {}
        for mode, costs in self.modes.items():
            found = by_size.mean(mode, counts)
            whole = costs[LATENCY]
            latency = replace(
                found[LATENCY],
                error=whole.error,
                doubt=whole.doubt,
                per_decision=whole.per_decision,
            )
            modes[mode] = costs.including({**found, LATENCY: latency})
        outside = next(filter(None, map(by_size.outside, sizes)), "")
        return replace(self, modes=modes, sizes=sizes, extrapolation=outside, by_size=None)

    def _check_own(self, sizes: Sizes) -> None:
        """Check that a table that holds for certain sizes alone holds for the given ones.

        Raises:
            UsageError: It does not.
        """
        if self.sizes and all(own == sizes for own in self.sizes):
            return
        expected = f"sizes=None, which means batch size {self.batch_size}"
        if self.sizes:
            expected += f" and {self.sizes_text}"
        raise UsageError(
            "costs are known only for the sizes that were measured",
            expected=expected,
            got=f"sizes={sizes!r}",
            fix="measure at several sizes: edge.profile(bundle, sizes={...}), or --sizes on the "
            "command line; only sizes that were named in dynamic_shapes may vary",
        )

    @property
    def sizes_text(self) -> str:
        """The sizes in a line: ``seq = 83``, or ``the mean over seq = 5 to 83``."""
        ranges = []
        for name in self.sizes[0] if self.sizes else ():
            found = [sizes[name] for sizes in self.sizes]
            least, most = min(found), max(found)
            ranges.append(f"{name} = {least}" + (f" to {most}" if most > least else ""))
        return ("the mean over " if len(self.sizes) > 1 else "") + ", ".join(ranges)

    def including(self, resources: Mapping[str, BranchCosts]) -> LatencyTable:
        """A copy with the costs of the given resources added or replaced, in each mode."""
        modes = {mode: costs.including(resources) for mode, costs in self.modes.items()}
        return replace(self, modes=modes)

    def mapped(
        self, change: Callable[[BranchCosts], BranchCosts], resource: str = LATENCY
    ) -> LatencyTable:
        """A copy with a linear ``change`` applied to the costs of one resource in each mode."""
        modes = {
            mode: costs.including({resource: change(costs[resource])})
            for mode, costs in self.modes.items()
        }
        by_size = None if self.by_size is None else self.by_size.mapped(change, resource)
        return replace(self, modes=modes, by_size=by_size)

    def error(self, mode: str = "assembled", resource: str = LATENCY) -> ModelError | None:
        """The error of predictions; None if it was not measured.

        Raises:
            UsageError: The table has no such mode, or no such resource.
        """
        return self.costs_of(mode)[resource].error

    def trusted(
        self, mode: str = "assembled", median: float = MOST_MEDIAN, p90: float = MOST_P90
    ) -> bool:
        """Whether the error of latencies was measured and is small, and none is extrapolated.

        Args:
            mode: A key of ``modes``.
            median: Largest median error.
            p90: Largest 90th percentile.
        """
        return not self.weakness(mode, median, p90)

    def weakness(
        self, mode: str = "assembled", median: float = MOST_MEDIAN, p90: float = MOST_P90
    ) -> str:
        """Why the latencies of a mode are not `trusted`; empty if they are."""
        unknown = "no whole subnets were held out" if self.error(mode) is None else ""
        outside = f"they are extrapolated: {self.extrapolation}" if self.extrapolation else ""
        return self.problem(mode, median, p90) or unknown or outside

    def problem(
        self, mode: str = "assembled", median: float = MOST_MEDIAN, p90: float = MOST_P90
    ) -> str:
        """Why the latencies of a mode are unusable; empty if no problem is known.

        If the error of a mode was not measured, the mode has no known problem, but it is not
        `trusted` either. If the original takes less than `SHORT_MS`, proportionally larger errors
        are accepted: the time of a call alone varies by as much.

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
        """Raise an error if the latencies of a mode are known to be unreliable.

        Args:
            mode: A key of ``modes``.
            force: Accept them anyway.

        Raises:
            UsageError: The table has no such mode, or the mode has a `problem`.
        """
        problem = self.problem(mode)
        if problem and not force:
            raise UsageError(
                f"the latency table is unusable for {mode} subnets",
                expected="latencies that predict whole subnets",
                got=problem,
                fix="measure again, for longer or while other programs use the machine less: "
                "fxelastic profile BUNDLE; or pass force=True (--force) to search anyway",
            )

    def fits(self, digest: str, structure: Callable[[], str] = lambda: "") -> bool:
        """Whether the table is valid for a bundle.

        It is valid for the bundle that was measured and for bundles that differ from it only in
        their weights.

        Args:
            digest: The bundle's digest.
            structure: Returns the digest of the bundle's structure. It reads all files of the
                bundle, so it is called only if ``digest`` differs.
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
            if self.device.get(key) != device.get(key) and (key in self.device or key not in _NEW)
        )

    def to_dict(self) -> dict[str, Any]:
        """The table as data for ``json.dumps``."""
        # Fields that earlier releases do not know are written only if they are needed.
        by_size = {} if self.by_size is None else {"by_size": self.by_size.to_json()}
        counts = Counter(tuple(own.items()) for own in self.sizes)
        sizes = {"sizes": [[dict(own), n] for own, n in counts.items()]} if counts else {}
        outside = {"extrapolation": self.extrapolation} if self.extrapolation else {}
        return {
            "bundle_digest": self.bundle_digest,
            "structure_digest": self.structure_digest,
            "device": dict(self.device),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "provider": self.provider,
            "clock": self.clock,
            **({"refused": dict(self.refused)} if self.refused else {}),
            "rows": {name: row.to_json() for name, row in self.rows.items()},
            "modes": {
                mode: {name: found.to_json() for name, found in costs.items()}
                for mode, costs in self.modes.items()
            },
            **sizes,
            **outside,
            **by_size,
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
            tuple(repeated(value.get("sizes", ()))),
            str(value.get("extrapolation", "")),
            CostsBySize.from_json(value["by_size"]) if "by_size" in value else None,
            {str(k): str(v) for k, v in value.get("refused", {}).items()},
        )
        check_setting(table.batch_size, table.threads, table.sizes)
        check_costs(rows, table.modes, table.by_size)
        return table


def original_cost(costs: BranchCosts) -> float:
    """The cost of the original in a resource whose costs add up."""
    own = (cost for name, cost in costs.costs.items() if name.startswith(_ORIGINAL))
    return costs.overhead + math.fsum(own)


def _costs(value: Mapping[str, Any], rows: Mapping[str, BranchLatency]) -> Costs:
    return Costs({name: BranchCosts.from_json(found) for name, found in value.items()})


def _first_costs(value: Mapping[str, Any], rows: Mapping[str, BranchLatency]) -> Costs:
    """The costs in a table of the first schema, whose rows contain the sizes of the weights."""
    latency = BranchCosts.from_json({**value, "overhead": value["overhead_ms"]})
    weights = {name: float(row.weight_bytes) for name, row in rows.items()}
    return Costs({LATENCY: latency, WEIGHTS: BranchCosts(weights)})
