"""Training of a supernet for some minutes of one core: distillation, tuning, interpolation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import fxelastic
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from fxelastic import Supernet
from fxelastic.train import Attentive, Callback, History, StepReport
from fxelastic.train.held_out import N_BATCHES
from fxelastic.train.optimisation import RATES, n_steps_tried

#: Times of steps differ with the lengths of sentences, and for different subnets.
PROBED_STEPS = {"distil": 24, "tune": 40}
HELD_OUT = 128
N_SORTED = 16  # batches
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
        """Samples as one batch, for a DataLoader, without tokens that are padding in all."""
        stacked = tuple(map(torch.stack, zip(*samples, strict=True)))
        tokens = self._model.tokens(stacked)
        if tokens is not None:
            longest = int(tokens.sum(1).max())
            stacked = tuple(tensor[:, :longest].contiguous() for tensor in stacked)
        return tuple(map(self._model.laid_out, stacked))

    def lengths(self) -> np.ndarray[Any, Any] | None:
        """The tokens of each sample; None for samples of one size."""
        mask = self._samples.arrays.get("attention_mask")
        return None if mask is None else np.asarray(mask).sum(1)


class ByLength(Sampler[list[int]]):
    """Random batches of samples of similar lengths: little of them is padding.

    Samples are sorted among as many as ``N_SORTED`` batches hold.
    """

    def __init__(self, lengths: np.ndarray[Any, Any], batch_size: int) -> None:
        self._lengths, self._batch_size = lengths, batch_size

    def __len__(self) -> int:
        return len(self._lengths) // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self._lengths)).numpy()
        batches: list[list[int]] = []
        for start in range(0, len(order), N_SORTED * self._batch_size):
            part = order[start : start + N_SORTED * self._batch_size]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            whole = len(part) // self._batch_size * self._batch_size
            batches += part[:whole].reshape(-1, self._batch_size).tolist()
        for i in torch.randperm(len(batches)).tolist():
            yield batches[i]


class StepClock(Callback):
    """Notes the processor time of each step, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last_s = time.process_time()

    def on_step(self, report: StepReport) -> None:
        now_s = time.process_time()
        self.seconds.append(now_s - self._last_s)
        self._last_s = now_s


def loader_of(model: PretrainedModel, samples: Samples) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of samples in random order; of similar lengths, if the lengths differ."""
    dataset = TrainingSamples(model, samples)
    lengths = dataset.lengths()
    if lengths is None:
        return DataLoader(
            dataset, model.batch_size, shuffle=True, drop_last=True, collate_fn=dataset.batch
        )
    sampler = ByLength(lengths, model.batch_size)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.batch)


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
    loader = loader_of(model, samples["train"])
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
