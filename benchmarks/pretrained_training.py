"""Training of a supernet for some minutes of one core: distillation, tuning, interpolation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fxelastic
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from fxelastic import Supernet
from fxelastic.train import Attentive, Callback, History, StepReport
from fxelastic.train.held_out import N_BATCHES
from fxelastic.train.optimisation import RATES, n_steps_tried

#: Times of steps differ for different subnets, but not for steps of all branches.
PROBED_STEPS = {"distil": 4, "tune": 40}
HELD_OUT = 128
#: The largest error of a branch alone after tuning, as a share of that before training.
MOST_ERROR = 0.98
#: Errors are measured before training, after each epoch, and after some steps with each rate; in
#: distillation also after statistics were estimated.
CHECKS = {"distil": 3 + len(RATES), "tune": 2 + len(RATES)}

#: Trains with options such as ``steps``.
Train = Callable[..., History]


class TrainingSamples(Dataset[tuple[Tensor, ...]]):
    """The samples of a split, one by one."""

    def __init__(self, model: PretrainedModel, samples: Samples) -> None:
        self._model, self._samples = model, samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        inputs = self._model.tensors(self._samples, slice(i, i + 1))
        return tuple(tensor[0] for tensor in inputs)

    def batch(self, samples: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Samples as one batch, for a DataLoader."""
        return tuple(map(self._model.laid_out, map(torch.stack, zip(*samples, strict=True))))


class StepClock(Callback):
    """Notes the processor time of each step, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last_s = time.process_time()

    def on_step(self, report: StepReport) -> None:
        now_s = time.process_time()
        self.seconds.append(now_s - self._last_s)
        self._last_s = now_s


def train(
    supernet: Supernet,
    model: PretrainedModel,
    samples: dict[str, Samples],
    minutes: float,
    initial: Path,
    distilled: Path,
) -> dict[str, Any]:
    """Train for as many steps as fit into the given processor time of one core.

    Args:
        supernet: The supernet to train.
        model: The model, with the share of the time for tuning.
        samples: The samples of each split.
        minutes: Processor time for steps and checks on held-out batches, in minutes.
        initial: The file of the supernet before training.
        distilled: Where to save the supernet between distillation and tuning.

    Returns:
        Numbers of steps, times and errors, as plain data.
    """
    dataset = TrainingSamples(model, samples["train"])
    loader = DataLoader(
        dataset, model.batch_size, shuffle=True, drop_last=True, collate_fn=dataset.batch
    )
    common: dict[str, Any] = {"seed": 0, "threads": 1}

    def distil(**options: Any) -> History:
        held_out = _held_out(model, samples["select"])
        return fxelastic.distill(supernet, loader, held_out=held_out, **common, **options)

    supernet.to(memory_format=model.memory_format)
    seconds = 60 * minutes * (1 - model.tuned)
    steps, step_s = _steps(distil, seconds, CHECKS["distil"], PROBED_STEPS["distil"], len(loader))
    supernet.load(initial)
    begin_s, began_s = time.process_time(), time.perf_counter()
    history = distil(steps=steps)
    done: dict[str, Any] = {
        "steps": steps,
        "step_s": step_s,
        "processor_s": time.process_time() - begin_s,
    }
    report = history.held_out
    assert report is not None
    supernet.to(memory_format=torch.contiguous_format).save(distilled)
    supernet.to(memory_format=model.memory_format)
    if model.tuned:
        sampling = Attentive(report.best)

        def tune(**options: Any) -> History:
            held_out = _held_out(model, samples["select"])
            return fxelastic.tune(
                supernet, loader, held_out=held_out, sampling=sampling, **common, **options
            )

        done["tuned_steps"], done["tuned_step_s"] = _steps(
            *(tune, 60 * minutes - done["processor_s"], CHECKS["tune"]),
            *(PROBED_STEPS["tune"], len(loader)),
        )
        begin_s = time.process_time()
        tuned = tune(steps=done["tuned_steps"])
        done["processor_s"] += time.process_time() - begin_s
        assert tuned.held_out is not None
        done["tuned_held_out"] = asdict(tuned.held_out)
        done["shares"] = interpolated(supernet, model, samples, distilled, report.before)
    supernet.to(memory_format=torch.contiguous_format)
    return {
        **done,
        "wall_s": time.perf_counter() - began_s,
        "better": report.n_better,
        "held_out": asdict(report),
    }


def interpolated(
    supernet: Supernet,
    model: PretrainedModel,
    samples: dict[str, Samples],
    distilled: Path,
    before: Mapping[str, float],
) -> dict[str, float]:
    """Move branches back from their tuned weights until each is better alone than before training.

    Returns:
        The share of the way from the distilled to the tuned weights, by branch.
    """
    at_most = {name: MOST_ERROR * error for name, error in before.items()}
    held_out = _held_out(model, samples["select"])
    return dict(fxelastic.train.interpolate(supernet, distilled, held_out, at_most).shares)


def _steps(
    stage: Train, seconds: float, n_checks: int, n_probed: int, per_epoch: int
) -> tuple[int, float]:
    """The number of steps of a stage that fit into the processor time, and the seconds of one step.

    The measured steps have a learning rate of 0.
    """
    clock = StepClock()
    stage(steps=n_probed, lr=0, keep_best=False, callbacks=[clock])
    step_s = statistics.mean(clock.seconds[1:])
    begin_s = time.process_time()
    stage(steps=1, lr=0)
    check_s = max(0.0, time.process_time() - begin_s - step_s) / 2
    steps = (seconds - n_checks * check_s) / (step_s + check_s / per_epoch)
    tried = len(RATES) * n_steps_tried(max(1, int(steps)))
    return max(1, int(steps) - tried), step_s


def _held_out(model: PretrainedModel, samples: Samples) -> list[tuple[Tensor, ...]]:
    """Batches with samples of all sources."""
    chosen = samples.take(HELD_OUT)
    return [model.tensors(chosen, slice(i, None, N_BATCHES)) for i in range(N_BATCHES)]
