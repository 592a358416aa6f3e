"""Losses, and the logits in a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.processes import ALONE, Processes
from fxelastic.spec.options import check_word

#: `cross_entropy` and `accuracy` leave out elements with this target, as torch does.
IGNORED = -100

_NEARLY_CONSTANT = 1e-6

#: The most that a ratio of probabilities counts in `alpha_divergence`.
_LARGEST_RATIO = 5.0


def normalised_error(output: Any, target: Any, processes: Processes = ALONE) -> Tensor:
    """The squared error as a share of the target's variance, averaged over the tensors.

    It is 1 for an output that is always the target's mean, whatever the scale, so that branches
    anywhere in a network have losses of the same size. Tensors without elements do not count, such
    as the rows of an expert when the batch sends none to it.

    Args:
        output: A tensor, or any structure of tensors.
        target: The same structure and shapes. Tensors that are not floating-point do not count.
        processes: The processes that hold the shares of the batch, whose joint variance counts.

    Returns:
        A scalar; 0, which requires no gradient, where no floating-point tensor has elements.

    Raises:
        UsageError: The shapes differ.

    Source: AdaptiveNet, Eq. 1, normalised.
    """
    pairs = zip(_floats(output), _floats(target), strict=True)
    found = (_normalised(a.float(), b.float(), processes) for a, b in pairs)
    errors = [error for error in found if error is not None]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def _normalised(output: Tensor, target: Tensor, processes: Processes) -> Tensor | None:
    check_shapes(output, target)
    n = target.numel()
    if n:
        variance, mean = torch.var_mean(target.detach(), correction=0)
    else:
        variance = mean = target.new_zeros(())
    if processes.world_size > 1:
        # Even without elements, this process takes part, since the others wait for it.
        moments = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)]).double() * n
        processes.average([moments])
        moments = moments / moments[2].clamp_min(1e-9)
        mean, variance = moments[0].float(), (moments[1] - moments[0].square()).float()
    if not n:
        return None
    # The variance of a constant target, such as the output of a dead unit, is 0.
    scale = torch.maximum(variance, _NEARLY_CONSTANT * mean.square())
    return F.mse_loss(output, target) / torch.where(scale > 0, scale, torch.ones_like(scale))


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """The cross-entropy of the logits in a model's result.

    Args:
        output: Logits ``(N, C)``, ``(N, C, ...)`` or ``(N, ..., C)``, or a structure that holds
            them: see `logits_of`.
        target: Class numbers ``(N, ...)``; -100 leaves an element out. Or probabilities of the
            logits' shape.

    Returns:
        A scalar; 0, which requires no gradient, where no element is left.

    Raises:
        UsageError: There are no logits or only those of one class, the shapes do not match, or a
            class is out of range.
    """
    logits = logits_of(output).float()
    check_several_classes(logits, usual_class_dim(logits))
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == logits.shape:
        return F.cross_entropy(logits, target) if target.numel() else logits.new_zeros(())
    dim = class_dim(logits, target)
    check_classes(target, logits.shape[dim])
    if not bool((target != IGNORED).any()):
        return logits.new_zeros(())
    return F.cross_entropy(logits.movedim(dim, 1), target.long(), ignore_index=IGNORED)


def soft_cross_entropy(output: Any, teacher: Any) -> Tensor:
    """The distance of a result from the original model's result, without labels.

    Where both have logits of several classes, it is the Kullback-Leibler divergence of the class
    probabilities (over dimension 1, or over the last one of three); for any other structure
    `normalised_error`.

    Args:
        output: A subnet's result.
        teacher: The model's result on the same inputs.

    Returns:
        A scalar, 0 where they are equal; 0, which requires no gradient, where they are empty.
    """
    try:
        found = _divergences(output, teacher)
    except UsageError:
        return normalised_error(output, teacher)
    return found.mean() if found.numel() else found.new_zeros(())


def alpha_divergence(output: Any, teacher: Any) -> Tensor:
    """The distance of a result from the original model's result, by an adaptive α-divergence.

    For each sample it is the larger one of the divergences with α = -1 and α = 1: the first is
    large where the output gives a class more probability than the teacher, the second where it
    gives it less. `soft_cross_entropy` hardly sees the first. For results without logits it is
    `normalised_error`.

    Args:
        output: A subnet's result.
        teacher: The model's result on the same inputs.

    Returns:
        A scalar, 0 where they are equal; 0, which requires no gradient, where they are empty.

    Source: AlphaNet (Wang and others, ICML 2021), section 4, with ratios of at most 5.
    """
    try:
        logits, like, dim = _both_logits(output, teacher)
    except UsageError:
        return normalised_error(output, teacher)
    if not logits.numel():
        return logits.new_zeros(())
    student, expected = logits.log_softmax(dim), like.log_softmax(dim)
    own = student.detach()
    ratio = (expected - own).exp()
    # The value of a divergence, and its gradient in the form of a sum over log probabilities.
    inverse = (own - expected).exp().clamp_max(_LARGEST_RATIO)
    over = own.exp() * (inverse - 1) / 2, own.exp() * (0.5 - inverse)
    under = own.exp() * ratio * (expected - own), own.exp() * ratio
    values = [part.sum(dim) for part, _ in (over, under)]
    slopes = [-(weight * student).sum(dim) for _, weight in (over, under)]
    larger = values[0] > values[1]
    value, slope = (torch.where(larger, a, b) for a, b in (values, slopes))
    return (slope + (value - slope).detach()).mean()


def soft_cross_entropies(output: Any, teacher: Any) -> Tensor:
    """`soft_cross_entropy` sample by sample.

    Args:
        output: A subnet's result.
        teacher: The model's result on the same inputs.

    Returns:
        ``(N,)`` where both have logits; ``(1,)``, of all samples, otherwise.
    """
    try:
        found = _divergences(output, teacher).flatten(1)
    except UsageError:
        return normalised_error(output, teacher)[None]
    return found.mean(1) if found.numel() else found.new_zeros(len(found))


def _divergences(output: Any, teacher: Any) -> Tensor:
    """Divergences of class probabilities: ``(N, 1)``, or ``(N, ...)`` with other dimensions."""
    logits, like, dim = _both_logits(output, teacher)
    student, expected = logits.log_softmax(dim), like.log_softmax(dim)
    found = F.kl_div(student, expected, reduction="none", log_target=True).sum(dim)
    return found[:, None] if found.dim() == 1 else found


def _both_logits(output: Any, teacher: Any) -> tuple[Tensor, Tensor, int]:
    """The logits of both, and the dimension of the classes.

    Raises:
        UsageError: One has no logits or only those of one class, or their shapes differ.
    """
    logits, like = logits_of(output).float(), logits_of(teacher).float()
    check_shapes(logits, like)
    dim = usual_class_dim(logits)
    check_several_classes(logits, dim)
    return logits, like, dim


#: The distances from the original's result, by name.
SOFT_LOSSES: Mapping[str, Callable[[Any, Any], Tensor]] = {
    "soft_cross_entropy": soft_cross_entropy,
    "alpha_divergence": alpha_divergence,
    "normalised_error": normalised_error,
}


def soft_loss_of(loss: str | Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A distance from the original's result, from its name or as it is.

    Raises:
        UsageError: There is no loss of that name.
    """
    if not isinstance(loss, str):
        return loss
    check_word("soft_loss", loss, SOFT_LOSSES)
    return SOFT_LOSSES[loss]


def check_shapes(output: Tensor, target: Tensor) -> None:
    """Check that two tensors have one shape, since broadcasting would compare others.

    Raises:
        UsageError: The shapes differ, for example if a detector finds other boxes.
    """
    if output.shape != target.shape:
        raise UsageError(
            f"the result has the shape {tuple(output.shape)}, and its target {tuple(target.shape)}",
            expected=f"the target's shape {tuple(target.shape)}",
            got=str(tuple(output.shape)),
            fix="pass a custom loss or metric that takes results of different shapes",
        )


def is_empty(value: Any) -> bool:
    """Whether a structure has floating-point tensors, all of them without elements."""
    found = _floats(value)
    return bool(found) and not any(tensor.numel() for tensor in found)


def logits_of(output: Any) -> Tensor:
    """The tensor of class scores in a model's result.

    Args:
        output: A tensor of two dimensions or more, an object or a dict with ``logits``, or a tuple
            or list of one element with this form.

    Raises:
        UsageError: The result has another form.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, Sequence) and len(output) == 1:
            found = output[0]
    if isinstance(found, Tensor) and found.dim() >= 2 and found.is_floating_point():
        return found
    raise UsageError(
        "no logits were found in the model's result",
        expected="a floating-point tensor (N, C, ...), or a structure with one named 'logits'",
        got=_describe(output),
        fix="pass a custom loss: loss=function of (result, target)",
    )


def usual_class_dim(logits: Tensor) -> int:
    """The dimension of the classes where no target tells: 1, or the last one of three."""
    return 2 if logits.dim() == 3 else 1


def check_several_classes(logits: Tensor, dim: int) -> None:
    """Check that there is a choice: the probability of a single class is always 1.

    Raises:
        UsageError: There is one class.
    """
    if logits.shape[dim] == 1:
        raise UsageError(
            "the model's result holds one number where class scores are needed",
            expected="the scores of two classes or more",
            got=f"a result of shape {tuple(logits.shape)}",
            fix="pass a loss or a metric for such results, a function of (result, target): for "
            "example torch.nn.functional.mse_loss, or binary_cross_entropy_with_logits",
        )


def class_dim(logits: Tensor, target: Tensor) -> int:
    """The dimension of the classes, which the target lacks.

    Raises:
        UsageError: The target has other dimensions than the logits, or no integer dtype.
    """
    if isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex()):
        for dim in dict.fromkeys((1, logits.dim() - 1)):
            if target.shape == (*logits.shape[:dim], *logits.shape[dim + 1 :]):
                return dim
    shape = tuple(logits.shape)
    shapes = dict.fromkeys((*shape[:dim], *shape[dim + 1 :]) for dim in (1, len(shape) - 1))
    raise UsageError(
        "the target does not match the model's logits",
        expected=f"integer classes of shape {' or '.join(map(str, shapes))} for logits {shape}",
        got=f"{target.dtype} of shape {tuple(target.shape)}"
        if isinstance(target, Tensor)
        else type(target).__name__,
        fix="correct the loader, or pass a custom loss: loss=function of (result, target)",
    )


def check_classes(target: Tensor, n_classes: int) -> None:
    """Check that class numbers are the model's, but for those that leave an element out.

    Raises:
        UsageError: One is not.
    """
    wrong = (target != IGNORED) & ((target < 0) | (target >= n_classes))
    if bool(wrong.any()):
        values = target[wrong].unique().tolist()
        raise UsageError(
            "the target holds classes that the model does not have",
            expected=f"0 to {n_classes - 1}, or {IGNORED} for elements to leave out",
            got=", ".join(map(str, values[:5])) + ("…" if len(values) > 5 else ""),
            fix="number the classes from 0, as in the model's training",
        )


def _floats(value: Any) -> list[Tensor]:
    leaves, _ = trees.flatten(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    _, tree = trees.flatten(value)
    return trees.describe(tree)[:200]
