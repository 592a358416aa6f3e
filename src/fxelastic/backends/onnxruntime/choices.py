"""Choices between elements that are nearly equal.

If two elements differ by rounding alone, rounding decides which comes first in a sort or belongs to
the best ten, and all later results differ. A detector's 300 best of some thousand places, most of
them empty, end among such elements, and so do the experts of an untrained router. A comparison
therefore adopts a file's choices if each is as good as torch's own, and compares the rest with the
results that torch computes from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from fxelastic.backends.onnxruntime.comparison import compare
from fxelastic.backends.onnxruntime.running import open_session, run

Array = np.ndarray[Any, Any]

# The position of each operator's dimension among its arguments, and its default.
_CHOOSING: Mapping[str, tuple[int, int | None]] = {
    "aten.topk.default": (2, -1),
    "aten.sort.default": (1, -1),
    "aten.sort.stable": (1, -1),
    "aten.argsort.default": (1, -1),
    "aten.argsort.stable": (1, -1),
    "aten.argmax.default": (1, None),
    "aten.argmin.default": (1, None),
    "aten.max.dim": (1, None),
    "aten.min.dim": (1, None),
}
# Operators that take one element of an order, which a file computes as a whole, and the position of
# their dimension among the arguments; None for the operators over all elements.
_TAKING: Mapping[str, int | None] = {
    "aten.kthvalue.default": 2,
    "aten.median.default": None,
    "aten.median.dim": 1,
    "aten.nanmedian.default": None,
    "aten.nanmedian.dim": 1,
}
# Operators that take the largest element of each window and its place, and the windows' number of
# dimensions.
_POOLING: Mapping[str, int] = {
    "aten.max_pool2d_with_indices.default": 2,
    "aten.max_pool3d_with_indices.default": 3,
}
# The output of each operator's node in a file that has the indices.
_INDICES: Mapping[str, int] = {"TopK": 1, "ArgMax": 0, "ArgMin": 0}
_PROTOBUF_LIMIT_BYTES = 2**31 - 2**20


class OtherChoiceError(Exception):
    """A file's choices can't be adopted: one is worse than torch's, or their numbers differ."""


class Choices:
    """Runs modules with the choices of a file for the same inputs."""

    def __init__(
        self,
        indices: Sequence[Array],
        tolerances: Mapping[str, float],
        scales: Mapping[str, float],
    ) -> None:
        """Adopt a file's choices.

        Args:
            indices: The choices, from `choices_of`.
            tolerances: By how much a choice may be worse, by dtype, as for `compare`.
            scales: As for `compare`.
        """
        self._rest = list(indices)
        self._tolerances = tolerances
        self._scales = scales

    def run(self, module: nn.Module, *operands: Any) -> Any:
        """Run a module, the next one in the file's order.

        Raises:
            OtherChoiceError: A choice is worse than torch's own, or the file has no more choices.
        """
        if not isinstance(module, fx.GraphModule):
            return module(*operands)
        return _Interpreter(module, self).run(*operands)

    def end(self) -> None:
        """Check that no choice is left after the last module.

        Raises:
            OtherChoiceError: The file has more choices than torch.
        """
        if self._rest:
            raise OtherChoiceError(f"{len(self._rest)} more in the file")

    def next(self, own: Tensor) -> Tensor:
        """The file's next choice, in the form of torch's.

        Raises:
            OtherChoiceError: There is none, or it has another number of elements.
        """
        if not self._rest:
            raise OtherChoiceError("more in torch than in the file")
        found = torch.from_numpy(self._rest.pop(0).astype(np.int64)).to(own.device)
        if found.numel() != own.numel():
            raise OtherChoiceError(f"shape {tuple(found.shape)} against {tuple(own.shape)}")
        return found.reshape(own.shape)

    def check(self, chosen: Tensor, best: Tensor) -> None:
        """Check that the chosen elements are as good as torch's own.

        Raises:
            OtherChoiceError: One is worse.
        """
        array = chosen.detach().cpu().numpy()
        worse = compare("choice", array, best, self._tolerances, self._scales)
        if worse is not None:
            raise OtherChoiceError(worse.problem)

    def chosen(self, values: Tensor, dim: int | None, ordered: bool, own: Tensor) -> Tensor:
        """The file's next choice, checked.

        Args:
            values: The values to choose from.
            dim: The dimension of the choice; None for all elements.
            ordered: Whether the order of the chosen elements matters.
            own: Torch's choice.
        """
        found = self.next(own)
        if torch.equal(found, own):
            return own
        if dim is None:
            values, dim = values.flatten(), 0
        kept = own.dim() == values.dim() and own.dim() > 0
        indices = [i.reshape(1) if values.dim() == 1 and not kept else i for i in (found, own)]
        if values.dim() > 1 and not kept:
            indices = [i.unsqueeze(dim) for i in (found, own)]
        size = values.shape[dim]
        if bool(((indices[0] < 0) | (indices[0] >= size)).any()):
            raise OtherChoiceError(f"an index out of {size}")
        if bool((indices[0].sort(dim).values.diff(dim=dim) == 0).any()):
            raise OtherChoiceError("an element twice")
        chosen, best = (values.gather(dim, i) for i in indices)
        if not ordered:
            chosen, best = chosen.sort(dim).values, best.sort(dim).values
        self.check(chosen, best)
        return found


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, choices: Choices) -> None:
        super().__init__(module)
        self._choices = choices

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if str(n.target) in _TAKING:
            return self._taken(n, result)
        if str(n.target) in _POOLING and not _without_indices(n):
            return self._pooled(n, result)
        place = _CHOOSING.get(str(n.target))
        if place is None or _without_indices(n):
            return result
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        position, default = place
        dim = args[position] if len(args) > position else kwargs.get("dim", default)
        in_order = args[4] if len(args) > 4 else kwargs.get("sorted", True)
        own = result if isinstance(result, Tensor) else result[1]
        found = self._choices.chosen(args[0], dim, in_order, own)
        if found is own:
            return result
        if isinstance(result, Tensor):
            return found
        # Operators over all elements return indices only.
        assert dim is not None
        kept = own.dim() == args[0].dim()
        values = args[0].gather(dim, found if kept else found.unsqueeze(dim))
        return (values if kept else values.squeeze(dim)), found

    def _taken(self, n: fx.Node, result: Any) -> Any:
        """The element that an operator takes from an order, here from the file's order."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        name, position = str(n.target), _TAKING[str(n.target)]
        values = args[0].flatten() if position is None else args[0]
        dim = 0 if position is None else _argument(args, kwargs, position, "dim", -1)
        missing = values.isnan()
        numbers = values.masked_fill(missing, math.inf) if values.is_floating_point() else values
        order = self._choices.chosen(numbers, dim, True, numbers.sort(dim=dim, stable=True).indices)
        count = (~missing).sum(dim, keepdim=True)
        if "kthvalue" in name:
            k = torch.full_like(count, args[1] - 1)
        elif "nan" in name:
            k = ((count - 1) // 2).clamp(min=0)
        else:
            k = torch.full_like(count, (values.shape[dim] - 1) // 2)
        index = order.gather(dim, k)
        value = values.gather(dim, index)
        if position is None:
            return torch.where(result.isnan(), result, value.reshape(()))
        if not _argument(args, kwargs, position + 1, "keepdim", False):
            value, index = value.squeeze(dim), index.squeeze(dim)
        # NaN decides alone, without a choice.
        own, own_index = result
        return torch.where(own.isnan(), own, value), torch.where(own.isnan(), own_index, index)

    def _pooled(self, n: fx.Node, result: Any) -> Any:
        """The largest elements of windows and their places, here the file's places."""
        own: Tensor = result[1]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        values, n_dims = args[0], _POOLING[str(n.target)]

        def option(position: int, name: str, default: Any) -> list[int]:
            given = _argument(args, kwargs, position, name, default) or default
            sizes = [given] if isinstance(given, int) else list(given)
            return sizes if len(sizes) == n_dims else sizes * n_dims

        kernel = option(1, "kernel_size", 1)
        if math.prod(kernel) == 1:  # no choice
            return result
        windows = (
            *(kernel, option(2, "stride", kernel), option(3, "padding", 0)),
            option(4, "dilation", 1),
        )
        shape = values.shape[-n_dims:]
        # A file counts the elements of all samples and channels, torch those of a plane.
        found = self._choices.next(own).reshape(-1, math.prod(own.shape[-n_dims:]))
        planes = torch.arange(len(found), device=found.device)[:, None]
        place = (found - planes * math.prod(shape)).reshape(own.shape)
        if torch.equal(place, own):
            return result
        if not _in_windows(place, shape, *windows):
            raise OtherChoiceError("an element of another window")
        flat = values.flatten(-n_dims)
        chosen = flat.gather(-1, place.flatten(-n_dims)).reshape(own.shape)
        self._choices.check(chosen, result[0])
        return chosen, place


def _in_windows(
    places: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether each place in a plane belongs to the window of its position."""
    if bool(((places < 0) | (places >= math.prod(shape))).any()):
        return False
    for i, at in enumerate(torch.unravel_index(places, tuple(shape))):
        dim = places.dim() - len(shape) + i
        positions = torch.arange(places.shape[dim], device=places.device)
        starts = (positions * stride[i] - padding[i]).reshape(-1, *[1] * (len(shape) - 1 - i))
        offset = at - starts
        inside = (offset >= 0) & (offset % dilation[i] == 0) & (offset < kernel[i] * dilation[i])
        if not bool(inside.all()):
            return False
    return True


def _argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _without_indices(node: fx.Node) -> bool:
    """Whether nothing reads a maximum's index, which a file then does not compute."""
    return str(node.target) in ("aten.max.dim", "aten.min.dim", *_POOLING) and not any(
        user.args[1] == 1 and user.users for user in node.users
    )


def chooses(module: nn.Module) -> bool:
    """Whether a module has an operator that chooses among elements."""
    graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
    choosing = {*_CHOOSING, *_TAKING, *_POOLING}
    return any(str(node.target) in choosing for graph in graphs for node in graph.nodes)


def choices_of(path: Path, sample: Mapping[str, Any]) -> list[Array]:
    """The choices of a file, in the order of its nodes.

    Args:
        path: The ONNX file.
        sample: Its inputs by name.

    Raises:
        ExportError: onnxruntime can't run it.
        OtherChoiceError: The file is too large to analyse.
    """
    model = onnx.load(str(path))
    if model.ByteSize() >= _PROTOBUF_LIMIT_BYTES:
        raise OtherChoiceError("the file is too large to analyse")
    outputs = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node if (name := _chosen_by(node))]
    for name in names:
        if name not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    found = run(open_session(model.SerializeToString()), sample)
    return [found[name] for name in names]


def _chosen_by(node: onnx.NodeProto) -> str:
    """The name of a node's result with indices; empty if it has none, or no choice."""
    if node.op_type == "MaxPool":
        kernel = next(a.ints for a in node.attribute if a.name == "kernel_shape")
        return node.output[1] if len(node.output) > 1 and math.prod(kernel) > 1 else ""
    return node.output[_INDICES[node.op_type]] if node.op_type in _INDICES else ""
