"""What the losses are, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from fxelastic import UsageError
from fxelastic.train import (
    alpha_divergence,
    cross_entropy,
    normalised_error,
    soft_cross_entropy,
)

G = torch.Generator().manual_seed(0)
A, B = torch.randn(6, 5, generator=G), torch.randn(6, 5, generator=G)


def test_the_error_is_a_share_of_the_targets_variance() -> None:
    assert normalised_error(B, B) == 0
    assert normalised_error(B.mean().expand_as(B), B) == pytest.approx(1)
    for scale in (1e-3, 1e3):
        assert normalised_error(scale * A, scale * B) == pytest.approx(
            normalised_error(A, B).item()
        )
    assert normalised_error((A, B), (B, B)) == pytest.approx(normalised_error(A, B).item() / 2)


def test_targets_without_variance_give_finite_errors() -> None:
    assert normalised_error(A, torch.zeros_like(A)) == pytest.approx(A.square().mean().item())
    assert normalised_error(torch.full((4,), 3.1), torch.full((4,), 3.0)).isfinite()


def test_only_floating_point_tensors_count() -> None:
    integers = torch.zeros(3, dtype=torch.int64)
    assert normalised_error((A, integers), (B, integers + 1)) == normalised_error(A, B)
    assert not normalised_error(integers, integers).requires_grad


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(UsageError, match="different shapes"):
        normalised_error(A, B[:1])


def test_half_precision_is_compared_in_single() -> None:
    assert normalised_error(A.bfloat16(), B).dtype is torch.float32
    assert cross_entropy(A.bfloat16(), torch.zeros(6, dtype=torch.int64)).dtype is torch.float32


def test_cross_entropy_finds_the_classes() -> None:
    classes = torch.randint(0, 5, (6,), generator=G)
    expected = F.cross_entropy(A, classes)
    assert cross_entropy(A, classes) == expected
    assert cross_entropy({"logits": A}, classes) == expected
    assert cross_entropy(SimpleNamespace(logits=A), classes) == expected
    assert cross_entropy([A], classes) == expected
    assert cross_entropy(A, F.one_hot(classes, 5).float()) == pytest.approx(expected.item())
    images = torch.randn(2, 5, 3, 4, generator=G)
    pixels = torch.randint(0, 5, (2, 3, 4), generator=G)
    assert cross_entropy(images, pixels) == F.cross_entropy(images, pixels)
    tokens = torch.randn(2, 7, 5, generator=G)
    words = torch.randint(0, 5, (2, 7), generator=G)
    expected = F.cross_entropy(tokens.flatten(0, 1), words.flatten())
    assert cross_entropy(tokens, words) == pytest.approx(expected.item())
    words[0] = -100
    expected = F.cross_entropy(tokens[1], words[1])
    assert cross_entropy(tokens, words) == pytest.approx(expected.item())


@pytest.mark.parametrize("shape", [(6, 1), (6, 4, 1), (6, 1, 3, 3)])
def test_one_number_is_no_choice_among_classes(shape: tuple[int, ...]) -> None:
    """Its probability is always 1, so that nothing would be learned."""
    found, like = torch.randn(2, *shape, generator=G)
    for loss in (soft_cross_entropy, alpha_divergence):
        assert loss(found, like) == normalised_error(found, like) > 0
    with pytest.raises(UsageError, match="one number where class scores are needed"):
        cross_entropy(found, like)


def test_soft_labels() -> None:
    assert soft_cross_entropy(A, A) == pytest.approx(0, abs=1e-6)
    p, q = B.softmax(1), A.log_softmax(1)
    expected = (p * (p.log() - q)).sum(1).mean()
    assert soft_cross_entropy(A, B) == pytest.approx(expected.item(), rel=1e-5)
    assert soft_cross_entropy({"logits": A, "x": A}, {"logits": B, "x": B}) == pytest.approx(
        expected.item(), rel=1e-5
    )
    tokens, like = A[None], B[None]
    assert soft_cross_entropy(tokens, like) == pytest.approx(expected.item(), rel=1e-5)
    boxes = {"boxes": A, "scores": B}
    other = {"boxes": B, "scores": B}
    assert soft_cross_entropy(boxes, other) == normalised_error(boxes, other)


@pytest.mark.parametrize("shape", [(6, 5), (2, 7, 5), (2, 5, 3, 4)])
def test_alpha_divergence_is_the_larger_of_two(shape: tuple[int, ...]) -> None:
    # Ratios of probabilities stay below the largest one that counts.
    generator = torch.Generator().manual_seed(0)
    logits = (0.3 * torch.randn(shape, generator=generator)).requires_grad_()
    teacher = 0.3 * torch.randn(shape, generator=generator)
    dim = 2 if len(shape) == 3 else 1
    q, p = logits.log_softmax(dim), teacher.log_softmax(dim)
    over = ((2 * q - p).exp().sum(dim) - 1) / 2
    under = (p.exp() * (p - q)).sum(dim)
    expected = torch.maximum(over, under).mean()
    found = alpha_divergence(logits, teacher)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    (ours,), (theirs,) = (
        torch.autograd.grad(v, logits, retain_graph=True) for v in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert alpha_divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_alpha_divergence_sees_confidence_that_the_teacher_lacks() -> None:
    teacher = torch.tensor([[1.0, 0.0, 0.0]])
    sure = torch.tensor([[9.0, 0.0, 0.0]])
    assert alpha_divergence(sure, teacher) > 0.9 * soft_cross_entropy(sure, teacher)
    unsure = torch.zeros(1, 3)
    assert alpha_divergence(unsure, teacher) == pytest.approx(
        soft_cross_entropy(unsure, teacher).item(), rel=0.3
    )
    boxes = {"boxes": A}, {"boxes": B}
    assert alpha_divergence(*boxes) == normalised_error(*boxes)
