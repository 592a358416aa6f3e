"""Generated scenes of discs, squares and triangles, with masks and boxes; and single shapes.

A backbone is pretrained on single shapes (D1 of AdaptiveNet §6), and the whole model is trained on
scenes (D2). The same seed gives the same images.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 64
SHAPES = ("disc", "square", "triangle")
N_CLASSES = 1 + len(SHAPES)
STRIDE = 4
MAX_SHAPES = 4


def single_shapes(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``(n, 3, 64, 64)`` of one shape each, and its class ``(n,)``, from 0."""
    generator = torch.Generator().manual_seed(seed)
    images, masks, _ = _draw(n, 1, generator)
    return images, masks.flatten(1).amax(1) - 1


def scenes(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes of up to four shapes.

    Returns:
        Images ``(n, 3, 64, 64)``; the class of each pixel ``(n, 64, 64)``, 0 for the background;
        and boxes ``(n, 4, 5)`` of class, centre and size in pixels; -1 if there is no shape.
    """
    return _draw(n, MAX_SHAPES, torch.Generator().manual_seed(seed))


def centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """A detector's targets for boxes, as in CenterNet: the positions of centres, and sizes.

    Returns:
        A map ``(n, 16, 16)`` of classes at the centres, 0 elsewhere, and sizes ``(n, 2, 16, 16)``
        as a share of the image.
    """
    n, size = len(boxes), SIZE // STRIDE
    classes = torch.zeros(n, size, size, dtype=torch.int64)
    extent = torch.zeros(n, 2, size, size)
    for i in range(boxes.shape[1]):
        kind, x, y, w, h = boxes[:, i].unbind(1)
        rows = torch.nonzero(kind >= 0)[:, 0]
        u, v = (x[rows] / STRIDE).long(), (y[rows] / STRIDE).long()
        classes[rows, v, u] = kind[rows].long() + 1
        extent[rows, :, v, u] = torch.stack([w[rows], h[rows]], 1) / SIZE
    return classes, extent


def _draw(n: int, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    axis = torch.arange(SIZE) + 0.5
    images = uniform(0, 1, n, 3, 1, 1) + 0.3 * uniform(-1, 1, n, 3, 1, 1) * axis / SIZE
    images = images.expand(n, 3, SIZE, SIZE).clone()
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.int64)
    boxes = torch.full((n, most, 5), -1.0)
    for i in range(most):
        here = torch.rand(n, generator=generator) < (1.0 if i == 0 else 0.6)
        kind = torch.randint(0, len(SHAPES), (n,), generator=generator)
        radius = uniform(6, 13, n)
        x, y = (uniform(13, SIZE - 13, n) for _ in range(2))
        dx, dy = axis - x[:, None, None], axis[:, None] - y[:, None, None]
        r = radius[:, None, None]
        inside = torch.stack(
            [
                dx**2 + dy**2 < r**2,
                (dx.abs() < r) & (dy.abs() < r),
                (dy < r) & (dy > 2 * dx.abs() - r),
            ],
            1,
        )[torch.arange(n), kind]
        shape = inside & here[:, None, None]
        colour = uniform(0, 1, n, 3)
        images = torch.where(shape[:, None], colour[:, :, None, None], images)
        masks = torch.where(shape, kind[:, None, None] + 1, masks)
        box = torch.stack([kind.float(), x, y, 2 * radius, 2 * radius], 1)
        boxes[:, i] = torch.where(here[:, None], box, boxes[:, i])
    noise = 0.15 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return (images + noise - 0.5) / 0.35, masks, boxes
