"""Turn an exported program into a single plain graph over the user's own weights and names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fxelastic.errors import InternalError
from fxelastic.ir.operators import attach, attribute, is_operator, mutated_operands
from fxelastic.ir.part_names import target_of
from fxelastic.passes.export import WRAPPED

_CHECKS = re.compile(
    r"aten\.(_assert|sym_constrain_range|_functional_assert|_functional_sym_constrain)"
)
_META = ("val", "nn_module_stack", "stack_trace", "torch_fn")


def normalise(
    program: ExportedProgram, model: nn.Module, inputs: tuple[str, ...], names: dict[int, str]
) -> fx.GraphModule:
    """Rewrite an exported program as one graph module.

    Parameters and buffers become ``get_attr`` nodes, one for each distinct tensor. Regions that
    only switch gradients or autocast off are inlined. Run-time assertions are removed. Nodes have
    the user's module paths.

    Args:
        program: The exported program of a `Flat` wrapper.
        model: The user's model, which holds the weights.
        inputs: Names for the user inputs, in order.
        names: The user's name of each parameter and buffer by ``id``; the first name of a tensor
            with several.

    Returns:
        The graph module.
    """
    builder = _Builder(program, model, inputs, names)
    return builder.build()


class _Builder:
    def __init__(
        self,
        program: ExportedProgram,
        model: nn.Module,
        inputs: tuple[str, ...],
        names: dict[int, str],
    ) -> None:
        self._program = program
        self._model = model
        self._inputs = inputs
        self._names = names
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._by_tensor: dict[int, fx.Node] = {}
        self._own = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self._constants = _free("_constants", {name.partition(".")[0] for name in self._own})
        self._n_constants = 0

    def build(self) -> fx.GraphModule:
        signature = self._program.graph_signature
        env: dict[fx.Node, Any] = {}
        placeholders = [n for n in self._program.graph.nodes if n.op == "placeholder"]
        user = iter(self._inputs)
        lifted: list[tuple[fx.Node, Any]] = []
        for node, spec in zip(placeholders, signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                env[node] = self._graph.placeholder(next(user))
                # Its target is the parameter's name in the code, which must be unique.
                env[node].target = env[node].name
                env[node].meta = {"val": node.meta["val"], "nn_module_stack": {}}
            else:
                lifted.append((node, spec))
        for node, spec in lifted:
            env[node] = self._weight(node, spec)
        outputs = self._copy(self._program.graph_module, env)
        kept = [
            value
            for value, spec in zip(outputs, signature.output_specs, strict=True)
            if spec.kind == OutputKind.USER_OUTPUT
        ]
        output = self._graph.output(tuple(kept))
        output.meta["val"] = tuple(
            value.meta.get("val") if isinstance(value, fx.Node) else value for value in kept
        )
        remove_unused(self._graph)
        self._graph.lint()
        return fx.GraphModule(self._root, self._graph, class_name=type(self._model).__name__)

    def _weight(self, node: fx.Node, spec: Any) -> fx.Node:
        target = _strip(spec.target or node.name)
        tensor = self._lookup(spec, target)
        if id(tensor) in self._by_tensor:
            return self._by_tensor[id(tensor)]
        name = self._names.get(id(tensor))
        if name is None and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = target
        held = self._constant() if name is None else target_of(name)
        attach(self._root, held, tensor)
        new = self._graph.get_attr(held)
        new.meta = {"val": node.meta.get("val"), "nn_module_stack": {}}
        self._by_tensor[id(tensor)] = new
        return new

    def _constant(self) -> str:
        """A path for a tensor or a graph without a name."""
        self._n_constants += 1
        return f"{self._constants}.c{self._n_constants - 1}"

    def _lookup(self, spec: Any, target: str) -> Any:
        constants = self._program.constants
        traced = constants if spec.target in constants else self._program.state_dict
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            if target not in self._own:
                return traced[spec.target]
            own = self._own[target]
            # The user's own tensor, not the clone's, except for a buffer that the first forward
            # fills.
            if spec.kind == InputKind.PARAMETER or _equal(own, traced.get(spec.target)):
                return own
        return traced[spec.target]

    def _copy(self, module: fx.GraphModule, env: dict[fx.Node, Any]) -> tuple[Any, ...]:
        """Copy a graph's operators; returns its results in the new graph."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = fx.map_arg(node.args[0], env.__getitem__)
                return tuple(results) if isinstance(results, (list, tuple)) else (results,)
            if _CHECKS.match(str(node.target)):
                continue
            inlined = _switched_off(node, module)
            if inlined is not None:
                body, operands = inlined
                inner = dict(
                    zip(
                        (n for n in body.graph.nodes if n.op == "placeholder"),
                        (fx.map_arg(o, env.__getitem__) for o in operands),
                        strict=True,
                    )
                )
                env[node] = self._copy(body, inner)
                continue
            if node.op == "get_attr":
                env[node] = self._submodule(module, node)
                continue
            if _is_getitem_of_inlined(node, env):
                env[node] = env[node.args[0]][node.args[1]]
                continue
            new = self._graph.node_copy(node, env.__getitem__)
            new.meta = {key: node.meta[key] for key in _META if key in node.meta}
            new.meta["nn_module_stack"] = user_stack(node.meta.get("nn_module_stack"))
            env[node] = new
        raise InternalError("the exported graph has no output node")

    def _submodule(self, module: fx.GraphModule, node: fx.Node) -> Any:
        value = attribute(module, str(node.target))
        if isinstance(value, nn.Module) and all(_switched_off(u, module) for u in node.users):
            return None
        name = self._constant()
        attach(self._root, name, value)
        new = self._graph.get_attr(name)
        new.meta = {"val": node.meta.get("val"), "nn_module_stack": {}}
        return new


def user_stack(stack: Any) -> dict[str, tuple[str, str]]:
    """The module stack in the user's own terms.

    Returns:
        For each enclosing module, outermost first, the key ``path`` (``path@n`` for its n-th
        further call) and the value ``(path, class name)``. The model itself has the empty path.
    """
    result: dict[str, tuple[str, str]] = {}
    for key, (path, cls) in (stack or {}).items():
        if path != WRAPPED and not path.startswith(f"{WRAPPED}."):
            continue
        stripped = _strip(path)
        _, at, call = key.rpartition("@")
        name = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
        result[f"{stripped}@{call}" if at and call.isdigit() else stripped] = (stripped, name)
    return result


def remove_unused(graph: fx.Graph) -> None:
    """Drop operators and weights without readers, except operators that write to an operand."""
    for node in reversed(list(graph.nodes)):
        if node.users or not (is_operator(node) or node.op == "get_attr"):
            continue
        if next(mutated_operands(node), None) is None:
            graph.erase_node(node)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{name}_"
    return name


def _equal(own: Any, traced: Any) -> bool:
    if not isinstance(own, torch.Tensor) or not isinstance(traced, torch.Tensor):
        return own is not None
    if (own.shape, own.dtype, own.device) != (traced.shape, traced.dtype, traced.device):
        return False
    return own.is_meta or torch.allclose(own, traced, 0.0, 0.0, equal_nan=True)


def _strip(target: str) -> str:
    return "" if target == WRAPPED else target.removeprefix(f"{WRAPPED}.")


def _switched_off(
    node: fx.Node, module: fx.GraphModule
) -> tuple[fx.GraphModule, tuple[Any, ...]] | None:
    """Body and operands of a region under ``no_grad`` or ``autocast(enabled=False)``."""
    higher = torch.ops.higher_order
    if node.target is higher.wrap_with_set_grad_enabled:
        _, body, *operands = node.args
    elif node.target is higher.wrap_with_autocast and node.args[2] is False:
        _, _, _, _, body, *operands = node.args
    else:
        return None
    assert isinstance(body, fx.Node)
    value = attribute(module, str(body.target))
    assert isinstance(value, fx.GraphModule)
    return value, tuple(operands)


def _is_getitem_of_inlined(node: fx.Node, env: dict[fx.Node, Any]) -> bool:
    source = node.args[0] if node.args else None
    return isinstance(source, fx.Node) and isinstance(env.get(source), tuple)
