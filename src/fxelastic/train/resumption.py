"""How far a run of training is, and how an interrupted one resumes from a checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from fxelastic.errors import FxElasticError, TrainingError
from fxelastic.ir.supernet import Supernet
from fxelastic.processes import Processes
from fxelastic.randomness import preserved, random_state, restore_random_state
from fxelastic.spec.json_fields import MAX_COUNT
from fxelastic.train.checkpoints import Checkpoint, Checkpoints, put_together, take_apart
from fxelastic.train.held_out import HeldOut
from fxelastic.train.learners import Learners
from fxelastic.train.optimisation import Optimisation
from fxelastic.train.reports import EpochReport
from fxelastic.train.training import Training

logger = logging.getLogger(__name__)

_WEIGHTS = "weights:"
# What data of another form raise.
_OTHERS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass
class Position:
    """How far a run is. Only this, the weights and the optimiser's state change in a run.

    Attributes:
        coverage: For each branch that learns, in how many steps it did.
        step: Steps made.
        epoch: The current pass over the loader, from 0.
        batch: Batches of this epoch consumed.
        epochs: Reports of the epochs that have ended.
        threads: The number of threads that the run has chosen; None before it has.
        frozen: Whether the statistics of norms stay as they are.
        sums: For each branch that learned in this epoch, the sum of its losses.
        counts: For each branch that learned in this epoch, in how many steps it did.
        loss: The sum of this epoch's losses.
        steps: The steps of this epoch that had a loss.
    """

    coverage: dict[str, int]
    step: int = 0
    epoch: int = 0
    batch: int = 0
    epochs: list[EpochReport] = field(default_factory=list)
    threads: int | None = None
    frozen: bool = True
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    loss: float = 0.0
    steps: int = 0

    def advance(self, n_batches: int, losses: Mapping[str, float]) -> None:
        """Count a step.

        Args:
            n_batches: Batches of the step.
            losses: The loss of each branch that learned.
        """
        self.step += 1
        self.batch += n_batches
        if losses:
            self.steps += 1
            self.loss += sum(losses.values()) / len(losses)
        for name, loss in losses.items():
            self.coverage[name] += 1
            self.sums[name] = self.sums.get(name, 0.0) + loss
            self.counts[name] = self.counts.get(name, 0) + 1

    @property
    def mean_loss(self) -> float:
        """The mean loss of this epoch's steps; NaN before the first that had one."""
        return self.loss / self.steps if self.steps else float("nan")

    def mean_losses(self) -> dict[str, float]:
        """For each branch that learned in this epoch, the mean of its losses."""
        names = (name for name in self.coverage if name in self.sums)
        return {name: self.sums[name] / self.counts[name] for name in names}

    def end_epoch(self, report: EpochReport) -> None:
        """Go on to the next epoch."""
        self.epochs.append(report)
        self.epoch += 1
        self.batch = 0
        self.sums, self.counts, self.loss, self.steps = {}, {}, 0.0, 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any], branches: Collection[str]) -> Position:
        """The inverse of ``dataclasses.asdict``.

        Args:
            data: What ``asdict`` returned.
            branches: The branches that learn.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It has other fields, or values of other
                types, or is about other branches.
        """
        epochs = [EpochReport.from_json(report) for report in data["epochs"]]
        found = cls(**{**data, "epochs": epochs})
        _check_fields(found)
        if found.coverage.keys() != set(branches) or not found.counts.keys() <= set(branches):
            raise ValueError("it is about other branches")
        if found.sums.keys() != found.counts.keys() or not all(found.counts.values()):
            raise ValueError("a sum of losses has no number of steps")
        return found


@dataclass(frozen=True)
class Resumption:
    """Writes the checkpoints of a run and restores a run from them.

    Attributes:
        learners: The branches whose weights are kept.
        optimisation: The optimiser.
        held_out: The best states so far.
        processes: The first of them writes; all of them read.
        checkpoints: The folder; None where the run keeps no checkpoints.
    """

    learners: Learners
    optimisation: Optimisation
    held_out: HeldOut
    processes: Processes
    checkpoints: Checkpoints | None

    def resume(self) -> tuple[Position, bytes | None, tuple[str, ...]]:
        """Restore the newest usable checkpoint.

        Returns:
            How far the run is, the random state there (None at the beginning), and why newer
            checkpoints were refused.

        Raises:
            TrainingError: There are checkpoints, and none can be used.
        """
        begin = Position(dict.fromkeys(self.learners.branches, 0))
        if self.checkpoints is None:
            return begin, None, ()
        found, refused = self.checkpoints.newest()
        for reason in refused:
            logger.warning("refused a checkpoint: %s", reason)
        if found is None:
            return begin, None, refused
        weights = {
            name.removeprefix(_WEIGHTS): value
            for name, value in found.tensors.items()
            if name.startswith(_WEIGHTS)
        }
        try:
            self.learners.load(weights)
            self.optimisation.load(put_together(found.data["optimisation"], found.tensors))
            # Earlier versions kept no best states.
            if "held_out" in found.data or self.held_out.batches:
                self.held_out.load(found.data["held_out"], found.tensors)
            random = found.tensors[f"random:{self.processes.rank}"].numpy().tobytes()
            with preserved():
                restore_random_state(random)
            position = Position.from_json(found.data["position"], self.learners.branches)
            if (position.step, position.epoch) != (found.step, found.epoch):
                raise ValueError(f"it is of step {position.step}, epoch {position.epoch}")
        except FxElasticError:
            raise
        except (*_OTHERS, RuntimeError) as e:
            raise TrainingError(
                f"the checkpoint of step {found.step} can't be used",
                expected="what this run wrote",
                got=f"{type(e).__name__}: {e}"[:500],
                fix="remove it: the run resumes from the one before, or from the beginning",
            ) from e
        logger.info("resumed at step %d", found.step)
        return position, random, refused

    def write(self, position: Position) -> bool:
        """Write a checkpoint; every process calls this.

        Args:
            position: How far the run is.

        Returns:
            Whether the run keeps checkpoints.
        """
        if self.checkpoints is None:
            return False
        states = self.processes.gather(random_state())
        if self.processes.first:
            optimisation, tensors = take_apart(self.optimisation.state(), "optimisation")
            tensors |= {f"{_WEIGHTS}{name}": value for name, value in self.learners.state().items()}
            for rank, state in enumerate(states):
                tensors[f"random:{rank}"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
            held_out, best = self.held_out.state()
            data = {
                "position": asdict(position),
                "optimisation": optimisation,
                "held_out": held_out,
            }
            checkpoint = Checkpoint(position.step, position.epoch, data, tensors | best)
            self.checkpoints.write(checkpoint)
        self.processes.wait()
        return True


def checkpoints_of(
    supernet: Supernet,
    learners: Learners,
    training: Training,
    processes: Processes,
    name: str,
    facts: Mapping[str, str],
) -> Checkpoints | None:
    """The checkpoints of one stage; None where the options name no folder.

    Args:
        supernet: What is trained.
        learners: What learns.
        training: The options.
        processes: Those that train together.
        name: The stage's name.
        facts: Facts of the stage that the numbers depend on.
    """
    if training.checkpoints is None:
        return None
    run = {
        "supernet": _structure(supernet, learners),
        "model": _digest(supernet),
        "processes": str(processes.world_size),
        **training.numerics(),
        **{f"{name} {fact}": value for fact, value in facts.items()},
    }
    return Checkpoints(Path(training.checkpoints), name, run, training.keep)


def _structure(supernet: Supernet, learners: Learners) -> str:
    """A digest of the branches and of the shapes of their weights."""
    lines = [f"{supernet.space.n_blocks}"]
    # As the repr was when the first checkpoints were written, whatever fields are added later.
    lines += [
        f"BranchSpec(id={b.id!r}, kind={b.kind!r}, start={b.start}, stop={b.stop}, "
        f"n_params={b.n_params}, flops={b.flops})"
        for b in supernet.space.branches
    ]
    lines += [f"{name} {v.dtype} {tuple(v.shape)}" for name, v in learners.state().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _digest(supernet: Supernet) -> str:
    """A digest of the model's own weights."""
    return digest_of(
        value
        for branch in supernet.branches.values()
        if branch.frozen
        for value in (*branch.module.parameters(), *branch.module.buffers())
    )


def digest_of(tensors: Iterable[Tensor]) -> str:
    """A digest of the values of tensors."""
    digest = hashlib.sha256()
    for value in tensors:
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_fields(value: Any) -> None:
    """Check that the fields of a dataclass have the types that it states.

    Raises:
        ValueError: One has another type, or is a count that no run has.
    """
    for name, hint in get_type_hints(type(value)).items():
        if not _conforms(getattr(value, name), hint):
            raise ValueError(f"{name} is not of the type {hint}")


def _conforms(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return any(_conforms(value, part) for part in parts)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_conforms(item, parts[0]) for item in value)
    if origin is not None:  # of names to numbers
        return isinstance(value, dict) and all(_conforms(x, parts[1]) for x in value.values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            _check_fields(value)
            return True
        return False
    if hint is float:
        return type(value) in (int, float)
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_COUNT
    return type(value) is hint
