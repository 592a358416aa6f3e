"""Latency tables as files: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import BranchLatency, LatencyTable, ModeLatency, ModelError

ROW = BranchLatency(1.0, 1.1, 1.3, 20, 400, 800, None)
TABLE = LatencyTable(
    "d" * 64,
    {"processor": "P", "cores": "2"},
    1,
    0,
    "CPUExecutionProvider",
    {"original@0": ROW, "original@1": replace(ROW, resident_bytes=5)},
    {
        "assembled": ModeLatency(
            -0.1, {"original@0": 1.0, "original@1": 0.5}, ModelError(0.01, 0.03, 12)
        ),
        "paged": ModeLatency(0.2, {"original@0": 1.5, "original@1": 1.0}),
    },
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    TABLE.save(path)
    assert LatencyTable.load(path) == TABLE
    assert path.read_bytes() == LatencyTable.load(path).to_json()


def test_predictions() -> None:
    arch = Arch(("original@0", "original@1"))
    assert TABLE.predict_ms(arch) == pytest.approx(1.4)
    assert TABLE.predict_ms(arch, "paged") == pytest.approx(2.7)
    assert TABLE.trusted()
    assert not TABLE.trusted("paged")
    assert not TABLE.trusted("assembled", median=0.001)
    with pytest.raises(UsageError, match="merged@0-2"):
        TABLE.predict_ms(Arch(("merged@0-2",)))
    with pytest.raises(UsageError, match="no mode 'quantum'"):
        TABLE.costs("quantum")


def test_other_bundles_and_devices_are_told() -> None:
    TABLE.check_bundle("d" * 64)
    with pytest.raises(UsageError, match="another bundle"):
        TABLE.check_bundle("e" * 64)
    assert TABLE.different_device({"processor": "P", "cores": "2"}) == ()
    (difference,) = TABLE.different_device({"processor": "P", "cores": "4"})
    assert difference == "cores: 2, now 4"


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(TABLE.to_json()), **fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        changed(schema="fxelastic.latency/99"),
        changed(rows={"original@0": {"ms": 1}}),
        changed(rows=[]),
        changed(modes={}, rows={"original@0": {**vars(ROW), "ms": float("nan")}}),
        changed(modes={}, rows={"original@0": {**vars(ROW), "ms": -1.0}}),
        changed(modes={"paged": {"overhead_ms": 0.0, "costs": {}, "error": None}}),
        changed(modes={"paged": {"overhead_ms": "a", "costs": {}, "error": None}}),
        changed(batch_size="many"),
        TABLE.to_json()[:-20],
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is no latency table"):
        LatencyTable.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no latency table"):
        LatencyTable.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="can't be written"):
        TABLE.save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(("original_ms", "usable"), [(0.02, True), (0.5, False), (5.0, False)])
def test_a_run_that_is_short_may_be_off_by_more(original_ms: float, usable: bool) -> None:
    """A call alone varies by some microseconds, which is a large share of a tiny model's run."""
    mode = ModeLatency(0.0, {"original@0": original_ms, "skip@0": 0.0}, ModelError(0.4, 0.6, 12))
    found = LatencyTable("d", {}, 1, 1, "CPUExecutionProvider", {}, {"assembled": mode})
    assert (found.problem() == "") == usable
