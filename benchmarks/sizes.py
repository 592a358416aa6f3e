"""Measure one export of a text encoder at many lengths: its results, and its predicted latency.

    python benchmarks/sizes.py FOLDER [--out FILE]

exports a BERT of 6 layers with random weights for 1 to 512 tokens, with its branches, into a new
FOLDER (about 60 s), and compares subnets with torch at 20 random lengths, assembled and paged. It
then makes a latency table at a few lengths, and times 20 subnets at 20 lengths: neither the
subnets nor the lengths were used for the table. Each subnet is timed in turns with the original.

Bars: all results equal torch's within the export's tolerance; in both modes, the error of predicted
latencies is at most 5 % in the median and 12 % in the 90th percentile. As in tables, latencies are
relative to the original's: at the example's length, whatever their own length. The errors in ms, at
each length, and of the original alone are printed, too.

Each part runs in a process of its own, so that nothing is timed beside torch. If FOLDER exists, the
parts that are done there are not repeated. Takes some 15 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxelastic import edge
from fxelastic.edge.executor import Executor
from fxelastic.edge.measured_sizes import SizePlan
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.stopwatch import Stopwatch
from fxelastic.edge.subnet_timing import SubnetTimer
from fxelastic.edge.synthetic_inputs import random_inputs
from fxelastic.edge.timed_subnets import distinct_subnets
from fxelastic.spec.latency_table import CLOCKS, MODES, LatencyTable

BARS = {"median": 0.05, "p90": 0.12}
LONGEST, EXAMPLE = 512, 64
#: Differs from the seed of the subnets that a table is fitted to.
SEED = 1000


def make(folder: Path, n_lengths: int) -> dict[str, Any]:
    """Export the model, and compare it with torch at random lengths."""
    import torch

    import fxelastic
    from tests.models.bert import Bert, BertEmbeddings

    torch.manual_seed(0)
    model = Bert(384, 12, 6)
    model.embeddings = BertEmbeddings(384, LONGEST)
    names = {0: "batch", 1: "seq"}
    supernet = fxelastic.expand(
        model.eval(),
        gamma=0.12,
        example_inputs={
            "input_ids": torch.randint(0, 101, (1, EXAMPLE)),
            "attention_mask": torch.ones(1, EXAMPLE, dtype=torch.int64),
        },
        dynamic_shapes={"input_ids": names, "attention_mask": names},
    )
    bundle = fxelastic.export(supernet, folder / "bundle")
    verification = bundle.manifest.verification
    tolerance = 1e-3 if verification is None else verification.subnet_tolerances["float32"]
    archs = [bundle.space.original, *bundle.space.sample(2, SEED)]
    lengths = sorted(np.random.default_rng(SEED).choice(LONGEST, n_lengths, replace=False) + 1)
    worst = dict.fromkeys(MODES, 0.0)
    with Executor(bundle) as executor, tempfile.TemporaryDirectory() as place:
        for i, arch in enumerate(archs):
            path = edge.assemble(bundle, arch, Path(place) / f"{i}.onnx")
            session = SessionMaker(0).open_branch(path)
            for seed, length in enumerate(lengths):
                inputs = random_inputs(bundle, 1, seed, sizes={"seq": int(length)})
                with torch.inference_mode():
                    tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
                    expected = supernet(**tensors, arch=arch)
                for mode in MODES:
                    found = (
                        session.run(None, inputs)
                        if mode == "assembled"
                        else executor.run(arch, inputs)
                    )
                    off = max(
                        float(np.abs(a - b.numpy()).max() / max(1.0, float(b.abs().max())))
                        for a, b in zip(found, expected, strict=True)
                    )
                    worst[mode] = max(worst[mode], off)
    return {
        "branches": len(bundle.space.branches),
        "compared_lengths": [int(length) for length in lengths],
        "worst_difference": worst,
        "tolerance": tolerance,
    }


def profile(folder: Path, threads: int, sizes: list[int], seconds: float | None) -> dict[str, Any]:
    """Make the table, as `fxelastic profile` does."""
    begin_s = time.perf_counter()
    table = edge.profile(
        edge.load(folder / "bundle"), None, threads, sizes={"seq": sizes}, time_budget_s=seconds
    )
    table.save(folder / "table.json")
    return {"profile_s": time.perf_counter() - begin_s, "threads": table.threads}


def measure(folder: Path, n_lengths: int, n_subnets: int, rounds: int) -> dict[str, Any]:
    """Time subnets at lengths that the table does not know, and compare."""
    bundle = edge.load(folder / "bundle")
    table = LatencyTable.load(folder / "table.json")
    assert table.by_size is not None
    plan = SizePlan.of(bundle.manifest.model, table.by_size.measured)
    known = {point["seq"] for point in plan.all}
    others = [length for length in range(1, LONGEST + 1) if length not in known]
    lengths = sorted(np.random.default_rng(SEED).choice(others, n_lengths, replace=False).tolist())
    archs = distinct_subnets(bundle, n_subnets, SEED)
    points = [*({"seq": length} for length in lengths), {"seq": EXAMPLE}]
    watch = Stopwatch(processor=table.clock == CLOCKS[1])
    result: dict[str, Any] = {"lengths": lengths, "subnets": len(archs), "clock": table.clock}
    with Executor(bundle, table.threads, None, shared_arena=False) as executor:
        inputs = [random_inputs(bundle, 1, 0, sizes=point) for point in points]
        timer = SubnetTimer(executor, inputs, watch=watch)
        for mode in MODES:
            maker = SessionMaker(table.threads, sizes_vary=True)
            times = timer.time_at_sizes(archs, mode, maker, rounds)
            actual = np.array([[found[arch].ms for arch in archs] for found in times[:-1]])
            predicted = np.array(
                [[table.predict_ms(arch, mode, point) for arch in archs] for point in points[:-1]]
            )
            original = bundle.space.original
            scale = times[-1][original].ms / table.predict_ms(original, mode, points[-1])
            alone = [
                scale * table.predict_ms(original, mode, point) / found[original].ms - 1
                for point, found in zip(points, times, strict=True)
            ]
            off = np.abs(scale * predicted / actual - 1)
            stated = table.error(mode)
            result[mode] = {
                **_errors(off),
                "in_ms": _errors(np.abs(predicted / actual - 1)),
                "by_length": _by(lengths, np.median(off, axis=1).tolist()),
                "original": _by(lengths, alone[:-1]),
                "range_ms": [float(actual.min()), float(actual.max())],
                "noise": float(np.median([m.noise for t in times for m in list(t.values())[1:]])),
                "stated": None if stated is None else stated.to_json(),
                "problem": table.problem(mode),
            }
    return result


def _by(lengths: list[int], values: list[float]) -> dict[str, float]:
    return dict(zip(map(str, lengths), values, strict=True))


def _errors(off: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(off)), "p90": float(np.percentile(off, 90))}


def part(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """The result of a part, which runs in another process unless it is known."""
    file = folder / f"{name}.json"
    if not file.exists():
        command = [sys.executable, __file__, str(folder), "--part", name, *options]
        subprocess.run([*command, "--out", str(file)], check=True)
    return dict(json.loads(file.read_text()))


def show(result: dict[str, Any]) -> int:
    """Print the result; returns the number of missed bars."""
    worst, tolerance = result["worst_difference"], result["tolerance"]
    missed = sum(difference > tolerance for difference in worst.values())
    print(
        f"{len(result['compared_lengths'])} lengths compared with torch: differences of at most "
        + ", ".join(f"{worst[mode]:.1e} {mode}" for mode in MODES)
        + f" (tolerance {tolerance:.0e})"
    )
    print(
        f"a table of {result['branches']} branches takes {result['profile_s']:.0f} s; "
        f"{result['threads'] or 'all'} threads, {result['clock']} time"
    )
    for mode in MODES:
        found = result[mode]
        missed += sum(found[key] > bar for key, bar in BARS.items())
        stated = found["stated"]
        print(
            f"{mode:10} {result['subnets']} subnets at {len(result['lengths'])} lengths: median "
            f"{found['median']:.1%}, p90 {found['p90']:.1%} (in ms {found['in_ms']['median']:.1%}, "
            f"{found['in_ms']['p90']:.1%}); noise {found['noise']:.1%}; "
            + ("" if stated is None else f"stated {stated['median']:.1%}, {stated['p90']:.1%}")
            + (f"; UNUSABLE: {found['problem']}" if found["problem"] else "")
        )
        each = zip(found["by_length"].items(), found["original"].values(), strict=True)
        print(
            "           length: median, original  "
            + "  ".join(f"{length}: {off:.0%}, {own:+.0%}" for (length, off), own in each)
        )
    print("every bar is met" if not missed else f"{missed} bars are missed")
    return missed


def main() -> int:
    """Run and print; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--sizes", default="1,16,64,256,512", help="lengths of the table")
    parser.add_argument("--lengths", type=int, default=20)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=8, help="least timed runs of each")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="time budget of the table")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--part", choices=("make", "profile", "measure"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        result = {
            "make": lambda: make(args.folder, args.lengths),
            "profile": lambda: profile(
                args.folder, args.threads, [int(s) for s in args.sizes.split(",")], args.seconds
            ),
            "measure": lambda: measure(args.folder, args.lengths, args.subnets, args.rounds),
        }[args.part]()
        Path(args.out).write_text(json.dumps(result))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    seconds = () if args.seconds is None else ("--seconds", str(args.seconds))
    result = part(args.folder, "make", "--lengths", str(args.lengths))
    result |= part(
        args.folder, "profile", "--sizes", args.sizes, "--threads", str(args.threads), *seconds
    )
    numbers = ("--lengths", "--subnets", "--rounds")
    counts = (args.lengths, args.subnets, args.rounds)
    options = [text for pair in zip(numbers, map(str, counts), strict=True) for text in pair]
    result |= part(args.folder, "measure", *options)
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + os.linesep)
    return int(show(result) > 0)


if __name__ == "__main__":
    sys.exit(main())
