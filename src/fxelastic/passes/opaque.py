"""Opaque modules: modules that can't be captured stay single nodes of the graph.

If ``torch.export`` fails inside a submodule (control flow over data, an operator without a fake
kernel), a custom operator replaces that submodule during the capture and becomes a ``call_module``
node afterwards. Unlike with symbolic tracing as a fallback, the rest of the model keeps ATen
operators, shapes and a dynamic batch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxelastic.errors import CaptureError, said
from fxelastic.ir import trees
from fxelastic.ir.causes import Cause, cause_of
from fxelastic.ir.part_names import free_name
from fxelastic.passes.batch import BatchedInputs
from fxelastic.passes.buffer_values import known_buffers
from fxelastic.passes.dynamic_shapes import DynamicShapes, resized
from fxelastic.passes.export import Exported, Flat, export

logger = logging.getLogger(__name__)

_MAX_OPAQUE = 64


@dataclass
class OpaqueModule:
    """A submodule that stays a single node.

    Attributes:
        path: Its path in the user's model.
        module: The module itself.
        cause: Why it could not be captured.
        calls: Input and output tensors of each recorded call: one with the example's sizes, and
            some with others.
        result: Structure of its result.
    """

    path: str
    module: nn.Module
    cause: Cause
    calls: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = field(default_factory=list)
    arguments: trees.Tree | None = None
    result: trees.Tree | None = None


@contextlib.contextmanager
def export_with_opaque(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> Iterator[tuple[Exported, list[OpaqueModule]]]:
    """Export a model; submodules that can't be exported become opaque.

    Args:
        model: A clone of the user's model; its submodules are replaced during the call.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch: The inputs that hold samples.
        shapes: The dimensions that vary.

    Yields:
        The export, and the opaque modules that its graph calls. Their custom operator exists only
        inside the context; `restore_opaque` removes it from a graph.

    Raises:
        CaptureError: The failure is in the model's outermost ``forward``.
    """
    opaque: list[OpaqueModule] = []
    known = False
    while True:
        with _operator(opaque):
            try:
                values = known_buffers(model) if known else contextlib.nullcontext()
                with _replaced(model, opaque), values:
                    exported = export(model, args, kwargs, batch, shapes)
            except CaptureError:
                raise
            except Exception as e:  # torch.export raises dozens of types
                if not known and cause_of(e, model).by_values:
                    known = True
                    continue
                culprit = _innermost_module(e, model, opaque)
                if culprit is None or len(opaque) >= _MAX_OPAQUE:
                    raise _failure(model, e) from e
                path, module = culprit
                logger.info("keeping %s as an opaque leaf: %s", path, e)
                leaf = OpaqueModule(path, module, cause_of(e, module))
            else:
                yield exported, opaque
                return
        _record(leaf, model, args, kwargs, shapes)
        opaque.append(leaf)


def restore_opaque(graph_module: fx.GraphModule, opaque: list[OpaqueModule]) -> None:
    """Replace the custom operators of a captured graph by ``call_module`` nodes."""
    graph = graph_module.graph
    names: dict[int, str] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or "fxelastic_opaque" not in str(node.target):
            continue
        index = node.args[1]
        leaf = opaque[index]
        assert leaf.result is not None
        if index not in names:
            names[index] = free_name(graph_module, f"_opaque_{index}")
            graph_module.add_module(names[index], _Leaf(leaf))
        with graph.inserting_before(node):
            new = graph.call_module(names[index], tuple(node.args[0]))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


class _Leaf(nn.Module):
    """Calls the opaque module with flat tensors, as graph nodes do."""

    def __init__(self, leaf: OpaqueModule) -> None:
        super().__init__()
        self.module = leaf.module
        self._arguments = leaf.arguments

    def forward(self, *leaves: torch.Tensor) -> list[torch.Tensor]:
        assert self._arguments is not None
        args, kwargs = trees.unflatten(self._arguments, list(leaves))
        return trees.flatten(self.module(*args, **kwargs))[0]


class _Stand(nn.Module):
    """Replaces the opaque module during the export."""

    def __init__(self, index: int, leaf: OpaqueModule) -> None:
        super().__init__()
        self._index = index
        self._leaf = leaf

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, _ = trees.flatten((args, kwargs))
        outputs = torch.ops.fxelastic_opaque.call(leaves, self._index)
        result = self._leaf.result
        assert result is not None
        return trees.unflatten(result, list(outputs))


class _operator:
    """Defines the custom operator during one export."""

    def __init__(self, opaque: list[OpaqueModule]) -> None:
        self._opaque = opaque
        self._library: torch.library.Library | None = None

    def __enter__(self) -> None:
        if not self._opaque:
            return
        opaque = self._opaque
        self._library = torch.library.Library("fxelastic_opaque", "DEF")
        self._library.define("call(Tensor[] inputs, int index) -> Tensor[]")

        def fake(inputs: list[torch.Tensor], index: int) -> list[torch.Tensor]:
            return _fake_outputs(opaque[index], inputs)

        torch.library.register_fake("fxelastic_opaque::call", fake, lib=self._library)

    def __exit__(self, *_: object) -> None:
        if self._library is not None:
            self._library._destroy()


def _fake_outputs(leaf: OpaqueModule, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of the recorded shapes; dimensions that follow an input's dimension stay tied."""
    outputs = []
    for i, tensor in enumerate(leaf.calls[0][1]):
        shape = []
        for dim, size in enumerate(tensor.shape):
            sizes = [call[1][i].shape[dim] for call in leaf.calls]
            shape.append(size if len(set(sizes)) == 1 else _tied(leaf, inputs, sizes))
        outputs.append(inputs[0].new_empty(shape, dtype=tensor.dtype))
    return outputs


def _tied(leaf: OpaqueModule, inputs: list[torch.Tensor], sizes: list[int]) -> Any:
    for j, tensor in enumerate(inputs):
        for dim in range(tensor.dim()):
            seen = [call[0][j].shape[dim] for call in leaf.calls]
            factor, rest = divmod(sizes[0], seen[0])
            if not rest and all(s * factor == n for s, n in zip(seen, sizes, strict=True)):
                return tensor.shape[dim] * factor
    raise CaptureError(
        f"the output shape of the opaque module {leaf.path!r} does not follow an input's shape",
        expected="output sizes that are fixed or a multiple of an input's size",
        got=f"sizes {sizes} for different inputs; {leaf.cause.reason}",
        fix=leaf.cause.fix,
    )


def _record(
    leaf: OpaqueModule,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: DynamicShapes,
) -> None:
    """Run the model on the example and with all sizes changed, and record the leaf's calls."""
    leaves, tree = trees.flatten((args, kwargs))
    # Each size changes by another amount, so that an output's size shows which it follows.
    others = {
        name: symbol.example + (i + 1) * symbol.step
        for i, (name, symbol) in enumerate(shapes.symbols.items())
    }
    examples = [leaves, resized(leaves, shapes, others)] if others else [leaves]

    def hook(_: nn.Module, a: tuple[Any, ...], k: dict[str, Any], result: Any) -> None:
        inputs, leaf.arguments = trees.flatten((a, k))
        outputs, leaf.result = trees.flatten(result)
        leaf.calls.append((inputs, outputs))

    def run(example: list[Any]) -> None:
        before = len(leaf.calls)
        a, k = trees.unflatten(tree, example)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*a, **k)
        del leaf.calls[before + 1 :]

    handle = leaf.module.register_forward_hook(hook, with_kwargs=True)
    try:
        for example in examples:
            run(example)
        if set(others) - {shapes.batch}:
            # A size that is divided by a patch's does not change with a few pixels.
            for larger in _larger(shapes):
                with contextlib.suppress(Exception):  # the model may not take these
                    run(resized(leaves, shapes, larger))
                    break
    except Exception as e:
        sizes = "another batch size" if list(shapes.symbols) == [shapes.batch] else "other sizes"
        raise _not_whole(model, leaf, f"run at {sizes}, {said(e)}") from e
    finally:
        handle.remove()
    if not leaf.calls or not leaf.calls[0][0]:
        raise _not_whole(model, leaf, "it takes no tensors")


def _larger(shapes: DynamicShapes) -> Iterator[dict[str, int]]:
    """Sizes of twice the example's, three times for the second one, and so on; then all twice."""
    for more in (1, 0):
        yield {
            name: symbol.large(2 + i * more)
            for i, (name, symbol) in enumerate(shapes.symbols.items())
        }


def _innermost_module(
    e: Exception, model: nn.Module, opaque: list[OpaqueModule]
) -> tuple[str, nn.Module] | None:
    """The deepest submodule of the model that was running when the exception was raised."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    done = {leaf.path for leaf in opaque}
    found: tuple[str, nn.Module] | None = None
    error: BaseException | None = e
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and not isinstance(owner, (Flat, _Stand)):
                path = paths.get(id(owner))
                if path and path not in done:
                    found = path, owner
            trace = trace.tb_next
        if found is not None:
            return found
        error = error.__cause__ or error.__context__
    return found


@contextlib.contextmanager
def _replaced(model: nn.Module, opaque: list[OpaqueModule]) -> Iterator[None]:
    """Replace the opaque modules wherever they are in the model."""
    stands = {id(leaf.module): _Stand(i, leaf) for i, leaf in enumerate(opaque)}
    slots = [
        (parent._modules, key, child)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if id(child) in stands
    ]
    for modules, key, child in slots:
        modules[key] = stands[id(child)]
    try:
        yield
    finally:
        for modules, key, child in slots:
            modules[key] = child


def _failure(model: nn.Module, e: Exception) -> CaptureError:
    cause = cause_of(e, model)
    fix = cause.fix
    if cause.separable:
        fix = f"{fix}, or move that part into a separate submodule, which is kept whole"
    return CaptureError(
        f"{type(model).__name__} can't be captured",
        expected="a forward that torch.export can record",
        got=cause.reason,
        fix=fix,
    )


def _not_whole(model: nn.Module, leaf: OpaqueModule, why: str) -> CaptureError:
    return CaptureError(
        f"{type(model).__name__} can't be captured: {leaf.path!r} can't be kept whole",
        expected="a module that torch.export can record",
        got=f"{leaf.cause.reason}; {why}",
        fix=leaf.cause.fix,
    )
