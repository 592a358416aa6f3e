"""How an interrupted run resumes from a checkpoint."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fxelastic.errors import FxElasticError, TrainingError
from fxelastic.ir.supernet import Supernet
from fxelastic.processes import Processes
from fxelastic.randomness import preserved, random_state, restore_random_state
from fxelastic.train.checkpoints import Checkpoint, Checkpoints, put_together, take_apart
from fxelastic.train.held_out import HeldOut
from fxelastic.train.learners import Learners
from fxelastic.train.optimisation import Optimisation
from fxelastic.train.position import Position
from fxelastic.train.training import Training

logger = logging.getLogger(__name__)

_WEIGHTS = "weights:"
# What data of another form raise.
_OTHERS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


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
