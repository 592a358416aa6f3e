"""How a stage of training runs: the options that both stages have."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.threads import check_threads
from fxelastic.train.batches import Split
from fxelastic.train.callbacks import Callback

#: Makes an optimiser for parameters, as ``lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)``.
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
NORM_STATISTICS = ("auto", "frozen", "batch")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of `distill` and `tune`.

    Attributes:
        epochs: Passes over the loader.
        steps: Optimiser steps after which to stop, however many epochs that takes; then the epochs
            do not count.
        lr: Peak learning rate of the default optimiser, AdamW. ``"auto"`` tries some rates for a
            few steps each and takes the best for each branch, or for all where sampled subnets
            learn; a run of fewer than 50 steps takes 1e-3 in distillation and 3e-4 in tuning.
        weight_decay: Weight decay of the default optimiser.
        optimizer: Makes another optimiser; then ``lr`` and ``weight_decay`` do not count. It must
            leave parameters without a gradient as they are, as torch's do.
        schedule: The share of the learning rate by the share of the run that is over, both in
            [0, 1]: ``"cosine"``, ``"constant"`` or a function. For a loader without a length, the
            share that is over advances by epoch.
        warmup: Share of the run in which the learning rate rises from 0.
        clip_norm: Largest norm of gradients, of each branch in distillation and of the subnet in
            tuning; None for no limit.
        accumulate: Batches of a step.
        precision: ``"fp32"``, or mixed precision with ``"bf16"`` or ``"fp16"``. Losses and weights
            are float32 in any case.
        threads: Threads that torch computes with. Where None, a run on a CPU chooses among torch's
            own number and fewer by the time of a step, and again when steps get much slower.
            The number decides about the last bits of the results.
        norm_statistics: How layers with running statistics normalise in new branches:
            ``"frozen"`` uses these statistics, as inference does, and leaves them as they are;
            ``"batch"`` uses those of the batch, which the running ones follow; ``"auto"`` uses
            those of the batch where errors are hardly larger with them before the first step.
        held_out: Batches that the errors of branches are measured on before training and after
            each epoch, the first 8 of them; where None, those of ``validate``, or else of the
            loader itself, which then are not held out in truth.
        keep_best: Measure these errors, and end with the best state of each branch, or of all
            where sampled subnets learn. Training can't end worse than it began then.
        compile: Run branches through ``torch.compile``; a mapping holds its keyword arguments.
        split: Takes a batch apart, see `BatchReader`.
        seed: Of the subnets that are sampled, the order of a DataLoader that shuffles, and what
            else draws from torch's, Python's and numpy's global generators. These are as before
            when the run has ended.
        distributed: Train together with the other processes that ``torchrun`` started.
        validate: Batches on which the latency-range accuracy is measured after each epoch; the
            score is accuracy, or ``metric``.
        metric: Function of (result, target), the score of a batch; see `evaluate`.
        costs: Cost of each branch by id for the latency-range accuracy, such as a latency in ms;
            FLOPs where None.
        checkpoints: Folder of checkpoints. A run that finds its own there goes on from the newest.
        checkpoint_every: Steps between checkpoints; there is one at the end of each epoch anyway.
        keep: Checkpoints to keep.
        log: File to log to: ``.jsonl`` or ``.csv``.
        progress: Show a progress bar on stderr.
        callbacks: Told of steps and epochs.
    """

    epochs: int = 1
    steps: int | None = None
    lr: float | str = "auto"
    weight_decay: float = 0.01
    optimizer: OptimizerFactory | None = None
    schedule: str | Callable[[float], float] = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = 1.0
    accumulate: int = 1
    precision: str = "fp32"
    threads: int | None = None
    norm_statistics: str = "auto"
    held_out: Iterable[Any] | None = None
    keep_best: bool = True
    compile: bool | Mapping[str, Any] = False
    split: Split | None = None
    seed: int = 0
    distributed: bool = False
    validate: Iterable[Any] | None = None
    metric: Callable[[Any, Any], float] | None = None
    costs: Mapping[str, float] | None = None
    checkpoints: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    log: str | os.PathLike[str] | None = None
    progress: bool = False
    callbacks: tuple[Callback, ...] = ()

    def __post_init__(self) -> None:
        """Refuse options that have no meaning.

        Raises:
            UsageError: One has the wrong type or value.
        """
        object.__setattr__(self, "callbacks", tuple(self.callbacks))
        for name in ("epochs", "accumulate", "keep"):
            _check_count(name, getattr(self, name))
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        check_threads(self.threads)
        if isinstance(self.lr, str):
            _check_word("lr", self.lr, ("auto",))
        else:
            _check_range("lr", self.lr, 0, math.inf)
        _check_word("norm_statistics", self.norm_statistics, NORM_STATISTICS)
        _check_range("weight_decay", self.weight_decay, 0, math.inf)
        _check_range("warmup", self.warmup, 0, 1)
        if self.clip_norm is not None:
            _check_range("clip_norm", self.clip_norm, 0, math.inf)
        _check_word("precision", self.precision, PRECISIONS)
        if not callable(self.schedule):
            _check_word("schedule", self.schedule, ("cosine", "constant"))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UsageError("seed is no seed", expected="an integer", got=repr(self.seed))
        if self.log is not None and not str(self.log).endswith((".jsonl", ".csv")):
            raise UsageError(
                "the log has no known format",
                expected="a file that ends in .jsonl or .csv",
                got=repr(str(self.log)),
            )

    @classmethod
    def of(cls, options: Mapping[str, Any], **defaults: Any) -> Training:
        """Options from keyword arguments.

        Args:
            options: What the user passed.
            defaults: What a stage has by default.

        Raises:
            UsageError: There is no such option, or one has the wrong type or value.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known)
                raise UsageError(
                    f"there is no option {name!r}",
                    expected=", ".join(known),
                    got=repr(name),
                    fix=f"did you mean {' or '.join(close)}?" if close else None,
                )
        return cls(**{**defaults, **options})

    def rate(self, done: float) -> float:
        """The share of the learning rate when a share of the run is over."""
        if self.warmup and done < self.warmup:
            return done / self.warmup
        if callable(self.schedule):
            return self.schedule(done)
        if self.schedule == "constant":
            return 1.0
        rest = (done - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))

    def numerics(self) -> dict[str, str]:
        """What decides the numbers that come out: a run with others is another run."""
        names = ("epochs", "steps", "lr", "weight_decay", "warmup", "clip_norm", "accumulate")
        facts = {name: repr(getattr(self, name)) for name in (*names, "precision", "seed")}
        # Not at the values that runs of earlier versions had, so that these go on.
        later: dict[str, Any] = {"norm_statistics": "batch", "keep_best": False}
        for name, earlier in later.items():
            if getattr(self, name) != earlier:
                facts[name] = repr(getattr(self, name))
        if self.norm_statistics == "auto":
            # A checkpoint holds what was decided; the default of the version before was "frozen".
            facts["norm_statistics"] = repr("frozen")
        return {
            **facts,
            "optimizer": described(self.optimizer),
            "schedule": described(self.schedule),
            "compile": repr(bool(self.compile)),
        }


def described(value: object) -> str:
    """An option in words that are the same in every process: functions by their names."""
    if isinstance(value, Arch) or not callable(value):
        return repr(value)
    kind = type(value)
    name = getattr(value, "__qualname__", None) or kind.__qualname__
    return f"{getattr(value, '__module__', kind.__module__)}.{name}"


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is no count", expected="an integer above 0", got=repr(value))


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(
            f"{name} is out of range",
            expected=f"a number from {low:g} to {high:g}",
            got=repr(value),
        )


def _check_word(name: str, value: object, known: Iterable[str]) -> None:
    if value not in tuple(known):
        raise UsageError(
            f"there is no {name} {value!r}",
            expected="one of " + ", ".join(known),
            got=repr(value),
        )
