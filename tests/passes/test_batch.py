"""Inputs hold samples where the model ties their sizes, not where they have as many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.errors import UsageError


class Scorer(nn.Module):
    """Scores samples (N, 8) against a row for each of some classes (K, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor, texts: Tensor) -> Tensor:
        return self.body(x) @ texts.T / texts.shape[0]


class TextsFirst(Scorer):
    def forward(self, texts: Tensor, x: Tensor) -> Tensor:
        return super().forward(x, texts)


class Masked(Scorer):
    """Both sides come with a mask."""

    def forward(self, x: Tensor, x_mask: Tensor, texts: Tensor, texts_mask: Tensor) -> Tensor:
        return super().forward(x * x_mask, texts * texts_mask)


class Codebook(Scorer):
    """Adds to each sample the nearest row of a codebook."""

    def forward(self, x: Tensor, book: Tensor) -> Tensor:
        x = self.body(x)
        return x + book[torch.cdist(x, book).argmin(1)]


class Edges(Scorer):
    """Adds up the neighbours of each node; as many edges as nodes are a coincidence."""

    def forward(self, nodes: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        nodes = self.body(nodes)
        return nodes.index_add(0, targets, nodes[sources])


class Memory(Scorer):
    """Attends to a memory that all samples share."""

    def forward(self, x: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return torch.softmax(self.body(x) @ memory["keys"].T, -1) @ memory["values"]


class Tied(Scorer):
    """A mask for each sample, time steps, and flags that choose samples."""

    def forward(self, x: Tensor, mask: Tensor, t: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x) * mask + t.sin()[:, None]
        return x, x[keep].sum(0)


class Skipped(Scorer):
    """Looks a mask up by sample, and skips one of ones unless it is recorded."""

    def forward(self, x: Tensor, mask: Tensor, texts: Tensor) -> Tensor:
        x = self.body(x)
        if torch.compiler.is_exporting() or not bool(mask.all()):
            x = x * mask[torch.arange(x.shape[0])]
        return x @ texts.T


class Tokens(Scorer):
    """Sequences, with one row for each token that all of them share."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.body(x) * tokens


class TokensFirst(Tokens):
    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        return super().forward(x, tokens)


class Causal(Scorer):
    """Attends to itself, with a mask for tokens by tokens and one for each sample."""

    def forward(self, x: Tensor, causal: Tensor, padding: Tensor) -> Tensor:
        x = self.body(x)
        return torch.softmax(x @ x.mT + causal + padding[:, None], -1) @ x


class Stacked(Scorer):
    """Mixes the rows of a table that all samples share with weights for each sample."""

    def forward(self, table: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        return self.body(x) + torch.einsum("nk,kd->nd", weights, table)


class Doubled(Scorer):
    """Two results for each sample; what a table of as many rows as features gives is one, too."""

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(x)
        return x.repeat_interleave(2, 0), x.sum(0), table * 2.0


class TableFirst(Doubled):
    def forward(self, table: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, table)[:2]


class Many(Scorer):
    """More inputs than all sets of which are tried."""

    def forward(self, book: Tensor, *layers: Tensor) -> Tensor:
        x = layers[0]
        for layer in layers[1:]:
            x = self.body(x) + layer
        return x + book[torch.cdist(x, book).argmin(1)]


class Pair(Scorer):
    """Two towers that never meet."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(left), self.body(right)


class Joined(Scorer):
    """Two views of each sample, one after the other."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([self.body(left), self.body(right)])


class Unread(Scorer):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.body(x)


class OneRow(Scorer):
    """A bias that is of one row whatever the batch."""

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        return self.body(x) * mask + bias.view(8)


def rows(n: int) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(n))


def sequences(n: int) -> Tensor:
    return rows(4 * n).view(n, 4, 8)


def edges(n: int, n_edges: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n_edges) % n, torch.arange(n_edges).flip(0) % n


def tied(n: int) -> tuple[Tensor, ...]:
    return rows(n), rows(n), torch.arange(float(n)), torch.arange(n) % 2 == 0


KEYS = {"keys": rows(4), "values": rows(4)}

# The model, the inputs for N samples, where N = 4 meets a coincidence, and the inputs that hold N.
CASES: dict[str, tuple[type[Scorer], Any, Sequence[str]]] = {
    "classes": (Scorer, lambda n: (rows(n), rows(4)), ["x"]),
    "classes first": (TextsFirst, lambda n: (rows(4), rows(n)), ["x"]),
    "classes first, of another number": (TextsFirst, lambda n: (rows(9), rows(n)), ["x"]),
    "masks on both sides": (
        Masked,
        lambda n: (rows(n), rows(n), rows(4), rows(4)),
        ["x", "x_mask"],
    ),
    "codebook": (Codebook, lambda n: (rows(n), rows(4)), ["x"]),
    "edges": (Edges, lambda n: (rows(n), *edges(min(n, 4), 4)), ["nodes"]),
    "memory": (Memory, lambda n: (rows(n), KEYS), ["x"]),
    "tied": (Tied, tied, ["x", "mask", "t", "keep"]),
    "skipped mask": (Skipped, lambda n: (rows(n), torch.ones(n, 8), rows(4)), ["x", "mask"]),
    "tokens": (Tokens, lambda n: (sequences(n), rows(4)), ["x"]),
    "tokens first": (TokensFirst, lambda n: (rows(4), sequences(n)), ["x"]),
    "causal mask": (
        Causal,
        lambda n: (sequences(n), rows(4)[:, :4], rows(n)[:, :4]),
        ["x", "padding"],
    ),
    "table": (Stacked, lambda n: (rows(4), rows(n), rows(n)[:, :4]), ["x", "weights"]),
    "two results for a sample": (Doubled, lambda n: (rows(n), rows(8)), ["x"]),
    "as many rows as features": (TableFirst, lambda n: (rows(8), rows(n)), ["x"]),
    "as many rows as nothing": (TableFirst, lambda n: (rows(5), rows(n)), ["x"]),
    "many": (Many, lambda n: (rows(4), *[rows(n)] * 7), [f"args_{i}" for i in range(7)]),
    "pair": (Pair, lambda n: (rows(n), rows(n)), ["left", "right"]),
    "joined": (Joined, lambda n: (rows(n), rows(n)), ["left", "right"]),
    "unread": (Unread, lambda n: (rows(n), torch.zeros(n)), ["x", "labels"]),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_that_are_as_many_by_coincidence_are_not_taken_for_samples(name: str) -> None:
    make, inputs, batched = CASES[name]
    model = make().eval()
    partition = fxelastic.partition(model, 1.0, inputs(4))
    assert partition.dynamic_batch
    assert list(partition.batched) == batched
    for n in (4, 7, 1):
        result, expected = partition(*inputs(n)), model(*inputs(n))
        for a, b in zip(_flat(result), _flat(expected), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["classes", "masks on both sides", "codebook", "edges"])
def test_an_input_that_keeps_its_rows_is_named_with_what_to_do(name: str) -> None:
    make, inputs, batched = CASES[name]
    partition = fxelastic.partition(make().eval(), 1.0, inputs(4))
    kept = [name for name in partition.signature.inputs if name not in batched]
    told = " ".join(partition.warnings)
    assert all(f"input '{name}'" in told for name in kept)
    assert "batched=" in told
    supernet = fxelastic.expand(make().eval(), 1.0, example_inputs=inputs(4), kinds=())
    assert f"inputs that are passed whole: {', '.join(kept)}" in str(supernet)
    assert f"dynamic batch N of {', '.join(batched)};" in str(partition)


def test_inputs_that_are_tied_by_nothing_are_named() -> None:
    (warning,) = fxelastic.partition(Pair().eval(), 1.0, (rows(4), rows(4))).warnings
    assert "'left', 'right'" in warning


def test_an_input_of_one_row_does_not_fix_a_batch_of_one_sample() -> None:
    model = OneRow().eval()
    partition = fxelastic.partition(model, 1.0, (rows(1), rows(1), rows(1)))
    assert partition.batched == ("x", "mask")
    inputs = (rows(5), rows(5), rows(1))
    assert torch.equal(partition(*inputs), model(*inputs))


@pytest.mark.parametrize("batched", [("x", "texts"), ["texts", "x"]])
def test_the_user_says_what_is_batched(batched: Sequence[str]) -> None:
    partition = fxelastic.partition(Scorer().eval(), 1.0, (rows(4), rows(4)), batched=batched)
    assert partition.batched == ("x", "texts")
    assert not partition.warnings


def test_the_user_says_that_the_other_input_is_batched() -> None:
    model = Scorer().eval()
    supernet = fxelastic.expand(
        model, 1.0, example_inputs=(rows(4), rows(4)), batched="texts", kinds=()
    )
    assert torch.equal(supernet(rows(4), rows(6)), model(rows(4), rows(6)))
    with pytest.raises(UsageError, match=r"'x' has another shape"):
        supernet(rows(6), rows(6))


def test_the_user_says_that_nothing_is_batched() -> None:
    partition = fxelastic.partition(Scorer().eval(), 1.0, (rows(4), rows(4)), batched=())
    assert not partition.dynamic_batch
    assert partition.batched == ()


def test_the_name_of_an_argument_stands_for_all_of_its_tensors() -> None:
    partition = fxelastic.partition(Memory().eval(), 1.0, (rows(4), KEYS), batched=["memory"])
    assert partition.batched == ("memory_keys", "memory_values")


@pytest.mark.parametrize(
    ("batched", "message"),
    [
        (("image",), "batched names 'image', which is not an input"),
        (("x", "t"), "batched names 't', which has no dimension"),
        (("x", "other"), "hold different numbers of samples"),
        (3, "batched must be names of inputs"),
        ((3,), "batched must be names of inputs"),
    ],
)
def test_an_impossible_batched_is_refused(batched: Any, message: str) -> None:
    class Three(Scorer):
        def forward(self, x: Tensor, t: Tensor, other: Tensor) -> Tensor:
            return self.body(x) * t + other.sum(0)

    example = (rows(4), torch.tensor(2.0), rows(3))
    with pytest.raises(UsageError, match=message):
        fxelastic.partition(Three().eval(), 1.0, example, batched=batched)


@pytest.mark.parametrize("call", ["partition", "supernet", "subnet"])
def test_batch_sizes_that_disagree_are_refused_naming_both(call: str) -> None:
    supernet = fxelastic.expand(Pair().eval(), 1.0, example_inputs=(rows(4), rows(4)), kinds=())
    function = {
        "partition": supernet.partition,
        "supernet": supernet,
        "subnet": supernet.subnet(),
    }[call]
    with pytest.raises(UsageError, match=r"'left' and 'right' hold different") as caught:
        function(rows(7), rows(4))
    assert "7 in 'left', 4 in 'right'" in str(caught.value)


def _flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
