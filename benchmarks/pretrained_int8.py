"""Subnets of float and 8-bit branches of a pretrained model, beside the quantised original."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import pretrained_subnets
from benchmarks.bootstrap import Bootstrap
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from benchmarks.pretrained_report import interval
from benchmarks.pretrained_subnets import SCORES
from fxelastic import Int8, Supernet, edge, export
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.quantised import INT8

#: Shares of the float original's latency.
BUDGETS = ("90%", "70%", "50%", "40%", "35%", "25%")
#: The least that is aimed at, by model and budget: agreement, or cosine.
GOALS = {
    "efficientnet": {"50%": 0.95, "35%": 0.85},
    "minilm": {"50%": 0.99, "40%": 0.98, "25%": 0.95},
}
CALIBRATION = 16  # batches


def exported(supernet: Supernet, model: PretrainedModel, train: Samples, path: Path) -> edge.Bundle:
    """The supernet with 8-bit branches, calibrated on samples of the training split."""
    size = model.batch_size
    starts = range(0, min(len(train), CALIBRATION * size) - size + 1, size)
    batches = [model.tensors(train, slice(i, i + size)) for i in starts]
    return export(supernet, path, force=True, quantise=Int8(batches), n_subnets=1)


def profiled(bundle: edge.Bundle, out: Path, options: tuple[str, ...]) -> LatencyTable:
    """The latency table, measured in a process without torch."""
    command = [sys.executable, "-m", "fxelastic.cli", "profile", str(bundle.path)]
    subprocess.run([*command, "--out", str(out), *options], check=True, stdout=subprocess.DEVNULL)
    return LatencyTable.load(out)


def all_int8(bundle: edge.Bundle, table: LatencyTable) -> Arch:
    """The original with its quickest 8-bit branch for each block that has one in the table."""
    costs = table.costs()
    chosen = []
    for position, original in enumerate(bundle.space.original):
        specs = bundle.space.starting_at[position]
        ids = [spec.id for spec in specs if spec.kind == INT8 and spec.id in costs]
        ids = [b for b in ids if bundle.segment(b).quantised.source == original]
        chosen.append(min(ids, key=costs.__getitem__, default=original))
    return Arch(tuple(chosen))


def measure(
    supernet: Supernet,
    model: PretrainedModel,
    samples: dict[str, Samples],
    folder: Path,
    *,
    seconds: float,
    rounds: int,
    profile: tuple[str, ...],
) -> dict[str, Any]:
    """Search at each budget, and score the subnets found and the quantised original.

    Args:
        supernet: The trained supernet.
        model: The model.
        samples: The splits ``train``, ``select`` and ``test``.
        folder: Where to write.
        seconds: Processor time of the search for each budget.
        rounds: Number of timings.
        profile: Options of ``fxelastic profile``.
    """
    bundle = exported(supernet, model, samples["train"], folder / "int8")
    table = profiled(bundle, folder / "int8-table.json", profile)
    found = pretrained_subnets.search(
        bundle,
        table,
        model.arrays(samples["select"], slice(None)),
        SCORES[model.name],
        seconds,
        folder / "int8.pool.json",
        BUDGETS,
    )
    models = folder / "int8-models"
    models.mkdir(exist_ok=True)
    original = pretrained_subnets.assembled(bundle, None, models / "original.onnx")
    archs = {"all 8-bit": str(all_int8(bundle, table))}
    archs |= {f"8-bit {budget}": found[budget]["arch"] for budget in BUDGETS}
    paths = {
        "quantised": pretrained_subnets.quantised(
            original, model, samples["train"], models / "quantised.onnx"
        )
    }
    for i, (way, arch) in enumerate(archs.items()):
        paths[way] = pretrained_subnets.assembled(bundle, arch, models / f"{i}.onnx")
    test = samples["test"]
    wanted = pretrained_subnets.results(original, model, test)
    bootstrap = Bootstrap(test.groups)
    scores = {
        way: pretrained_subnets.similarities(
            pretrained_subnets.results(path, model, test), wanted, model.name
        )[SCORES[model.name]]
        for way, path in paths.items()
    }
    feeds = model.arrays(samples["select"], slice(0, 1))
    _, shares = pretrained_subnets.shares_of_time([original, *paths.values()], feeds, rounds)
    return {
        "used": len(table.rows),
        "unused": len(table.refused),
        "archs": archs,
        "ways": {
            way: {"latency": share, "score": bootstrap.mean(scores[way]).to_json()}
            for (way, share) in zip(paths, shares, strict=True)
        },
    }


def text(name: str, found: dict[str, Any]) -> str:
    """The curve of score against latency, and which goals it reaches."""
    lines = [
        f"\n{name} with 8-bit branches: {found['used']} branches used, {found['unused']} not",
        *(
            f"{way:12}{interval(row['latency'], '.1%'):>28}{interval(row['score'], '.4f'):>28}"
            for way, row in found["ways"].items()
        ),
    ]
    quantised = found["ways"]["quantised"]
    for budget, least in GOALS[name].items():
        score = found["ways"][f"8-bit {budget}"]["score"][0]
        lines.append(f"goal of {least} at {budget}: {score:.4f}")
    for budget in BUDGETS:
        row = found["ways"][f"8-bit {budget}"]
        if quantised["latency"][0] <= float(budget[:-1]) / 100:
            least = quantised["score"][0]
            lines.append(
                f"the quantised original keeps {budget}: {least:.4f} against {row['score'][0]:.4f}"
            )
    return "\n".join(lines)
