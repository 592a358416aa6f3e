"""Tables of latencies: what is in them, and what becomes of them when something goes wrong."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fxelastic import edge
from fxelastic.edge import branch_timing
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.timed_subnets import distinct_subnets
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import json_document
from fxelastic.spec.latency_table import MODES, LatencyTable
from tests.edge.serving.tiny_bundle import write_bundle

QUICK: dict[str, Any] = {"n_samples": 3, "n_subnets": 4, "n_held_out": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("profiling") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return edge.profile(bundle, **QUICK)


def test_a_table_has_every_branch(bundle: edge.Bundle, table: LatencyTable) -> None:
    assert set(table.rows) == {spec.id for spec in bundle.space.branches}
    assert table.bundle_digest == bundle.digest
    assert table.different_device(fingerprint()) == ()
    for branch, row in table.rows.items():
        assert 0 < row.ms <= row.median_ms <= row.high_ms
        assert row.n >= 3
        assert row.weight_bytes == bundle.segment(branch).weight_bytes
        assert row.activation_bytes > 0
        assert row.resident_bytes is not None
    for mode in MODES:
        assert table.predict_ms(bundle.space.original, mode) > 0
        error = table.error(mode)
        assert error is not None
        assert error.n_held_out == 2


def test_activation_bytes_are_what_a_branch_reads_and_gives(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    values = {value.name: value for value in bundle.manifest.values}
    segment = bundle.segment("merged@1-3")
    names = (*segment.inputs, *segment.outputs)
    expected = sum(4 * int(np.prod(values[name].dims[1:])) for name in names)
    assert table.rows["merged@1-3"].activation_bytes == expected


def test_batches_take_larger_activations(bundle: edge.Bundle, table: LatencyTable) -> None:
    larger = edge.profile(bundle, 4, **QUICK)
    assert larger.batch_size == 4
    for branch, row in larger.rows.items():
        assert row.activation_bytes == 4 * table.rows[branch].activation_bytes


def test_memory_is_kept(bundle: edge.Bundle) -> None:
    sizes = [bundle.segment(spec.id).weight_bytes for spec in bundle.space.branches]
    found = edge.profile(bundle, memory_bytes=2 * max(sizes), **QUICK)
    assert set(found.rows) == {spec.id for spec in bundle.space.branches}


def test_a_time_budget_ends_it_with_every_branch_measured(
    bundle: edge.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = edge.profile(bundle, n_samples=10_000, time_budget_s=0.01)
    assert all(3 <= row.n < 10_000 for row in found.rows.values())
    assert "not predicted well" in caplog.text
    assert not found.trusted()


def test_an_interrupted_measurement_goes_on(
    bundle: edge.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A measurement that begins on a busy machine has another clock and is not resumed.
    monkeypatch.setattr("fxelastic.edge.profile_run._is_busy", lambda *_: False)
    path = tmp_path / "partial.json"
    passes = 0

    def interrupt(task: str, share: float) -> None:
        nonlocal passes
        passes += 1
        if passes == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edge.profile(bundle, path=path, progress=interrupt, **QUICK)
    kept = json.loads(path.read_text())["samples_ms"]
    assert any(kept.values())
    begun: dict[str, int] = {}
    run = branch_timing.BranchTiming.run

    def noted(self: Any, *args: Any, **options: Any) -> None:
        begun.update({name: len(samples) for name, samples in self.samples_ms.items()})
        run(self, *args, **options)

    monkeypatch.setattr(branch_timing.BranchTiming, "run", noted)
    found = edge.profile(bundle, path=path, **QUICK)
    assert begun == {name: len(samples) for name, samples in kept.items()}
    assert all(row.activation_bytes > 0 for row in found.rows.values())
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "other"}', '{"samples_ms": 3}'])
def test_another_measurement_is_begun_anew(
    bundle: edge.Bundle, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "partial.json"
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        edge.profile(bundle, path=path, **QUICK)
    assert "starting from the beginning" in caplog.text


def test_a_full_disk_is_reported(
    bundle: edge.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json_document, "replace_file", full)
    with pytest.raises(UsageError, match="No space left on device"):
        edge.profile(bundle, path=tmp_path / "partial.json", **QUICK)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"n_samples": 2},
        {"n_subnets": -1},
        {"n_held_out": -1},
        {"time_budget_s": 0},
        {"threads": -1},
        {"providers": ("NoProvider",)},
    ],
)
def test_wrong_options_are_refused(bundle: edge.Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        edge.profile(bundle, **options)


def test_a_branch_that_gives_nan_is_named(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    poison(bundle.path, "pruned50@2")
    with pytest.raises(BundleError, match=r"pruned50@2.*not finite"):
        edge.profile(edge.load(bundle.path), **QUICK)


def test_a_missing_branch_is_named(bundle: edge.Bundle, tmp_path: Path) -> None:
    copy = edge.load(shutil.copytree(bundle.path, tmp_path / "bundle"))
    (copy.path / "branches" / "merged@0-2.onnx").unlink()
    with pytest.raises(BundleError, match="merged@0-2"):
        edge.profile(copy, **QUICK)


def poison(folder: Path, branch: str) -> None:
    """Make a weight of a branch NaN, and the manifest agree with it."""
    import hashlib

    file = folder / "branches" / f"{branch}.onnx"
    model = onnx.load(file)
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    data = model.SerializeToString(deterministic=True)
    file.write_bytes(data)
    (manifest,) = folder.glob("*.json")
    text = manifest.read_text().replace(before, hashlib.sha256(data).hexdigest())
    manifest.write_text(text)


def test_of_few_subnets_half_are_fitted_to(tmp_path: Path) -> None:
    """A space of five has fewer than the twelve that are told from usually."""
    bundle = write_bundle(tmp_path / "bundle", depth=2)
    assert bundle.space.count() == 5
    found = edge.profile(bundle, n_samples=3)
    rows = {branch: row.ms for branch, row in found.rows.items()}
    for costs in found.modes.values():
        assert dict(costs["latency_ms"].costs) != rows
        assert costs["latency_ms"].error is not None


def test_timed_subnets_leave_out_the_original(bundle: edge.Bundle) -> None:
    """Symptom: in small spaces, the original was timed against itself."""
    for seed in range(20):
        assert bundle.space.original not in distinct_subnets(bundle, 40, seed)
