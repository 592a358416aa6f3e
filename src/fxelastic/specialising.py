"""The public function `specialise`: one subnet, trained end to end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from fxelastic.branches.own_copies import own_copies
from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.train.batches import device_of
from fxelastic.train.losses import cross_entropy, soft_loss_of
from fxelastic.train.objectives import EndToEnd, TaskLoss
from fxelastic.train.reports import History
from fxelastic.train.resumption import digest_of
from fxelastic.train.sampling import Fixed
from fxelastic.train.stages import run
from fxelastic.train.training import Stage

#: The name of the stage in checkpoints, logs and reports.
STAGE = "specialise"


def specialise(
    supernet: Supernet,
    arch: Arch | str,
    loader: Iterable[Any],
    *,
    loss: TaskLoss = cross_entropy,
    soft_loss: str | TaskLoss = "soft_cross_entropy",
    soft: float = 0.5,
    features: float = 1.0,
    **options: Any,
) -> nn.Module:
    """Train one subnet end to end, its copies of the model's own blocks included.

    The subnet learns from the original model: from its result and from its features at the cuts
    between the subnet's branches. Where batches have a target, it learns from labels as well.
    The supernet and the model don't change: all branches of the subnet are copied first.

    With ``keep_best``, which is the default, the loss on the held-out batches decides which
    state is returned, so that the result is not worse there than the subnet in the supernet.

    Args:
        supernet: The supernet, usually distilled; on the device to train on.
        arch: The subnet, such as the best one that a search found, or its text.
        loader: A DataLoader or any iterable of batches, with or without targets; see
            `BatchReader` for their forms.
        loss: Compares the result with a batch's target.
        soft_loss: Compares the result with the original's on the same inputs, by name or as a
            function: ``"soft_cross_entropy"``, ``"alpha_divergence"`` or ``"normalised_error"``.
            Where results have no logits, all three are the normalised error.
        soft: The share of ``soft_loss`` in the loss, from 0 to 1; the whole loss for a batch
            without a target.
        features: What the mean normalised error of the features at the cuts counts in addition;
            0 to learn from results alone.
        options: Any field of `Training`: ``epochs``, ``lr``, ``checkpoints``, ``held_out``, …
            With ``checkpoints``, an interrupted run resumes, and a finished one is not repeated.

    Returns:
        A module with the model's calling convention that shares nothing with the supernet. It
        can be saved, captured by `fxelastic.expand` and exported like any other module.

    Raises:
        UsageError: An argument has a wrong type or value, or the subnet is not in the supernet's
            search space.
        TrainingError: A loss is not finite, or no checkpoint can be used.
    """
    objective = EndToEnd(loss, soft_loss_of(soft_loss), soft, features)
    return specialised(supernet, arch, loader, objective, options)[0]


def specialised(
    supernet: Supernet,
    arch: Arch | str,
    loader: Iterable[Any],
    objective: EndToEnd,
    options: dict[str, Any],
) -> tuple[fx.GraphModule, History]:
    """As `specialise`; returns also what was done."""
    if not isinstance(supernet, Supernet):
        raise UsageError(
            f"supernet must be a Supernet, got {type(supernet).__name__}",
            expected="the result of fxelastic.expand",
            got=type(supernet).__name__,
            fix="expand the model first",
        )
    path = supernet.path(_in_space(supernet, arch))
    copies = tuple(own_copies(supernet.partition, path, device_of(supernet)))
    # The originals are the teacher.
    student = Supernet(supernet.partition, (*supernet.path(), *copies))
    chosen = Arch(tuple(branch.id for branch in copies))
    begins_with = digest_of(student.branch_modules.state_dict().values())
    stage = Stage(objective, sampling=Fixed((chosen,)), name=STAGE, begins_with=begins_with)
    (history,) = run(student, loader, [stage], **options)
    return student.plain(chosen), history


def _in_space(supernet: Supernet, arch: Arch | str) -> Arch:
    """The subnet, if it is in the search space.

    Raises:
        UsageError: It is not.
    """
    found = Arch.parse(arch) if isinstance(arch, str) else arch
    if not isinstance(found, Arch):
        raise UsageError(
            "arch must be a subnet",
            expected="an Arch, or its text",
            got=type(arch).__name__,
            fix="pass result.best.arch of a search",
        )
    sources = [name.rpartition("+")[2] for name in found]
    if sources != list(found) and all(name in supernet.branches for name in sources):
        raise UsageError(
            "8-bit branches can't be trained",
            expected="branches of the supernet",
            got=str(found),
            fix=f"specialise the subnet of the float branches, {','.join(sources)!r}, and export "
            "the result with quantise=fxelastic.Int8(...)",
        )
    supernet.space.validate(found)
    return found
