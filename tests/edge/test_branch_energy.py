"""The energy of branches: by a replayed counter, by power, by accesses; and cache hit rates."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from fxelastic.edge.branch_energy import (
    AccessCoefficients,
    access_energy,
    energy_by_counter,
    energy_by_power,
    hit_rate,
)
from fxelastic.edge.cache_hits import flush_bytes, with_hit_rate
from fxelastic.edge.monitoring.energy_meter import EnergyMeter
from fxelastic.edge.monitoring.system_files import SystemFiles
from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts
from tests.edge.monitoring.trees import write_tree
from tests.spec.spaces import chain, enumerate_paths

SPACE = chain(5, spans=(1, 2), variants=2)
_RAPL = "sys/class/powercap/intel-rapl:0"


def row(ms: float, weights: int = 1000, activations: int = 1000) -> BranchLatency:
    return BranchLatency(ms, ms, 1.1 * ms, 20, weights, activations)


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_branches_are_near_whole_subnets_on_a_replayed_counter(
    tmp_path: Path, seed: int
) -> None:
    """The counter has noise, and branches have powers of their own: energy is not latency."""
    rng = random.Random(seed)
    ms = {
        s.id: (s.stop - s.start) * (2.0 if s.kind == "original" else rng.uniform(0.5, 1.8))
        for s in SPACE.branches
    }
    true_mj = {branch: 30.0 * t * rng.uniform(0.85, 1.15) for branch, t in ms.items()}
    now = {"s": 0.0, "uj": 1_000_000.0}

    def write() -> None:
        write_tree(tmp_path, {f"{_RAPL}/energy_uj": str(int(now["uj"]))})

    write()
    names = {f"{_RAPL}/name": "package-0\n", f"{_RAPL}/max_energy_range_uj": "262143328850\n"}
    write_tree(tmp_path, names)
    meter = EnergyMeter(tmp_path, threads=2, clock=lambda: now["s"], process_clock=lambda: 0.0)

    def measure(arch: Arch) -> float:
        meter.begin()
        for _ in range(10):
            now["s"] += 1e-3 * sum(ms[branch] for branch in arch)
            used = sum(true_mj[branch] for branch in arch) + 3.0
            now["uj"] += 1e3 * used * rng.gauss(1.0, 0.02)
        write()
        return 1e3 * meter.end().joules / 10

    every = enumerate_paths(SPACE)
    archs = rng.sample(every, 18)
    found = energy_by_counter(
        *(SPACE, {branch: row(t) for branch, t in ms.items()}, BranchCosts(ms), archs, measure),
        n_held_out=6,
        source="rapl",
    )
    errors = []
    for arch in rng.sample(every, 60):
        whole = sum(true_mj[branch] for branch in arch) + 3.0
        predicted = found.overhead + sum(found.costs[branch] for branch in arch)
        errors.append(abs(predicted - whole) / whole)
    assert np.median(errors) <= 0.05
    assert found.source == "rapl"
    assert found.error is not None
    assert found.error.median <= 0.06


def test_energy_by_power_has_the_error_of_the_latency() -> None:
    latency = BranchCosts({"a@0": 2.0, "b@1": 0.0}, 0.5, None, "noise")
    found = energy_by_power(latency, 30.0, "model")
    assert found.costs == {"a@0": 60.0, "b@1": 0.0}
    assert (found.overhead, found.doubt, found.source) == (15.0, "noise", "model")
    assert BranchCosts.from_json(found.to_json()) == found


def test_accesses_that_miss_cost_more_than_those_that_hit() -> None:
    flops, traffic = BranchCosts({"a@0": 1e6}), BranchCosts({"a@0": 2000.0})
    cold, warm = row(1.0, 2000, 0), row(1.0, 0, 2000)
    assert (hit_rate(cold), hit_rate(warm)) == (0.0, 1.0)
    given = AccessCoefficients(2.0, 10.0, 100.0)
    missing = access_energy(flops, traffic, {"a@0": cold}, given).costs["a@0"]
    hitting = access_energy(flops, traffic, {"a@0": warm}, given).costs["a@0"]
    assert missing == pytest.approx((2e6 + 2e5) / 1e9)
    assert hitting == pytest.approx((2e6 + 2e4) / 1e9)
    assert "2 pJ per operation" in access_energy(flops, traffic, {"a@0": warm}, given).source


def test_the_hit_rate_is_the_share_of_bytes_that_a_flush_makes_late() -> None:
    # 2,000 bytes at 1,000 bytes a ms: all of them late take 2 ms more.
    measured = row(1.0)
    assert with_hit_rate(measured, [2.9, 3.0, 3.1], 1000).hit_rate == pytest.approx(1.0)
    assert with_hit_rate(measured, [1.9, 2.0, 2.1], 1000).hit_rate == pytest.approx(0.5)
    assert with_hit_rate(measured, [0.9], 1000).hit_rate == 0.0
    error = with_hit_rate(measured, [1.9, 2.0, 2.1], 1000).hit_rate_error
    assert error == pytest.approx(0.1)
    assert with_hit_rate(row(1.0, 0, 0), [2.0], 1000).hit_rate is None


@pytest.mark.parametrize(
    ("text", "expected"), [("8192K\n", 2**24), ("512M\n", 2**26), ("", 2**25), ("x", 2**25)]
)
def test_a_flush_writes_twice_the_last_cache_at_most_64_mib(
    tmp_path: Path, text: str, expected: int
) -> None:
    write_tree(tmp_path, {"sys/devices/system/cpu/cpu0/cache/index3/size": text})
    assert flush_bytes(SystemFiles(tmp_path)) == expected
