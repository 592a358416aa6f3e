"""Run ``torch.export`` on any signature, with a dynamic batch where the model allows it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from fxelastic.ir import trees
from fxelastic.passes.batch import Batch, runs, with_batch_size

logger = logging.getLogger(__name__)

#: Name of the attribute under which the wrapper holds the model; stripped from every path.
WRAPPED = "model"


class _Seen:
    """What a forward pass leaves behind; torch.export takes back what it assigns to attributes."""

    result: trees.Tree | None = None


class Flat(nn.Module):
    """Calls a model from a flat list of tensors and returns a flat tuple of tensors.

    ``torch.export`` then sees tensors only, whatever the model's own signature is.
    """

    def __init__(self, model: nn.Module, arguments: trees.Tree, n_positional: int) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments
        self._n_positional = n_positional
        self.seen = _Seen()

    def forward(self, *leaves: Any) -> tuple[Any, ...]:
        """The model's tensors from its argument's tensors; notes the result's structure."""
        args, kwargs = trees.unflatten(self._arguments, list(leaves))
        outputs, result = trees.flatten(self.model(*args, **kwargs))
        self.seen.result = result
        return tuple(outputs)


@dataclass(frozen=True)
class Exported:
    """What one successful export gives.

    Attributes:
        program: The exported program.
        result: Structure of the model's result.
        batch: The inputs that hold samples.
        dynamic_batch: Whether the batch is dynamic.
        why_static: Why the batch is not dynamic, if it is not.
    """

    program: ExportedProgram
    result: trees.Tree
    batch: Batch
    dynamic_batch: bool
    why_static: str = ""


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: Batch,
    *,
    decided: bool = False,
    dynamic: bool = True,
) -> Exported:
    """Export with the strictest batch handling that the model supports.

    Several inputs that may hold samples are exported with a size each, which shows what the model
    ties to what. Then are tried in turn: a proven dynamic batch, an inferred one (some reshapes
    leave guards that the solver can't prove), a static batch.

    Args:
        model: The model, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch: Inputs that may hold samples.
        decided: Whether they do, whatever the model ties.
        dynamic: Whether to try for a dynamic batch.

    Returns:
        The first that succeeded.

    Raises:
        Exception: Whatever ``torch.export`` raised for the static batch.
    """
    leaves, tree = trees.flatten((args, kwargs))
    why_static = "no input has a batch dimension"
    if batch.positions and dynamic:
        size = leaves[batch.positions[0]].shape[0]
        example = with_batch_size(leaves, batch.positions, max(size, 2))

        def run(dimension: Any, batch: Batch) -> Exported:
            given = [
                new if i in batch.positions else leaf
                for i, (new, leaf) in enumerate(zip(example, leaves, strict=True))
            ]
            program, result = _export(model, tree, len(args), given, batch.positions, dimension)
            return Exported(program, result, batch, len(_batch_symbols(program)) == 1)

        tries: list[Any] = [Dim("batch"), Dim.AUTO]
        if len(batch.positions) > 1 and not decided:
            try:
                apart = run(Dim.AUTO, batch)
            except Exception as e:  # noqa: BLE001  # torch.export raises dozens of types
                logger.debug("export with a size for each input failed: %s", e)
            else:
                if apart.dynamic_batch and _ties_all(apart):
                    return apart
                if not _batch_symbols(apart.program):
                    tries.remove(Dim.AUTO)
                found = batch_of_sizes(batch, apart.program)
                # A stand-in for an opaque module ties nothing: the model itself has the last word.
                more = with_batch_size(leaves, found.positions, size + 1)
                if not found.rows or runs(model, tree, more):
                    batch = found
        for dimension in tries:
            try:
                exported = run(dimension, batch)
            except Exception as e:  # noqa: BLE001  # torch.export raises dozens of types
                why_static = _reason(e)
                logger.debug("export with batch %s failed: %s", dimension, e)
                continue
            if exported.dynamic_batch:
                return exported
            why_static = "the model fixes the batch size"
    program, result = _export(model, tree, len(args), leaves, (), None)
    return Exported(program, result, batch, dynamic_batch=False, why_static=why_static)


def batch_of_sizes(candidates: Batch, program: ExportedProgram) -> Batch:
    """Which of the candidates hold samples, going by an export in which each has its own size.

    Sizes that the model needs to be equal have become one symbol. Where several are left, the batch
    is the one that results have as their first size. A result of two of them, such as scores of
    images for each of some texts, is not one of pairs: there the first symbol is the batch, and the
    other inputs keep the rows of the example. Results of one symbol each may be those of pairs.

    Args:
        candidates: Inputs that may hold samples.
        program: The export.
    """
    inputs, outputs = _user_values(program)
    groups: dict[Any, list[int]] = {}
    for i in candidates.positions:
        for symbol in _symbols(inputs[i].meta["val"].shape[0]):
            groups.setdefault(symbol, []).append(i)
    unread = [s for s, group in groups.items() if not any(inputs[i].users for i in group)]
    read = [symbol for symbol in groups if symbol not in unread]
    if not read:
        return candidates
    shapes = [[_symbols(size) for size in value.shape] for value in outputs]
    leading = [s for s in read if any(shape and s in shape[0] for shape in shapes)] or read[:1]
    crossed = any(shape and (set(read) & set().union(*shape[1:])) - shape[0] for shape in shapes)
    # What nothing reads may as well have a row for each sample.
    chosen = [*(leading[:1] if crossed else leading), *unread]
    positions = sorted(i for symbol in chosen for i in groups[symbol])
    rows = tuple(i for i in candidates.positions if i not in positions)
    rows = tuple(sorted({*candidates.rows, *rows}))
    return Batch(tuple(positions), rows, untied=len(chosen) - len(unread) > 1)


def _ties_all(exported: Exported) -> bool:
    """Whether every candidate's size is the one symbol."""
    inputs, _ = _user_values(exported.program)
    return all(_symbols(inputs[i].meta["val"].shape[0]) for i in exported.batch.positions)


def _user_values(program: ExportedProgram) -> tuple[list[fx.Node], list[torch.Tensor]]:
    """The placeholders of the inputs, and the tensors among the results."""
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = [
        nodes[spec.arg.name] for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT
    ]
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    values = [node.meta.get("val") for node in output.args[0] if isinstance(node, fx.Node)]
    return inputs, [value for value in values if isinstance(value, torch.Tensor)]


def _symbols(size: Any) -> set[Any]:
    # A size that the model turned out to fix is a SymInt too, of a constant.
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _export(
    model: nn.Module,
    tree: trees.Tree,
    n_positional: int,
    leaves: list[Any],
    batched: Sequence[int],
    dimension: Any,
) -> tuple[ExportedProgram, trees.Tree]:
    flat = Flat(model, tree, n_positional)
    shapes = tuple({0: dimension} if i in batched else None for i in range(len(leaves)))
    with quiet():
        program = torch.export.export(
            flat, tuple(leaves), dynamic_shapes={"leaves": shapes}, strict=False
        )
    assert flat.seen.result is not None
    return program, flat.seen.result


def _batch_symbols(program: ExportedProgram) -> set[Any]:
    """The symbols that sizes of the inputs depend on; a size that the model fixes has none."""
    inputs, _ = _user_values(program)
    values = [node.meta.get("val") for node in inputs]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return set().union(*(_symbols(size) for value in tensors for size in value.shape))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of tracing: none is about something the user did.

    On a failure torch.export prints the half-traced graph to stderr; that goes to the debug log.
    """
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx.experimental")]
    levels = [log.level for log in loggers]
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        try:
            for log in loggers:
                log.setLevel(logging.CRITICAL)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
            if printed.getvalue().strip():
                logger.debug("torch.export printed: %s", printed.getvalue())


def _reason(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = next((line for line in lines if line.startswith("- ")), lines[0] if lines else "")
    return f"{type(e).__name__}: {text.removeprefix('- ')[:200]}"
