"""The public functions `train_stages` and `trained_state`: train a network exit by exit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fxelastic.branches.exits import Exit
from fxelastic.branches.training_originals import training_originals
from fxelastic.errors import UsageError
from fxelastic.expansion import expand
from fxelastic.ir.branch import Branch
from fxelastic.ir.part_names import name_of
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import EXIT, Arch
from fxelastic.spec.options import check_word
from fxelastic.train.losses import cross_entropy
from fxelastic.train.objectives import Supervised, TaskLoss
from fxelastic.train.sampling import Fixed
from fxelastic.train.stages import run
from fxelastic.train.training import Stage

UPDATES = ("freeze", "finetune")

# Norms follow the batches, and a stage ends with its last state, as in usual training.
_DEFAULTS: Mapping[str, Any] = {"lr": 1e-3, "keep_best": False, "norm_statistics": "batch"}


def train_stages(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    exits: str | Sequence[int] | Exit = "auto",
    update: str = "freeze",
    until: float | Sequence[float | None] | None = None,
    epochs: int | Sequence[int] = 10,
    loss: TaskLoss = cross_entropy,
    gamma: float = 0.1,
    example_inputs: Any = None,
    batched: str | Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    fusion: str = "onnxruntime",
    seed: int = 0,
    **options: Any,
) -> Supernet:
    """Train a network with early exits in stages, from the first exit to the end.

    The exits cut the network into segments. A stage trains one segment and the exit at its end on
    labelled data, on top of the segments before; the last stage trains the rest of the network.

    - ``update="freeze"``: the segments before stay as they are. Their blocks run without gradients,
      and what they compute is kept for each sample if it fits into ``cache_bytes`` on disk and the
      data is not augmented: later stages then take the time and the memory of one segment.
    - ``update="finetune"``: the segments before and their exits learn on, with the mean of the
      losses of all exits so far.

    With ``checkpoints=folder``, an interrupted run resumes in the stage, the epoch and the batch
    where it was; finished stages are not run again.

    Args:
        model: Any ``nn.Module``, with the weights to begin from; it is not changed.
        loader: A DataLoader or any iterable of labelled batches; see `BatchReader` for their forms.
        exits: Where the segments end: the numbers of blocks before each exit, ``"auto"`` for a
            quarter, half and three quarters of the FLOPs, or a `fxelastic.kinds.Exit`.
        update: What happens to earlier segments: ``"freeze"`` or ``"finetune"``.
        until: A stage ends after the epoch in which its exit's score on ``validate`` reaches this
            value; the score is accuracy, or ``metric``. One value for all stages, or one for each.
        epochs: The most passes over the loader in a stage; one number for all stages, or one for
            each.
        loss: Compares an exit's result with a batch's target.
        gamma: As in `fxelastic.expand`; exits are at the ends of blocks.
        example_inputs: As in `fxelastic.expand`.
        batched: As in `fxelastic.partition`.
        dynamic_shapes: As in `fxelastic.partition`.
        fusion: As in `fxelastic.partition`.
        seed: Seed of the exits' weights and of the training.
        options: Any field of `fxelastic.train.Training` but ``norm_statistics``: ``lr`` (a
            number, 1e-3 by default), ``keep_best`` (False by default), ``validate``,
            ``cache_bytes``, ``checkpoints``, …

    Returns:
        A supernet, in eval mode, whose originals are the trained network and whose branches are
        the exits. Its weights are copies: the model keeps its own. `trained_state` gives them the
        names of the model.

    Raises:
        UsageError: An option or a batch has a wrong type or value, a batch has no target, or the
            network can't have exits there.
        CaptureError: The model can't be captured, or its inputs can't be inferred.
        TrainingError: A loss is not finite, or no checkpoint can be used.

    Source: AdaScale, section III-B, Algorithm 1.
    """
    check_word("update", update, UPDATES)
    check_options(options)
    kind = exits if isinstance(exits, Exit) else Exit(at=exits)
    expanded = expand(
        *(model, gamma),
        example_inputs=example_inputs,
        batched=batched,
        dynamic_shapes=dynamic_shapes,
        kinds=(kind,),
        fusion=fusion,
        seed=seed,
    )
    return train_exits(
        *(expanded, loader),
        strict=kind.at != "auto" and not kind.every,
        update=update,
        until=until,
        epochs=epochs,
        loss=loss,
        seed=seed,
        **options,
    )


def train_exits(
    expanded: Supernet,
    loader: Iterable[Any],
    *,
    strict: bool = False,
    update: str = "freeze",
    until: float | Sequence[float | None] | None = None,
    epochs: int | Sequence[int] = 10,
    loss: TaskLoss = cross_entropy,
    **options: Any,
) -> Supernet:
    """`train_stages` of a model that is expanded already.

    Args:
        expanded: Originals and exits; it is not changed.
        loader: See `train_stages`, as for the other options.
        strict: Whether to refuse a supernet that lacks an exit which could not be made.
        update: See there.
        until: See there.
        epochs: See there.
        loss: See there.
        options: See there.

    Returns:
        A supernet with trained copies of all weights.

    Raises:
        UsageError: See `train_stages`.
        TrainingError: See there.
    """
    check_options(options)
    # The expansion refers to the user's weights, its copy does not.
    supernet = copy.deepcopy(expanded)
    heads = _exits(supernet, strict=strict)
    stages = _stages(supernet, heads, update, loss, epochs, until)
    training = Supernet(supernet.partition, [*training_originals(supernet.partition), *heads])
    run(training, loader, stages, **{**_DEFAULTS, **options})
    return supernet.eval()


def trained_state(supernet: Supernet, model: nn.Module) -> dict[str, Tensor]:
    """The trained weights of a supernet's originals, by the names of the model.

    Args:
        supernet: The result of `train_stages`.
        model: The model that it was made of, or one of the same class.

    Returns:
        A state for ``model.load_state_dict``. What the network does not read keeps the model's
        values.

    Raises:
        UsageError: The model lacks a trained weight, or has one of another shape.
    """
    if not isinstance(model, nn.Module):
        raise UsageError("model must be a module", expected="an nn.Module", got=repr(model))
    state = supernet.partition.graph_module.state_dict()
    trained = {name_of(name): value for name, value in state.items()}
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, _ in supernet.partition.graph_module.named_parameters():
        wanted = name_of(name)
        found = own.get(wanted)
        if found is None or found.shape != trained[wanted].shape:
            raise UsageError(
                f"the model has no weight {wanted!r} like the one that was trained",
                expected=f"a weight of shape {tuple(trained[wanted].shape)}",
                got="no weight of this name"
                if found is None
                else f"one of shape {tuple(found.shape)}",
                fix="pass the model that was trained, with its wrapper such as DataParallel or "
                "torch.compile if it had one",
            )
    # A tensor with several names has one of them in the graph.
    known = {id(own[name]): value for name, value in trained.items() if name in own}
    return {
        name: known.get(id(own.get(name)), value).detach().clone()
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing for a network that is not trained yet.

    Raises:
        UsageError: There is such an option.
    """
    if "norm_statistics" in options:
        raise UsageError(
            "train_stages has no option norm_statistics",
            expected="nothing: norms follow the batches in the stage that trains them",
            got=f"norm_statistics={options['norm_statistics']!r}",
        )
    if options.get("lr") == "auto":
        raise UsageError(
            "train_stages needs a learning rate",
            expected="a number; a few steps from random weights don't tell rates apart",
            got="lr='auto'",
            fix="pass for example lr=1e-3",
        )


def _exits(supernet: Supernet, *, strict: bool) -> list[Branch]:
    """The exits of a supernet in order.

    Raises:
        UsageError: There are none, or one was asked for by number and can't be made.
    """
    found = [branch for branch in supernet.branches.values() if branch.kind == EXIT]
    refused = [skip for skip in supernet.skips if skip.kind == EXIT]
    if not found or (strict and refused):
        reasons = [f"after {skip.start} blocks: {skip.reason}" for skip in refused]
        raise UsageError(
            "the network can't have exits there" if refused else "there is no place for an exit",
            expected="at least one block with a head after it, and every exit that is asked for",
            got="; ".join(reasons) or f"{len(supernet.partition.blocks)} blocks",
            fix="choose other exits=, or a smaller gamma for more blocks",
        )
    return sorted(found, key=lambda branch: branch.start)


def _stages(
    supernet: Supernet,
    heads: Sequence[Branch],
    update: str,
    loss: TaskLoss,
    epochs: int | Sequence[int],
    until: float | Sequence[float | None] | None,
) -> list[Stage]:
    """A stage for each segment."""
    originals = supernet.space.original.branches
    n = len(heads) + 1
    lengths, goals = _each("epochs", epochs, n), _each("until", until, n)
    paths = [(*originals[: head.start], head.id) for head in heads] + [originals]
    ends = [head.start for head in heads] + [len(originals)]
    stages = []
    for i, (path, end) in enumerate(zip(paths, ends, strict=True)):
        alone = update == "freeze"
        start = ends[i - 1] if i and alone else 0
        learns = [*originals[start:end], *(b.id for b in heads[i if alone else 0 : i + 1])]
        subnets = tuple(map(Arch, (path,) if alone else paths[: i + 1]))
        stages.append(
            Stage(
                Supervised(loss),
                learns=learns,
                sampling=Fixed(subnets),
                start=start,
                name=f"stage-{i + 1}",
                epochs=lengths[i],
                until=goals[i],
            )
        )
    return stages


def _each(name: str, value: Any, n: int) -> list[Any]:
    """The value for each stage."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * n
    if len(value) != n:
        raise UsageError(
            f"{name} must be one value, or one for each of {n} stages",
            expected=f"{n} values: one for each exit, and one for the rest of the network",
            got=repr(value),
        )
    return list(value)
