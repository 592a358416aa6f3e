"""Measure expand: its time, its memory, the supernets' sizes, and the gain by calibration.

Prints, in one run,

- for ResNet-50: the time of ``expand`` over that of the capture alone (bar: at most 1.5), and the
  most memory it takes beyond the model's, over the bytes of the supernet's parameters (bar: 2.5);
  and the same of all compression operators (the time of their closed forms, bar: 3);
- with the paper's branches: the supernets' sizes over the models' (bars: the paper's Table 3,
  which does not say its gamma) and the numbers of subnets;
- the same with the default kinds, and the sizes of bundles that store new branches in 16 bits;
- for a small residual network trained on handwritten digits: the mean accuracy of random subnets
  with one new branch, as made and calibrated on 256 images.

Only ratios mean something: the machine may be shared.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.train_models import SmallResNet
from examples.models import ResNet50
from fxelastic import edge
from fxelastic.branches.calibration import calibrate
from fxelastic.passes import capture
from fxelastic.spec import Arch
from tests.models.mobilenet import MobileNetV2
from tests.models.resnet import Bottleneck, ResNet

TIME_BAR, FORMS_BAR, MEMORY_BAR = 1.5, 3.0, 2.5
OPERATORS = ("lowrank", "tucker", "separable", "grouped", "ghost", "fire", "lowres", "dense")
N_IMAGES = 256


def resnet101() -> nn.Module:
    """He et al. 2015."""
    return ResNet(Bottleneck, [3, 4, 23, 3])


#: Name, model, branches in addition to the originals, the paper's size (AdaptiveNet, Table 3).
SIZES: tuple[tuple[str, Any, dict[str, Any], float, float], ...] = (
    ("MobileNetV2", MobileNetV2, {"kinds": ("merged", "pruned")}, 2.3, 2.32),
    ("ResNet-50", ResNet50, {"kinds": ("merged",)}, 3.7, 3.72),
    ("ResNet-101", resnet101, {"kinds": ("merged",)}, 2.8, 2.82),
)

#: Name, model, the largest supernet and bundle with the default kinds, of the model's.
DEFAULTS: tuple[tuple[str, Any, float, float], ...] = (
    ("MobileNetV2", MobileNetV2, 2.0, 2.5),
    ("ResNet-50", ResNet50, 2.3, 2.5),
)
LEAST_SUBNETS = 10_000


def measure_time(repeats: int) -> dict[str, Any]:
    """Time the capture alone and the whole of expand, alternately."""
    model, example = ResNet50().eval(), torch.randn(2, 3, 224, 224)
    calls = {
        "capture": lambda: capture(model, example),
        "expand": lambda: fxelastic.expand(model, example_inputs=example),
        "originals": lambda: fxelastic.expand(model, example_inputs=example, kinds=()),
        "operators": lambda: fxelastic.expand(model, example_inputs=example, kinds=OPERATORS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    taken = {name: statistics.median(times) for name, times in seconds.items()}
    capture_s, expand_s = taken["capture"], taken["expand"]
    forms_s = taken["operators"] - taken["originals"]
    return {
        "capture_s": capture_s,
        "expand_s": expand_s,
        "ratio": expand_s / capture_s,
        "forms_s": forms_s,
        "forms_ratio": forms_s / capture_s,
    }


def measure_memory() -> dict[str, Any]:
    """Peak memory of a fresh process that expands, less that of one that only has the model."""
    peaks = {}
    for what in ("model", "expand", "operators"):
        command = [sys.executable, __file__, "--peak", what]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[what] = json.loads(output.splitlines()[-1])
    n_bytes = peaks["expand"]["parameter_bytes"]
    # All processes hold the model itself.
    added = {what: peaks[what]["peak_bytes"] - peaks["model"]["peak_bytes"] for what in peaks}
    return {
        "parameter_bytes": n_bytes,
        "added_bytes": added["expand"],
        "ratio": added["expand"] / n_bytes,
        "operators_ratio": added["operators"] / peaks["operators"]["parameter_bytes"],
    }


def print_peak(what: str) -> None:
    """Do one thing in this process, and print the peak memory."""
    model, example = ResNet50().eval(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        model(example)
    n_params = 0
    if what != "model":
        options = {"kinds": OPERATORS} if what == "operators" else {}
        n_params = fxelastic.expand(model, example_inputs=example, **options).n_params
    # Not ru_maxrss: a new process begins with its parent's.
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    peak = 1024 * int(line.split()[1])
    print(json.dumps({"peak_bytes": peak, "parameter_bytes": 4 * n_params}))


def measure_sizes(gammas: tuple[float, ...]) -> list[dict[str, Any]]:
    """The supernets of the paper's Table 3."""
    rows = []
    for name, build, options, bar, paper in SIZES:
        model = build().eval()
        n_params = sum(p.numel() for p in model.parameters())
        for gamma in gammas:
            supernet = fxelastic.expand(
                model, gamma, example_inputs=torch.randn(2, 3, 224, 224), **options
            )
            start = time.perf_counter()
            count = supernet.space.count()
            rows.append(
                {
                    "model": name,
                    "gamma": gamma,
                    "size": supernet.n_params / n_params,
                    "bar": bar,
                    "paper": paper,
                    "blocks": supernet.space.n_blocks,
                    "branches": len(supernet.branches),
                    "subnets": f"{count:.3g}" if count > 10**9 else str(count),
                    "count_ms": 1e3 * (time.perf_counter() - start),
                }
            )
    return rows


def measure_defaults() -> list[dict[str, Any]]:
    """Supernets and bundles with the default kinds."""
    rows = []
    for name, build, bar, bundle_bar in DEFAULTS:
        model = build().eval()
        supernet = fxelastic.expand(model, example_inputs=torch.randn(2, 3, 224, 224))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "bundle"
            bundle = fxelastic.export(supernet, out, verify=False, storage="fp16")
            original = edge.assemble(bundle, bundle.space.original, Path(folder) / "model.onnx")
            n_bytes = sum(file.size_bytes for file in bundle.files.values())
            bundle_size = n_bytes / original.stat().st_size
        rows.append(
            {
                "model": name,
                "size": supernet.n_params / sum(p.numel() for p in model.parameters()),
                "bar": bar,
                "bundle": bundle_size,
                "bundle_bar": bundle_bar,
                "branches": len(supernet.branches),
                "subnets": supernet.space.count(),
                "least_subnets": LEAST_SUBNETS,
            }
        )
    return rows


def measure_calibration(seed: int, epochs: int, n_subnets: int) -> dict[str, Any]:
    """Accuracy of random one-branch subnets on digits, with and without calibration."""
    from examples.data.digits import load

    torch.manual_seed(seed)
    sets = load(seed)
    images, classes = sets["train"].tensors
    model = SmallResNet(n_classes=10, widths=(16, 32, 48))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[index]), classes[index]).backward()
            optimiser.step()
    model.eval()
    supernet = fxelastic.expand(model, 0.3, example_inputs=images[:2], seed=seed)
    archs = one_branch(supernet, n_subnets, seed)
    before = [accuracy(supernet, arch, sets["test"].tensors) for arch in archs]
    calibrate(supernet, [images[:N_IMAGES]])
    after = [accuracy(supernet, arch, sets["test"].tensors) for arch in archs]
    return {
        "model_accuracy": accuracy(supernet, supernet.space.original, sets["test"].tensors),
        "subnets": len(archs),
        "images": N_IMAGES,
        "as_made": statistics.mean(before),
        "calibrated": statistics.mean(after),
        "worse": sum(b < a - 0.005 for a, b in zip(before, after, strict=True)),
    }


def one_branch(supernet: fxelastic.Supernet, n: int, seed: int) -> list[Arch]:
    """Subnets of originals except for one new branch, drawn without replacement."""
    original = supernet.space.original.branches
    archs = [
        Arch((*original[: spec.start], spec.id, *original[spec.stop :]))
        for spec in supernet.space.branches
        if spec.kind in ("merged", "pruned")
    ]
    order = torch.randperm(len(archs), generator=torch.Generator().manual_seed(seed)).tolist()
    return [archs[i] for i in order[:n]]


def accuracy(supernet: fxelastic.Supernet, arch: Arch, data: Any) -> float:
    """Share of images that are classified correctly."""
    images, classes = data
    with torch.no_grad():
        return float((supernet(images, arch=arch).argmax(1) == classes).double().mean())


def main() -> None:
    """Run the requested measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gammas", default="0.07,0.1,0.25")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--peak", choices=("model", "expand", "operators"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(args.peak)
        return
    results: dict[str, Any] = {"time": measure_time(args.repeats), "memory": measure_memory()}
    row = results["time"]
    print(
        f"ResNet-50: expand takes {row['ratio']:.2f} × the capture "
        f"({row['expand_s']:.2f} s of {row['capture_s']:.2f} s; bar {TIME_BAR}), closed forms of "
        f"all operators {row['forms_ratio']:.2f} × ({row['forms_s']:.2f} s; bar {FORMS_BAR})"
    )
    row = results["memory"]
    print(
        f"ResNet-50: at its peak {row['ratio']:.2f} × the supernet's {row['parameter_bytes']:,} "
        f"bytes (bar {MEMORY_BAR}), with all operators {row['operators_ratio']:.2f} ×"
    )
    results["sizes"] = measure_sizes(tuple(float(g) for g in args.gammas.split(",")))
    print("\nmodel        gamma  size  bar   paper  blocks  branches  subnets   count")
    for row in results["sizes"]:
        print(
            f"{row['model']:12} {row['gamma']:5}  {row['size']:.2f}  {row['bar']:.2f}  "
            f"{row['paper']:.2f}  {row['blocks']:6}  {row['branches']:8}  {row['subnets']:9} "
            f"{row['count_ms']:.2f} ms"
        )
    results["defaults"] = measure_defaults()
    print("\nwith the default kinds")
    for row in results["defaults"]:
        print(
            f"{row['model']:12} supernet {row['size']:.2f} (bar {row['bar']}), bundle "
            f"{row['bundle']:.2f} (bar {row['bundle_bar']}), {row['subnets']:.3g} subnets "
            f"(bar {row['least_subnets']})"
        )
    results["calibration"] = row = measure_calibration(0, args.epochs, 40)
    print(
        f"\ndigits: model {row['model_accuracy']:.3f}; mean of {row['subnets']} subnets with one "
        f"new branch: as made {row['as_made']:.3f}, calibrated on {row['images']} images "
        f"{row['calibrated']:.3f} ({row['worse']} of them lower)"
    )
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + os.linesep)


if __name__ == "__main__":
    main()
