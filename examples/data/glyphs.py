"""The glyphs task: find out which letter or digit a small, distorted, cluttered image shows.

Images are generated: the 36 capital letters and digits in the fonts that come with matplotlib,
under random affine maps, with pieces of other characters around them, uneven light and noise. The
same seed gives the same images. Needs the extra `report` (matplotlib and its Pillow).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmtt10.ttf",
)
SIZE = 32
_CANVAS = 48
_CHUNK = 4096


@dataclass(frozen=True)
class Glyphs:
    """Options of the task: its difficulty and the numbers of images.

    Attributes:
        n_train: Images to train on.
        n_validation: Images to choose subnets with.
        n_test: Images to report accuracy on.
        rotation: Largest angle, in degrees.
        shear: Largest shear.
        scale: Smallest and largest size of a character, as a share of the image.
        shift: Largest shift from the centre, as a share of the image.
        clutter: Pieces of other characters in an image.
        noise: Largest standard deviation of the noise; ink is 1 and paper 0.
        seed: Seed of all random numbers.
    """

    n_train: int = 24_000
    n_validation: int = 2_000
    n_test: int = 4_000
    rotation: float = 20.0
    shear: float = 0.2
    scale: tuple[float, float] = (0.6, 1.0)
    shift: float = 0.12
    clutter: int = 2
    noise: float = 0.2
    seed: int = 0

    def load(self, folder: str | os.PathLike[str]) -> dict[str, TensorDataset]:
        """The data sets ``train``, ``validation`` and ``test``; made if the folder lacks them.

        Args:
            folder: The folder for the images, in an ``.npz`` named after the options.

        Returns:
            Data sets of images ``(1, 32, 32)``, float32 with mean about 0 and standard deviation
            about 1, and classes: indices of `CHARACTERS`.
        """
        path = Path(folder) / f"glyphs-{self.key}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
            np.savez(temporary, **self.make())
            temporary.replace(path)
        with np.load(path) as arrays:
            return {
                name: TensorDataset(
                    as_images(torch.from_numpy(arrays[f"{name}_x"])),
                    torch.from_numpy(arrays[f"{name}_y"]),
                )
                for name in ("train", "validation", "test")
            }

    @property
    def key(self) -> str:
        """The options, for the name of the file."""
        parts = (self.n_train, self.n_validation, self.n_test, self.rotation, self.shear)
        more = (*self.scale, self.shift, self.clutter, self.noise, self.seed)
        return "-".join(f"{part:g}" for part in (*parts, *more))

    def make(self) -> dict[str, np.ndarray]:
        """Generate the images, as bytes 0 to 255: ``train_x (N, 32, 32)``, ``train_y (N,)``, …"""
        atlas = render_all()
        arrays: dict[str, np.ndarray] = {}
        sizes = {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}
        for i, (name, n) in enumerate(sizes.items()):
            generator = torch.Generator().manual_seed(1000 * self.seed + i)
            parts = [
                self._images(atlas, min(_CHUNK, n - start), generator)
                for start in range(0, n, _CHUNK)
            ]
            images, classes = (torch.cat(part) for part in zip(*parts, strict=True))
            arrays[f"{name}_x"], arrays[f"{name}_y"] = images.numpy(), classes.numpy()
        return arrays

    def _images(self, atlas: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``n`` images ``(n, 32, 32)`` in bytes, and their classes ``(n,)``."""

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator) * (high - low) + low

        def choose(below: int) -> Tensor:
            return torch.randint(0, below, (n,), generator=generator)

        n_classes, n_fonts = atlas.shape[:2]
        classes = choose(n_classes)
        ink = self._placed(atlas[classes, choose(n_fonts)], uniform, self.scale, self.shift)
        for _ in range(self.clutter):
            # Only the parts of other characters near the border are visible.
            angle = uniform(0, 2 * math.pi, n)
            centre = torch.stack([angle.cos(), angle.sin()], 1) * uniform(0.85, 1.15, n, 1)
            piece = atlas[choose(n_classes), choose(n_fonts)]
            piece = self._placed(piece, uniform, (0.3, 0.7), 0.0, centre)
            ink = torch.maximum(ink, piece * uniform(0.5, 1.0, n, 1, 1))
        ramp = torch.linspace(-1, 1, SIZE)
        light = uniform(-0.3, 0.3, n, 1, 1) * ramp + uniform(-0.3, 0.3, n, 1, 1) * ramp[:, None]
        contrast = uniform(0.6, 1.0, n, 1, 1)
        noise = torch.randn(n, SIZE, SIZE, generator=generator)
        image = ink * contrast + light + noise * uniform(0.05, self.noise, n, 1, 1)
        image = torch.where(torch.rand(n, 1, 1, generator=generator) < 0.5, image, 1 - image)
        return (image.clamp(-1, 2).add(1) * 85).round().to(torch.uint8), classes

    def _placed(
        self,
        glyphs: Tensor,
        uniform: Any,
        scale: tuple[float, float],
        shift: float,
        centre: Tensor | None = None,
    ) -> Tensor:
        """Characters ``(n, 48, 48)`` under random affine maps, ``(n, 32, 32)``."""
        n = len(glyphs)
        angle = uniform(-self.rotation, self.rotation, n) * math.pi / 180
        size = uniform(*scale, n)
        shear = uniform(-self.shear, self.shear, n)
        cos, sin = angle.cos() / size, angle.sin() / size
        maps = torch.zeros(n, 2, 3)
        maps[:, 0, 0], maps[:, 0, 1] = cos, cos * shear - sin
        maps[:, 1, 0], maps[:, 1, 1] = sin, sin * shear + cos
        where = uniform(-2 * shift, 2 * shift, n, 2) if centre is None else centre
        maps[:, :, 2] = -torch.einsum("nij,nj->ni", maps[:, :, :2], where)
        grid = F.affine_grid(maps, [n, 1, SIZE, SIZE], align_corners=False)
        return F.grid_sample(glyphs[:, None], grid, align_corners=False)[:, 0]


def as_images(pixels: Tensor) -> Tensor:
    """Bytes ``(N, 32, 32)`` as inputs of a network: ``(N, 1, 32, 32)``, float32."""
    return (pixels[:, None].float() / 85 - 1.4) / 0.45


def render_all() -> Tensor:
    """Every character in every font, ``(36, 12, 48, 48)``, ink 1 and paper 0."""
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as e:
        raise SystemExit("glyphs needs matplotlib: pip install 'fxelastic[report]'") from e
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    atlas = np.zeros((len(CHARACTERS), len(FONTS), _CANVAS, _CANVAS), dtype=np.float32)
    for j, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / name), 42)
        for i, character in enumerate(CHARACTERS):
            image = Image.new("L", (_CANVAS, _CANVAS))
            middle = (_CANVAS / 2, _CANVAS / 2)
            ImageDraw.Draw(image).text(middle, character, 255, font=font, anchor="mm")
            atlas[i, j] = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(atlas)
