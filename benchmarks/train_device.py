"""Compare the time of training steps on devices, and with a step of training the model itself.

    python benchmarks/train_device.py --devices cpu cuda --out train_device.json

For each model, device and precision it times, with the same batches of random data,

- a step of training the model: forward, backward, AdamW;
- a step of distillation in which every new branch learns from the model's features;
- a step of tuning one sampled subnet, with the model as its teacher;

and prints the ratio of the CPU's time to the device's (bar: above 1 for the networks of published
size), the ratio of a step to a step of the model itself on the same device, and the share of
the time for which kernels run on the device. If that is small, launching kernels takes the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.machine import facts
from benchmarks.train_models import SmallResNet
from examples.models import ResNet50, VisionTransformer
from fxelastic import Supernet
from fxelastic.train import Callback, StepReport

BAR = 1.0


@dataclass(frozen=True)
class Case:
    """A model and the inputs of a step.

    Attributes:
        build: Makes the model.
        shape: Shape of one sample.
        n_classes: Number of its logits.
        batch_size: Samples in a step.
        gamma: See `fxelastic.expand`.
        large: Whether the bar applies; if so, few steps run on a CPU.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    n_classes: int
    batch_size: int
    gamma: float
    large: bool

    def batches(self, device: str) -> list[tuple[Tensor, Tensor]]:
        """Two batches on the device, so that loading data is not measured."""
        generator = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn(self.batch_size, *self.shape, generator=generator).to(device),
                torch.randint(self.n_classes, (self.batch_size,), generator=generator).to(device),
            )
            for _ in range(2)
        ]


CASES = {
    "small resnet": Case(SmallResNet, (1, 32, 32), 36, 100, 0.3, large=False),
    "resnet50": Case(ResNet50, (3, 224, 224), 1000, 32, 0.1, large=True),
    "vit": Case(
        lambda: VisionTransformer(width=384, depth=6),
        (3, 224, 224),
        1000,
        32,
        0.2,
        large=True,
    ),
}


class Clock(Callback):
    """Records the end of each step."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.ends_s = [now_s(device)]

    def on_step(self, report: StepReport) -> None:
        self.ends_s.append(now_s(self._device))

    def seconds(self, n_warm: int) -> float:
        """The median time of a step after some warm-up steps."""
        pairs = itertools.pairwise(self.ends_s[n_warm:])
        return statistics.median(end - begin for begin, end in pairs)


def now_s(device: str) -> float:
    """The time after all queued work of the device is done."""
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def step_of_model(case: Case, device: str, precision: str, n_warm: int, n: int) -> float:
    """Seconds of a step of training the model itself."""
    model = case.build().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    clock = Clock(device)
    for x, y in itertools.islice(itertools.cycle(case.batches(device)), n_warm + n):
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        clock.on_step(None)  # type: ignore[arg-type]
    return clock.seconds(n_warm)


def autocast(device: str, precision: str) -> Any:
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def step_of_stage(
    supernet: Supernet, stage: Any, batches: Iterable[Any], device: str, precision: str, **when: int
) -> float:
    """Seconds of a step of a stage."""
    clock = Clock(device)
    n_warm, n = when["n_warm"], when["n"]
    options: dict[str, Any] = {"soft": 0.5} if stage is fxelastic.tune else {}
    stage(
        supernet,
        list(itertools.islice(itertools.cycle(batches), n_warm + n)),
        callbacks=[clock],
        precision=precision,
        progress=False,
        **options,
    )
    return clock.seconds(n_warm)


def busy_share(run: Callable[[], object]) -> float:
    """The share of the time for which kernels run on the device."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    begin_s = now_s("cuda")
    with torch.profiler.profile(activities=activities) as profile:
        run()
        end_s = now_s("cuda")
    kernels_us = sum(event.self_device_time_total for event in profile.key_averages())
    return 1e-6 * kernels_us / (end_s - begin_s)


def measure(case: Case, supernet: Supernet, device: str, precision: str) -> dict[str, Any]:
    """Seconds of each kind of step, on one device."""
    when = {"n_warm": 1, "n": 2} if device == "cpu" and case.large else {"n_warm": 5, "n": 20}
    supernet.to(device)
    batches = case.batches(device)
    steps: dict[str, float] = {}
    busy: dict[str, float] = {}
    steps["model"] = step_of_model(case, device, precision, **when)
    for name, stage in (("distill", fxelastic.distill), ("tune", fxelastic.tune)):
        given = (supernet, stage, batches, device, precision)
        steps[name] = step_of_stage(*given, **when)
        if device == "cuda":
            busy[name] = busy_share(lambda given=given: step_of_stage(*given, n_warm=0, n=3))
    return {"device": device, "precision": precision, "step_s": steps, "busy": busy}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"], help="the first: 1")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        case = CASES[name]
        torch.manual_seed(0)
        example = torch.zeros(2, *case.shape)
        supernet = fxelastic.expand(case.build().eval(), case.gamma, example_inputs=example)
        first: dict[str, float] | None = None
        for device in args.devices:
            for precision in ("fp32", "bf16") if device != "cpu" else ("fp32",):
                row: dict[str, Any] = {"model": name, "batch_size": case.batch_size}
                row |= {"large": case.large, "branches": len(supernet.branches)}
                row |= measure(case, supernet, device, precision)
                steps = row["step_s"]
                first = first or steps
                row["quicker"] = {key: first[key] / steps[key] for key in steps}
                row["of_model"] = {key: steps[key] / steps["model"] for key in steps}
                rows.append(row)
                print(told(row), flush=True)
    quick = [
        min(row["quicker"].values()) for row in rows if row["large"] and row["device"] != "cpu"
    ]
    result = {
        "machine": {**facts(), **accelerator()},
        "rows": rows,
        "met": all(value > BAR for value in quick) if quick else None,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["met"] is False)


def accelerator() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"accelerator": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def told(row: dict[str, Any]) -> str:
    cells = [
        f"{key} {1e3 * seconds:.1f} ms ({row['quicker'][key]:.1f}x, "
        f"{row['of_model'][key]:.2f} of a model's step"
        + (f", busy {row['busy'][key]:.0%})" if key in row["busy"] else ")")
        for key, seconds in row["step_s"].items()
    ]
    return f"{row['model']}, {row['device']}, {row['precision']}: " + "; ".join(cells)


if __name__ == "__main__":
    sys.exit(main())
