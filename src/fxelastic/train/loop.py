"""The loop: batches, steps, epochs, reports, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fxelastic.errors import TrainingError
from fxelastic.ir.supernet import Supernet
from fxelastic.threads import computing_with
from fxelastic.train.batches import Batch, BatchReader, device_of, numbered
from fxelastic.train.callbacks import Callback
from fxelastic.train.diagnosis import diagnose
from fxelastic.train.execution import Execution
from fxelastic.train.first_batches import FirstBatches
from fxelastic.train.held_out import HeldOut
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.norm_statistics import batches_serve, estimate
from fxelastic.train.objective import Objective, Plan
from fxelastic.train.observers import observers
from fxelastic.train.optimisation import Optimisation
from fxelastic.train.position import Position
from fxelastic.train.processes import Processes
from fxelastic.train.randomness import preserved, random_state, seed_all, seed_loader, set_epoch
from fxelastic.train.range_accuracy import range_accuracy
from fxelastic.train.rate_range import DEFAULT, RangeTest, n_steps_tried
from fxelastic.train.reports import Bucket, EpochReport, History, StepReport
from fxelastic.train.resumption import Resumption
from fxelastic.train.sampling import derived_seed
from fxelastic.train.thread_choice import ThreadChoice, thread_counts
from fxelastic.train.training import Training


class Loop:
    """Runs one stage of training on a supernet, in place."""

    def __init__(
        self,
        execution: Execution,
        new: NewBranches,
        objective: Objective,
        loader: Iterable[Any],
        training: Training,
        processes: Processes,
    ) -> None:
        """Prepare a run.

        Args:
            execution: Runs the branches.
            new: What learns.
            objective: What it minimises.
            loader: Any iterable of batches.
            training: The options.
            processes: Who trains with this process.

        Raises:
            UsageError: An option can't be met here.
        """
        self._execution = execution
        self._supernet: Supernet = execution.supernet
        self._new = new
        self._objective = objective
        self._loader = loader
        self._training = training
        self._device = device_of(self._supernet)
        self._processes = processes
        self._reader = BatchReader(self._supernet, training.split)
        self._optimisation = self._optimisation_of(training)
        # Where this is "auto", it is decided before the first step.
        self._frozen = training.norm_statistics != "batch"
        several = processes.world_size > 1
        fixed = several or self._device.type != "cpu" or bool(training.compile)
        counts = thread_counts(training.threads, fixed=fixed)
        self._threads = ThreadChoice(counts)
        first = self._first = self._first_batches()
        self._held_out = HeldOut(
            *(objective, new, self._reader, first.held_out, processes),
            self._optimisation.autocast,
            # A batch that is only measured takes another time than a step.
            ThreadChoice(counts),
        )
        self._resumption = Resumption.of(
            *(self._supernet, new, self._optimisation, self._held_out, objective, training),
            self._processes,
        )
        self._observers: Sequence[Callback] = observers(training) if self._processes.first else ()
        self._started = 0.0

    def run(self) -> History:
        """Train until the end.

        Returns:
            What was done, also before an interruption.

        Raises:
            UsageError: The loader is empty, or a batch is not what the model takes.
            TrainingError: A loss or a gradient is not finite, or no checkpoint can be used.
        """
        # Beside another program the steps choose fewer threads, which wait for no others.
        with computing_with(self._training.threads, spinning=True):
            return self._run()

    def _run(self) -> History:
        self._started = time.perf_counter()
        self._supernet.eval()
        self._processes.share(self._new.state().values())
        position, refused = self._resumption.resume()
        self._threads.resume(position.threads)
        if self._training.norm_statistics == "auto":
            self._frozen = position.frozen
        resumed_at = position.step
        history: History | None = None
        self._tell(
            "on_begin", self._objective.stage, position.step, position.epoch, self._total_steps()
        )
        try:
            with preserved(self._loader):
                if not (position.step or position.epoch):
                    self._prepare()
                    position.frozen = self._frozen
                while not self._over(position):
                    self._epoch(position)
            if self._training.keep_best:
                self._held_out.end()
            epochs, coverage = tuple(position.epochs), dict(position.coverage)
            stage = self._objective.stage
            history = History(stage, position.step, epochs, coverage, resumed_at, refused)
        finally:
            self._tell("on_end", history)
        return history

    def _optimisation_of(self, training: Training) -> Optimisation:
        return Optimisation(
            *(self._new, training, self._processes, self._device),
            clip_each=self._objective.independent,
            default_rate=DEFAULT[self._objective.stage],
        )

    def _first_batches(self) -> FirstBatches:
        training = self._training
        tests = training.lr == "auto" and training.optimizer is None
        n_tried = n_steps_tried(self._total_steps()) if tests else 0
        return FirstBatches.of(
            *(self._loader, self._reader, training, n_tried, self._processes, self._device)
        )

    def _prepare(self) -> None:
        """Before the first step: measure what there is, choose statistics and learning rates."""
        self._held_out.begin()
        objective, held_out, first = self._objective, self._held_out, self._first
        if self._frozen and objective.independent and self._training.keep_best:
            estimate(
                *(self._new, objective, self._reader, first.held_out, held_out),
                *(self._processes, self._optimisation.autocast),
            )
        if self._training.norm_statistics == "auto":
            self._frozen = not batches_serve(
                *(self._execution, self._new, self._reader, first.own),
                *(self._processes, self._optimisation.autocast),
            )
        if first.tried and held_out.measures:
            self._optimisation.use_rates(RangeTest(held_out, self._try).rates())

    def _try(self, rate: float) -> bool:
        """Take the steps of the range test with a rate; returns whether all was finite."""
        options = replace(self._training, lr=rate, schedule="constant", warmup=0.0)
        optimisation = self._optimisation_of(options)
        seed_all(derived_seed(self._training.seed, "range test", self._processes.rank))
        for i, group in enumerate(self._first.tried):
            independent = self._objective.independent
            plan = Plan(tuple(self._new.branches)) if independent else self._objective.plan(i)
            optimisation.clear()
            finite = True
            with self._threads.step(), self._new.training(plan.branches, frozen=self._frozen):
                for batch in group:
                    losses = self._backward(batch, plan, 1 / len(group), optimisation)
                    finite &= all(map(math.isfinite, _to_floats(losses.values())))
            if not self._processes.all(finite, self._device):
                return False
            try:
                optimisation.step(plan.branches, f"step {i + 1} of the range test")
            except TrainingError:
                return False
        optimisation.clear()
        return True

    def _epoch(self, position: Position) -> None:
        """Go on with an epoch, at its beginning or where a checkpoint was taken."""
        training, processes = self._training, self._processes
        seed = derived_seed(training.seed, self._objective.stage, "epoch", position.epoch)
        # What is drawn in an epoch depends on the epoch alone, not on how it was come to; the
        # order of the data is the same in all processes, dropout is not.
        seed_all(derived_seed(seed, "rank", processes.rank))
        seed_loader(self._loader, seed)
        set_epoch(self._loader, position.epoch)
        batches = numbered(self._loader, "the loader")
        if position.batch:
            for _ in islice(batches, position.batch):
                pass
            position.restore_random_state()
        ended = False
        while not ended and not self._reached(position):
            group = list(islice(batches, training.accumulate))
            ended = not processes.all(bool(group), self._device)
            if not ended:
                with self._threads.step():
                    self._step(position, group)
                position.threads = self._threads.chosen
                every = training.checkpoint_every
                if every and position.step % every == 0:
                    self._checkpoint(position)
        # The last epoch of a run of so many steps may end early.
        self._end_epoch(position)

    def _step(self, position: Position, group: Sequence[tuple[int, Any]]) -> None:
        objective, optimisation = self._objective, self._optimisation
        plan = objective.plan(position.step)
        where = f"step {position.step + 1}, epoch {position.epoch}, batch {group[-1][0]}"
        optimisation.set_rate(self._done(position))
        optimisation.clear()
        losses: dict[str, list[Tensor]] = {}
        size = 0
        with self._new.training(plan.branches, frozen=self._frozen):
            for number, raw in group:
                batch = self._reader.read(raw, number)
                size += batch.size
                found = self._backward(batch, plan, 1 / len(group), optimisation)
                for name, loss in found.items():
                    losses.setdefault(name, []).append(loss)
                self._check(found, batch, plan, where)
        values = self._means(losses, plan)
        grad_norm = optimisation.step(plan.branches, where)
        optimisation.clear()
        position.advance(len(group), values)
        report = StepReport(
            stage=objective.stage,
            step=position.step,
            epoch=position.epoch,
            batch=position.batch,
            loss=sum(values.values()) / max(len(values), 1),
            losses=values,
            archs=plan.archs,
            lr=optimisation.rate,
            grad_norm=grad_norm,
            n_samples=int(self._processes.total(size, self._device)),
            seconds=time.perf_counter() - self._started,
        )
        self._tell("on_step", report)

    def _means(self, losses: Mapping[str, Sequence[Tensor]], plan: Plan) -> dict[str, float]:
        """The mean loss of each branch over the batches of all processes that gave it one."""
        sums = [
            sum(losses.get(name, ()), torch.zeros((), device=self._device)).float()
            for name in plan.branches
        ]
        counts = [float(len(losses.get(name, ()))) for name in plan.branches]
        table = torch.stack([torch.stack(sums), torch.tensor(counts, device=self._device)])
        self._processes.average([table])
        rows = zip(plan.branches, *table.tolist(), strict=True)
        return {name: total / count for name, total, count in rows if count}

    def _backward(
        self, batch: Batch, plan: Plan, share: float, optimisation: Optimisation
    ) -> dict[str, Tensor]:
        values = self._reader.bind(batch)

        def backward(loss: Tensor) -> None:
            with torch.autocast(self._device.type, enabled=False):
                optimisation.backward(loss, share)

        with torch.enable_grad(), optimisation.autocast():
            return self._objective.backward(batch, values, plan, backward)

    def _check(self, losses: dict[str, Tensor], batch: Batch, plan: Plan, where: str) -> None:
        """Stop before a loss that is not finite moves a weight, in all processes at once."""
        values = dict(zip(losses, _to_floats(losses.values()), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        reason = batch.not_finite()
        if self._processes.all(not bad and not reason, self._device):
            return
        if not bad and not reason:
            reason = "another process stopped, and its own message says why"
        elif not reason:
            with self._optimisation.autocast():
                reason = diagnose(self._execution, batch, self._reader.bind(batch), plan, bad[0])
        raise TrainingError(
            f"NaN or infinity at {where}: {reason}",
            expected="finite data and losses",
            got=f"a loss of {values[bad[0]]} for branch {bad[0]!r}" if bad else None,
            fix="correct the data, lower lr, or train with precision='fp32'; the last checkpoint "
            "is kept",
        )

    def _end_epoch(self, position: Position) -> None:
        state = self._new.state()
        self._processes.average_buffers(state, self._new.parameters)
        ranges: tuple[Bucket, ...] = ()
        if self._training.validate is not None:
            with preserved(self._training.validate):
                ranges = range_accuracy(
                    self._supernet,
                    self._training.validate,
                    metric=self._training.metric,
                    costs=self._training.costs,
                    split=self._training.split,
                )
        report = EpochReport(
            stage=self._objective.stage,
            epoch=position.epoch,
            step=position.step,
            loss=position.mean_loss,
            losses=position.mean_losses(),
            coverage=dict(position.coverage),
            ranges=ranges,
            seconds=time.perf_counter() - self._started,
            held_out=self._held_out.observe(position.step) if self._training.keep_best else None,
        )
        position.end_epoch(report)
        self._tell("on_epoch", report)
        self._checkpoint(position)

    def _checkpoint(self, position: Position) -> None:
        states = self._processes.gather(random_state(), self._device)
        if self._resumption.write(position, states):
            self._tell("on_checkpoint", position.step)

    def _over(self, position: Position) -> bool:
        if self._training.steps is not None:
            return self._reached(position)
        return position.epoch >= self._training.epochs

    def _reached(self, position: Position) -> bool:
        return self._training.steps is not None and position.step >= self._training.steps

    def _total_steps(self) -> int | None:
        if self._training.steps is not None:
            return self._training.steps
        try:
            n_batches = len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            return None
        return self._training.epochs * math.ceil(n_batches / self._training.accumulate)

    def _done(self, position: Position) -> float:
        """The share of the run that is over; by epoch where the loader has no length."""
        total = self._total_steps()
        if not total:
            return position.epoch / self._training.epochs
        return min(1.0, position.step / total)

    def _tell(self, event: str, *facts: Any) -> None:
        for observer in self._observers:
            getattr(observer, event)(*facts)


def _to_floats(tensors: Iterable[Tensor]) -> list[float]:
    """The values of scalars, in one transfer."""
    known = list(tensors)
    values: list[float] = torch.stack(known).float().tolist() if known else []
    return values
