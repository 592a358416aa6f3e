"""What of a run goes into a checkpoint, and back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fxelastic.ir.supernet import Supernet
from fxelastic.train.checkpoints import Checkpoint, Checkpoints
from fxelastic.train.held_out import HeldOut
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.objective import Objective
from fxelastic.train.optimisation import Optimisation
from fxelastic.train.position import Position
from fxelastic.train.processes import Processes
from fxelastic.train.state_tree import put_together, take_apart
from fxelastic.train.training import Training

logger = logging.getLogger(__name__)

_WEIGHTS = "weights:"


@dataclass(frozen=True)
class Resumption:
    """Writes a run's checkpoints, and takes it up again.

    Attributes:
        new: Whose weights are kept.
        optimisation: Whose state is kept.
        held_out: Whose best states are kept.
        processes: The first of them writes; all of them read.
        checkpoints: Where; None where the run keeps none.
    """

    new: NewBranches
    optimisation: Optimisation
    held_out: HeldOut
    processes: Processes
    checkpoints: Checkpoints | None

    @classmethod
    def of(
        cls,
        supernet: Supernet,
        new: NewBranches,
        optimisation: Optimisation,
        held_out: HeldOut,
        objective: Objective,
        training: Training,
        processes: Processes,
    ) -> Resumption:
        """For one run with these options."""
        if training.checkpoints is None:
            return cls(new, optimisation, held_out, processes, None)
        run = {
            "supernet": _structure(supernet, new),
            "model": _digest(supernet),
            "processes": str(processes.world_size),
            **training.numerics(),
            **{f"{objective.stage} {k}": v for k, v in objective.numerics().items()},
        }
        folder = Path(training.checkpoints)
        return cls(
            new,
            optimisation,
            held_out,
            processes,
            Checkpoints(folder, objective.stage, run, training.keep),
        )

    def resume(self) -> tuple[Position, tuple[str, ...]]:
        """Take the run up where its newest usable checkpoint is.

        Returns:
            Where the run is, and why newer checkpoints were refused.

        Raises:
            TrainingError: There are checkpoints, and none can be used.
        """
        begin = Position(dict.fromkeys(self.new.branches, 0))
        if self.checkpoints is None:
            return begin, ()
        found, refused = self.checkpoints.newest()
        for reason in refused:
            logger.warning("refused a checkpoint: %s", reason)
        if found is None:
            return begin, refused
        weights = {
            name.removeprefix(_WEIGHTS): value
            for name, value in found.tensors.items()
            if name.startswith(_WEIGHTS)
        }
        self.new.load(weights)
        self.optimisation.load(put_together(found.data["optimisation"], found.tensors))
        if "held_out" in found.data:
            self.held_out.load(found.data["held_out"], found.tensors)
        random = found.tensors[f"random:{self.processes.rank}"].numpy().tobytes()
        logger.info("resumed at step %d", found.step)
        return Position.from_json(found.data["position"], random), refused

    def write(self, position: Position, random: Sequence[bytes]) -> bool:
        """Write a checkpoint.

        Args:
            position: Where the run is.
            random: The random state of each process.

        Returns:
            Whether there is one now.
        """
        if self.checkpoints is None:
            return False
        if self.processes.first:
            optimisation, tensors = take_apart(self.optimisation.state(), "optimisation")
            tensors |= {f"{_WEIGHTS}{name}": value for name, value in self.new.state().items()}
            for rank, state in enumerate(random):
                tensors[f"random:{rank}"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
            held_out, best = self.held_out.state()
            tensors |= best
            data = {
                "position": position.to_json(),
                "optimisation": optimisation,
                "held_out": held_out,
            }
            self.checkpoints.write(Checkpoint(position.step, position.epoch, data, tensors))
        self.processes.wait()
        return True


def _structure(supernet: Supernet, new: NewBranches) -> str:
    """What the supernet is made of, as a digest: branches, and the shapes of their weights."""
    lines = [f"{supernet.space.n_blocks}", *map(repr, supernet.space.branches)]
    lines += [f"{name} {v.dtype} {tuple(v.shape)}" for name, v in new.state().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _digest(supernet: Supernet) -> str:
    """The model's own weights, as a digest."""
    digest = hashlib.sha256()
    for branch in supernet.branches.values():
        if branch.frozen:
            for value in (*branch.module.parameters(), *branch.module.buffers()):
                flat = value.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
