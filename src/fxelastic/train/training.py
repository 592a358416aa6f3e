"""Stages of training and their options."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxelastic.errors import UsageError
from fxelastic.spec.options import check_callable, check_count, check_word, is_number, options_of
from fxelastic.threads import check_threads
from fxelastic.train.batches import Split
from fxelastic.train.callbacks import Callback
from fxelastic.train.objectives import Objective, described
from fxelastic.train.sampling import Fixed, Sampling, Turns, Uniform

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
    """Options of `run`, of a `Stage`, and of `distill` and `tune`.

    Attributes:
        epochs: Passes over the loader.
        steps: Optimiser steps after which to stop, however many epochs that takes; ``epochs`` is
            ignored then.
        lr: Peak learning rate of the default optimiser, AdamW. ``"auto"`` tries some rates for a
            few steps each and takes the best for each branch, or for all where sampled subnets
            learn; a run of fewer than 50 steps takes 1e-3 in distillation and 3e-4 in tuning.
        weight_decay: Weight decay of the default optimiser.
        optimizer: Makes another optimiser; ``lr`` and ``weight_decay`` are ignored then. It must
            leave parameters without a gradient as they are, as torch's optimisers do.
        schedule: ``"cosine"``, ``"constant"``, or a function from the share of the stage that is
            over to a factor of the learning rate, both in [0, 1]. For a loader without a length,
            that share advances by epoch.
        warmup: Share of the run in which the learning rate rises from 0.
        clip_norm: Largest norm of gradients, of each branch in distillation and of the subnet in
            tuning; None for no limit.
        accumulate: Batches of a step.
        precision: ``"fp32"``, or mixed precision with ``"bf16"`` or ``"fp16"``. Losses and weights
            are float32 in any case.
        threads: Threads that torch computes with. Where None, a run on a CPU chooses among torch's
            own number and fewer by the time of a step, and again when steps get much slower.
            The last bits of the results depend on the number.
        norm_statistics: How layers with running statistics normalise in new branches:
            ``"frozen"`` uses these statistics, as inference does, and leaves them as they are;
            ``"batch"`` uses those of the batch, which the running ones follow; ``"auto"`` uses
            those of the batch where errors are hardly larger with them before the first step.
        held_out: Batches, of which the first 8 serve to measure errors of branches before training
            and after each epoch. Where None, the batches of ``validate``, or else of the loader
            itself, which are not really held out.
        keep_best: Measure these errors, and end with the best state of each branch, or of all
            where sampled subnets learn, so that training can't end worse than it began.
        compile: Run branches through ``torch.compile``; a mapping holds its keyword arguments.
        split: Takes a batch apart, see `BatchReader`.
        seed: Seed of the sampled subnets, of the order of a DataLoader that shuffles, and of
            torch's, Python's and numpy's global generators, which are restored at the end.
        distributed: Train together with the other processes of ``torchrun``.
        validate: Batches on which the latency-range accuracy is measured after each epoch, or
            where the stage always has the same subnets their scores; the score is accuracy, or
            ``metric``.
        until: Ends a stage of fixed subnets after the epoch in which the last one's score on
            ``validate`` reaches this value.
        metric: Function of (result, target), the score of a batch; see `evaluate`.
        costs: Cost of each branch by id for the latency-range accuracy, such as a latency in ms;
            FLOPs where None.
        cache_bytes: Most bytes on disk for what the blocks before a stage's first one compute, for
            each sample once; 0 to compute it in each epoch.
        checkpoints: Folder of checkpoints. A run that finds its own there resumes from the newest.
        checkpoint_every: Steps between checkpoints; there is one at the end of each epoch anyway.
        keep: Checkpoints to keep.
        log: File to log to: ``.jsonl`` or ``.csv``.
        progress: Show a progress bar on stderr.
        callbacks: Called after steps and epochs.
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
    until: float | None = None
    costs: Mapping[str, float] | None = None
    cache_bytes: int = 2 * 2**30
    checkpoints: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    log: str | os.PathLike[str] | None = None
    progress: bool = False
    callbacks: tuple[Callback, ...] = ()

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UsageError: An option has a wrong type or value.
        """
        if not isinstance(self.callbacks, Iterable):
            raise UsageError(
                f"callbacks must be a sequence, got {self.callbacks!r}",
                expected="a sequence of callbacks, such as callbacks=[callback]",
                got=repr(self.callbacks),
            )
        object.__setattr__(self, "callbacks", tuple(self.callbacks))
        for name in ("optimizer", "split", "metric"):
            check_callable(name, getattr(self, name))
        if not isinstance(self.compile, (bool, Mapping)):
            raise UsageError(
                f"compile must be True, False or options, got {self.compile!r}",
                expected="a bool, or keyword arguments of torch.compile in a dict",
                got=repr(self.compile),
            )
        if not isinstance(self.checkpoints, (str, os.PathLike, type(None))):
            raise UsageError(
                f"checkpoints must be a path, got {self.checkpoints!r}",
                expected="the path of a folder",
                got=repr(self.checkpoints),
            )
        for name in ("epochs", "accumulate", "keep"):
            check_count(name, getattr(self, name))
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("cache_bytes", self.cache_bytes, 0)
        self._check_until()
        check_threads(self.threads)
        if isinstance(self.lr, str):
            check_word("lr", self.lr, ("auto",))
        else:
            _check_range("lr", self.lr, 0, math.inf)
        check_word("norm_statistics", self.norm_statistics, NORM_STATISTICS)
        _check_range("weight_decay", self.weight_decay, 0, math.inf)
        _check_range("warmup", self.warmup, 0, 1)
        if self.clip_norm is not None:
            _check_range("clip_norm", self.clip_norm, 0, math.inf)
        check_word("precision", self.precision, PRECISIONS)
        if not callable(self.schedule):
            check_word("schedule", self.schedule, ("cosine", "constant"))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UsageError(
                f"seed must be an integer, got {self.seed!r}",
                expected="an integer",
                got=repr(self.seed),
            )
        if self.log is not None and not str(self.log).endswith((".jsonl", ".csv")):
            raise UsageError(
                f"log must end in .jsonl or .csv, got {str(self.log)!r}",
                expected="a file that ends in .jsonl or .csv",
                got=repr(str(self.log)),
            )

    def _check_until(self) -> None:
        if self.until is None:
            return
        _check_range("until", self.until, -math.inf, math.inf)
        if self.validate is None:
            raise UsageError(
                "until needs labelled data to measure the score on",
                expected="validate=, held-out batches with targets",
                got="validate=None",
            )
        if self.keep_best:
            raise UsageError(
                "until and keep_best exclude one another",
                expected="keep_best=False: the state that reaches the score is kept",
                got="keep_best=True",
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Training:
        """Options from keyword arguments.

        Args:
            options: The user's options.

        Raises:
            UsageError: There is no such option, or one has a wrong type or value.
        """
        return options_of(cls(), options)

    def rate(self, done: float) -> float:
        """The factor of the learning rate when a share of the stage is over."""
        if self.warmup and done < self.warmup:
            return done / self.warmup
        if callable(self.schedule):
            return self.schedule(done)
        if self.schedule == "constant":
            return 1.0
        rest = (done - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))

    def numerics(self) -> dict[str, str]:
        """The options that the numbers depend on: a run with others is another run."""
        names = ("epochs", "steps", "lr", "weight_decay", "warmup", "clip_norm", "accumulate")
        facts = {name: repr(getattr(self, name)) for name in (*names, "precision", "seed")}
        # Left out at the values of earlier versions, so that their runs can resume.
        later: dict[str, Any] = {"norm_statistics": "batch", "keep_best": False, "until": None}
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


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if not is_number(value) or not (math.isfinite(value) and low <= value <= high):  # type: ignore[arg-type, operator]
        words = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        words = "a finite number" if low == -math.inf else words
        auto = " or 'auto'" if name == "lr" else ""
        raise UsageError(
            f"{name} must be {words}{auto}, got {value!r}",
            expected=f"a finite number{auto}",
            got=repr(value),
        )


@dataclass(frozen=True, init=False)
class Stage:
    """One stage of training: what it minimises, what learns, from which subnets, how long.

    Attributes:
        objective: `TeacherForced`, `Chained`, `EndToEnd` or `Supervised`.
        learns: Ids of the new branches that learn; all of them where None.
        sampling: Draws the subnets of a step: `Uniform` (the default), `Bucketed`, `Sandwich`,
            `Attentive` or `Fixed`. Where branches learn alone, `Turns`.
        start: The blocks before this one run without gradients and never change; what they
            compute for a sample may be kept (``cache_bytes``). For a stage of fixed subnets.
        name: The stage's name in checkpoints, logs and reports; the objective's where None.
        begins_with: Identifies the weights that the stage begins with, such as a digest: a
            checkpoint of a stage that began with others is refused. Empty where any will do.
        options: Fields of `Training` that this stage alone has, such as ``epochs`` or ``steps``.
    """

    objective: Objective
    learns: tuple[str, ...] | None
    sampling: Sampling | Turns
    start: int
    name: str | None
    begins_with: str
    options: dict[str, Any]

    def __init__(
        self,
        objective: Objective,
        *,
        learns: Collection[str] | None = None,
        sampling: Sampling | Turns | None = None,
        start: int = 0,
        name: str | None = None,
        begins_with: str = "",
        **options: Any,
    ) -> None:
        """Describe a stage; see the attributes.

        Raises:
            UsageError: The objective does not take this sampling, or the name is not a
                valid file name.
        """
        check_count("start", start, 0)
        if start and not isinstance(sampling, Fixed):
            raise UsageError(
                "start is for a stage of fixed subnets",
                expected="sampling=Fixed((arch,))",
                got=f"sampling={sampling!r}",
            )
        alone = bool(objective.independent)
        if sampling is None:
            sampling = Turns() if alone else Uniform()
        if isinstance(sampling, Turns) != alone:
            raise UsageError(
                f"{type(objective).__name__} does not take the sampling {sampling!r}",
                expected="Turns(n): its branches learn alone" if alone else "a policy of subnets",
                got=repr(sampling),
            )
        if name is not None and not name.replace("-", "").replace("_", "").isalnum():
            raise UsageError(
                f"name must consist of letters, digits, - and _, got {name!r}",
                expected="a name for folders of checkpoints",
                got=repr(name),
            )
        if learns is not None and not isinstance(learns, str):
            learns = tuple(learns)
        values: dict[str, Any] = {"objective": objective, "learns": learns, "sampling": sampling}
        values |= {"start": start, "name": name, "begins_with": begins_with, "options": options}
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def numerics(self, objective: Objective) -> dict[str, str]:
        """The facts that the numbers depend on, besides `Training.numerics`.

        Args:
            objective: The objective as it runs.
        """
        facts = objective.numerics()
        if isinstance(self.sampling, Turns):
            facts["branches_per_step"] = repr(self.sampling.n)
        else:
            facts["sampling"] = repr(self.sampling)
        # Its numbers for each branch are too many for its text.
        for name in ("costs", "errors"):
            numbers = getattr(self.sampling, name, None)
            if isinstance(numbers, Mapping):
                text = repr(sorted(numbers.items()))
                facts[f"sampling {name}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.start:
            facts["start"] = repr(self.start)
        if self.learns is not None:
            facts["learns"] = ", ".join(self.learns)
        if self.begins_with:
            facts["begins_with"] = self.begins_with
        return facts
