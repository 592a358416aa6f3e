"""The removal of channels from a block's copy: from its weights, literal sizes and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxelastic.branches.pruning.channels import Analysis, Dims, Labels
from fxelastic.branches.pruning.rules.products import loses_groups
from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.operators import (
    CONVOLUTIONS,
    LAYER_NORMS,
    argument,
    attribute,
    groups_of,
    operator_name,
    owner_of,
)
from fxelastic.ir.part_names import free_name

_ATEN = torch.ops.aten
_TO_THE_END = 2**63 - 1
_SIZES = ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.expand")


class Surgery:
    """Removes labels from the block that was analysed, in place."""

    def __init__(self, analysis: Analysis, labels: frozenset[int]) -> None:
        """Prepare the removal; `apply` does it.

        Args:
            analysis: The block, and the labels of its tensors.
            labels: The labels to remove, which must be representatives (`Channels.roots`).
        """
        self._analysis = analysis
        self._removed = np.fromiter(sorted(labels), np.int64, len(labels))
        self._module = analysis.module

    def apply(self) -> None:
        """Slice the weights and rewrite everything that depends on their sizes."""
        done: set[str] = set()
        for node in list(self._module.graph.nodes):
            if node.op == "placeholder" and node.name not in self._analysis.caches:
                self._select(node)
            elif node.op == "get_attr" and str(node.target) not in done:
                done.add(str(node.target))
                self._slice(node)
            elif node.op == "call_module" and str(node.target) in self._analysis.norms:
                if str(node.target) not in done:
                    done.add(str(node.target))
                    self._slice_norm(str(node.target))
            elif node.op == "call_function":
                self._rewrite(node)
        self._module.graph.lint()
        self._module.recompile()

    def stay(self, labels: Labels) -> Labels:
        """The indices of a dimension that stay."""
        roots = self._analysis.channels.roots(labels)
        return np.flatnonzero(~np.isin(roots, self._removed))

    def _lost(self, dims: Dims) -> list[tuple[int, Tensor]]:
        """The dimensions that lose indices, and the indices that they keep."""
        kept = [(d, self.stay(labels)) for d, labels in enumerate(dims)]
        return [(d, torch.from_numpy(k)) for d, k in kept if len(k) < len(dims[d])]

    def _slice(self, node: fx.Node) -> None:
        target = str(node.target)
        value = attribute(self._module, target)
        lost = self._lost(self._analysis.dims.get(node, ()))
        if not lost or not isinstance(value, Tensor):
            return
        new = value.detach()
        for d, index in lost:
            new = new.index_select(d, index.to(new.device))
        owner, name = owner_of(self._module, target)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(name, nn.Parameter(new, value.requires_grad))
        else:
            owner.register_buffer(name, new)

    def _slice_norm(self, target: str) -> None:
        norm = self._module.get_submodule(target)
        assert isinstance(norm, BatchNorm)
        index = torch.from_numpy(self.stay(self._analysis.norms[target]))
        norm.num_features = len(index)
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            if value is None:
                continue
            new = value.detach().index_select(0, index.to(value.device))
            if isinstance(value, nn.Parameter):
                norm.register_parameter(name, nn.Parameter(new))
            else:
                norm.register_buffer(name, new)

    def _select(self, node: fx.Node) -> None:
        """Select the remaining heads of a context, all of which other blocks read."""
        value: fx.Node = node
        for d, index in self._lost(self._analysis.dims.get(node, ())):
            name = free_name(self._module, f"kept_{node.name}_{d}")
            self._module.register_buffer(name, index.to(self._device()))
            readers = list(value.users)
            first = min(readers, key=list(self._module.graph.nodes).index)
            with self._module.graph.inserting_before(first):
                kept = self._module.graph.get_attr(name)
                new = self._module.graph.call_function(_ATEN.index_select.default, (value, d, kept))
            for reader in readers:
                reader.replace_input_with(value, new)
            value = new

    def _device(self) -> torch.device:
        """The device of the block's weights."""
        for value in (*self._module.parameters(), *self._module.buffers()):
            return value.device
        return torch.device("cpu")

    def _rewrite(self, node: fx.Node) -> None:
        name, dims = operator_name(node), self._analysis.dims.get(node)
        if name in _SIZES and dims is not None:
            self._sizes(node, 1, dims)
        elif name == "aten.unflatten" and dims is not None:
            at = int(node.args[1])  # type: ignore[arg-type]
            operand = node.args[0]
            rank = len(self._analysis.dims[operand])  # type: ignore[index]
            self._sizes(node, 2, dims[at % rank :])
        elif name in ("aten.chunk", "aten.split", "aten.split_with_sizes"):
            self._split(node)
        elif name == "aten.slice":
            self._slice_bounds(node)
        elif name in CONVOLUTIONS:
            self._convolution(node)
        elif name == "aten.group_norm":
            self._group_norm(node)
        elif name in LAYER_NORMS and dims is not None:
            self._sizes(node, 1, dims[-len(node.args[1]) :])  # type: ignore[arg-type]

    def _sizes(self, node: fx.Node, position: int, dims: Dims) -> None:
        """Adjust literal sizes to the labels of the result."""
        sizes = list(node.args[position])  # type: ignore[arg-type]
        for i, size in enumerate(sizes):
            labels = dims[i]
            kept = len(self.stay(labels))
            if isinstance(size, int) and size != -1 and kept < len(labels):
                sizes[i] = kept
        node.args = (*node.args[:position], sizes, *node.args[position + 1 :])

    def _split(self, node: fx.Node) -> None:
        """Adjust sections to the labels of each result, which may have become unequal."""
        operand: Any = node.args[0]
        rank = len(self._analysis.dims.get(operand, ()))
        d = int(argument(node, 2, "dim", 0)) % rank if rank else 0
        parts = self._analysis.parts.get(node, [])
        counts = [len(self.stay(dims[d])) for dims in parts]
        if counts != [len(dims[d]) for dims in parts]:
            node.target = _ATEN.split_with_sizes.default
            node.args, node.kwargs = (operand, counts, d), {}

    def _slice_bounds(self, node: fx.Node) -> None:
        operand: Any = node.args[0]
        dims = self._analysis.dims.get(operand)
        if dims is None:
            return
        arguments: list[Any] = [*node.args, *(None for _ in range(5 - len(node.args)))]
        for i, name in enumerate(("self", "dim", "start", "end", "step")):
            arguments[i] = node.kwargs.get(name, arguments[i])
        d = int(arguments[1] or 0) % len(dims)
        stay = set(self.stay(dims[d]).tolist())
        size = len(dims[d])
        if len(stay) == size:
            return
        start, stop, _ = slice(arguments[2], arguments[3]).indices(size)
        before = sum(1 for i in range(start) if i in stay)
        inside = sum(1 for i in range(start, stop) if i in stay)
        # A slice to the end stays one for any batch: heads may be counted with samples.
        end = before + inside if stop < size else _TO_THE_END
        node.args, node.kwargs = (operand, d, before, end, 1), {}

    def _convolution(self, node: fx.Node) -> None:
        groups = groups_of(node)
        operand: Any = node.args[0]
        dims = self._analysis.dims.get(operand)
        if groups == 1 or dims is None or not isinstance(groups, int):
            return
        if not loses_groups(self._analysis, node):
            return
        left = len(self.stay(dims[1])) * groups // len(dims[1])
        if len(node.args) > 6:
            node.args = (*node.args[:6], left)
        else:
            node.kwargs = {**node.kwargs, "groups": left}

    def _group_norm(self, node: fx.Node) -> None:
        operand: Any = node.args[0]
        dims = self._analysis.dims.get(operand)
        groups = node.args[1]
        if dims is not None and isinstance(groups, int):
            left = len(self.stay(dims[1])) * groups // len(dims[1])
            node.args = (operand, left, *node.args[2:])
