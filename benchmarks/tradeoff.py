"""Compare subnets of the supernet with what the published alternatives could choose.

    python benchmarks/tradeoff.py --seeds 0 1 2 --out benchmarks/results/tradeoff.json

One teacher, one data set (`examples/data/glyphs.py`), the same steps of training, the same search
and the same device. Latencies are measured: those of branches by `edge.profile`, those of other
networks by onnxruntime beside the original. For budgets of 50 to 95 % of the original's latency it
prints the test accuracy (chosen on validation data) of

- **ours**: merged, pruned and skip branches, distilled and then tuned;
- **pruned only** (as LegoDNN, MobiCom 2021): blocks have pruned stand-ins, each trained to mimic
  its block alone; no merging and no training of whole paths;
- **skip only** (as SkipNet's routes, fixed): blocks may be left out, nothing is trained;
- **narrower networks** (as the widths of Slimmable Networks): networks of a share of the channels,
  each trained from scratch for as many steps as the supernet; the best that keeps the budget.

Narrower networks that each get as many steps as teacher and supernet together are printed beside
them: eight times the training of ours, and no supernet.

Then the shift of edge data (AdaptiveNet §7.4): for devices whose classes are skewed by a Dirichlet
distribution, the accuracy of our subnet searched on such data, and of the one chosen on the
cloud's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.train import GAMMA, SETTINGS, loader, train_teacher
from benchmarks.train_models import SmallResNet
from examples.data.glyphs import SIZE, Glyphs
from fxelastic import Supernet, edge
from fxelastic.edge.searching.mutation import replaced
from fxelastic.edge.subnet_timing import time_by_turns
from fxelastic.errors import UsageError
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.latency_table import LatencyTable

BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
WIDTHS = (0.5, 0.625, 0.75, 0.875)
BASE = (16, 32, 48)
WAYS = ("ours", "pruned only", "skip only", "narrower networks")
LONG = "narrower, all of the steps"
N_EDGES, SKEW, EDGE_BUDGET = 8, 0.3, 0.6
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def main() -> int:
    """Run the seeds that have no result yet, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--work", type=Path, default=Path("build/tradeoff"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in args.seeds:
        path = args.work / f"{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(compare(seed, args), indent=1))
        results.append(json.loads(path.read_text()))
    result = {"seeds": results, **summary(results)}
    report(result)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result["met"].values()) else 1


def compare(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """All ways, for one seed."""
    setting = SETTINGS["resnet"]
    data = Glyphs(seed=seed).load(args.data)
    train = loader(data["train"], shuffle=True)
    validation, test = (list(loader(data[k], shuffle=False)) for k in ("validation", "test"))
    torch.manual_seed(seed)
    model = teacher(seed, data, args.work)
    supernet = expanded(model, seed, ["merged", "pruned", "skip"])
    options: dict[str, Any] = {"seed": seed, "warmup": 0.05}
    both = setting.distill + setting.tune
    fxelastic.distill(supernet, train, epochs=setting.distill, lr=setting.distill_lr, **options)
    tuning = {"lr": setting.tune_lr, "soft": setting.soft, "sampling": fxelastic.train.Bucketed()}
    fxelastic.tune(supernet, train, epochs=setting.tune, **tuning, **options)
    print(f"seed {seed}: ours is trained", file=sys.stderr, flush=True)
    lego = expanded(model, seed, ["pruned"])
    fxelastic.distill(lego, train, epochs=both, lr=setting.distill_lr, **options)
    print(f"seed {seed}: pruned only is trained", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        costs, overhead_ms, original_ms = latencies(supernet, Path(name), args.threads)
        narrow = {
            "narrower networks": narrower(data, both, test, Path(name), seed),
            LONG: narrower(data, setting.epochs + both, test, Path(name), seed),
        }
    rows: dict[str, list[float | None]] = {way: [] for way in (*WAYS, LONG)}
    skips = restricted(supernet.space, "skip")
    for share in BUDGETS:
        high = share * original_ms - overhead_ms
        for way, net, space in (
            ("ours", supernet, supernet.space),
            ("pruned only", lego, lego.space),
            ("skip only", supernet, skips),
        ):
            arch = best_arch(net, space, costs, high, validation, seed)
            found = None if arch is None else fxelastic.evaluate(net, [arch], test)[arch]
            rows[way].append(found)
        for way, networks in narrow.items():
            fitting = [n["accuracy"] for n in networks if n["latency"] <= share]
            rows[way].append(max(fitting, default=None))
    original = supernet.space.original
    return {
        "seed": seed,
        "teacher": fxelastic.evaluate(supernet, [original], test)[original],
        "rows": rows,
        "narrow": narrow,
        "edges": edges(supernet, costs, EDGE_BUDGET * original_ms - overhead_ms, data, seed),
    }


def teacher(seed: int, data: Any, work: Path) -> nn.Module:
    """The model that everything starts from."""
    model = SmallResNet(widths=BASE)
    weights = work / f"teacher-{seed}.safetensors"
    if weights.exists():
        safetensors.torch.load_model(model, weights)
    else:
        train_teacher(model, data["train"], SETTINGS["resnet"], "cpu")
        safetensors.torch.save_model(model, weights)
    return model.eval()


def expanded(model: nn.Module, seed: int, kinds: list[str]) -> Supernet:
    """A supernet with these kinds of branches."""
    example = torch.zeros(2, 1, SIZE, SIZE)
    return fxelastic.expand(model, GAMMA, example_inputs=example, kinds=kinds, seed=seed)


def restricted(space: SearchSpace, kind: str) -> SearchSpace:
    """The space with one kind of new branches."""
    kept = (s for s in space.branches if s.kind in ("original", kind))
    return SearchSpace(space.n_blocks, tuple(kept))


def latencies(
    supernet: Supernet, folder: Path, threads: int
) -> tuple[dict[str, float], float, float]:
    """Costs of branches, what a run takes besides, and the original's latency, in ms."""
    fxelastic.export(supernet, folder / "bundle", verify=False)
    command = [sys.executable, "-m", "fxelastic.cli", "profile", str(folder / "bundle"), "--quiet"]
    subprocess.run([*command, "--threads", "1"], check=True, stdout=subprocess.DEVNULL)
    table = LatencyTable.load(folder / "bundle.latency.json")
    edge.assemble(edge.load(folder / "bundle"), supernet.space.original, folder / "original.onnx")
    return (
        dict(table.costs()),
        table.overhead_ms(),
        table.predict_ms(supernet.space.original),
    )


def narrower(
    data: Any, epochs: int, test: Batches, folder: Path, seed: int
) -> list[dict[str, float]]:
    """Networks of fewer channels from scratch: accuracy, and latency as a share."""
    found, files = [], [folder / "original.onnx"]
    for width in WIDTHS:
        torch.manual_seed(seed)
        model = SmallResNet(widths=tuple(round(width * w) for w in BASE))
        setting = SETTINGS["resnet"]
        train_teacher(
            model, data["train"], type(setting)(**{**vars(setting), "epochs": epochs}), "cpu"
        )
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        files.append(folder / f"width-{width}.onnx")
        torch.onnx.export(model, (torch.zeros(1, 1, SIZE, SIZE),), files[-1], dynamo=True)
        found.append({"width": width, "accuracy": right / sum(len(y) for _, y in test)})
        print(f"seed {seed}, {epochs} epochs: {found[-1]}", file=sys.stderr, flush=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [ort.InferenceSession(file, options) for file in files]
    x = np.zeros((1, 1, SIZE, SIZE), np.float32)
    times = time_by_turns(
        [lambda s=s: s.run(None, {s.get_inputs()[0].name: x}) for s in sessions], 200
    )
    for row, ms in zip(found, times[1:], strict=True):
        row["latency"] = ms / times[0]
    return found


def best_arch(
    net: Supernet,
    space: SearchSpace,
    costs: dict[str, float],
    high: float,
    validation: Batches,
    seed: int,
) -> Arch | None:
    """Search: subnets near the budget, then three rounds of changes of the best.

    None where no subnet keeps the budget.
    """
    if space.cost(space.min_cost_arch(costs), costs) > high:
        return None
    try:
        population = space.sample_within(50, costs, 0.85 * high, high, seed)
    except UsageError:
        population = space.sample_within(50, costs, 0.0, high, seed)
    rng = random.Random(seed)
    scores: dict[Arch, float] = {}
    for n_batches in (4, 8, len(validation)):
        scores = fxelastic.evaluate(net, dict.fromkeys(population), validation[:n_batches])
        best = sorted(scores, key=lambda arch: -scores[arch])[:8]
        options = [s for s in space.branches if s.kind != "original"]
        changed = [replaced(space, arch, rng.choice(options)) for arch in best for _ in range(5)]
        population = [*best, *(a for a in changed if space.cost(a, costs) <= high)]
    return max(scores, key=lambda arch: scores[arch])


def edges(
    net: Supernet, costs: dict[str, float], high: float, data: Any, seed: int
) -> list[dict[str, float]]:
    """Devices with skewed classes: the subnet searched there against the cloud's."""
    rng = np.random.default_rng(seed)
    cloud = best_arch(
        net, net.space, costs, high, list(loader(data["validation"], shuffle=False)), seed
    )
    assert cloud is not None
    images = {key: next(iter(DataLoader(data[key], len(data[key])))) for key in data}
    n_classes = int(images["test"][1].max()) + 1
    found = []
    for i in range(N_EDGES):
        weights = rng.dirichlet(np.full(n_classes, SKEW))
        skewed = {}
        for key in ("validation", "test"):
            x, y = images[key]
            chance = weights[y.numpy()] / np.bincount(y.numpy(), minlength=n_classes)[y.numpy()]
            index = torch.from_numpy(rng.choice(len(y), 500, p=chance / chance.sum()))
            skewed[key] = [(x[part], y[part]) for part in index.split(100)]
        own = best_arch(net, net.space, costs, high, skewed["validation"], seed + i)
        assert own is not None
        scores = fxelastic.evaluate(net, dict.fromkeys([own, cloud]), skewed["test"])
        found.append({"own": scores[own], "cloud": scores[cloud]})
    return found


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads, and which bars are met."""
    table: dict[str, list[list[float] | None]] = {}
    for way in (*WAYS, LONG):
        table[way] = []
        for i in range(len(BUDGETS)):
            values = [r["rows"][way][i] for r in results]
            known = [100 * v for v in values if v is not None]
            spread = statistics.stdev(known) if len(known) > 1 else 0.0
            full = len(known) == len(values)
            table[way].append([statistics.mean(known), spread] if full else None)
    met = {}
    for i, share in enumerate(BUDGETS):
        ours = table["ours"][i]
        assert ours is not None
        others = [table[way][i] for way in WAYS if way != "ours"]
        margins = [ours[0] - o[0] + (0 if share <= 0.6 else ours[1] + o[1]) for o in others if o]
        met[f"{share:.0%}"] = all(m > 0 if share <= 0.6 else m >= 0 for m in margins)
    areas = {
        way: area([table["ours"][i][0] - row[i][0] for i in range(len(BUDGETS)) if row[i]])  # type: ignore[index]
        for way, row in table.items()
        if way != "ours"
    }
    gains = [100 * (e["own"] - e["cloud"]) for r in results for e in r["edges"]]
    return {
        "budgets": BUDGETS,
        "teacher": statistics.mean(100 * r["teacher"] for r in results),
        "table": table,
        "mean_points_above": areas,
        "edge_gain": [statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0],
        "met": met,
    }


def area(differences: list[float]) -> float | None:
    """The mean difference between two curves."""
    return statistics.mean(differences) if differences else None


def report(result: dict[str, Any]) -> None:
    """Print the comparison."""
    print(f"teacher: {result['teacher']:.1f} %\n")
    print(f"{'test accuracy, % by budget':28}" + "".join(f"{b:>14.0%}" for b in BUDGETS))
    for way, row in result["table"].items():
        cells = ("-" if c is None else f"{c[0]:.1f} ± {c[1]:.1f}" for c in row)
        print(f"{way:28}" + "".join(f"{c:>14}" for c in cells))
    for way, points in result["mean_points_above"].items():
        print(f"ours above {way}: " + ("-" if points is None else f"{points:+.2f} points (mean)"))
    gain = result["edge_gain"]
    print(f"skewed edge data: {gain[0]:+.2f} ± {gain[1]:.2f} points by searching on it")
    for budget, met in result["met"].items():
        print(f"  {'met   ' if met else 'MISSED'} {budget}")


if __name__ == "__main__":
    raise SystemExit(main())
