"""The forms of ``--data``: what is read, and what is said where it can't be."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxelastic.cli import main
from fxelastic.cli.data_paths import digest_of
from fxelastic.cli.model_inputs import ModelInputs, example_texts
from fxelastic.cli.training_data import load_data
from fxelastic.edge.searching.columns import SampleShapes
from fxelastic.errors import UsageError


def inputs(model: nn.Module, *example_input: str) -> ModelInputs:
    return ModelInputs(lambda: model, example_input)


def first_batch(data: Any) -> tuple[Any, Any]:
    found: tuple[Any, Any] = next(iter(data(SampleShapes())[1] or data(SampleShapes())[0]))
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of two classes and several sizes; some to validate on."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for part, n in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                colour = (250 * label, 100, 20)
                image.new("RGB", (40 + i, 36), colour).save(folder / f"{i}.png")
    return tmp_path / "photos"


class Sized(nn.Conv2d):
    """A model that declares the size of its images, as timm's do."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.pretrained_cfg = {"input_size": (3, 24, 20)}


def test_images_get_the_size_that_the_model_declares(images: Path) -> None:
    data = load_data(str(images), 4, False, inputs(Sized()))
    x, y = first_batch(data)
    assert (tuple(x.shape), x.dtype) == ((4, 3, 24, 20), torch.float32)
    assert y.tolist() == [0, 0, 1, 1]
    # ImageNet's normalisation: a red of 250 for dogs, 0 for cats.
    assert x[2, 0, 5, 5].item() == pytest.approx((250 / 255 - 0.485) / 0.229)
    assert x[0, 0, 5, 5].item() == pytest.approx(-0.485 / 0.229)
    assert data.n_samples() == 6
    samples = data.samples(3, ["input"])
    assert (samples["x"].shape, samples["targets"].tolist()) == ((3, 3, 24, 20), [0, 0, 1])


def test_the_size_of_the_option_wins(images: Path) -> None:
    x, _ = first_batch(load_data(str(images), 4, False, inputs(Sized(), "1x3x16x12")))
    assert tuple(x.shape) == (4, 3, 16, 12)


def test_images_of_different_sizes_need_one(images: Path) -> None:
    with pytest.raises(UsageError, match="pass --example-input"):
        load_data(str(images), 4, False, inputs(nn.Conv2d(3, 4, 3)))


def test_images_of_one_size_keep_it(images: Path) -> None:
    for path in images.rglob("[12].png"):
        path.unlink()
    x, _ = first_batch(load_data(str(images), 4, False, inputs(nn.Conv2d(3, 4, 3))))
    assert tuple(x.shape) == (2, 3, 36, 40)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match="has no images"):
        load_data(str(tmp_path), 4, False)


@pytest.mark.parametrize(("module", "package"), [("PIL", "pillow"), ("datasets", "datasets")])
def test_a_package_that_is_missing_is_named(
    module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module == "datasets":
        (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        load_data(str(tmp_path), 4, False)


def test_an_array_is_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 7), np.float32))
    x, y = first_batch(load_data(str(tmp_path / "x.npy"), 2, False))
    assert (tuple(x.shape), y) == ((2, 7), None)


def test_a_table_has_the_targets_in_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,class,b\n1,0,2.5\n3,1,4\n")
    data = load_data(str(tmp_path / "t.csv"), 8, False)
    samples = data.samples(9, ["x"])
    assert samples["x"].tolist() == [[1, 2.5], [3, 4]]
    assert (samples["targets"].tolist(), samples["targets"].dtype) == ([0, 1], np.int64)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,b\n1\n", "a,b\n1,x\n", "y\n1\n", "a,y\n1,nan\n", "a,y\n1,1e300\n"),
        *(f"a,y\n{'9' * 200_000},1\n", 'a,y\n"' + "x" * 200_000, "a,y\n\0,1\n"),
    ],
    ids=lambda text: text[:9],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match="can't be read"):
        load_data(str(tmp_path / "t.csv"), 8, False)


class Rows:
    """A data set of Hugging Face, as far as it is used."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns = columns
        self.column_names = list(columns)

    def select_columns(self, names: list[str]) -> Rows:
        return Rows({name: self._columns[name] for name in names})

    def with_format(self, name: str) -> Rows:
        return self

    def __getitem__(self, index: slice) -> dict[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}


class Classifier(nn.Module):
    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return input_ids


def test_a_data_set_of_hugging_face_gives_what_the_model_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset_dict.json").write_text("{}")
    ids = np.arange(12).reshape(4, 3)
    part = {"idx": np.arange(4), "text": np.array(list("abcd")), "input_ids": ids}
    part |= {"attention_mask": np.ones_like(ids), "label": np.array([0, 1, 1, 0])}
    found = {"train": Rows(part), "test": Rows({name: a[:2] for name, a in part.items()})}
    library = SimpleNamespace(load_from_disk=lambda path: found)
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    data = load_data(str(tmp_path), 4, False, inputs(Classifier()))
    x, y = first_batch(data)
    assert sorted(x) == ["attention_mask", "input_ids"]
    assert (x["input_ids"].tolist(), y.tolist()) == (ids[:2].tolist(), [0, 1])
    assert example_texts(*data.first()) == ["input_ids=int64:1x3", "attention_mask=int64:1x3"]


def test_loaders_give_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def pair():\n"
        "    batch = lambda n: ((torch.full((2, 3), n), torch.zeros(2, 1)), torch.ones(2))\n"
        "    return [batch(0.0)], [batch(1.0), batch(2.0)]\n"
        "def once():\n"
        "    return iter([torch.zeros(2, 3)])\n"
    )
    monkeypatch.chdir(tmp_path)
    data = load_data("mine.py:pair", 2, False)
    samples = data.samples(3, ["a", "b"])
    assert samples["a"][:, 0].tolist() == [1, 1, 2]
    assert (samples["b"].shape, samples["targets"].shape) == ((3, 1), (3,))
    assert example_texts(*data.first()) == ["1x3", "1x1"]
    # Reading an iterator would lose its first batch.
    assert load_data("mine.py:once", 2, False).first() is None


def test_an_input_that_is_guessed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def guessed():\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))\n"
        "def declared():\n"
        "    model = guessed()\n"
        "    model.example_input_array = torch.zeros(3, 6)\n"
        "    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "net.py:guessed"]) == 0
    assert "input guessed: 2x6; pass --example-input\n" in capsys.readouterr().err
    assert main(["explain", "net.py:declared"]) == 0
    assert "input as the model declares it: 3x6\n" in capsys.readouterr().err
    assert main(["explain", "net.py:guessed", "--example-input", "4x6"]) == 0
    assert "input" not in capsys.readouterr().err


def test_training_takes_the_shapes_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    hidden = [nn.Linear(8, 8), nn.ReLU()]\n"
        "    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), *hidden, nn.Linear(8, 2))\n"
    )
    rows = "".join(f"{i},{i % 3},{-i},{i % 2}\n" for i in range(8))
    (tmp_path / "t.csv").write_text("a,b,c,y\n" + rows)
    monkeypatch.chdir(tmp_path)
    argv = ["train", "net.py:build", "--data", "t.csv", "--out", "out", "--kinds", "merged"]
    epochs = ["--gamma", "0.6", "--distill-epochs", "1", "--tune-epochs", "0"]
    assert main([*argv, *epochs, "--threads", "1"]) == 0
    assert "input as in the data: 1x3\n" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,0\n3,4,1\n")
    assert main([*argv, *epochs]) == 2
    assert "can't be run on the samples of --data t.csv" in capsys.readouterr().err


def png(width: int, height: int) -> bytes:
    """The beginning of a picture, which says how large it is."""
    found = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, data in ((b"IHDR", size), (b"IDAT", b"")):
        check = struct.pack(">I", zlib.crc32(kind + data))
        found += struct.pack(">I", len(data)) + kind + data + check
    return found


def cut_short(path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: cut_short(path), "truncated"),
        (lambda path: path.write_bytes(b"junk"), "not a picture that Pillow knows"),
        (lambda path: path.write_bytes(png(12_000, 12_000)), "12,000 x 12,000 pixels"),
        (lambda path: path.write_bytes(png(60_000, 60_000)), "decompression bomb"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("none")), "No such file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    ],
    ids=["short", "junk", "large", "bomb", "device", "dangling", "pipe"],
)
def test_a_picture_that_cannot_be_read_is_named(
    spoil: Callable[[Path], Any], said: str, images: Path
) -> None:
    """Symptom: internal errors from the decoder, in training; commands that wait for ever."""
    path = images / "train" / "cat" / "0.png"
    spoil(path)

    def read() -> None:
        list(load_data(str(images), 1, False, inputs(Sized()))(SampleShapes())[0])

    with pytest.raises(UsageError, match=r"cat/0\.png can't be read") as raised:
        read()
    assert said in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["x.csv", "x.npy", "x.npz"])
def test_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="is not a regular file"):
        load_data(str(tmp_path / name), 4, False)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint64])
def test_unsigned_labels_are_labels(dtype: type, tmp_path: Path) -> None:
    """Symptom: NotImplementedError of torch, which does not compare them."""
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((4, 2), np.float32), y=np.arange(4, dtype=dtype))
    _, y = first_batch(load_data(str(path), 4, False))
    assert (y.dtype, sorted(y.tolist())) == (torch.int64, [0, 1, 2, 3])
    np.savez(path, x=np.zeros((1, 2), np.float32), y=np.array([2**63], np.uint64))
    with pytest.raises(UsageError, match="can't be read"):
        load_data(str(path), 4, False)


def test_a_folder_whose_names_are_no_text_has_a_digest(tmp_path: Path) -> None:
    """Symptom: UnicodeEncodeError of fxelastic run; FileNotFoundError for a dangling link."""
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"")
    before = digest_of(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    assert digest_of(tmp_path) != before


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Symptom: the target's column became an input, in files as Excel writes them."""
    path = tmp_path / "data.csv"
    path.write_text("y,a,b\n0,1,2\n1,3,4\n", encoding="utf-8-sig")
    x, y = first_batch(load_data(str(path), 2, False))
    assert x.shape == (2, 2)
    assert sorted(y.tolist()) == [0, 1]
