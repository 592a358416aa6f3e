"""Multi-stage training against joint training of the same network with the same exits.

    python benchmarks/multi_stage.py --data FOLDER [--seeds 0 1 2] [--out FILE] [--quick]

FOLDER holds Fashion-MNIST (see `fashion.py`). Every run is a process of its own, with one thread:

- **joint**: the network and its exits are trained end to end, by the mean of the exits' losses;
- **stages**: `fxelastic.train_stages` with ``update="freeze"``, or as ``--update`` says. A stage
  ends when its exit is within half a point of what joint training reaches on the validation images,
  or after its epochs.

Both use the loop of this package, the data without augmentation, the same order of samples, batch,
optimiser, and shape of the learning rate's schedule. It prints a table as AdaScale's Table III
(accuracy on test images, training memory and time of each stage; storage, parameters and latency
of the subnet that ends there), and compares

- *time*: processor time from the first step until each exit is within half a point of joint
  training's final accuracy on validation images, with the validations after each epoch, against
  that of joint training by the same rule, and against all of joint training;
- *memory*: the highest resident memory of the last stage above that before training, when
  libraries and data are loaded and the network was captured once, as a share of joint training's;
- *parameters* that the exits add.

Bars: time and memory at most 0.6 of joint training's, parameters at most 2 %.

Source: AdaScale, section III-B and Table III.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.fashion import Batches, Fashion, accuracy, network
from benchmarks.machine import facts
from fxelastic import Supernet, kinds, train
from fxelastic.branches.training_originals import training_originals
from fxelastic.ir.branch import Branch
from fxelastic.spec import EXIT, Arch

GAMMA, BATCH = 0.1, 128
# Epochs of joint training, and the most of each stage.
EPOCHS, STAGE_EPOCHS = 8, 4
WITHIN = 0.005
BARS = {"time": 0.6, "memory": 0.6, "parameters": 0.02}
OPTIONS: dict[str, Any] = {"lr": 6e-3, "weight_decay": 2e-2, "warmup": 0.2}
MIB = 2**20


class Meter(train.Callback):
    """Processor time, scores and highest resident memory of each stage and epoch."""

    def __init__(self) -> None:
        self.base = resident()
        self.stages: list[dict[str, Any]] = []

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Begin a stage: free what earlier ones have left, and forget their peak."""
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.stages.append({"stage": stage, "scores": [], "seconds": []})
        self._begin = time.process_time()

    def on_epoch(self, report: train.EpochReport) -> None:
        """Note the scores and the time."""
        self.stages[-1]["scores"].append(report.scores)
        self.stages[-1]["seconds"].append(time.process_time() - self._begin)
        told = f"{report.stage}, epoch {report.epoch}: loss {report.loss:.3f}, {report.scores}"
        print(told, file=sys.stderr, flush=True)

    def on_end(self, history: train.History | None) -> None:
        """Note the highest memory."""
        self.stages[-1]["memory_mib"] = (resident("VmHWM") - self.base) / MIB


def resident(which: str = "VmRSS") -> int:
    """Resident memory in bytes; ``VmHWM`` is its highest value."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(which))
    return int(line.split()[1]) * 1024


def run(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one way, in this process."""
    torch.set_num_threads(1)
    data = Fashion.load(args.data)
    n = args.images or len(data.train[0])
    images, classes = data.train[0][:n], data.train[1][:n]
    loader = Batches((images, classes), BATCH, args.seed, augment=False)
    # The loop seeds generators of this name, so that both ways see the same order.
    loader.generator = loader._generator  # type: ignore[attr-defined]
    validation = list(zip(*(part.split(BATCH) for part in data.validation), strict=True))
    torch.manual_seed(args.seed)
    model = network()
    exits, captured = expanded(model, images, args.seed)
    meter = Meter()
    options: dict[str, Any] = {
        **OPTIONS,
        "validate": validation,
        "seed": args.seed,
        "threads": 1,
        "callbacks": [meter],
    }
    if way == "joint":
        supernet = joint(captured, exits, loader, {**options, "epochs": args.epochs})
    else:
        captured = exits = None  # type: ignore[assignment]
        supernet = fxelastic.train_stages(
            model,
            loader,
            gamma=GAMMA,
            example_inputs=images[:2],
            epochs=args.stage_epochs,
            until=args.until,
            update=args.update,
            **options,
        )
    archs = paths(supernet)
    test = {str(arch): accuracy(supernet.subnet(arch), data.test) for arch in archs}
    result = {"stages": meter.stages, "test": list(test.values())}
    return {**result, **sizes(supernet, archs)} if way == "stages" else result


def expanded(model: torch.nn.Module, images: torch.Tensor, seed: int) -> tuple[list[Branch], Any]:
    """A copy of the network with exits, as `train_stages` makes it."""
    made = fxelastic.expand(
        model, GAMMA, example_inputs=images[:2], kinds=(kinds.Exit(),), seed=seed
    )
    supernet = copy.deepcopy(made)
    return [b for b in supernet.branches.values() if b.kind == EXIT], supernet


def joint(supernet: Supernet, exits: list[Branch], loader: Any, options: Any) -> Supernet:
    """Train the network and all exits together."""
    training = Supernet(supernet.partition, [*training_originals(supernet.partition), *exits])
    stage = train.Stage(train.Supervised(), sampling=train.Fixed(paths(supernet)), name="joint")
    fixed = {"keep_best": False, "norm_statistics": "batch"}
    train.run(training, loader, [stage], **fixed, **options)
    return supernet.eval()


def paths(supernet: Supernet) -> tuple[Arch, ...]:
    """The subnets that end in each exit, and the network."""
    originals = supernet.space.original.branches
    exits = [b for b in supernet.branches.values() if b.kind == EXIT]
    ends = sorted(exits, key=lambda b: b.start)
    return (*(Arch((*originals[: b.start], b.id)) for b in ends), supernet.space.original)


def sizes(supernet: Supernet, archs: Sequence[Arch]) -> dict[str, Any]:
    """Parameters of the subnets and of the exits, and latencies in onnxruntime."""
    from fxelastic import edge
    from fxelastic.edge.subnet_timing import time_by_turns

    counts = [sum(p.numel() for p in supernet.subnet(arch).parameters()) for arch in archs]
    own = sum(b.n_params for b in supernet.branches.values() if b.kind == EXIT)
    with tempfile.TemporaryDirectory() as folder:
        import onnxruntime as ort

        bundle = fxelastic.export(supernet, Path(folder) / "bundle", verify=False)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        runs = []
        for i, arch in enumerate(archs):
            path = Path(folder) / f"{i}.onnx"
            edge.assemble(bundle, arch, path)
            session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
            given = {session.get_inputs()[0].name: torch.zeros(1, 1, 28, 28).numpy()}
            runs.append(lambda s=session, x=given: s.run(None, x))
        latencies = time_by_turns(runs, 300)
    return {"n_params": counts, "exit_share": own / counts[-1], "latency_ms": latencies}


def compare(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run both ways for one seed, each in a process of its own."""
    together = child("joint", seed, args, [])
    (stage,) = together["stages"]
    final = stage["scores"][-1]
    bars = [score - WITHIN for score in final]
    alone = child("stages", seed, args, bars)
    first = next(
        i
        for i, scores in enumerate(stage["scores"])
        if all(a >= b for a, b in zip(scores, bars, strict=True))
    )
    reached = [s["scores"][-1][-1] >= b for s, b in zip(alone["stages"], bars, strict=True)]
    seconds = sum(s["seconds"][-1] for s in alone["stages"])
    return {
        "seed": seed,
        "joint": together,
        "stages": alone,
        "bars": bars,
        "reached": reached,
        "time": seconds / stage["seconds"][first],
        "time_of_all": seconds / stage["seconds"][-1],
        "memory": alone["stages"][-1]["memory_mib"] / stage["memory_mib"],
        "parameters": alone["exit_share"],
    }


def child(way: str, seed: int, args: argparse.Namespace, bars: Sequence[float]) -> dict[str, Any]:
    """The result of one way, from a process of its own, or from an earlier, interrupted run."""
    name = f"{seed}-{way}" + f"-{args.update}" * (way == "stages")
    kept = None if args.work is None else args.work / f"{name}.json"
    if kept is not None and kept.exists():
        return dict(json.loads(kept.read_text()))
    command = [sys.executable, __file__, "--data", str(args.data), "--run", way]
    command += ["--seed", str(seed), "--epochs", str(args.epochs)]
    command += ["--stage-epochs", str(args.stage_epochs)]
    command += ["--until", *map(repr, bars)] if bars else []
    command += ["--update", args.update]
    command += ["--images", str(args.images)] if args.images else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    return dict(json.loads(done.stdout))


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the bars that they meet."""
    found = {
        name: statistics.mean(result[name] for result in results)
        for name in ("time", "time_of_all", "memory", "parameters")
    }
    all_reached = all(all(result["reached"]) for result in results)
    met = {name: found[name] <= bar for name, bar in BARS.items()}
    met["time"] &= all_reached
    return {**found, "all_reached": all_reached, "met": met}


def report(result: dict[str, Any]) -> None:
    """Print the table and the comparison."""
    heads = (
        "accuracy, %",
        "joint's, %",
        "memory, MiB",
        "time, s",
        "storage, MB",
        "params, k",
        "ms",
    )
    print(f"{'mean over seeds':16}" + "".join(f"{head:>13}" for head in heads))
    seeds = result["seeds"]
    for i, stage in enumerate(seeds[0]["stages"]["stages"]):
        rows = [
            (
                100 * s["stages"]["test"][i],
                100 * s["joint"]["test"][i],
                s["stages"]["stages"][i]["memory_mib"],
                s["stages"]["stages"][i]["seconds"][-1],
                s["stages"]["n_params"][i] * 4 / 1e6,
                s["stages"]["n_params"][i] / 1e3,
                s["stages"]["latency_ms"][i],
            )
            for s in seeds
        ]
        means = map(statistics.mean, zip(*rows, strict=True))
        print(f"{stage['stage']:16}" + "".join(f"{value:13.3f}" for value in means))
    for name in ("memory_mib", "seconds"):
        values = [s["joint"]["stages"][0][name] for s in seeds]
        mean = statistics.mean(v[-1] if isinstance(v, list) else v for v in values)
        print(f"joint training: {name} {mean:.1f}")
    for s in seeds:
        told = ", ".join("yes" if x else "NO" for x in s["reached"])
        print(f"seed {s['seed']}: exits within half a point of joint training's: {told}")
    print(
        f"time until then: {result['time']:.2f} of joint training's by the same rule, "
        f"{result['time_of_all']:.2f} of all of it"
    )
    print(f"memory in the last stage: {result['memory']:.2f} of joint training's")
    print(f"parameters of the exits: {result['parameters']:.2%}")
    for name, met in result["met"].items():
        print(f"  {'met   ' if met else 'MISSED'} {name}: at most {BARS[name]:g}")


def main() -> int:
    """Run the seeds, and print the comparison; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="epochs of joint training")
    parser.add_argument("--stage-epochs", type=int, help="the most epochs of a stage")
    parser.add_argument("--update", choices=("freeze", "finetune"), default="freeze")
    parser.add_argument("--images", type=int, help="training images (default: all 55,000)")
    parser.add_argument("--quick", action="store_true", help="4,000 images, few epochs, one seed")
    parser.add_argument("--work", type=Path, help="folder for results of runs, to resume")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", choices=("joint", "stages"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--until", nargs="+", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.images = args.images or (4000 if args.quick else None)
    args.epochs = args.epochs or (3 if args.quick else EPOCHS)
    args.stage_epochs = args.stage_epochs or (2 if args.quick else STAGE_EPOCHS)
    if args.run is not None:
        print(json.dumps(run(args.run, args)))
        return 0
    seeds = args.seeds[:1] if args.quick else args.seeds
    results = [compare(seed, args) for seed in seeds]
    result = {"update": args.update, "seeds": results, **summary(results), "machine": facts()}
    report(result)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
