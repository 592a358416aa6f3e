"""Detectors: several scales, side exits from the backbone, several outputs."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .model_case import images, make_case


class ConvBlock(nn.Sequential):
    """Strided 3x3 convolution, batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        )


class ResidualStage(nn.Module):
    """A strided block and a residual one."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.down = ConvBlock(n_in, n_out, 2)
        self.block = nn.Sequential(
            ConvBlock(n_out, n_out), nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return torch.relu(x + self.block(x))


class Backbone(nn.Module):
    """Returns the features of its last three stages."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 24, 32)) -> None:
        super().__init__()
        self.stem = ConvBlock(3, widths[0], 2)
        self.stage1 = ResidualStage(widths[0], widths[1])
        self.stage2 = ResidualStage(widths[1], widths[2])
        self.stage3 = ResidualStage(widths[2], widths[3])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c2 = self.stage1(self.stem(x))
        c3 = self.stage2(c2)
        c4 = self.stage3(c3)
        return OrderedDict(c2=c2, c3=c3, c4=c4)


class FeaturePyramid(nn.Module):
    """Top-down pathway with lateral connections, and one extra level by pooling."""

    def __init__(self, widths: list[int], n_out: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv2d(width, n_out, 1) for width in widths)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(n_out, n_out, 3, padding=1) for _ in widths)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        names, values = list(features.keys()), list(features.values())
        last = self.inner_blocks[-1](values[-1])
        results = [self.layer_blocks[-1](last)]
        for index in range(len(values) - 2, -1, -1):
            lateral = self.inner_blocks[index](values[index])
            top_down = nn.functional.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            last = lateral + top_down
            results.insert(0, self.layer_blocks[index](last))
        results.append(nn.functional.max_pool2d(results[-1], 1, 2, 0))
        return dict(zip([*names, "pool"], results, strict=True))


class RetinaHead(nn.Module):
    """The same convolutions on every level."""

    def __init__(self, n_in: int, n_anchors: int, n_classes: int) -> None:
        super().__init__()
        self.conv = ConvBlock(n_in, n_in)
        self.cls_logits = nn.Conv2d(n_in, n_anchors * n_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(n_in, n_anchors * 4, 3, padding=1)
        self.n_classes = n_classes

    def forward(self, features: list[Tensor]) -> dict[str, list[Tensor]]:
        scores, boxes = [], []
        for feature in features:
            hidden = self.conv(feature)
            scores.append(self._per_anchor(self.cls_logits(hidden), self.n_classes))
            boxes.append(self._per_anchor(self.bbox_pred(hidden), 4))
        return {"cls_logits": scores, "bbox_regression": boxes}

    @staticmethod
    def _per_anchor(x: Tensor, last: int) -> Tensor:
        n, _, height, width = x.shape
        x = x.view(n, -1, last, height, width).permute(0, 3, 4, 1, 2)
        return x.reshape(n, -1, last)


class FPNDetector(nn.Module):
    """RetinaNet-like; also returns the pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.fpn = FeaturePyramid([16, 24, 32], 16)
        self.head = RetinaHead(16, 3, 5)

    def forward(self, x: Tensor) -> dict[str, object]:
        pyramid = self.fpn(self.backbone(x))
        return {**self.head(list(pyramid.values())), "features": pyramid}


class SSD(nn.Module):
    """Single-shot detector: a head of its own per scale, normalised first features, softmax."""

    def __init__(self, n_classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(ConvBlock(3, 8, 2), ConvBlock(8, 16, 2), ConvBlock(16, 16))
        self.scale_weight = nn.Parameter(torch.full((16,), 20.0))
        self.extra = nn.ModuleList(
            [
                nn.Sequential(ConvBlock(16, 24, 2), ConvBlock(24, 24)),
                nn.Sequential(nn.Conv2d(24, 12, 1), nn.ReLU(inplace=True), ConvBlock(12, 24, 2)),
                nn.Sequential(nn.Conv2d(24, 12, 1), nn.ReLU(inplace=True), nn.Conv2d(12, 24, 2)),
            ]
        )
        anchors, widths = [4, 6, 6, 4], [16, 24, 24, 24]
        self.loc = nn.ModuleList(
            nn.Conv2d(w, a * 4, 3, padding=1) for w, a in zip(widths, anchors, strict=True)
        )
        self.conf = nn.ModuleList(
            nn.Conv2d(w, a * n_classes, 3, padding=1) for w, a in zip(widths, anchors, strict=True)
        )
        self.n_classes = n_classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x)
        sources = [self.scale_weight.view(1, -1, 1, 1) * nn.functional.normalize(x)]
        for block in self.extra:
            x = block(x)
            sources.append(x)
        loc, conf = [], []
        for source, to_loc, to_conf in zip(sources, self.loc, self.conf, strict=True):
            loc.append(to_loc(source).permute(0, 2, 3, 1).contiguous())
            conf.append(to_conf(source).permute(0, 2, 3, 1).contiguous())
        boxes = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        scores = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        scores = scores.view(scores.size(0), -1, self.n_classes)
        return boxes.view(boxes.size(0), -1, 4), scores.softmax(-1)


CASES = (
    make_case(
        "fpn_detector",
        FPNDetector,
        images(size=64),
        {"conv", "inplace", "multi-output", "nested-output", "side-exits", "shared"},
    ),
    make_case("ssd", SSD, images(size=64), {"conv", "inplace", "multi-output", "side-exits"}),
)
