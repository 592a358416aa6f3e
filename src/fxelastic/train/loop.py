"""The loop of one stage: batches, steps, epochs, reports, checkpoints."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxelastic.errors import TrainingError
from fxelastic.ir.supernet import Supernet
from fxelastic.processes import Processes
from fxelastic.randomness import (
    derived_seed,
    preserved,
    restore_random_state,
    seed_all,
    seed_loader,
    set_epoch,
)
from fxelastic.row_store import discard
from fxelastic.spec.only_writer import only_writer
from fxelastic.threads import ThreadChoice, computing_with, thread_counts
from fxelastic.train.batches import Batch, BatchReader, device_of, first_batches, numbered
from fxelastic.train.callbacks import Callback, callbacks_of
from fxelastic.train.evaluation import range_accuracy, scores_of, subnet_scores
from fxelastic.train.features import FeatureReader, FrozenPrefix
from fxelastic.train.held_out import N_BATCHES, HeldOut
from fxelastic.train.learners import BranchRunner, Learners
from fxelastic.train.norm_statistics import batches_serve, estimate
from fxelastic.train.objectives import Objective, Supervised, TeacherForced, diagnose
from fxelastic.train.optimisation import Optimisation, n_steps_tried, range_test
from fxelastic.train.reports import Bucket, EpochReport, History, StepReport
from fxelastic.train.resumption import Position, Resumption, checkpoints_of
from fxelastic.train.sampling import Fixed, Plan, plan_of
from fxelastic.train.training import Stage, Training

#: Plans of sampled subnets to measure held-out errors of.
_N_PLANS = 4
#: Batches to compare their statistics with the running ones on.
_N_COMPARED = 4


class Loop:
    """Runs one stage of training on a supernet, in place."""

    def __init__(
        self,
        supernet: Supernet,
        loader: Iterable[Any],
        stage: Stage,
        name: str,
        training: Training,
        learners: Learners,
    ) -> None:
        """Prepare a stage.

        Args:
            supernet: The supernet.
            loader: Any iterable of batches.
            stage: The stage.
            name: Its name.
            training: Its options.
            learners: The branches that learn.

        Raises:
            UsageError: An option can't be met here.
        """
        processes = Processes.of(training.distributed, device_of(supernet))
        self._supernet = supernet
        self._loader = loader
        self._name = name
        self._training = training
        self._learners = learners
        self._processes = processes
        self._runner = BranchRunner(supernet, training.compile)
        self._sampling = stage.sampling
        objective = self._objective = stage.objective.among(processes)
        # Stages of one objective draw other subnets.
        again = name != objective.name
        self._seed = derived_seed(training.seed, "stage", name) if again else training.seed
        self._start = stage.start
        self._fixed = stage.sampling.subnets if isinstance(stage.sampling, Fixed) else ()
        self._reader = BatchReader(self._supernet, training.split)
        if stage.start:
            features = FrozenPrefix(self._runner, stage.start)
            self._reader = FeatureReader(
                supernet, training.split, runner=self._runner, features=features
            )
        self._optimisation = self._optimisation_of(training)
        # With "auto", this is decided before the first step.
        self._frozen = training.norm_statistics != "batch"
        several = processes.world_size > 1
        fixed = several or processes.device.type != "cpu" or bool(training.compile)
        counts = thread_counts(training.threads, fixed=fixed)
        self._threads = ThreadChoice(counts)
        self._tried, self._first, held_out = self._first_batches()
        self._held_out = HeldOut(
            learners,
            self._measured,
            held_out,
            self._plan_held_out(),
            processes,
            # A batch that is only measured takes another time than a step.
            ThreadChoice(counts),
            independent=objective.independent,
        )
        checkpoints = checkpoints_of(
            supernet, learners, training, processes, name, stage.numerics(objective)
        )
        self._resumption = Resumption(
            learners, self._optimisation, self._held_out, processes, checkpoints
        )
        self._callbacks: Sequence[Callback] = (
            callbacks_of(training.log, training.progress, training.callbacks)
            if processes.first
            else ()
        )
        self._folder = training.checkpoints if processes.first else None
        self._started = 0.0

    def run(self) -> History:
        """Train until the end.

        Returns:
            What was done, also before an interruption.

        Raises:
            UsageError: The loader is empty, a batch has another form than the model takes, or
                another process writes checkpoints to the folder.
            TrainingError: A loss or a gradient is not finite, or no checkpoint can be used.
        """
        self._started = time.perf_counter()
        with (
            only_writer(self._folder),
            computing_with(self._training.threads),
            self._learners.alone(),
        ):
            self._supernet.eval()
            self._processes.share(self._learners.state().values())
            position, random, refused = self._resumption.resume()
            self._threads.resume(position.threads)
            if self._training.norm_statistics == "auto":
                self._frozen = position.frozen
            resumed_at = position.step
            history: History | None = None
            self._call("on_begin", self._name, position.step, position.epoch, self._total_steps())
            try:
                with preserved(self._loader), self._prefix(self._over(position)):
                    if not (position.step or position.epoch):
                        self._prepare()
                        position.frozen = self._frozen
                    while not self._over(position):
                        self._epoch(position, random)
                        random = None
                if self._training.keep_best:
                    self._held_out.end()
                history = History(
                    self._name,
                    position.step,
                    tuple(position.epochs),
                    dict(position.coverage),
                    resumed_at,
                    refused,
                )
            finally:
                self._call("on_end", history)
        return history

    @contextlib.contextmanager
    def _prefix(self, over: bool) -> Iterator[None]:
        """Keep what the blocks before the stage compute, if there are any, until it is over."""
        training, reader = self._training, self._reader
        if not isinstance(reader, FeatureReader):
            yield
            return
        name = f"features-{self._name}-{self._processes.rank}"
        private = tempfile.mkdtemp(prefix="fxelastic-") if training.checkpoints is None else ""
        parent = Path(training.checkpoints or private)
        try:
            if training.cache_bytes and not over:
                sources = [(self._loader, "the loader")]
                if training.validate is not None:
                    sources.append((training.validate, "validate"))
                seed = derived_seed(training.seed, name)
                facts = {"precision": training.precision}
                with self._optimisation.autocast():
                    reader.fill(sources, parent / name, facts, training.cache_bytes, seed)
            yield
            # An interrupted run finds the file again.
            discard(parent / name)
        finally:
            reader.features.close()
            if private:
                shutil.rmtree(private, ignore_errors=True)

    def _optimisation_of(self, training: Training) -> Optimisation:
        return Optimisation(
            self._learners,
            training,
            self._processes,
            clip_each=self._objective.independent,
            default_rate=self._objective.default_rate,
        )

    def _plan(self, step: int) -> Plan:
        space = self._supernet.space
        return plan_of(space, self._learners, self._sampling, step, self._seed, self._start)

    def _plan_held_out(self) -> Plan:
        """Branches alone, or the subnets of steps beyond any run."""
        if self._objective.independent:
            return Plan(tuple(self._learners.branches), start=self._start)
        plans = [self._plan(2**40 + i) for i in range(_N_PLANS)]
        archs = tuple(dict.fromkeys(arch for plan in plans for arch in plan.archs))
        chosen = {name for plan in plans for name in plan.branches}
        names = tuple(name for name in self._learners.branches if name in chosen)
        return Plan(names, archs, self._start)

    def _first_batches(self) -> tuple[Sequence[Sequence[Batch]], Sequence[Batch], Sequence[Batch]]:
        """Batches for the steps of a range test, to compare statistics on, and held-out ones."""
        training, loader = self._training, self._loader
        tests = training.lr == "auto" and training.optimizer is None
        n_tried = n_steps_tried(self._total_steps()) if tests else 0
        compared = training.norm_statistics == "auto"
        if not (n_tried or compared or training.keep_best):
            return (), (), ()
        size = training.accumulate
        # An iterator can be used up once only: training gets all of it.
        once = hasattr(loader, "__next__")
        n_own = 0 if once else max(n_tried * size, _N_COMPARED * compared)
        other = training.held_out if training.held_out is not None else training.validate
        seed = derived_seed(training.seed, "first batches")
        n_first = n_own + (N_BATCHES if other is None and not once else 0)
        batches = first_batches(loader, "the loader", self._reader, n_first, seed, self._processes)
        held_out = (
            batches[-N_BATCHES:]
            if other is None
            else first_batches(other, "held_out", self._reader, N_BATCHES, seed, self._processes)
        )
        for batch in held_out if other is not None else ():
            if reason := batch.not_finite():
                raise TrainingError(
                    f"NaN or infinity in the data held out: {reason}",
                    expected="finite data, which tells whether training helps",
                    fix="correct the data",
                )
        own = batches[:n_own]
        last = min(len(own), n_tried * size)
        groups = [own[i : i + size] for i in range(0, last - size + 1, size)]
        return groups, own[:_N_COMPARED], held_out

    def _prepare(self) -> None:
        """Before the first step: measure errors, choose norm statistics and learning rates."""
        held_out = self._held_out
        held_out.begin()
        if self._frozen and self._objective.independent and self._training.keep_best:
            estimate(self._learners, self._measured, held_out, self._processes)
        if self._training.norm_statistics == "auto":
            alone = partial(self._measured, objective=TeacherForced())
            self._frozen = not batches_serve(self._learners, alone, self._first, self._processes)
        if self._tried and held_out.batches:
            self._optimisation.use_rates(range_test(held_out, self._try))

    def _try(self, rate: float) -> bool:
        """Take the steps of the range test with a rate; returns whether all losses were finite."""
        options = replace(self._training, lr=rate, schedule="constant", warmup=0.0)
        optimisation = self._optimisation_of(options)
        seed_all(derived_seed(self._training.seed, "range test", self._processes.rank))
        independent = self._objective.independent
        for i, group in enumerate(self._tried):
            plan = Plan(tuple(self._learners.branches)) if independent else self._plan(i)
            optimisation.clear()
            finite = True
            with self._threads.step(), self._learners.training(plan.branches, frozen=self._frozen):
                for batch in group:
                    losses = self._backward(batch, plan, 1 / len(group), optimisation)
                    finite &= all(map(math.isfinite, _to_floats(losses.values())))
            if not self._processes.all(finite):
                return False
            try:
                optimisation.step(plan.branches, f"step {i + 1} of the range test")
            except TrainingError:
                return False
        optimisation.clear()
        return True

    def _epoch(self, position: Position, random: bytes | None) -> None:
        """Go on with an epoch, at its beginning or where a checkpoint was taken."""
        training, processes = self._training, self._processes
        seed = derived_seed(training.seed, self._name, "epoch", position.epoch)
        # All that is drawn in an epoch depends on the epoch alone, not on the epochs before. The
        # order of the data is the same in all processes, dropout is not.
        seed_all(derived_seed(seed, "rank", processes.rank))
        seed_loader(self._loader, seed)
        set_epoch(self._loader, position.epoch)
        batches = numbered(self._loader, "the loader")
        if position.batch:
            for _ in islice(batches, position.batch):
                pass
            if random is not None:
                restore_random_state(random)
        ended = False
        while not ended and not self._reached(position):
            group = list(islice(batches, training.accumulate))
            ended = not processes.all(bool(group))
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
        optimisation = self._optimisation
        plan = self._plan(position.step)
        where = f"step {position.step + 1}, epoch {position.epoch}, batch {group[-1][0]}"
        optimisation.set_rate(self._done(position))
        optimisation.clear()
        losses: dict[str, list[Tensor]] = {}
        size = 0
        with self._learners.training(plan.branches, frozen=self._frozen):
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
            stage=self._name,
            step=position.step,
            epoch=position.epoch,
            batch=position.batch,
            loss=sum(values.values()) / max(len(values), 1),
            losses=values,
            archs=plan.archs,
            lr=optimisation.rate,
            grad_norm=grad_norm,
            n_samples=int(self._processes.total(size)),
            seconds=time.perf_counter() - self._started,
        )
        self._call("on_step", report)

    def _means(self, losses: Mapping[str, Sequence[Tensor]], plan: Plan) -> dict[str, float]:
        """The mean loss of each branch over the batches of all processes that gave it one."""
        device = self._processes.device
        sums = [
            sum(losses.get(name, ()), torch.zeros((), device=device)).float()
            for name in plan.branches
        ]
        counts = [float(len(losses.get(name, ()))) for name in plan.branches]
        table = torch.stack([torch.stack(sums), torch.tensor(counts, device=device)])
        self._processes.average([table])
        rows = zip(plan.branches, *table.tolist(), strict=True)
        return {name: total / count for name, total, count in rows if count}

    def _backward(
        self, batch: Batch, plan: Plan, share: float, optimisation: Optimisation
    ) -> dict[str, Tensor]:
        def backward(loss: Tensor) -> None:
            with torch.autocast(self._processes.device.type, enabled=False):
                optimisation.backward(loss, share)

        with torch.enable_grad(), optimisation.autocast():
            values = self._reader.bind(batch)
            return self._objective.backward(self._runner, values, batch.target, plan, backward)

    def _measured(
        self, batch: Batch, plan: Plan, objective: Objective | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch, without gradients."""
        objective = objective or self._objective
        with torch.no_grad(), self._optimisation.autocast():
            values = self._reader.bind(batch)
            return objective.backward(self._runner, values, batch.target, plan, lambda loss: None)

    def _check(self, losses: dict[str, Tensor], batch: Batch, plan: Plan, where: str) -> None:
        """Stop before a loss that is not finite moves a weight, in all processes at once."""
        values = dict(zip(losses, _to_floats(losses.values()), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        reason = batch.not_finite()
        if self._processes.all(not bad and not reason):
            return
        if not bad and not reason:
            reason = "another process stopped, and its own message says why"
        elif not reason:
            with self._optimisation.autocast():
                reason = diagnose(self._runner, batch, self._reader.bind(batch), plan, bad[0])
        raise TrainingError(
            f"NaN or infinity at {where}: {reason}",
            expected="finite data and losses",
            got=f"a loss of {values[bad[0]]} for branch {bad[0]!r}" if bad else None,
            fix="correct the data, lower lr, or train with precision='fp32'; the last checkpoint "
            "is kept",
        )

    def _end_epoch(self, position: Position) -> None:
        training = self._training
        self._processes.average(self._learners.buffers())
        ranges: tuple[Bucket, ...] = ()
        scores: tuple[float, ...] = ()
        if training.validate is not None and isinstance(self._objective, Supervised):
            scores = self._scores(training.validate)
        elif training.validate is not None:
            with preserved(training.validate):
                # Subnets that learn from the original need no labels.
                score = partial(subnet_scores, archs=self._fixed) if self._fixed else range_accuracy
                ranges = score(
                    self._supernet,
                    loader=training.validate,
                    metric=training.metric,
                    costs=training.costs,
                    split=training.split,
                )
            if self._fixed:
                scores = tuple(bucket.mean or 0.0 for bucket in ranges)
                ranges = tuple(sorted(ranges, key=lambda bucket: bucket.low))
        report = EpochReport(
            stage=self._name,
            epoch=position.epoch,
            step=position.step,
            loss=position.mean_loss,
            losses=position.mean_losses(),
            coverage=dict(position.coverage),
            ranges=ranges,
            seconds=time.perf_counter() - self._started,
            held_out=self._held_out.observe(position.step) if training.keep_best else None,
            scores=scores,
        )
        position.end_epoch(report)
        self._call("on_epoch", report)
        self._checkpoint(position)

    def _scores(self, loader: Iterable[Any]) -> tuple[float, ...]:
        """The score of each fixed subnet, over the samples of all processes."""
        with preserved(loader), self._optimisation.autocast():
            sums, n = scores_of(
                *(self._fixed, loader, self._reader, self._runner),
                *(self._training.metric, self._start),
            )
        n_samples = max(1.0, self._processes.total(n))
        return tuple(self._processes.total(value) / n_samples for value in sums)

    def _checkpoint(self, position: Position) -> None:
        if self._resumption.write(position):
            self._call("on_checkpoint", position.step)

    def _over(self, position: Position) -> bool:
        until = self._training.until
        if until is not None and position.epochs and position.epochs[-1].scores[-1] >= until:
            return True
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
        """The share of the stage that is over; by epoch where the loader has no length."""
        total = self._total_steps()
        if not total:
            return position.epoch / self._training.epochs
        return min(1.0, position.step / total)

    def _call(self, event: str, *facts: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(*facts)


def _to_floats(tensors: Iterable[Tensor]) -> list[float]:
    """The values of scalars, in one transfer."""
    known = list(tensors)
    values: list[float] = torch.stack(known).float().tolist() if known else []
    return values
