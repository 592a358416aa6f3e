"""Every message of docs/troubleshooting.md is one that something gives."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge.executor import Executor
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.stopwatch import Stopwatch
from fxelastic.report.page import write_report
from fxelastic.report.run_folder import RunFolder
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.serving.tiny_bundle import CLASSES, write_bundle
from tests.edge.test_profiling import poison

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
QUICK: dict[str, Any] = {"n_samples": 3, "n_subnets": 0, "n_held_out": 0}
X = np.zeros((20, 8, 8, 8), np.float32)
DATA = (X, np.arange(20) % CLASSES)


@dataclass
class Place:
    """Where a message is provoked: an empty folder."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def bundle(self, name: str = "bundle", depth: int = 4) -> edge.Bundle:
        return write_bundle(self.folder / name, depth)

    def profiled(self) -> tuple[edge.Bundle, LatencyTable]:
        bundle = self.bundle()
        return bundle, edge.profile(bundle, **QUICK)

    def poisoned(self) -> edge.Bundle:
        poison(self.bundle().path, "pruned50@2")
        return edge.load(self.folder / "bundle")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, a: Any, b: Any) -> Any:
        return self.linear(a) + b


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))).eval()


def small_supernet() -> Any:
    return fxelastic.expand(small_model(), 0.5, example_inputs=torch.zeros(2, 6), kinds=["merged"])


def no_inputs(place: Place) -> None:
    fxelastic.partition(TwoInputs(), 0.5)


def bad_gamma(place: Place) -> None:
    fxelastic.partition(small_model(), 0, example_inputs=torch.zeros(2, 6))


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        return self.linear(x) if x.sum() > 0 else x


def uncaptured(place: Place) -> None:
    fxelastic.partition(Decides(), 1.0, torch.zeros(2, 6))


def no_values(place: Place) -> None:
    fxelastic.partition(small_model().to("meta"), 1.0, torch.zeros(2, 6))


def no_shape(place: Place) -> None:
    fxelastic.partition(nn.LazyLinear(6), 1.0, torch.zeros(2, 6))


def no_kernel(place: Place) -> None:
    model, x = small_model().bfloat16(), torch.zeros(2, 6).bfloat16()
    supernet = fxelastic.expand(model, 1.0, example_inputs=x, kinds=())
    fxelastic.export(supernet, place.folder / "bundle")


def random_numbers(place: Place) -> None:
    model = nn.Sequential(small_model(), nn.Identity())
    model[1].forward = lambda x: nn.functional.dropout(x, 0.5, training=True)
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.ones(2, 6), kinds=())
    fxelastic.export(supernet, place.folder / "bundle")


def golden(place: Place) -> None:
    (place.folder / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))\n"
        "def other():\n    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))\n"
    )
    golden = ["--golden", "blocks.txt", "--example-input", "1x6", "--gamma", "0.6"]
    assert main(["check", "model.py:build", *golden, "--update"]) == 0
    assert main(["check", "model.py:other", *golden]) == 1


def nan_data(place: Place) -> None:
    data = [(torch.full((4, 6), float("nan")), torch.zeros(4, dtype=torch.int64))]
    fxelastic.tune(small_supernet(), data, epochs=1)


def foreign_checkpoint(place: Place) -> None:
    data = [(torch.ones(4, 6), torch.zeros(4, dtype=torch.int64))]
    for lr in (1e-3, 2e-3):
        fxelastic.tune(small_supernet(), data, epochs=1, lr=lr, checkpoints=place.folder)


def file_there(place: Place) -> None:
    for _ in range(2):
        fxelastic.export(small_supernet(), place.folder / "bundle", verify=False)


def other_files_there(place: Place) -> None:
    (place.folder / "mine").write_text("mine")
    fxelastic.export(small_supernet(), place.folder, force=True)


def foreign_table(place: Place) -> None:
    _, table = place.profiled()
    edge.search(place.bundle("other", depth=3), table, DATA, budget="80%")


def other_device(place: Place) -> None:
    bundle, table = place.profiled()
    table = replace(table, device={**fingerprint(), "processor": "another"})
    edge.search(bundle, table, DATA, budget="100%", max_subnets=4)


def short_profile(place: Place) -> None:
    edge.profile(place.bundle(), n_samples=10_000, time_budget_s=0.01)


def unusable_table(place: Place) -> None:
    bundle, table = place.profiled()
    noisy = table.mapped(lambda costs: replace(costs, doubt="noisy"))
    edge.search(bundle, noisy, DATA, budget="100%")


def busy_cores(place: Place) -> None:
    """The clock on the wall runs on while the processor's stands still."""
    watch = Stopwatch(own_s=lambda: 0.0)
    edge.profile(place.bundle(), threads=2, watch=watch, **QUICK)


def low_budget(place: Place) -> None:
    bundle, table = place.profiled()
    edge.search(bundle, table, DATA, budget_ms=1e-9)


def short_search(place: Place) -> None:
    bundle, table = place.profiled()
    edge.search(bundle, table, DATA, budget="100%", time_budget_s=1e-6)


def foreign_pool(place: Place) -> None:
    bundle, table = place.profiled()
    for x in (X, X + 1):
        path = place.folder / "pool.json"
        edge.search(bundle, table, (x, DATA[1]), budget="100%", max_subnets=4, path=path)


def bad_target(place: Place) -> None:
    bundle, table = place.profiled()
    edge.search(bundle, table, (X, DATA[1] + 1), budget="100%")


def nan_subnet(place: Place) -> None:
    _, table = place.profiled()
    poison(place.folder / "bundle", "pruned50@2")
    bundle = edge.load(place.folder / "bundle")
    table = replace(table, bundle_digest=bundle.digest)
    # With a limit on the latency alone, branches no faster than the originals are not searched.
    limits = {"latency_ms": "300%", "weight_bytes": "300%"}
    edge.search(bundle, table, DATA, limits=limits, held_out=0.0)


def nan_branch(place: Place) -> None:
    edge.profile(place.poisoned(), **QUICK)


def missing_branch(place: Place) -> None:
    bundle = place.bundle()
    (bundle.path / "branches" / "merged@1-3.onnx").unlink()
    edge.profile(bundle, **QUICK)


def damaged_branch(place: Place) -> None:
    bundle = place.bundle()
    file = bundle.path / "branches" / "merged@1-3.onnx"
    file.write_bytes(bytes(file.stat().st_size))
    with Executor(bundle) as executor:
        executor.run(Arch(("original@0", "merged@1-3", "original@3", "original@4")), {"x": X})


def no_provider(place: Place) -> None:
    edge.profile(place.bundle(), providers=("NoProvider",), **QUICK)


def unmet_budget(place: Place) -> None:
    bundle, table = place.profiled()
    entry = edge.PoolEntry(bundle.space.original, 1.0, 1.0)
    pool = edge.SubnetPool.of(bundle.digest, [entry])
    with edge.serve(bundle, table, pool, budget_ms=1e-6) as runtime:
        for _ in range(2000):
            runtime(X[:1])
            if any(event.kind == "budget_unmet" for event in runtime.events):
                break
        print(*(event.message for event in runtime.events))


def no_matplotlib(place: Place) -> None:
    _, table = place.profiled()
    table.save(place.folder / "bundle.latency.json")
    place.monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(RunFolder.read(place.folder), place.folder)


def no_jinja2(place: Place) -> None:
    _, table = place.profiled()
    table.save(place.folder / "bundle.latency.json")
    place.monkeypatch.setitem(sys.modules, "jinja2", None)
    write_report(RunFolder.read(place.folder), place.folder)


REPRODUCED: dict[str, Callable[[Place], None]] = {
    "… needs example inputs, and none could be inferred": no_inputs,
    "… can't be captured": uncaptured,
    "… have no values": no_values,
    "… have no shape yet": no_shape,
    "gamma must be above 0 and at most 1, got …": bad_gamma,
    "the partition of … is not the golden one": golden,
    "NaN or infinity at …": nan_data,
    "no checkpoint of … can be used": foreign_checkpoint,
    "… can't be loaded by onnxruntime": no_kernel,
    "… draw random numbers, so that they can't be compared with torch": random_numbers,
    "… exists already": file_there,
    "… exists and is not a bundle": other_files_there,
    "the latency table belongs to another bundle": foreign_table,
    "the latency table belongs to another device": other_device,
    "latencies of … subnets are not predicted well": short_profile,
    "the latency table is unusable for … subnets": unusable_table,
    "other processes keep the cores busy": busy_cores,
    "no subnet keeps …": low_budget,
    "the search was short of time": short_search,
    "… is the pool of another search": foreign_pool,
    "a target is not a class of the model": bad_target,
    "the subnet … returns NaN": nan_subnet,
    "branch … returns values that are not finite": nan_branch,
    "… can't be read": missing_branch,
    "… has a different digest": damaged_branch,
    "an execution provider is not available": no_provider,
    "… ms can't be kept": unmet_budget,
    "plots need matplotlib": no_matplotlib,
    "pages need jinja2": no_jinja2,
}


def messages() -> list[str]:
    """The first column of the page's table."""
    return re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(re.escape(message).replace("…", ".+"), re.DOTALL)


def test_every_message_has_its_reproduction() -> None:
    assert messages() == list(REPRODUCED)


@pytest.mark.parametrize("message", REPRODUCED)
def test_messages_are_given(
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ""
    with caplog.at_level(logging.WARNING):
        try:
            REPRODUCED[message](Place(tmp_path, monkeypatch))
        except fxelastic.FxElasticError as e:
            said = str(e)
    printed = capsys.readouterr()
    assert pattern(message).search("\n".join([said, caplog.text, printed.out, printed.err]))
