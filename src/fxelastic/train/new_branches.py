"""What training may change: the branches that are not the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch
from fxelastic.ir.part_names import name_of
from fxelastic.ir.supernet import Supernet


class NewBranches:
    """The trainable part of a supernet.

    Attributes:
        branches: Each branch that has parameters to train, by id, in the search space's order.
        parameters: Each parameter once, by ``branch id/name in the module``, in that order.
    """

    def __init__(self, supernet: Supernet) -> None:
        """Collect the parameters.

        Raises:
            UsageError: There are none, or one is a weight of the model itself.
        """
        self._modules: dict[str, nn.Module] = {
            name: branch.module for name, branch in supernet.branches.items() if not branch.frozen
        }
        self.parameters: dict[str, nn.Parameter] = {}
        self._own: dict[str, tuple[str, ...]] = {}
        names: dict[int, str] = {}
        for name, module in self._modules.items():
            for inner, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in names:
                    names[id(parameter)] = f"{name}/{name_of(inner)}"
                    self.parameters[names[id(parameter)]] = parameter
            own = (names[id(p)] for p in module.parameters() if p.requires_grad)
            self._own[name] = tuple(dict.fromkeys(own))
        self.branches: dict[str, Branch] = {
            name: supernet.branches[name] for name, own in self._own.items() if own
        }
        if not self.parameters:
            raise UsageError(
                "the supernet has nothing to train",
                expected="branches other than the originals, with parameters",
                got=str(supernet.space),
                fix="expand the model with more kinds of branches",
            )
        self._refuse_weights_of_the_model(supernet)

    def of(self, branch: str) -> list[nn.Parameter]:
        """The parameters of one branch that train."""
        return [self.parameters[name] for name in self._own[branch]]

    def module(self, branch: str) -> nn.Module:
        """The module of one branch."""
        return self._modules[branch]

    @contextlib.contextmanager
    def training(self, branches: Iterable[str], *, frozen: bool = False) -> Iterator[None]:
        """Have these branches in training mode, all others in eval mode, for a while.

        Args:
            branches: Ids of the branches.
            frozen: Leave layers with running statistics in eval mode: they normalise with these,
                as inference does, and don't change them.
        """
        modules = [self._modules[name] for name in branches]
        for module in modules:
            module.train()
            for layer in norms_of(module) if frozen else ():
                layer.eval()
        try:
            yield
        finally:
            for module in modules:
                module.eval()

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the new branches, by name; the tensors themselves."""
        return self.state_of(self._modules)

    def state_of(self, branches: Iterable[str]) -> dict[str, Tensor]:
        """Parameters and buffers of some branches, as in `state`."""
        state: dict[str, Tensor] = {}
        for name in branches:
            module = self._modules[name]
            for inner, value in (*module.named_parameters(), *module.named_buffers()):
                state[f"{name}/{name_of(inner)}"] = value.detach()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Write what `state` returned back.

        Raises:
            UsageError: It is the state of other branches; nothing was written then.
        """
        current = self.state()
        wrong = [
            name
            for name in dict.fromkeys((*current, *state))
            if name not in current
            or name not in state
            or current[name].shape != state[name].shape
            or current[name].dtype != state[name].dtype
        ]
        if wrong:
            raise UsageError(
                f"the weights of {wrong[0]!r} are not those of this supernet",
                expected=_tensor(current.get(wrong[0])),
                got=_tensor(state.get(wrong[0])),
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
        written = dict(self.parameters)
        for name, module in self._modules.items():
            for inner, part in module.named_modules():
                mean = getattr(part, "running_mean", None)
                if isinstance(mean, Tensor):
                    written[f"{name}/{name_of(inner)}.running_mean"] = mean  # type: ignore[assignment]
        for name, value in written.items():
            owner = frozen.get(value.untyped_storage().data_ptr()) if value.numel() else None
            if owner is not None:
                raise UsageError(
                    f"{name!r} shares memory with branch {owner!r}: training it would change "
                    "the model",
                    expected="new branches over weights of their own",
                    got="a weight of the model",
                    fix="have the branch's maker clone the weights",
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
