"""The model's own blocks as branches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxelastic.errors import UsageError, said
from fxelastic.ir.branch import Branch, FrozenGraphModule, Skip
from fxelastic.ir.extract import extract
from fxelastic.ir.operators import VIEWS, attribute
from fxelastic.ir.partition import Partition
from fxelastic.spec import ORIGINAL, BranchSpec, branch_id


@dataclass(frozen=True)
class Original:
    """One branch for each block, contexts and glue too, that computes what the block computes.

    Its weights never train, and the user's model never changes. A parameter of the model becomes
    a new ``nn.Parameter`` over the same memory that requires no gradient: gradients pass through
    an original to what comes before it, but none is computed for it. The model's own parameters
    keep their ``requires_grad``, ``grad`` and device, whatever is done to the supernet, except
    that writing to a weight in place (``load_state_dict``) writes to the memory of both. A
    parameter that the model uses in several places is one parameter here too.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Skip]:
        """Make the originals.

        Args:
            partition: What to make them for.
            seed: Not used: nothing here is random.

        Yields:
            A branch for each block, in execution order.
        """
        frozen: dict[int, Any] = {}
        for i, block in enumerate(partition.blocks):
            yield Branch(
                BranchSpec(
                    branch_id(ORIGINAL, i, i + 1), ORIGINAL, i, i + 1, block.n_params, block.flops
                ),
                _freeze(extract(partition, block), frozen),
                block.inputs,
                block.outputs,
                block.context,
            )


def _freeze(block: fx.GraphModule, frozen: dict[int, Any]) -> FrozenGraphModule:
    """The block over frozen parameters.

    Args:
        block: A block's graph module of its own over the user's parameters.
        frozen: What took the place of each parameter so far, by the parameter's id; added to.
    """
    trained = tuple(name for name, parameter in block.named_parameters() if parameter.requires_grad)
    for target in dict.fromkeys(
        str(node.target) for node in block.graph.nodes if node.op in ("get_attr", "call_module")
    ):
        path, _, name = target.rpartition(".")
        value = attribute(block, target)
        if isinstance(value, nn.Parameter):
            setattr(block.get_submodule(path), name, _frozen_parameter(value, frozen))
        elif isinstance(value, nn.Module):
            setattr(block.get_submodule(path), name, _frozen_module(value, frozen))
    for node in block.graph.nodes:
        if node.target in VIEWS:
            node.target = torch.ops.aten.reshape.default
    result = FrozenGraphModule(block, block.graph, class_name="Original")
    result.meta["trained"] = trained
    return result.train(False)


def _frozen_parameter(parameter: nn.Parameter, frozen: dict[int, Any]) -> nn.Parameter:
    if id(parameter) not in frozen:
        frozen[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    result: nn.Parameter = frozen[id(parameter)]
    return result


def _frozen_module(module: nn.Module, frozen: dict[int, Any]) -> nn.Module:
    """A copy of an opaque module over frozen parameters and the same buffers."""
    for parameter in module.parameters():
        _frozen_parameter(parameter, frozen)
    shared = {id(buffer): buffer for buffer in module.buffers()}
    # deepcopy refuses tensors that an earlier forward pass computed (weight norm keeps such).
    for part in module.modules():
        values = vars(part).values()
        shared |= {id(v): v for v in values if isinstance(v, torch.Tensor) and not v.is_leaf}
    try:
        return copy.deepcopy(module, frozen | shared)
    except Exception as e:
        # The user's module is the one part of what stands for it in the graph.
        own = next(module.children(), module)
        raise UsageError(
            f"the opaque module {type(own).__name__} cannot be copied",
            expected="a module that copy.deepcopy accepts",
            got=said(e),
            fix="drop locks, files and other handles from its attributes",
        ) from e
