"""Hostile files beside a bundle: recipes, records of a run, cascades, partial tables, traces."""

from __future__ import annotations

import itertools
import json
import logging
import random
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxelastic.cli import run
from fxelastic.cli.recipe import Recipe
from fxelastic.cli.run_pipeline import steps_of
from fxelastic.cli.run_steps import Records, Step
from fxelastic.cli.run_times import expected_s, read_figures
from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.finished_search import FinishedSearch
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.sample_file import SampleFile
from fxelastic.errors import UsageError
from fxelastic.report.trace import read_trace
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import ModelError
from fxelastic.spec.json_document import _CHECKSUM, _checksum
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.serving.sized_table import sized_table
from tests.hostile.mutations import documents, of_bytes, plain
from tests.hostile.reading import N, check, put, resealed


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Refused files are warned of, thousands of times here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def sealed(value: Any) -> bytes:
    return resealed(value, _CHECKSUM, _checksum)


def cascade() -> Cascade:
    first, end = Arch(("original@0", "exit@1")), Arch(("original@0", "original@1"))
    return Cascade((first, end), (0.9,))


def pool() -> SubnetPool:
    """A pool with all that a pool can hold."""
    end = cascade().end
    entry = CascadeEntry(
        *(cascade(), 1.5, (0.5, 0.5), 0.01, 0.0, 0.0, (0.9,), 600, 0.02, 0.8, (1.0, 2.0))
    )
    search = FinishedSearch("a" * 64, (end,), (((1, 2.0, 0.5),),), (0.9, None))
    return SubnetPool.of(
        *("b" * 64, [PoolEntry(end, 2.0, 0.9)], "c" * 64, "accuracy", "given"),
        sizes=({"seq": 3}, {"seq": 3}, {"seq": 9}),
        cascades=[entry],
        searches=[search],
        bounds={Arch(("skip@0-2",)): 0.3},
    )


def test_pools_of_cascades() -> None:
    good = json.loads(pool().to_json())
    check(SubnetPool.from_json, sealed(good), documents(good, N, "cascades", sealed))


def table() -> LatencyTable:
    """A table of costs by size, and of an error; for several inputs."""
    found = sized_table({"original@0": 1.0, "original@1": 2.0})
    own = ModelError(0.01, 0.02, 3)
    found = replace(found, sizes=({"seq": 3}, {"seq": 3}, {"seq": 9}))
    return found.mapped(lambda costs: replace(costs, error=own))


def test_tables_by_size() -> None:
    good = json.loads(table().to_json())
    check(LatencyTable.from_json, sealed(good), documents(good, N, "by size", sealed))


def test_a_pool_of_more_sizes_than_memory_is_refused() -> None:
    good = json.loads(pool().to_json())
    good["sizes"] = [[{"seq": 3}, 2**62]]
    with pytest.raises(UsageError, match="sizes of 4611686018427387904 inputs"):
        SubnetPool.from_json(sealed(good))


@pytest.mark.parametrize(
    "change",
    [
        {"modes": {}},
        {"batch_size": 2**62},
        {"batch_size": -1},
        {"threads": 10**6},
        {"threads": -1},
        {"sizes": [[{"seq": 2**62}, 1]]},
        {"sizes": [[{"seq": 3}, 2**62]]},
        {"rows": {"original@0": {"weight_bytes": "x"}}},
        {"rows": {"original@0": {"ms": 1e300}}},
        {"modes": {"paged": {"latency_ms": {"overhead": 1e300}}}},
        {"modes": {"paged": {"latency_ms": {"error": {"median": "x"}}}}},
    ],
)
def test_a_table_that_no_device_has_is_refused(change: dict[str, Any]) -> None:
    """Symptoms: memory and threads without end, and raw errors of reports and of matching."""

    def changed(value: Any, change: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(change, dict) or not change:
            return change
        return {**value, **{k: changed(value.get(k), v) for k, v in change.items()}}

    good = json.loads(table().to_json())
    with pytest.raises(UsageError, match="is not a latency table"):
        LatencyTable.from_json(sealed(changed(good, change)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", -1.0),
        ("coverage", [0.5, 1.5]),
        ("coverage", [1.0]),
        ("bound", -0.1),
        ("auroc", [2.0]),
        ("n_tested", -1),
        ("leaving_ms", [1.0, -2.0]),
        ("leaving_ms", [1.0]),
    ],
)
def test_a_figure_of_a_cascade_that_cannot_be_is_refused(name: str, value: Any) -> None:
    good = json.loads(pool().to_json())
    good["cascades"][0][name] = value
    with pytest.raises(UsageError, match="a figure of a cascade is out of range"):
        SubnetPool.from_json(sealed(good))


def test_texts_of_cascades() -> None:
    rng = random.Random("texts")
    good = str(cascade()).encode()
    texts = (of_bytes(good, rng) for _ in range(N))
    check(lambda data: Cascade.parse(data.decode("utf-8", "replace")), good, texts)


class Branches:
    """What a file of samples asks an executor for."""

    def __init__(self) -> None:
        self.bundle = self.space = self
        self.branches = [type("Spec", (), {"id": f"original@{i}"}) for i in range(2)]


def timing() -> BranchTiming:
    executor: Any = Branches()
    return BranchTiming(executor, {})


def test_partial_tables(tmp_path: Path) -> None:
    path = tmp_path / "partial"
    settings = {"bundle": "d" * 64, "threads": 1}
    begun = timing()
    begun.samples_ms.update({"original@0": [1.0, 2.0], "original@1": [3.0]})
    begun.activation_bytes.update({"original@0": 64})
    SampleFile(path, settings, [begun]).save()
    good = path.read_bytes()

    def read(data: bytes) -> None:
        put(path, data)
        found = timing()
        SampleFile(path, settings, [found]).resume()
        numbers = [*found.activation_bytes.values(), *itertools.chain(*found.samples_ms.values())]
        assert all(0 <= number < float("inf") for number in numbers)
        assert found.samples_ms.keys() == begun.samples_ms.keys()
        if not any(found.samples_ms.values()):
            raise UsageError("it belongs to another measurement")

    variants = documents(json.loads(good), N, "samples", plain)
    check(read, good, variants)


RECIPE = """\
[model]
model = "model.py:build"
gamma = 0.1
kinds = "merged,pruned"
kind = ["a.b:C:factor=2"]

[train]
data = "images.npz"
distill-epochs = 5
tune-epochs = 1

[search]
budget = ["60%", "20ms"]

[run]
samples = 100
"""
VALUES = (
    *("nan", "inf", "-1", "0", "9223372036854775807", "1e999", "9" * 400, "true", "[]", "[[]]"),
    *("{}", "{a = {b = 1}}", "1979-05-27T07:32:00Z", '""', '"\\u0000"', '"../../etc/passwd"'),
    *('["x", 1, {}]', "'''\n'''", "[" * 40 + "]" * 40, "[" * 5000, '"' + "x" * 5000 + '"'),
)


def recipes() -> Iterator[bytes]:
    """Texts with other values, sections and keys, and other bytes."""
    rng = random.Random("recipe")
    lines = RECIPE.splitlines()
    for i in range(N):
        if i % 4 == 3:
            yield of_bytes(RECIPE.encode(), rng)
            continue
        found = list(lines)
        at = rng.randrange(len(found))
        key = found[at].partition(" =")[0]
        if i % 4 == 0 and "=" in found[at]:
            found[at] = f"{key} = {rng.choice(VALUES)}"
        elif i % 4 == 1:
            found[at:at] = [rng.choice(lines)]
        else:
            names = ("model", "gamma", "a.b", "[x]", "[[model]]", "data", "budget", "é", "\x1b")
            found[at] = f"{rng.choice(names)} = {rng.choice(VALUES)}"
        yield "\n".join(found).encode()


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not refused has steps and an estimate; nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "fxelastic.toml"
    (tmp_path / "run" / "images.npz").write_bytes(b"")

    def read(data: bytes) -> None:
        put(path, data)
        _, found = run._recipes(Namespace(), path.parent)
        for step in steps_of(path.parent, found):
            assert 0 <= expected_s(step.name, found, {}) < float("inf")

    check(read, RECIPE.encode(), recipes(), least_refused=0.1)


def test_records_of_a_run(tmp_path: Path) -> None:
    """A record that is not whole is like none: the step is made again."""
    records = Records(tmp_path)
    step = Step("export", "export", (), {"gamma": 0.1}, {"model": tmp_path / "none"}, ())
    records.begin(step)
    begun = (tmp_path / "export.begun.json").read_bytes()
    records.end(step, 1.5)
    (tmp_path / "export.begun.json").write_bytes(begun)
    assert records.why(step) is None
    good = {path.name: path.read_bytes() for path in tmp_path.glob("export*.json")}
    assert len(good) == 3
    for name, data in good.items():
        n_known = 0
        for text in documents(json.loads(data), N // 3 + 1, name, plain):
            put(tmp_path / name, text)
            seconds = records.seconds(step)
            assert seconds is None or 0 <= seconds < float("inf")
            why = records.why(step)
            n_known += why is None and seconds == 1.5 and records._read("export", "begun") is None
            assert why is None or all(isinstance(line, str) for line in why)
        put(tmp_path / name, data)
        assert n_known < N / 4


def test_figures_of_a_run(tmp_path: Path) -> None:
    good = {"load_s": 0.1, "n_params": 300, "n_batches": 4, "sample_s": 1e-4}
    recipe = Recipe(tmp_path, {"train": {"distill-epochs": 1}})

    def read(data: bytes) -> None:
        put(tmp_path / "figures", data)
        figures = read_figures(tmp_path, "figures")
        for name in ("inputs", "distil", "export", "search"):
            assert expected_s(name, recipe, figures) >= 0
        if not figures:
            raise UsageError("no figures")

    check(read, plain(good), documents(good, N, "figures", plain))


TRACE = (
    {"type": "start", "schema": "fxelastic.trace/1"},
    {"type": "subnet", "id": 0, "arch": "original@0", "latency_ms": 1.0, "accuracy": 0.9},
    {"type": "request", "t": 0.1, "subnet": 0, "latency_ms": 1.5},
    {"type": "request", "t": 0.2, "subnet": 0, "latency_ms": 1.5, "estimated_ms": 1.0},
    {"type": "load", "t": 0.2, "r": 1.1, "budget_ms": 2.0, "load_index": 1.0, "r_ahead": 1.0},
    {"type": "event", "t": 0.3, "kind": "switch", "message": "to another"},
    {"type": "phase", "t": 0.4, "name": "busy"},
)


def test_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"

    def lines(rows: Any) -> bytes:
        return b"\n".join(map(plain, rows if isinstance(rows, list) else [rows])) + b"\n"

    def read(data: bytes) -> None:
        put(path, data)
        read_trace(path).medians()

    good: Any = list(TRACE)
    check(read, lines(good), documents(good, N, "trace", lines), least_refused=0.05)
