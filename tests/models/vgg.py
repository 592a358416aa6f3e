"""VGG-11: a plain chain whose first fully connected layer outweighs all the rest."""

from __future__ import annotations

from torch import Tensor, nn

from .model_case import images, make_case

VGG11: list[int | str] = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]


class VGG(nn.Module):
    """Simonyan & Zisserman 2014, without batch norm.

    Args:
        hidden: width of the fully connected layers; 4096 in the paper.
        divide: by how much to divide the channel counts; 1 in the paper.
    """

    def __init__(self, hidden: int = 4096, divide: int = 1, n_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_channels = 3
        for item in VGG11:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers.append(nn.Conv2d(n_channels, item // divide, 3, padding=1))
                layers.append(nn.ReLU(inplace=True))
                n_channels = item // divide
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(n_channels * 49, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, n_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(x.flatten(1))


CASES = (
    make_case("vgg11", VGG, images(size=64), {"conv", "real", "slow", "inplace"}),
    make_case(
        "vgg11_small",
        lambda: VGG(hidden=512, divide=4, n_classes=10),
        images(size=64),
        {"conv", "inplace"},
    ),
)
