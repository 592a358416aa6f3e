"""The model's own blocks as branches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxelastic.errors import UsageError, said
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import VIEWS, attach, attribute
from fxelastic.ir.partition import Partition, extract
from fxelastic.spec import ORIGINAL, BranchSpec, branch_id


@dataclass(frozen=True)
class Original:
    """A branch for each block, including contexts and glue, that computes what the block computes.

    Its weights never train, and the user's model never changes. Each parameter of the model becomes
    a new ``nn.Parameter`` over the same memory that requires no gradient: gradients pass through
    an original to the branches before it, but it gets none itself. The model's own parameters keep
    their ``requires_grad``, ``grad`` and device, whatever happens to the supernet. Only writing to
    a weight in place (``load_state_dict``) writes to the memory of both. A parameter that the
    model uses in several places is a single parameter here as well.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the originals.

        Args:
            partition: The partition to make them for.
            seed: Not used, since nothing here is random.

        Yields:
            A branch for each block, in execution order.
        """
        frozen: dict[int, Any] = {}
        liveness = Liveness(partition)
        for i, block in enumerate(partition.blocks):
            yield original_branch(
                partition, liveness, i, _freeze(extract(partition, block), frozen)
            )


def original_branch(partition: Partition, liveness: Liveness, i: int, module: nn.Module) -> Branch:
    """The branch of a module that computes what a block computes.

    Args:
        partition: The blocks.
        liveness: Its liveness.
        i: The number of the block.
        module: The module.
    """
    block = partition.blocks[i]
    return Branch(
        BranchSpec(
            *(branch_id(ORIGINAL, i, i + 1), ORIGINAL, i, i + 1),
            *(block.n_params, block.flops, block.flops_by_size),
        ),
        module,
        block.inputs,
        block.outputs,
        block.context,
        presents=tuple(cache.present for cache in liveness.caches(i, i + 1)),
    )


def _freeze(block: fx.GraphModule, frozen: dict[int, Any]) -> FrozenGraphModule:
    """The block over frozen parameters.

    Args:
        block: A graph module of the block over the user's parameters.
        frozen: The replacement of each parameter so far, by the parameter's id; extended.
    """
    trained = tuple(name for name, parameter in block.named_parameters() if parameter.requires_grad)
    for target in dict.fromkeys(
        str(node.target) for node in block.graph.nodes if node.op in ("get_attr", "call_module")
    ):
        value = attribute(block, target)
        if isinstance(value, nn.Parameter):
            attach(block, target, _frozen_parameter(value, frozen))
        elif isinstance(value, nn.Module):
            attach(block, target, _frozen_module(value, frozen))
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
    # deepcopy refuses tensors of an earlier forward pass, which weight norm keeps.
    for part in module.modules():
        values = vars(part).values()
        shared |= {id(v): v for v in values if isinstance(v, torch.Tensor) and not v.is_leaf}
    try:
        return copy.deepcopy(module, frozen | shared)
    except Exception as e:
        # The graph holds the user's module as the only part of a wrapper.
        own = next(module.children(), module)
        raise UsageError(
            f"the opaque module {type(own).__name__} cannot be copied",
            expected="a module that copy.deepcopy accepts",
            got=said(e),
            fix="drop locks, files and other handles from its attributes",
        ) from e
