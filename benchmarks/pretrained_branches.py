"""Train the branches for a while, and measure the error of each on the original's features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fxelastic
from benchmarks.bootstrap import Array, Bootstrap, Figure
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from fxelastic import Supernet
from fxelastic.train import Callback, History, StepReport
from fxelastic.train.held_out import N_BATCHES
from fxelastic.train.optimisation import RATES, n_steps_tried

PROBED_STEPS = 5
HELD_OUT = 256
BATCH = 32


class TrainingSamples(Dataset[tuple[Tensor, ...]]):
    """The samples of a split, one by one."""

    def __init__(self, model: PretrainedModel, samples: Samples) -> None:
        self._model, self._samples = model, samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        inputs = self._model.tensors(self._samples, slice(i, i + 1))
        return tuple(tensor[0] for tensor in inputs)


class StepClock(Callback):
    """Notes the processor time of each step, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last_s = time.process_time()

    def on_step(self, report: StepReport) -> None:
        now_s = time.process_time()
        self.seconds.append(now_s - self._last_s)
        self._last_s = now_s


def batches(model: PretrainedModel, samples: Samples) -> Iterator[tuple[Tensor, ...]]:
    """The samples in their order, as the model takes them."""
    for start in range(0, len(samples), BATCH):
        yield model.tensors(samples, slice(start, start + BATCH))


def distil(
    supernet: Supernet,
    model: PretrainedModel,
    samples: dict[str, Samples],
    minutes: float,
    initial: Path,
) -> dict[str, Any]:
    """Train for as many steps as take so many minutes of one core; the time is the processor's.

    Args:
        supernet: What learns.
        model: The model.
        samples: Those of each split.
        minutes: Time for steps and for checks on held-out batches.
        initial: The file of the supernet before training.

    Returns:
        What was done, as plain data.
    """
    clock = StepClock()
    run(
        supernet, model, samples["train"], PROBED_STEPS, lr=1e-3, keep_best=False, callbacks=[clock]
    )
    supernet.load(initial)
    step_s = statistics.median(clock.seconds[1:])
    # Every eighth sample: each batch has samples of all sources.
    chosen = samples["select"].take(HELD_OUT)
    held_out = [model.tensors(chosen, slice(i, None, N_BATCHES)) for i in range(N_BATCHES)]
    begin_s = time.process_time()
    branch_sums(supernet, model, held_out)
    check_s = time.process_time() - begin_s
    # Branches are checked after each epoch, and before the first one seven times: as they are, with
    # statistics that are estimated, and after some steps with each of four learning rates.
    per_epoch = len(samples["train"]) // model.batch_size
    steps = (60 * minutes - 7 * check_s) / (step_s + check_s / per_epoch)
    tried = len(RATES) * n_steps_tried(max(1, int(steps)))
    steps = max(1, int(steps) - tried)
    begin_s, began_s = time.process_time(), time.perf_counter()
    history = run(supernet, model, samples["train"], steps, held_out=held_out)
    report = history.held_out
    assert report is not None
    return {
        "steps": steps,
        "step_s": step_s,
        "processor_s": time.process_time() - begin_s,
        "wall_s": time.perf_counter() - began_s,
        "better": report.n_better,
        "held_out": asdict(report),
    }


def run(
    supernet: Supernet, model: PretrainedModel, samples: Samples, steps: int, **options: Any
) -> History:
    """Distil with the options that fxelastic has by itself, and those given."""
    loader = DataLoader(
        TrainingSamples(model, samples), model.batch_size, shuffle=True, drop_last=True
    )
    return fxelastic.distill(supernet, loader, steps=steps, seed=0, threads=1, **options)


@torch.no_grad()
def branch_sums(
    supernet: Supernet, model: PretrainedModel, inputs: Iterable[tuple[Tensor, ...]]
) -> dict[str, Array]:
    """What errors are computed from, for each branch that can learn.

    A branch gets what the original computes before it, and should give what the original computes
    after it. Where sentences are filled up, only the places that hold a token count: the others
    are most of all places, are easily learned, and have no influence on the result.

    Returns:
        For each branch ``(N, results, 4)``: for each sample and each floating-point result, the
        sums of the squared error, of the target and of its square, and the number of elements.
    """
    learning = [
        branch
        for branch in supernet.branches.values()
        if not branch.frozen and any(p.requires_grad for p in branch.module.parameters())
    ]
    originals = supernet.path()
    found: dict[str, list[Array]] = {branch.id: [] for branch in learning}
    for batch in inputs:
        values = supernet.bind(batch, {})
        waiting = []
        for original in originals:
            for branch in (b for b in learning if b.start == original.start):
                operands = [values[name] for name in (*branch.inputs, *branch.context)]
                waiting.append((branch, operands))
            supernet.run_branch(original, values)
            for branch, operands in [w for w in waiting if w[0].stop == original.stop]:
                result = branch.module(*operands)
                results = (result,) if len(branch.outputs) == 1 else result
                targets = [values[name] for name in branch.outputs]
                found[branch.id].append(_sums(results, targets, model.tokens(batch)))
            waiting = [w for w in waiting if w[0].stop != original.stop]
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _sums(results: Any, targets: list[Tensor], tokens: Tensor | None) -> Array:
    rows = []
    for result, target in zip(results, targets, strict=True):
        if not target.is_floating_point():
            continue
        counted = torch.ones((len(target), 1))
        if tokens is not None and target.shape[:2] == tokens.shape:
            counted = tokens.to(target.dtype)
        # Samples, places, and the numbers of a place.
        error, value = (
            x.reshape(*counted.shape, -1) * counted[..., None]
            for x in ((result - target).square(), target)
        )
        sums = [x.sum((1, 2), dtype=torch.float64) for x in (error, value, value.square())]
        n = counted.sum(1, dtype=torch.float64) * value.shape[2]
        rows.append(torch.stack([*sums, n], 1))
    return torch.stack(rows, 1).numpy()


def normalised_errors(sums: Array) -> Array:
    """Squared errors as shares of the targets' variance, averaged over a branch's results.

    Args:
        sums: Totals of `branch_sums` over samples, ``(…, results, 4)``.

    Returns:
        ``(…)``.
    """
    error, total, squares, n = np.moveaxis(sums, -1, 0)
    found: Array = (error / (squares - total**2 / n)).mean(-1)
    return found


def compared(before: dict[str, Array], after: dict[str, Array], groups: Array) -> dict[str, Any]:
    """The errors of all branches before and after training, with intervals.

    Args:
        before: `branch_sums` of the supernet before.
        after: The same after.
        groups: The source of each sample.
    """
    bootstrap = Bootstrap(groups)
    errors: dict[str, list[Figure]] = {}
    for name in before:
        sums = [bootstrap.sums(values[name]) for values in (before, after)]
        errors[name] = [
            Figure(
                float(normalised_errors(part.sum(0))),
                normalised_errors(bootstrap.resampled(part)),
            )
            for part in sums
        ]
    ratios = {name: b.value and a.value / b.value for name, (b, a) in errors.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    mean_before, mean_after = (
        Figure(
            float(np.mean([pair[i].value for pair in errors.values()])),
            np.mean([pair[i].draws for pair in errors.values()], axis=0),
        )
        for i in (0, 1)
    )
    return {
        "n": len(errors),
        "improved": sum(ratio < 1 for ratio in ratios.values()) / len(ratios),
        "worst": [worst, ratios[worst]],
        "before": mean_before.to_json(),
        "after": mean_after.to_json(),
        "ratio": (mean_after / mean_before).to_json(),
        "errors": {name: [b.value, a.value] for name, (b, a) in errors.items()},
    }
