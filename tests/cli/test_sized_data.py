"""Training data whose samples have different sizes."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxelastic.cli import main
from fxelastic.cli.model_inputs import ModelInputs, example_texts
from fxelastic.cli.sized_data import BatchesBySize
from fxelastic.cli.training_data import load_data
from fxelastic.edge.searching.columns import SampleShapes
from fxelastic.errors import UsageError
from tests.cli.test_data_files import Rows

TEXTS = [np.arange(1, n + 1) for n in (3, 5, 3, 2, 5, 3)]
LABELS = np.array([0, 1, 2, 3, 4, 5])
TEXT = SampleShapes(("seq",), {"ids": ("seq",)}, {"ids": 0}, (("seq", 7),))

MODEL = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
                                    for _ in range(3))
        self.head = nn.Linear(8, 7)

    def forward(self, ids):
        x = self.table(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))

def build():
    torch.manual_seed(0)
    return Tagger().eval()
"""


def padded(values: list[Any]) -> Any:
    longest = max(map(len, values))
    return np.stack([np.pad(value, (0, longest - len(value))) for value in values])


def forms() -> dict[str, dict[str, Any]]:
    """The same samples in all forms, with targets for each token."""
    lengths = np.array([len(text) for text in TEXTS])
    offsets = np.cumsum([0, *lengths])
    joined = np.concatenate(TEXTS)
    return {
        "lengths": {"ids": padded(TEXTS), "y": padded(TEXTS) + 1, "lengths": lengths},
        "own lengths": {
            **{"x": padded(TEXTS), "x.lengths": lengths},
            **{"targets": padded(TEXTS) + 1, "targets.lengths": lengths},
        },
        "offsets": {"ids": joined, "y": joined + 1, "offsets": offsets},
        "own offsets": {
            **{"ids": joined, "ids.offsets": offsets},
            **{"y": joined + 1, "y.offsets": offsets},
        },
    }


@pytest.mark.parametrize("form", list(forms()))
def test_batches_hold_samples_of_one_size(tmp_path: Path, form: str) -> None:
    np.savez(tmp_path / "texts.npz", **forms()[form])
    data = load_data(str(tmp_path / "texts.npz"), 2, False)
    training, validation = data(TEXT)
    assert validation is None
    found = [(x.tolist(), y.tolist()) for x, y in training]
    assert all(y == [[i + 1 for i in text] for text in x] for x, y in found)
    assert sorted(text for x, _ in found for text in x) == sorted(text.tolist() for text in TEXTS)
    assert len(training) == len(found) == 4
    assert data.n_samples() == len(TEXTS)
    first = data.first()
    assert first is not None
    (ids,) = first[0].values() if isinstance(first[0], dict) else (first[0],)
    assert ids.tolist() == [[1, 2, 3, 4, 5]]


def test_images_have_two_lengths(tmp_path: Path) -> None:
    sizes = [(4, 6), (2, 2), (4, 6), (4, 2)]
    padded = np.zeros((4, 3, 4, 6), np.float32)
    for i, (h, w) in enumerate(sizes):
        padded[i, :, :h, :w] = i + 1
    np.savez(tmp_path / "photos.npz", x=padded, lengths=sizes, y=np.arange(4))
    data = load_data(str(tmp_path / "photos.npz"), 4, False)
    shapes = SampleShapes(("H", "W"), {"image": (3, "H", "W")}, {"image": 0}, ((5,),))
    found = {tuple(y.tolist()): x for x, y in data(shapes)[0]}
    assert sorted(tuple(sorted(key)) for key in found) == [(0, 2), (1,), (3,)]
    for key, x in found.items():
        assert x.shape == (len(key), 3, *sizes[key[0]])
        assert x[:, 0, 0, 0].tolist() == [i + 1 for i in key]


def test_samples_may_be_in_another_dimension(tmp_path: Path) -> None:
    """A recurrent layer without batch_first takes (steps, samples, features)."""
    x = np.arange(24.0, dtype=np.float32).reshape(4, 3, 2)
    np.savez(tmp_path / "steps.npz", x=x, lengths=[4, 2, 4], y=np.arange(3))
    shapes = SampleShapes(("T",), {"x": ("T", 2)}, {"x": 1}, ((5,),))
    for steps, y in load_data(str(tmp_path / "steps.npz"), 4, False)(shapes)[0]:
        assert steps.shape == (2 if y.tolist() == [1] else 4, len(y), 2)
        assert steps[0, 0].tolist() == x[0, int(y[0])].tolist()


def test_an_epoch_has_an_order_of_its_own() -> None:
    batches = BatchesBySize(np.arange(40) % 3, 4, True, False)
    torch.manual_seed(0)
    one, other = list(batches), list(batches)
    assert one != other
    assert sorted(chain(*one)) == sorted(chain(*other)) == list(range(40))
    plain = list(BatchesBySize(np.arange(40) % 3, 4, False, False))
    assert plain[0] == [0, 3, 6, 9]


def test_processes_have_as_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[int]] = []
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
        batches = BatchesBySize(np.arange(10) % 2, 3, True, True)
        batches.set_epoch(2)
        assert len(list(batches)) == len(batches) == 2
        found += [*batches]
    assert sorted({*chain(*found)}) == list(range(10))


def test_a_data_set_of_hugging_face_may_be_ragged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Classifier(nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            return input_ids

    (tmp_path / "dataset_info.json").write_text("{}")
    ragged = np.empty(len(TEXTS), object)
    ragged[:] = TEXTS
    masks = np.empty(len(TEXTS), object)
    masks[:] = [np.ones_like(text) for text in TEXTS]
    rows = Rows({"input_ids": ragged, "attention_mask": masks, "label": LABELS})
    library = SimpleNamespace(load_from_disk=lambda path: rows)
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    data = load_data(str(tmp_path), 3, False, ModelInputs(load=Classifier))
    first = data.first()
    assert first is not None
    assert example_texts(*first) == ["input_ids=int64:1x5", "attention_mask=int64:1x5"]
    names = ("input_ids", "attention_mask")
    shapes = SampleShapes(("seq",), dict.fromkeys(names, ("seq",)), dict.fromkeys(names, 0))
    for inputs, labels in data(shapes)[0]:
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        expected = [len(TEXTS[i]) for i in labels]
        assert [inputs["input_ids"].shape[1]] * len(labels) == expected
    samples = data.samples(4, names)
    assert samples["input_ids.offsets"].tolist() == [0, 3, 8, 11, 13]
    assert samples["input_ids"].tolist() == np.concatenate(TEXTS[:4]).tolist()
    assert samples["targets"].tolist() == [0, 1, 2, 3]


def test_samples_keep_their_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "texts.npz", **forms()["own lengths"])
    samples = load_data(str(tmp_path / "texts.npz"), 2, False).samples(2, ["ids"])
    assert samples["x.lengths"].tolist() == samples["targets.lengths"].tolist() == [3, 5]
    assert len(samples["x"]) == len(samples["targets"]) == 2


def test_an_input_may_be_called_lengths(tmp_path: Path) -> None:
    class Packed(nn.Module):
        def forward(self, x: Any, lengths: Any) -> Any:
            return x

    np.savez(tmp_path / "data.npz", x=padded(TEXTS), lengths=[3, 5, 3, 2, 5, 3], y=LABELS)
    loaded = load_data(str(tmp_path / "data.npz"), 6, False, ModelInputs(load=Packed))
    inputs, _ = next(iter(loaded(SampleShapes())[0]))
    assert sorted(inputs) == ["lengths", "x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.array([3, 5, 3, 2, 9, 3])}, "length of sample 4"),
        ({"lengths": np.array([3, 5])}, "lengths of 'ids' do not fit"),
        ({"lengths": np.array([1.5] * 6)}, "must be integers"),
        ({"y": LABELS[:3]}, "as many samples in each array"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "texts.npz", **{**forms()["lengths"], **changes})
    with pytest.raises(UsageError, match=message):
        load_data(str(tmp_path / "texts.npz"), 2, False)(TEXT)


@pytest.mark.parametrize("offsets", [[0, 3, 8, 5, 21], [1, 21], [[0, 21]]])
def test_offsets_that_do_not_fit_are_refused(tmp_path: Path, offsets: Any) -> None:
    np.savez(tmp_path / "texts.npz", **{**forms()["offsets"], "offsets": np.array(offsets)})
    with pytest.raises(UsageError, match="offsets of 'ids' do not fit"):
        load_data(str(tmp_path / "texts.npz"), 2, False)


def test_a_supernet_is_trained_on_texts_of_all_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    arrays = {"ids": padded(TEXTS), "lengths": [len(text) for text in TEXTS], "y": LABELS}
    held_out = {f"val_{name}": value for name, value in arrays.items()}
    np.savez(tmp_path / "texts.npz", **arrays, **held_out)
    argv = ["train", "model.py:build", "--data", "texts.npz", "--out", "out", "--batch-size", "2"]
    argv += ["--gamma", "0.5", "--distill-epochs", "1", "--tune-epochs", "1", "--quiet"]
    argv += ["--kinds", "pruned", "--dynamic", "ids:1=seq[2..16]"]
    assert main(argv) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "distill: 4 steps" in out
    # Without a length that varies, the message says how to let it.
    assert main([*argv[:-2], "--out", "other"]) == 2
    assert "--dynamic ids:1=" in capsys.readouterr().err
