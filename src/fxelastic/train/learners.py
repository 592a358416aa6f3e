"""The branches of a supernet in training: how they run, and which of them learn."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch
from fxelastic.ir.part_names import name_of
from fxelastic.ir.supernet import Supernet
from fxelastic.ir.values import data_dims
from fxelastic.spec import Arch
from fxelastic.train.metrics import SampleLayout


class BranchRunner:
    """Runs the branches of a supernet one by one, compiled if requested.

    Originals run over weights that require no gradients.

    Attributes:
        supernet: The supernet.
        originals: The model's own path.
    """

    def __init__(self, supernet: Supernet, compile: bool | Mapping[str, Any] = False) -> None:
        """Prepare the branches.

        Args:
            supernet: The supernet; it is not changed.
            compile: Whether to run through ``torch.compile``, or its keyword arguments.
        """
        self.supernet = supernet
        self._branches: dict[str, Branch] = dict(supernet.branches)
        if compile is not False:
            options = {} if compile is True else dict(compile)
            for name, branch in self._branches.items():
                compiled: Any = torch.compile(branch.module, **options)
                self._branches[name] = replace(branch, module=compiled)
        self.originals = self.path(supernet.space.original)

    @cached_property
    def data_sized(self) -> frozenset[str]:
        """Names of the values whose sizes data choose."""
        nodes = self.supernet.partition.graph.nodes
        return frozenset(node.name for node in nodes if data_dims(node.meta.get("val")))

    @cached_property
    def layout(self) -> SampleLayout:
        """Where results hold samples."""
        return SampleLayout.of(self.supernet.partition)

    def branch(self, name: str) -> Branch:
        """A branch by its id."""
        return self._branches[name]

    def path(self, arch: Arch) -> tuple[Branch, ...]:
        """The branches of a subnet in execution order.

        Raises:
            UsageError: The arch is not in the search space.
        """
        return tuple(self._branches[spec.id] for spec in self.supernet.space.specs(arch))

    def is_context(self, branch: Branch) -> bool:
        """Whether a branch computes a value beside the data stream, such as a mask."""
        blocks = self.supernet.partition.blocks[branch.start : branch.stop]
        return all(block.kind == "context" for block in blocks)

    def run(self, branch: Branch, values: MutableMapping[str, Any]) -> None:
        """Run a branch on named values, see `Supernet.run_branch`."""
        self.supernet.run_branch(branch, values)

    def before(self, start: int) -> tuple[Branch, ...]:
        """The model's own path up to a block."""
        return tuple(branch for branch in self.originals if branch.stop <= start)

    def result(self, arch: Arch, values: Mapping[str, Any]) -> Any:
        """A subnet's result, in the structure of the model's result, without caches.

        Args:
            arch: The subnet.
            values: The model's inputs by name; not changed.
        """
        current = dict(values)
        for branch in self.path(arch):
            self.run(branch, current)
        return self.supernet.result(current, caches=False)


class Learners:
    """The new branches of a supernet that learn in a stage of training.

    Attributes:
        branches: Each branch that learns, by id, in the search space's order.
        parameters: Each parameter that learns once, by ``branch id/name in the module``.
    """

    def __init__(
        self, supernet: Supernet, names: Collection[str] | None = None, start: int = 0
    ) -> None:
        """Collect the parameters.

        Args:
            supernet: The supernet.
            names: Ids of the branches that learn; all new branches where None.
            start: The blocks before this one stay as they are, and so does what later branches
                share with them.

        Raises:
            UsageError: An id does not belong to a new branch, there is nothing to train, or a new
                branch holds a weight of the model itself.
        """
        self._modules: dict[str, nn.Module] = {
            name: branch.module for name, branch in supernet.branches.items() if not branch.frozen
        }
        if names is not None and (
            isinstance(names, str) or not names or not self._modules.keys() >= set(names)
        ):
            raise UsageError(
                "learns must hold ids of new branches",
                expected=f"some of {', '.join(self._modules)}",
                got=repr(names),
            )
        chosen = self._modules if names is None else names
        before = [b.module for b in supernet.branches.values() if b.stop <= start]
        self._fixed = {id(part) for module in before for part in _parts(module)}
        self.parameters: dict[str, nn.Parameter] = {}
        self._own: dict[str, tuple[str, ...]] = {}
        known: dict[int, str] = {}
        for name, module in self._modules.items():
            if name in chosen:
                for inner, parameter in module.named_parameters():
                    if id(parameter) in self._fixed or not parameter.requires_grad:
                        continue
                    if id(parameter) not in known:
                        known[id(parameter)] = f"{name}/{name_of(inner)}"
                        self.parameters[known[id(parameter)]] = parameter
                own = (known[id(p)] for p in module.parameters() if id(p) in known)
                self._own[name] = tuple(dict.fromkeys(own))
        # Norms and dropouts without parameters are in training mode beside those that learn.
        self._silent = [name for name, own in self._own.items() if not own and names is not None]
        self.branches: dict[str, Branch] = {
            name: supernet.branches[name] for name, own in self._own.items() if own
        }
        if not self.parameters:
            raise UsageError(
                "the supernet has nothing to train",
                expected="branches with parameters besides the originals",
                got=str(supernet.space),
                fix="expand the model with more kinds of branches",
            )
        self._refuse_weights_of_the_model(supernet)

    def of(self, branch: str) -> list[nn.Parameter]:
        """The parameters of one branch that learn."""
        return [self.parameters[name] for name in self._own[branch]]

    def module(self, branch: str) -> nn.Module:
        """The module of one branch."""
        return self._modules[branch]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Disable gradients of all other parameters of new branches, as a context manager."""
        learning = {id(parameter) for parameter in self.parameters.values()}
        others = {
            id(p): p
            for module in self._modules.values()
            for p in module.parameters()
            if p.requires_grad and id(p) not in learning
        }
        try:
            for parameter in others.values():
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in others.values():
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def training(self, branches: Iterable[str], *, frozen: bool = False) -> Iterator[None]:
        """Put these branches in training mode and all others in eval mode within the context.

        Args:
            branches: Ids of the branches.
            frozen: Leave layers with running statistics in eval mode: they normalise with these
                statistics, as in inference, and don't change them.
        """
        modules = [self._modules[name] for name in (*branches, *self._silent)]
        for module in modules:
            module.train()
            for layer in norms_of(module) if frozen else ():
                layer.eval()
            for part in module.modules() if self._fixed else ():
                if not self._fixed.isdisjoint(map(id, (part, *part._buffers.values()))):
                    part.eval()
        try:
            yield
        finally:
            for module in modules:
                module.eval()

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of all new branches, by name; the tensors themselves."""
        return self.state_of(self._modules)

    def state_of(self, branches: Iterable[str]) -> dict[str, Tensor]:
        """Parameters and buffers of some branches, as in `state`."""
        state: dict[str, Tensor] = {}
        for name in branches:
            module = self._modules[name]
            for inner, value in (*module.named_parameters(), *module.named_buffers()):
                state[f"{name}/{name_of(inner)}"] = value.detach()
        return state

    def buffers(self) -> list[Tensor]:
        """The floating-point buffers of branches that learn, such as running statistics."""
        modules = [self._modules[name] for name in self._own]
        found = itertools.chain.from_iterable(module.buffers() for module in modules)
        own = {id(buffer): buffer for buffer in found if id(buffer) not in self._fixed}
        return [buffer for buffer in own.values() if buffer.is_floating_point()]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            UsageError: It is the state of other branches; nothing is written then.
        """
        current = self.state()
        for name in dict.fromkeys((*current, *state)):
            here, given = _tensor(current.get(name)), _tensor(state.get(name))
            if here != given:
                raise UsageError(
                    f"the weights of {name!r} don't belong to this supernet",
                    expected=here,
                    got=given,
                )
        with torch.no_grad():
            for name, value in current.items():
                value.copy_(state[name])

    def _refuse_weights_of_the_model(self, supernet: Supernet) -> None:
        # A branch over the model's own memory would train the model.
        frozen = {
            value.untyped_storage().data_ptr(): name
            for name, branch in supernet.branches.items()
            if branch.frozen
            for value in (*branch.module.parameters(), *branch.module.buffers())
            if value.numel()
        }
        written: dict[str, Tensor] = dict(self.parameters)
        for name, module in self._modules.items():
            for inner, part in module.named_modules():
                mean = getattr(part, "running_mean", None)
                if isinstance(mean, Tensor):
                    written[f"{name}/{name_of(inner)}.running_mean"] = mean
        for name, value in written.items():
            owner = frozen.get(value.untyped_storage().data_ptr()) if value.numel() else None
            if owner is not None:
                raise UsageError(
                    f"{name!r} shares memory with branch {owner!r}: training it would change "
                    "the model",
                    expected="new branches with their own weights",
                    got="a weight of the model",
                    fix="have the branch's maker clone the weights",
                )


def _parts(module: nn.Module) -> Iterator[object]:
    """A module's layers, parameters and buffers; graph modules themselves are never shared."""
    return itertools.chain(
        (part for part in module.modules() if part is not module),
        module.parameters(),
        module.buffers(),
    )


def norms_of(module: nn.Module) -> list[Any]:
    """The layers of a module that have running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        and part.track_running_stats
        and part.running_mean is not None
    ]


def _tensor(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
