"""From gradients to new weights: clipping, mixed precision, the schedule, the optimiser."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.errors import TrainingError, UsageError
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.processes import Processes
from fxelastic.train.training import PRECISIONS, Training


class Optimisation:
    """Takes the steps of a run.

    Only parameters that have a gradient move: the optimiser skips the others, their momentum and
    weight decay too.
    """

    def __init__(
        self,
        new: NewBranches,
        training: Training,
        processes: Processes,
        device: torch.device,
        *,
        clip_each: bool,
        default_rate: float = 1e-3,
    ) -> None:
        """Make the optimiser.

        Args:
            new: What is trained.
            training: The options.
            processes: Who trains with this process.
            device: Where the weights are.
            clip_each: Clip the gradients of each branch alone: they are of independent losses.
            default_rate: The learning rate where the options leave it open.

        Raises:
            UsageError: The user's optimiser is none, or holds other parameters; or weights have
                too few bits to be trained.
        """
        half = [name for name, p in new.parameters.items() if p.dtype is torch.float16]
        if half:
            raise UsageError(
                "weights of float16 can't be trained: their steps round to nothing or to infinity",
                expected="float32 or bfloat16",
                got=f"float16, as in {half[0]}",
                fix="expand model.float(), and train with precision='fp16'",
            )
        self._new = new
        self._training = training
        self._processes = processes
        self._device = device
        self._clip_each = clip_each
        self._dtype = PRECISIONS[training.precision]
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=self._dtype is torch.float16 and device.type == "cuda"
        )
        parameters = list(new.parameters.values())
        self.rates: dict[str, float] = {}
        if training.optimizer is not None:
            optimizer = _checked(training.optimizer(list(parameters)), parameters)
            self._use(optimizer)
        else:
            rate = training.lr if isinstance(training.lr, (int, float)) else default_rate
            self.use_rates(dict.fromkeys(new.branches, float(rate)))

    def use_rates(self, rates: Mapping[str, float]) -> None:
        """Begin anew with AdamW, with a peak learning rate for each branch.

        Args:
            rates: Rates by branch id; branches that share weights have the same.
        """
        self.rates = dict(rates)
        groups: dict[float, dict[int, nn.Parameter]] = {}
        for name, rate in rates.items():
            groups.setdefault(rate, {}).update({id(p): p for p in self._new.of(name)})
        options = [{"params": list(groups[rate].values()), "lr": rate} for rate in sorted(groups)]
        self._use(torch.optim.AdamW(options, weight_decay=self._training.weight_decay))

    def _use(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context for forward passes."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of a share of a loss."""
        if loss.requires_grad:
            self._scaler.scale(loss * share).backward()

    def set_rate(self, done: float) -> None:
        """Set the learning rates for the share of the run that is over."""
        factor = self._training.rate(done)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            rate = group["lr"]
            # A tensor is what a capturable optimiser wants; its memory is kept.
            group["lr"] = rate.fill_(peak * factor) if isinstance(rate, Tensor) else peak * factor

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, branches: Sequence[str], where: str) -> float:
        """Average the gradients over the processes, clip them, and move the branches' weights.

        Args:
            branches: Those that learned in this step.
            where: The step and batch, for messages.

        Returns:
            The largest norm of the gradients before clipping, of a branch or of all.

        Raises:
            TrainingError: A gradient is not finite; no weight has moved.
        """
        groups = {name: self._new.of(name) for name in branches}
        parameters = list({id(p): p for group in groups.values() for p in group}.values())
        self._processes.average_gradients(parameters)
        if all(parameter.grad is None for parameter in parameters):
            return 0.0  # a loss scaler refuses a step without gradients
        self._scaler.unscale_(self.optimizer)
        largest = self._clip(groups if self._clip_each else {"the subnet": parameters}, where)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return largest

    def _clip(self, groups: Mapping[str, Sequence[nn.Parameter]], where: str) -> float:
        """Scale gradients down to the largest norm allowed; returns the largest that there was.

        All norms are computed at once, and only the groups that are over it are scaled: group by
        group, a GPU would be given thousands of small kernels in a step of a hundred branches.
        """
        gradients = {
            name: [p.grad for p in group if p.grad is not None] for name, group in groups.items()
        }
        together = list(itertools.chain.from_iterable(gradients.values()))
        if not together:
            return 0.0
        each: Any = torch._foreach_norm(together)
        found = iter(torch.stack([norm.float() for norm in each]).tolist())
        norms = {
            name: math.hypot(*itertools.islice(found, len(own))) for name, own in gradients.items()
        }
        if not self._scaler.is_enabled():
            # With loss scaling an overflow is no fault: the scaler skips the step.
            for name, value in norms.items():
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the gradients of {name} are not finite at {where}",
                        expected="finite gradients",
                        got=f"a norm of {value}",
                        fix="lower lr, or train with precision='fp32'",
                    )
        limit = math.inf if self._training.clip_norm is None else self._training.clip_norm
        for name, value in norms.items():
            # What is not finite the scaler leaves out.
            if limit < value < math.inf:
                torch._foreach_mul_(gradients[name], limit / value)
        return max(norms.values())

    def clear(self) -> None:
        """Drop all gradients, so that what is not sampled next does not move."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """The optimiser's and the scaler's state."""
        return {
            "rates": self.rates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        if state.get("rates"):
            self.use_rates(state["rates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def _checked(optimizer: object, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            "optimizer made no optimiser",
            expected="a function of the parameters that returns a torch.optim.Optimizer",
            got=type(optimizer).__name__,
        )
    given = {id(parameter) for parameter in parameters}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(parameter) not in given for parameter in held):
        raise UsageError(
            "the optimiser holds parameters that are not of new branches",
            expected="only those that the function was given",
            got=f"{sum(id(p) not in given for p in held)} others",
        )
    return optimizer
