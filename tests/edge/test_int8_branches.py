"""The 8-bit branches that a device uses, and those that it doesn't."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from fxelastic import edge
from fxelastic.edge.candidates import Candidate, candidates_of
from fxelastic.edge.fingerprint import byte_products, fingerprint, needs_reduced_range
from fxelastic.edge.int8_branches import MORE_EXACT, unused_everywhere, unused_in, used
from fxelastic.edge.searching.data import read_data
from fxelastic.edge.searching.distortion import measure
from fxelastic.edge.timed_subnets import distinct_subnets
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, Costs, ModelError
from fxelastic.spec.latency_table import LatencyTable
from tests import int8_bundles as int8

# A worker exports the bundle once.
pytestmark = pytest.mark.xdist_group("export of 8-bit branches")

VNNI = {"machine": "x86_64", "int8": "avx2 avx512_vnni"}
AVX2 = {"machine": "x86_64", "int8": "avx2"}
ERROR = ModelError(0.01, 0.02, 12)


def table(
    shares: Mapping[str, float], device: Mapping[str, str] = VNNI, **own: float
) -> LatencyTable:
    """A recorded table: a float branch takes 10 ms or half of that, an 8-bit one a share of it."""
    bundle = int8.bundle()
    costs: dict[str, float] = {}
    for segment in bundle.manifest.segments:
        quantised = segment.quantised
        source = segment.id if quantised is None else quantised.source
        ms = 10.0 if source.startswith("original") else 5.0
        costs[segment.id] = ms if quantised is None else ms * shares[quantised.format]
    rows = {name: BranchLatency(ms, ms, ms, 9, 1, 1) for name, ms in costs.items()}
    latency = Costs({"latency_ms": BranchCosts(costs, error=ERROR)})
    modes = {"assembled": latency, "paged": latency}
    return LatencyTable(bundle.digest, device, 1, 1, "CPUExecutionProvider", rows, modes)


def shares(u8s8: float, dynamic: float, s8s8: float = 3.0) -> dict[str, float]:
    found = {"u8s8": u8s8, "dynamic": dynamic, "s8s8": s8s8}
    return found | {f"{name}-reduced": found[name] for name in ("u8s8", "dynamic")}


SLOW, FAST = shares(2.0, 1.5), shares(0.3, 0.4)


def kinds(bundle: edge.Bundle) -> set[str]:
    return {spec.kind for spec in bundle.space.branches}


def formats(bundle: edge.Bundle, source: str) -> list[str]:
    segments = (bundle.segment(spec.id) for spec in bundle.space.branches)
    return [s.quantised.format for s in segments if s.quantised and s.quantised.source == source]


def test_slower_branches_are_never_searched() -> None:
    bundle = int8.bundle()
    for mode in ("assembled", "paged"):
        assert "int8" not in kinds(used(bundle, table(SLOW), mode))
    data = {"images": int8.images(4)}
    result = edge.search(bundle, table(SLOW), data, budget="80%", max_subnets=12, held_out=0)
    assert not [e.arch for e in result.pool.entries if any("+" in name for name in e.arch)]
    result = edge.search(bundle, table(FAST), data, budget="50%", max_subnets=12, held_out=0)
    assert any(name.startswith("u8s8+") for name in result.best.arch)


def test_branches_that_are_faster_at_one_of_the_sizes_are_measured_further() -> None:
    bundle = int8.bundle()
    slow, fast = ({n: r.ms for n, r in table(own).rows.items()} for own in (SLOW, FAST))
    never = unused_everywhere(bundle, [slow, slow], VNNI, {})
    assert never == unused_everywhere(bundle, [slow], VNNI, {})
    assert "int8" not in kinds(bundle.without(never))
    sometimes = unused_everywhere(bundle, [slow, fast], VNNI, {})
    assert set(sometimes) == set(unused_everywhere(bundle, [fast], VNNI, {})) < set(never)


def test_slower_branches_are_never_served(caplog: pytest.LogCaptureFixture) -> None:
    bundle = int8.bundle()
    quick = Arch(("u8s8+original@0", *bundle.space.original.branches[1:]))
    entries = [Candidate(quick, 5.0, 0.9), Candidate(bundle.space.original, 10.0, 1.0)]
    assert len(candidates_of(bundle, entries, table(FAST), "assembled")) == 2
    with caplog.at_level(logging.WARNING):
        (only,) = candidates_of(bundle, entries, table(SLOW), "assembled")
    assert only.arch == bundle.space.original
    assert "u8s8+original@0: it takes 20 ms, and original@0 in float 10 ms" in caplog.text
    with pytest.raises(UsageError, match="every subnet of the pool has an 8-bit branch"):
        edge.serve(bundle, table(SLOW), entries[:1], budget_ms=20)
    with edge.serve(bundle, table(SLOW), entries, budget_ms=500) as runtime:
        runtime(int8.images(1))
        assert [entry.arch for entry in runtime.entries] == [bundle.space.original]


def test_the_faster_format_is_kept() -> None:
    bundle = int8.bundle()
    assert formats(used(bundle, table(shares(0.5, 0.2)), "paged"), "original@2") == ["dynamic"]
    assert formats(used(bundle, table(shares(0.5, 0.2)), "paged"), "original@1") == ["u8s8"]


def test_all_branches_have_activations_of_the_same_sign() -> None:
    """Otherwise neighbours would convert the values between them."""
    bundle = int8.bundle()
    recorded = table(shares(0.3, 3.0, s8s8=0.2))
    costs = dict(recorded.costs("paged"))
    costs["s8s8+original@1"] = 4.0  # slower than u8s8 there
    latency = Costs({"latency_ms": BranchCosts(costs, error=ERROR)})
    recorded = replace(recorded, modes={"paged": latency})
    kept = used(bundle, recorded, "paged")
    assert [formats(kept, f"original@{i}") for i in range(4)] == [["s8s8"]] * 4
    assert "its format takes" in unused_in(bundle, recorded, "paged")["u8s8+original@1"]


def test_formats_that_are_equally_fast_are_chosen_alike() -> None:
    bundle = int8.bundle()
    recorded = table(shares(0.5, 0.4))
    costs = {**recorded.costs("paged"), "u8s8+original@3": 3.9}  # dynamic takes 4.0
    latency = Costs({"latency_ms": BranchCosts(costs, error=ERROR)})
    kept = used(bundle, replace(recorded, modes={"paged": latency}), "paged")
    assert formats(kept, "original@3") == ["dynamic"]


def test_a_slower_format_is_kept_if_it_is_much_more_exact() -> None:
    bundle = int8.bundle()
    errors = {
        name: q.error
        for name in ("u8s8", "dynamic")
        if (q := bundle.segment(f"{name}+original@2").quantised)
    }
    exact = errors["dynamic"] < MORE_EXACT * errors["u8s8"]
    found = formats(used(bundle, table(shares(0.2, 0.3)), "paged"), "original@2")
    assert found == (["dynamic", "u8s8"] if exact else ["u8s8"])


def test_processors_without_vnni_use_a_reduced_range() -> None:
    bundle = int8.bundle()
    assert formats(used(bundle, table(FAST, AVX2), "paged"), "original@1") == ["u8s8-reduced"]
    assert needs_reduced_range({"machine": "AMD64", "int8": ""})
    assert not needs_reduced_range({"machine": "aarch64", "int8": "asimd"})
    assert byte_products("sse avx512_vnni fma avx2") == "avx2 avx512_vnni"
    assert byte_products("fp asimddp asimd") == "asimd asimddp"


def test_neighbours_in_timed_subnets_mostly_have_the_same_precision() -> None:
    bundle = used(int8.bundle(), table(FAST), "paged")
    archs = distinct_subnets(bundle, 24, seed=0)
    all_int8, *others = archs
    assert all(bundle.segment(name).quantised for name in all_int8)
    precisions = [[bundle.segment(b).quantised is not None for b in arch] for arch in others]
    changes = [a != b for row in precisions for a, b in pairwise(row)]
    assert np.mean(changes) < 0.35
    assert 0.2 < np.mean([eight for row in precisions for eight in row]) < 0.8


def test_a_profile_states_what_it_does_not_use(tmp_path: Path) -> None:
    bundle = int8.bundle()
    found = edge.profile(bundle, threads=1, n_samples=3, n_subnets=2, n_held_out=2)
    eight_bit = {s.id for s in bundle.manifest.segments if s.quantised}
    assert eight_bit >= set(found.refused)
    assert set(found.rows) == {s.id for s in bundle.manifest.segments} - set(found.refused)
    for name, reason in found.refused.items():
        assert "ms" in reason or "reduce_range" in reason, name
    for name in eight_bit & set(found.rows):
        quantised = bundle.segment(name).quantised
        assert quantised is not None
        assert found.rows[name].ms < found.rows[quantised.source].ms
    found.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == found


def rewritten(path: Path, branch: str, *, listed: bool) -> edge.Bundle:
    """The bundle with an operator of a branch that no onnxruntime has."""
    shutil.copytree(int8.bundle().path, path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    (entry,) = (entry for entry in manifest["branches"] if entry["id"] == branch)
    model = onnx.load(path / entry["file"])
    next(n for n in model.graph.node if n.op_type == "QuantizeLinear").domain = "of.tomorrow"
    data = model.SerializeToString()
    (path / entry["file"]).write_bytes(data)
    entry["size_bytes"] = len(data)
    if listed:
        entry["sha256"] = hashlib.sha256(data).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    return edge.load(path)


def test_a_branch_that_onnxruntime_can_not_load_is_refused_by_name(tmp_path: Path) -> None:
    reduced = "-reduced" if needs_reduced_range(fingerprint()) else ""
    branch = f"u8s8{reduced}+original@1"
    bundle = rewritten(tmp_path / "bundle", branch, listed=True)
    found = edge.profile(bundle, threads=1, n_samples=3, n_subnets=0, n_held_out=0)
    assert "can't load it" in found.refused[branch]
    assert branch not in found.rows
    assert "original@1" in found.rows


def test_a_damaged_8_bit_branch_is_an_error(tmp_path: Path) -> None:
    bundle = rewritten(tmp_path / "bundle", "u8s8+original@1", listed=False)
    with pytest.raises(BundleError, match=r"u8s8\+original@1\.onnx has a different digest"):
        edge.profile(bundle, threads=1, n_samples=3, n_subnets=0, n_held_out=0)


def test_errors_that_there_was_no_time_to_measure_come_from_the_bundle() -> None:
    bundle = int8.bundle()
    data = read_data(bundle, {"images": int8.images(2)})
    with edge.Executor(bundle, threads=1) as executor:
        found = measure(executor, data, 2, stop=lambda: True)
    errors = dict(zip(found.branches, found.errors, strict=True))
    segment = bundle.segment("u8s8+original@1")
    assert segment.quantised is not None
    assert errors[segment.id] == pytest.approx(segment.quantised.error)
    assert errors["u8s8+pruned50@1"] > errors["pruned50@1"] > np.float64(0)


def test_a_table_of_an_earlier_release_is_of_the_same_device() -> None:
    old = replace(table(FAST), device={"machine": "x86_64"})
    assert old.different_device(VNNI) == ()
    assert table(FAST).different_device(AVX2)
