"""From gradients to new weights: learning rates, clipping, mixed precision, the optimiser."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.errors import TrainingError, UsageError
from fxelastic.processes import Processes
from fxelastic.train.held_out import HeldOut
from fxelastic.train.learners import Learners
from fxelastic.train.training import PRECISIONS, Training

#: The rates that a range test tries.
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
#: The least steps of a run that is worth a test, and the least and most steps with each rate.
_LEAST_STEPS, _LEAST_TRIED, _MOST_TRIED = 50, 3, 8
_SHARE = 0.02

logger = logging.getLogger(__name__)


class Optimisation:
    """Takes the steps of a run.

    Only parameters that have a gradient move: the optimiser skips the others, their momentum and
    weight decay too.
    """

    def __init__(
        self,
        learners: Learners,
        training: Training,
        processes: Processes,
        *,
        clip_each: bool,
        default_rate: float = 1e-3,
    ) -> None:
        """Make the optimiser.

        Args:
            learners: What is trained.
            training: The options.
            processes: Those that train together.
            clip_each: Clip the gradients of each branch alone: their losses are independent.
            default_rate: The learning rate where the options don't set one.

        Raises:
            UsageError: The user's function returns no optimiser, or one with other parameters; or
                weights have too few bits to be trained.
        """
        half = [name for name, p in learners.parameters.items() if p.dtype is torch.float16]
        if half:
            raise UsageError(
                "weights of float16 can't be trained: their steps round to zero or to infinity",
                expected="float32 or bfloat16",
                got=f"float16, as in {half[0]}",
                fix="expand model.float(), and train with precision='fp16'",
            )
        self._learners = learners
        self._training = training
        self._processes = processes
        self._device = processes.device
        self._clip_each = clip_each
        self._dtype = PRECISIONS[training.precision]
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=self._dtype is torch.float16 and self._device.type == "cuda"
        )
        parameters = list(learners.parameters.values())
        self.rates: dict[str, float] = {}
        self._resumed = False
        if training.optimizer is not None:
            optimizer = _checked(training.optimizer(list(parameters)), parameters)
            self._use(optimizer)
        else:
            rate = training.lr if isinstance(training.lr, (int, float)) else default_rate
            self.use_rates(dict.fromkeys(learners.branches, float(rate)))

    def use_rates(self, rates: Mapping[str, float]) -> None:
        """Start over with AdamW and a peak learning rate for each branch.

        Args:
            rates: Rates by branch id; branches that share weights have the same.
        """
        self.rates = dict(rates)
        groups: dict[float, dict[int, nn.Parameter]] = {}
        for name, rate in rates.items():
            groups.setdefault(rate, {}).update({id(p): p for p in self._learners.of(name)})
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
        """Set the learning rates for a share of the run, from 0 to 1."""
        factor = self._training.rate(done)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            rate = group["lr"]
            # A capturable optimiser needs a tensor, and the same memory.
            group["lr"] = rate.fill_(peak * factor) if isinstance(rate, Tensor) else peak * factor

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, branches: Sequence[str], where: str) -> float:
        """Average the gradients over the processes, clip them, and move the branches' weights.

        Args:
            branches: The branches that learned in this step.
            where: The step and batch, for messages.

        Returns:
            The largest norm of the gradients before clipping, of a branch or of all.

        Raises:
            TrainingError: A gradient is not finite; no weight has moved.
        """
        groups = {name: self._learners.of(name) for name in branches}
        parameters = list({id(p): p for group in groups.values() for p in group}.values())
        self._processes.average_gradients(parameters)
        if all(parameter.grad is None for parameter in parameters):
            return 0.0  # a loss scaler refuses a step without gradients
        self._scaler.unscale_(self.optimizer)
        largest = self._clip(groups if self._clip_each else {"the subnet": parameters}, where)
        self._move()
        self._scaler.update()
        return largest

    def _move(self) -> None:
        resumed, self._resumed = self._resumed, False
        try:
            self._scaler.step(self.optimizer)
        except Exception as e:
            if not resumed or isinstance(e, torch.OutOfMemoryError):
                raise
            # Each optimiser knows its own state alone, and torch checks no more than its groups.
            raise TrainingError(
                "the optimiser can't go on from the state in the checkpoint",
                expected="what the same version of the optimiser wrote",
                got=f"{type(e).__name__}: {e}"[:500],
                fix="remove the checkpoint: the run resumes from the one before, or from the "
                "beginning",
            ) from e

    def _clip(self, groups: Mapping[str, Sequence[nn.Parameter]], where: str) -> float:
        """Scale gradients down to the norm allowed; returns the largest norm before.

        All norms are computed at once, and only the groups above the limit are scaled: group by
        group, a step of a hundred branches would launch thousands of small kernels on a GPU.
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
            # With loss scaling an overflow is expected: the scaler skips the step.
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
            # The scaler skips groups that are not finite.
            if limit < value < math.inf:
                torch._foreach_mul_(gradients[name], limit / value)
        return max(norms.values())

    def clear(self) -> None:
        """Drop all gradients, so that branches that are not sampled next do not move."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """The optimiser's and the scaler's state."""
        return {
            "rates": self.rates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: A parameter group has no learning rate, which torch doesn't check. The
                optimiser's own errors are not caught.
        """
        if state.get("rates"):
            self.use_rates(state["rates"])
        self.optimizer.load_state_dict(state["optimizer"])
        if not all("lr" in group for group in self.optimizer.param_groups):
            raise ValueError("a parameter group of the optimiser has no lr")
        self._scaler.load_state_dict(state["scaler"])
        self._resumed = True


def _checked(optimizer: object, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"optimizer must return a torch.optim.Optimizer, got {type(optimizer).__name__}",
            expected="a function of the parameters that returns a torch.optim.Optimizer",
            got=type(optimizer).__name__,
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"{type(optimizer).__name__} needs a closure that computes the loss again",
            expected="an optimiser whose step() takes no argument",
            got=f"step{inspect.signature(optimizer.step)}",
            fix="use another optimiser, such as torch.optim.AdamW",
        )
    given = {id(parameter) for parameter in parameters}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(parameter) not in given for parameter in held):
        raise UsageError(
            "the optimiser holds parameters that do not belong to the branches that learn",
            expected="only the parameters that the function gets",
            got=f"{sum(id(p) not in given for p in held)} others",
        )
    return optimizer


def n_steps_tried(total_steps: int | None) -> int:
    """Steps of a range test with each rate.

    Returns:
        A fiftieth of the run's steps, from 3 to 8; 0 for a run that is too short for a test.
    """
    if total_steps is None:
        return _MOST_TRIED
    if total_steps < _LEAST_STEPS:
        return 0
    return min(_MOST_TRIED, max(_LEAST_TRIED, math.ceil(_SHARE * total_steps)))


def range_test(
    held_out: HeldOut, train: Callable[[float], bool], rates: Sequence[float] = RATES
) -> Mapping[str, float]:
    """Take a few steps with each rate from the same state, and compare held-out errors.

    Args:
        held_out: Measures the errors, and restores the state after each rate.
        train: Takes the steps with a rate; returns whether all losses were finite.
        rates: The rates to try.

    Returns:
        The best rate of each branch, by id; the lowest of several that are equal.
    """
    found: dict[str, tuple[float, float]] = {}
    for rate in sorted(rates):
        finite = train(rate)
        means = held_out.means(held_out.measure()) if finite else {}
        held_out.restore(held_out.units)
        for unit in held_out.units:
            error = means.get(unit, math.inf)
            error = error if math.isfinite(error) else math.inf
            if unit not in found or error < found[unit][0]:
                found[unit] = (error, rate)
        if not finite:
            break
    chosen = {b: found[unit][1] for unit, own in held_out.units.items() for b in own}
    counts = {rate: list(chosen.values()).count(rate) for rate in sorted(rates)}
    logger.info(
        "learning rates by a range test: %s",
        ", ".join(f"{rate:g} for {n}" for rate, n in counts.items() if n),
    )
    return chosen
