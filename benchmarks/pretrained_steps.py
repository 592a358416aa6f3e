"""The steps of `benchmarks/pretrained.py`: from a model to the figures of its subnets."""

from __future__ import annotations

import functools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import fxelastic
from benchmarks import (
    pretrained_branches,
    pretrained_int8,
    pretrained_subnets,
    pretrained_training,
)
from benchmarks.bootstrap import Bootstrap
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import GAMMA, PretrainedModel
from benchmarks.pretrained_report import BUDGETS, judged
from benchmarks.pretrained_subnets import SCORES
from fxelastic import Supernet, edge
from fxelastic.spec.latency_table import LatencyTable

CALIBRATION = 8  # batches
PROFILES = 3  # measurements until a table is accepted as it is
PROFILE = ("--threads", "1", "--force", "--quiet")
BEFORE, DISTILLED, AFTER = "before", "distilled", "after"


@dataclass(frozen=True)
class Setting:
    """The amounts of data, time and repetitions.

    Attributes:
        scale: Share of the samples.
        minutes: Minutes of training.
        search_s: Processor time of the search for each budget, in seconds.
        rounds: Number of latency measurements.
    """

    scale: float
    minutes: float
    search_s: float
    rounds: int


@dataclass
class Run:
    """The steps of one model; each returns plain data, and writes its files to the folder."""

    model: PretrainedModel
    samples: dict[str, Samples]
    folder: Path
    setting: Setting

    @functools.cached_property
    def supernet(self) -> Supernet:
        """The supernet, whose weights each step loads."""
        return self._expanded(None)

    def _expanded(self, calibration: list[tuple[Tensor, ...]] | None) -> Supernet:
        example = self.model.tensors(self.samples["train"], slice(0, 2))
        return fxelastic.expand(
            self.model.module,
            GAMMA,
            example_inputs=example,
            dynamic_shapes=self.model.sizes,
            calibration=calibration,
            threads=1,
        )

    def expand(self) -> dict[str, Any]:
        """Make the supernet, calibrate it in closed form, and export it."""
        train, size = self.samples["train"], self.model.batch_size
        apart = max(1, len(train) // size)
        starts = range(min(CALIBRATION, apart))
        supernet = self._expanded(
            [self.model.tensors(train, slice(i, None, apart)) for i in starts]
        )
        self._export(supernet, BEFORE)
        return {"space": str(supernet.space)}

    def _export(self, supernet: Supernet, name: str) -> None:
        supernet.save(self.folder / f"{name}.safetensors")
        fxelastic.export(supernet, self.folder / name, force=True)

    def distil(self) -> dict[str, Any]:
        """Train the branches, and export them."""
        initial = self.folder / f"{BEFORE}.safetensors"
        supernet = self.supernet.load(initial)
        done = pretrained_training.train(
            *(supernet, self.model, self.samples, self.setting.minutes, initial),
            self.folder / f"{DISTILLED}.safetensors",
        )
        self._export(supernet, AFTER)
        return done

    def branches(self) -> dict[str, Any]:
        """Compare the errors of branches on the test split, before and after distillation.

        Where the branches were tuned, also after the whole training.
        """
        test = self.samples["test"]
        names = (BEFORE, DISTILLED, AFTER) if self.model.tuned else (BEFORE, DISTILLED)
        before, distilled, *tuned = (
            pretrained_branches.branch_sums(
                self.supernet.load(self.folder / f"{name}.safetensors"),
                self.model,
                pretrained_branches.batches(self.model, test),
            )
            for name in names
        )
        found = pretrained_branches.compared(before, distilled, test.groups)
        for after in tuned:
            found["tuned"] = pretrained_branches.compared(before, after, test.groups)
        return found

    def profile(self) -> dict[str, Any]:
        """Measure the branches in a process without torch, again if the table is unusable."""
        out = self.folder / "table.json"
        command = [sys.executable, "-m", "fxelastic.cli", "profile", str(self.folder / BEFORE)]
        tables: list[LatencyTable] = []
        while len(tables) < PROFILES and not (tables and tables[-1].trusted()):
            subprocess.run(
                [*command, "--out", str(out), *PROFILE], check=True, stdout=subprocess.DEVNULL
            )
            tables.append(LatencyTable.load(out))
        table = min(tables, key=_median_error)
        table.save(out)
        error = table.error()
        return {
            "original_ms": table.predict_ms(edge.load(self.folder / BEFORE).space.original),
            "problem": table.problem(),
            "median": error and error.median,
            "p90": error and error.p90,
        }

    def search(self) -> dict[str, Any]:
        """Search the best subnets on the select split, before and after."""
        table = LatencyTable.load(self.folder / "table.json")
        data = self.model.arrays(self.samples["select"], slice(None))
        return {
            name: pretrained_subnets.search(
                edge.load(self.folder / name),
                table,
                data,
                SCORES[self.model.name],
                self.setting.search_s,
                self.folder / f"{name}.pool.json",
            )
            for name in (BEFORE, AFTER)
        }

    def judge(self) -> dict[str, Any]:
        """Score the subnets found, and the quantised original, on the test split."""
        found = json.loads((self.folder / "search.json").read_text())
        models = self.folder / "models"
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir()
        bundles = {name: edge.load(self.folder / name) for name in (BEFORE, AFTER)}
        original = pretrained_subnets.assembled(bundles[BEFORE], None, models / "original.onnx")
        paths = {
            "quantised": pretrained_subnets.quantised(
                original, self.model, self.samples["train"], models / "quantised.onnx"
            )
        }
        for name, bundle in bundles.items():
            for budget in BUDGETS:
                path = models / f"{name}-{budget[:-1]}.onnx"
                arch = found[name][budget]["arch"]
                paths[f"{name} {budget}"] = pretrained_subnets.assembled(bundle, arch, path)
        test = self.samples["test"]
        wanted = pretrained_subnets.results(original, self.model, test)
        scores = {
            way: pretrained_subnets.similarities(
                pretrained_subnets.results(path, self.model, test), wanted, self.model.name
            )
            for way, path in paths.items()
        }
        feeds = self.model.arrays(self.samples["select"], slice(0, 1))
        original_ms, shares = pretrained_subnets.shares_of_time(
            [original, *paths.values()], feeds, self.setting.rounds
        )
        shutil.rmtree(models)
        return {
            "original_ms": original_ms,
            "samples": len(test),
            "sources": len(np.unique(test.groups)),
            "train": len(self.samples["train"]),
            **judged(Bootstrap(test.groups), scores, dict(zip(paths, shares, strict=True))),
        }

    def int8(self) -> dict[str, Any]:
        """Search among float and 8-bit branches, and score the subnets found."""
        supernet = self.supernet.load(self.folder / f"{AFTER}.safetensors")
        return pretrained_int8.measure(
            supernet,
            self.model,
            self.samples,
            self.folder,
            seconds=self.setting.search_s,
            rounds=self.setting.rounds,
            profile=PROFILE,
        )


def _median_error(table: LatencyTable) -> float:
    error = table.error()
    return math.inf if error is None else error.median


STEPS: Mapping[str, Callable[[Run], dict[str, Any]]] = {
    "expand": Run.expand,
    "distil": Run.distil,
    "branches": Run.branches,
    "profile": Run.profile,
    "search": Run.search,
    "judge": Run.judge,
    "int8": Run.int8,
}
