"""Encoder-decoders on images: U-Net, an autoencoder, a super-resolution network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import images, make_case


class DoubleConv(nn.Module):
    """Twice convolution, batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """Pool, then convolve."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Upsample, pad to the skip's size, join it, convolve."""

    def __init__(self, n_in: int, n_out: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(n_in + n_out, n_out)
        else:
            self.up = nn.ConvTranspose2d(n_in, n_out, 2, stride=2)
            self.conv = DoubleConv(2 * n_out, n_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = nn.functional.pad(
            x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        )
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Ronneberger et al. 2015, scaled down. Odd sizes are padded back."""

    def __init__(self, bilinear: bool, n_classes: int = 3) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1 = Down(8, 16)
        self.down2 = Down(16, 32)
        self.down3 = Down(32, 64)
        self.up1 = Up(64, 32, bilinear)
        self.up2 = Up(32, 16, bilinear)
        self.up3 = Up(16, 8, bilinear)
        self.outc = nn.Conv2d(8, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(x4, x3)
        x = self.up2(x, x2)
        x = self.up3(x, x1)
        return self.outc(x)


class AutoEncoder(nn.Module):
    """A convolutional autoencoder; returns the reconstruction and the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 24),
        )
        self.project = nn.Linear(24, 32 * 16)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (32, 4, 4)),
            nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return self.decoder(self.project(code)), code


class ResidualUnit(nn.Module):
    """Norm-free residual unit with a scaled sum (EDSR)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x).mul(self.scale)


class SuperResolution(nn.Module):
    """EDSR-like; the upsampled input is added to the output, so the input is used at both ends."""

    def __init__(self, width: int = 16, n_units: int = 4, factor: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            *[ResidualUnit(width, 0.5) for _ in range(n_units)],
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.tail = nn.Sequential(
            nn.Conv2d(width, 3 * factor**2, 3, padding=1), nn.PixelShuffle(factor)
        )
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        base = nn.functional.interpolate(
            x, scale_factor=self.factor, mode="bicubic", align_corners=False
        )
        shallow = self.head(x)
        return self.tail(shallow + self.body(shallow)) + base


class Denoiser(nn.Module):
    """DnCNN-like: predicts the noise and subtracts it from the input."""

    def __init__(self, width: int = 12, depth: int = 5) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(width, 3, 3, padding=1))
        self.dncnn = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.dncnn(x)


CASES = (
    make_case("unet", lambda: UNet(bilinear=False), images(size=32), {"conv", "inplace"}),
    make_case("unet_odd", lambda: UNet(bilinear=True), images(size=37), {"conv", "inplace"}),
    make_case("autoencoder", AutoEncoder, images(1, 32), {"conv", "multi-output", "side-exits"}),
    make_case("super_resolution", SuperResolution, images(size=16), {"conv", "inplace"}),
    make_case("denoiser", Denoiser, images(size=24), {"conv", "inplace"}),
)
