"""Compare subnets of the supernet with published alternatives.

    python benchmarks/tradeoff.py --seeds 0 1 2 --out benchmarks/results/tradeoff.json

One teacher, one data set (`examples/data/glyphs.py`), the same steps of training, the same search
(`edge.search` on validation data) and the same device. Latencies are measured: `edge.profile`
times branches once; other networks are timed in onnxruntime beside the original. For budgets of
50 to 95 % of the original's latency it prints the accuracy on test data of

- **ours**: merged, pruned and skip branches, distilled and then tuned;
- **pruned only** (as LegoDNN, MobiCom 2021): blocks have pruned stand-ins, each trained to mimic
  its block alone; no merging and no training of whole paths;
- **skip only** (as SkipNet's routes, fixed): blocks may be left out, nothing is trained;
- **narrower networks** (as the widths of Slimmable Networks): networks of a share of the channels,
  in multiples of 8, each trained from scratch for as many steps as the supernet; the best on
  validation data of those that keep the budget.

The two smallest are also trained for as many steps as teacher and supernet together.

Then the shift of edge data (AdaptiveNet §7.4): for devices whose classes are skewed by a Dirichlet
distribution, the accuracy of our subnet searched on such data, and of the one chosen on the
cloud's data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from fxelastic.edge.subnet_timing import time_by_turns
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable

BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BASE = (16, 32, 48)
WIDTHS = ((8, 16, 24), (16, 24, 32), (16, 24, 40), (16, 32, 40))  # 1/2, 5/8, 3/4 and 7/8 of it
WAYS = ("ours", "pruned only", "skip only", "narrower networks")
LONG = "narrower, all of the steps"
SUBNETS = 150  # tried for each budget
N_EDGES, SKEW, EDGE_BUDGET = 8, 0.3, 0.6
Batches = list[tuple[torch.Tensor, torch.Tensor]]
Images = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def main() -> int:
    """Run the seeds without a result, and print the comparison."""
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
    """Compare all ways for one seed. Slow steps keep their results in the working folder."""
    folder = args.work / str(seed)
    folder.mkdir(exist_ok=True)
    setting = SETTINGS["resnet"]
    data = Glyphs(seed=seed).load(args.data)
    train = loader(data["train"], shuffle=True)
    test = list(loader(data["test"], shuffle=False))
    model = network(BASE, setting.epochs, data, folder / "teacher.safetensors", seed)
    options: dict[str, Any] = {"seed": seed, "warmup": 0.05}
    both = setting.distill + setting.tune

    def train_ours(net: Supernet) -> None:
        fxelastic.distill(net, train, epochs=setting.distill, lr=setting.distill_lr, **options)
        tuning = {"lr": setting.tune_lr, "soft": setting.soft}
        sampling = fxelastic.train.Bucketed()
        fxelastic.tune(net, train, epochs=setting.tune, sampling=sampling, **tuning, **options)

    def train_blocks(net: Supernet) -> None:
        fxelastic.distill(net, train, epochs=both, lr=setting.distill_lr, **options)

    nets = {
        "ours": supernet(model, ["merged", "pruned", "skip"], train_ours, folder / "ours", seed),
        "pruned only": supernet(model, ["pruned"], train_blocks, folder / "pruned", seed),
        "skip only": supernet(model, ["skip"], None, folder / "skip", seed),
    }
    table = profiled(folder / "ours")
    budgets = [f"{share:.0%}" for share in BUDGETS]
    images = {key: arrays(data[key]) for key in ("validation", "test")}
    rows: dict[str, list[float | None]] = {}
    chosen: dict[str, list[Arch | None]] = {}
    for way, (net, bundle) in nets.items():
        chosen[way] = searched(
            bundle, of_bundle(table, bundle), images["validation"], budgets, seed
        )
        archs = [arch for arch in chosen[way] if arch is not None]
        scores = fxelastic.evaluate(net, list(dict.fromkeys(archs)), test)
        rows[way] = [None if arch is None else scores[arch] for arch in chosen[way]]
        print(f"seed {seed}, {way}: {rows[way]}", file=sys.stderr, flush=True)
    narrow = {
        "narrower networks": narrower(data, WIDTHS, both, folder, seed),
        LONG: narrower(data, WIDTHS[:2], setting.epochs + both, folder, seed),
    }
    for way, networks in narrow.items():
        rows[way] = []
        for share in BUDGETS:
            fitting = [n for n in networks if n["latency"] <= share]
            best = max(fitting, key=lambda n: n["validation"], default=None)
            rows[way].append(None if best is None else best["test"])
    net, bundle = nets["ours"]
    original = bundle.space.original
    cloud = chosen["ours"][BUDGETS.index(EDGE_BUDGET)]
    assert cloud is not None
    return {
        "seed": seed,
        "teacher": fxelastic.evaluate(net, [original], test)[original],
        "rows": rows,
        "archs": {way: [a and str(a) for a in archs] for way, archs in chosen.items()},
        "narrow": narrow,
        "edges": edges(net, bundle, table, cloud, images, seed),
    }


def network(widths: Sequence[int], epochs: int, data: Any, weights: Path, seed: int) -> SmallResNet:
    """A network trained from scratch."""
    torch.manual_seed(seed)
    model = SmallResNet(widths=tuple(widths))
    if weights.exists():
        safetensors.torch.load_model(model, weights)
    else:
        train_teacher(model, data["train"], replace(SETTINGS["resnet"], epochs=epochs), "cpu")
        safetensors.torch.save_model(model, weights)
    return model.eval()


def supernet(
    model: nn.Module,
    kinds: list[str],
    train: Callable[[Supernet], None] | None,
    path: Path,
    seed: int,
) -> tuple[Supernet, edge.Bundle]:
    """A trained supernet with these kinds of branches, and its bundle."""
    example = torch.zeros(2, 1, SIZE, SIZE)
    net = fxelastic.expand(model, GAMMA, example_inputs=example, kinds=kinds, seed=seed)
    weights = path.with_suffix(".safetensors")
    if train is not None and weights.exists():
        net.load(weights)
    elif train is not None:
        train(net)
        net.save(weights)
        print(f"{path} is trained", file=sys.stderr, flush=True)
    return net, fxelastic.export(net, path, verify=False, force=True)


def profiled(bundle: Path) -> LatencyTable:
    """A latency table of a bundle on this machine, measured in a separate process."""
    path = bundle.with_suffix(".latency.json")
    command = [sys.executable, "-m", "fxelastic.cli", "profile", str(bundle), "--out", str(path)]
    subprocess.run(
        [*command, "--threads", "1", "--force", "--quiet"], check=True, stdout=subprocess.DEVNULL
    )
    return LatencyTable.load(path)


def of_bundle(table: LatencyTable, bundle: edge.Bundle) -> LatencyTable:
    """The same latencies for a bundle with some of the same branches: equal but for weights."""
    ids = {spec.id for spec in bundle.space.branches}
    rows = {k: v for k, v in table.rows.items() if k in ids}
    table = replace(table, bundle_digest=bundle.digest, rows=rows)
    for name in table.costs_of():
        table = table.mapped(
            lambda found: replace(found, costs={k: v for k, v in found.costs.items() if k in ids}),
            name,
        )
    return table


def searched(
    bundle: edge.Bundle, table: LatencyTable, images: Images, budgets: list[str], seed: int
) -> list[Arch | None]:
    """The best subnet of each budget; None if no subnet keeps it."""
    options: dict[str, Any] = {"held_out": 0.0, "batch_size": 100, "threads": 1, "seed": seed}
    for n_unmet in range(len(budgets)):
        try:
            result = edge.search(
                bundle, table, images, budget=budgets[n_unmet:], max_subnets=SUBNETS, **options
            )
        except UsageError as e:
            if "no subnet keeps" not in str(e):
                raise
            continue
        return [*[None] * n_unmet, *(best.arch for best in result.bests)]
    return [None] * len(budgets)


def narrower(
    data: Any, widths: Sequence[Sequence[int]], epochs: int, folder: Path, seed: int
) -> list[dict[str, Any]]:
    """Networks of fewer channels from scratch: accuracies, and latency as a share."""
    original = folder / "original.onnx"
    bundle = edge.load(folder / "ours")
    edge.assemble(bundle, bundle.space.original, original)
    found, files = [], [original]
    for channels in widths:
        name = "-".join(map(str, (*channels, epochs)))
        model = network(channels, epochs, data, folder / f"{name}.safetensors", seed)
        row: dict[str, Any] = {"widths": channels}
        for key in ("validation", "test"):
            x, y = arrays(data[key])
            with torch.no_grad():
                right = sum(
                    int((model(part).argmax(1).numpy() == y[i * 500 : (i + 1) * 500]).sum())
                    for i, part in enumerate(torch.from_numpy(x).split(500))
                )
            row[key] = right / len(y)
        files.append(folder / f"{name}.onnx")
        example = (torch.zeros(1, 1, SIZE, SIZE),)
        torch.onnx.export(model, example, files[-1], dynamo=True, verbose=False)
        found.append(row)
        print(f"seed {seed}, {epochs} epochs: {row}", file=sys.stderr, flush=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [ort.InferenceSession(file, options) for file in files]
    x = np.zeros((1, 1, SIZE, SIZE), np.float32)
    times = time_by_turns(
        [lambda s=s: s.run(None, {s.get_inputs()[0].name: x}) for s in sessions], 400
    )
    for row, ms in zip(found, times[1:], strict=True):
        row["latency"] = ms / times[0]
    return found


def arrays(data: Any) -> Images:
    """A data set as arrays of images and classes."""
    x, y = next(iter(DataLoader(data, len(data))))
    return x.numpy(), y.numpy()


def edges(
    net: Supernet,
    bundle: edge.Bundle,
    table: LatencyTable,
    cloud: Arch,
    images: dict[str, Images],
    seed: int,
) -> list[dict[str, float]]:
    """Compare, on devices with skewed classes, the subnet searched there with the cloud's."""
    rng = np.random.default_rng(seed)
    n_classes = int(images["test"][1].max()) + 1
    found = []
    for i in range(N_EDGES):
        weights = rng.dirichlet(np.full(n_classes, SKEW))
        skewed = {}
        for key, (x, y) in images.items():
            chance = weights[y] / np.bincount(y, minlength=n_classes)[y]
            index = rng.choice(len(y), 500, p=chance / chance.sum())
            skewed[key] = (x[index], y[index])
        (own,) = searched(bundle, table, skewed["validation"], [f"{EDGE_BUDGET:.0%}"], seed + i)
        assert own is not None
        x, y = map(torch.from_numpy, skewed["test"])
        scores = fxelastic.evaluate(net, list(dict.fromkeys([own, cloud])), [(x, y)])
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
