"""The score of a search without targets follows from what the exported model gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import edge
from fxelastic.edge.searching.choice import chosen_metric, default_result
from fxelastic.edge.searching.scores import METRICS
from fxelastic.errors import UsageError


class Heads(nn.Module):
    """A small network with heads of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.plain = nn.Linear(8, 4, bias=False)
        self.one = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Sequences (N, 5, 6) to results by kind."""
        h = self.body(x)
        mean = h.mean(1)
        return {
            "class_scores": self.head(mean),
            "no_bias": self.plain(mean),
            "probabilities": self.head(mean).softmax(-1),
            "scaled": self.head(mean) / 0.07,
            "logits": self.head(h),
            "classes": self.head(mean).argmax(-1),
            "mean": mean,
            "normed": self.norm(mean),
            "unit": nn.functional.normalize(self.head(mean), dim=-1),
            "pooler": torch.tanh(self.head(mean)),
            "features": h,
            "number": self.one(mean),
        }


SCORES = {
    "class_scores": "agreement",
    "no_bias": "agreement",
    "probabilities": "agreement",
    "scaled": "agreement",
    "logits": "agreement",
    "classes": "agreement",
    "mean": "cosine",
    "normed": "cosine",
    "unit": "cosine",
    "pooler": "cosine",
    "features": "cosine",
    "number": "",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    supernet = fxelastic.expand(Heads().eval(), 1.0, example_inputs=x, kinds=())
    folder = tmp_path_factory.mktemp("heads") / "bundle"
    return fxelastic.export(supernet, folder, verify=False)


def of_one_result(bundle: edge.Bundle, index: int) -> Any:
    """The bundle, as if its model gave one of the results only."""
    return SimpleNamespace(
        outputs=(bundle.outputs[index],),
        manifest=SimpleNamespace(results=(bundle.manifest.results[index],), batch_dims={}),
        space=bundle.space,
        read=bundle.read,
        values=bundle.values,
    )


@pytest.mark.parametrize("kind", SCORES)
def test_the_score_fits_the_results(bundle: edge.Bundle, kind: str) -> None:
    at = [result.name for result in bundle.manifest.results].index(kind)
    single = of_one_result(bundle, at)
    assert chosen_metric(single, None, labelled=True).name == "top1"
    if not SCORES[kind]:
        with pytest.raises(UsageError, match="one number for each sample"):
            chosen_metric(single, None, labelled=False)
        return
    metric = chosen_metric(single, None, labelled=False)
    assert metric.name == SCORES[kind]
    # The score takes its own targets; it has margins where a sample is one choice.
    x = np.random.default_rng(0).standard_normal((7, 5, 6)).astype(np.float32)
    with edge.Executor(bundle) as executor:
        outputs = executor.run(bundle.space.original, {bundle.inputs[0].name: x})[at : at + 1]
    targets = metric.answers(outputs)
    assert metric.score(outputs, targets) == (7, 7)
    plain = outputs[0].ndim == 2 and outputs[0].dtype.kind == "f"
    assert (metric.margins is not None) == (plain and metric.name == "agreement")
    if metric.margins is not None:
        assert (metric.margins(outputs, targets) > 0).all()


def test_one_of_several_results_can_be_chosen(bundle: edge.Bundle) -> None:
    names = [result.name for result in bundle.manifest.results]
    # Without a choice the logits count, and the first result where none are called so.
    assert default_result(bundle) == names.index("logits")
    assert default_result(of_one_result(bundle, 2)) == 0
    random = np.random.default_rng(0)
    outputs, original = ([random.standard_normal((3, 8)) for _ in names] for _ in range(2))
    at = names.index("unit")
    wanted = METRICS["cosine"].score(outputs[at:], original[at])
    for name in ("cosine:unit", f"cosine:{at}"):
        metric = chosen_metric(bundle, name, labelled=False)
        assert metric.name == name
        assert np.array_equal(metric.answers(original), original[at])
        assert metric.score(outputs, original[at]) == wanted
    classes = chosen_metric(bundle, "agreement:scaled", labelled=False)
    assert classes.margins is not None
    found = classes.margins(outputs, classes.answers(original)) > 0
    assert classes.score(outputs, classes.answers(original))[0] == found.sum()
    with pytest.raises(UsageError, match="no result '12'"):
        chosen_metric(bundle, "cosine:12", labelled=False)
