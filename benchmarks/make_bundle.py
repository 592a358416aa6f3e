"""Export supernets with random weights, for benchmarks that measure time alone.

python benchmarks/make_bundle.py mobilenet_v2 OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from examples.models import ResNet50
from tests.models.mobilenet import MobileNetV2

MODELS = {"mobilenet_v2": MobileNetV2, "resnet50": ResNet50}


def main() -> None:
    """Expand and export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--gamma", type=float, default=0.1)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = MODELS[args.model]().eval()
    example = torch.randn(1, 3, 224, 224)
    supernet = fxelastic.expand(model, args.gamma, example_inputs=example)
    fxelastic.export(supernet, args.out, verify=False, force=True)


if __name__ == "__main__":
    main()
