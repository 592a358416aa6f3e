"""Real handwritten digits: scikit-learn's 8 × 8 pixels, enlarged to 32 × 32.

Needs the extra `examples` (scikit-learn, which holds the images).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

SIZE = 32
N_CLASSES = 10


def load(seed: int = 0, n_validation: int = 200) -> dict[str, TensorDataset]:
    """The data sets ``train``, ``validation`` and ``test`` (400 images).

    Args:
        seed: Seed of the division into data sets.
        n_validation: Images of ``validation``; ``train`` has the others, 1,197 by default.

    Returns:
        Data sets of images ``(1, 32, 32)``, float32 with mean about 0 and standard deviation about
        1, and the digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise SystemExit("digits needs scikit-learn: pip install 'fxelastic[examples]'") from e
    found = load_digits()
    images = enlarged(torch.from_numpy(found.images).float())
    digits = torch.from_numpy(found.target).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    parts = order.split([len(digits) - n_validation - 400, n_validation, 400])
    names = ("train", "validation", "test")
    return {
        name: TensorDataset(images[part], digits[part])
        for name, part in zip(names, parts, strict=True)
    }


def enlarged(pixels: Tensor) -> Tensor:
    """Pixels ``(N, 8, 8)`` from 0 to 16 as images ``(N, 1, 32, 32)``."""
    large = F.interpolate(pixels[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)
    return (large / 16 - 0.3) / 0.35
