"""Latency tables as files: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, Costs, ModelError
from fxelastic.spec.latency_table import LatencyTable

ROW = BranchLatency(1.0, 1.1, 1.3, 20, 400, 800, None)
FLOPS = BranchCosts({"original@0": 7.0, "original@1": 9.0})


def latencies(costs: dict[str, float], *rest: Any) -> Costs:
    return Costs({"latency_ms": BranchCosts(costs, *rest)})


TABLE = LatencyTable(
    "d" * 64,
    {"processor": "P", "cores": "2"},
    1,
    0,
    "CPUExecutionProvider",
    {"original@0": ROW, "original@1": replace(ROW, resident_bytes=5)},
    {
        "assembled": latencies(
            {"original@0": 1.0, "original@1": 0.5}, -0.1, ModelError(0.01, 0.03, 12)
        ),
        "paged": latencies({"original@0": 1.5, "original@1": 1.0}, 0.2).including({"flops": FLOPS}),
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


def test_a_subnet_is_predicted_in_every_resource_of_its_mode() -> None:
    arch = Arch(("original@0", "original@1"))
    found = TABLE.predict(arch, mode="paged")
    assert found == {"latency_ms": pytest.approx(2.7), "flops": 16.0}
    assert TABLE.predict(arch) == {"latency_ms": pytest.approx(1.4)}
    with pytest.raises(UsageError, match="only for the sizes that were measured"):
        TABLE.predict(arch, {"seq": 4})
    with pytest.raises(UsageError, match="no costs of weights"):
        TABLE.costs("paged", "weight_bytes")


def test_a_table_of_the_first_version_is_read() -> None:
    """It has latencies, and the weights of each branch in its rows."""
    old = {
        "assembled": {"overhead_ms": 0.5, "costs": {"original@0": 1.0, "original@1": 2.0}}
        | {"error": {"median": 0.01, "p90": 0.02, "n_held_out": 3}, "doubt": "noisy"}
    }
    table = LatencyTable.from_json(changed(schema="fxelastic.latency/1", modes=old))
    found = table.predict(Arch(("original@0", "original@1")))
    assert found == {"latency_ms": 3.5, "weight_bytes": 800.0}
    assert table.error() == ModelError(0.01, 0.02, 3)
    assert table.problem() == "noisy"
    assert LatencyTable.from_json(table.to_json()) == table


def test_other_bundles_and_devices_are_told() -> None:
    TABLE.check_bundle("d" * 64)
    with pytest.raises(UsageError, match="another bundle"):
        TABLE.check_bundle("e" * 64)
    assert TABLE.different_device({"processor": "P", "cores": "2"}) == ()
    (difference,) = TABLE.different_device({"processor": "P", "cores": "4"})
    assert difference == "cores: 2, now 4"


def changed(**fields: Any) -> bytes:
    value = {**json.loads(TABLE.to_json()), **fields}
    del value["sha256"]
    return json.dumps(value).encode()


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
        changed(modes={"paged": {"latency_ms": {"overhead": 0.0, "costs": {}, "error": None}}}),
        changed(modes={"paged": {"latency_ms": {"overhead": "a", "costs": {}, "error": None}}}),
        changed(modes={"paged": {"luck": FLOPS.to_json()}}),
        changed(modes={"paged": {"flops": FLOPS.to_json()}}),
        changed(modes={"paged": {"latency_ms": {**FLOPS.to_json(), "overhead": float("inf")}}}),
        changed(modes={"paged": {"latency_ms": BranchCosts({"original@0": -1.0}).to_json()}}),
        changed(batch_size="many"),
        TABLE.to_json()[:-20],
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not a latency table"):
        LatencyTable.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the latency table .*none\.json can't be read"):
        LatencyTable.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="can't be written"):
        TABLE.save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(("original_ms", "usable"), [(0.02, True), (0.5, False), (5.0, False)])
def test_a_run_that_is_short_may_be_off_by_more(original_ms: float, usable: bool) -> None:
    """A call alone varies by some microseconds, which is a large share of a tiny model's run."""
    mode = latencies({"original@0": original_ms, "skip@0": 0.0}, 0.0, ModelError(0.4, 0.6, 12))
    found = LatencyTable("d", {}, 1, 1, "CPUExecutionProvider", {}, {"assembled": mode})
    assert (found.problem() == "") == usable
