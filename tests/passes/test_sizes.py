"""Sizes that depend on inputs are computed in the block that needs them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.ir.operators import operator_name
from tests.models.compare import assert_same_output


class GraphConvolutions(nn.Module):
    """Each layer drops edges from a node to itself and adds one for each node, as GCN does."""

    def __init__(self, n_layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(n_layers))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Nodes (n, 8) and edges (2, m) to nodes."""
        for layer in self.layers:
            kept = edges[:, edges[0] != edges[1]]
            loops = torch.arange(x.shape[0]).repeat(2, 1)
            source, target = torch.cat([kept, loops], 1)
            # As many as data tell, and the nodes: a size that no tensor here has.
            weights = torch.ones(kept.shape[1] + x.shape[0], 1)
            message = layer(x)[source] * weights
            x = torch.relu(torch.zeros_like(x).index_add(0, target, message))
        return x


def test_a_size_that_data_and_an_input_tell_ties_no_layers_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GraphConvolutions().eval()
    x, edges = torch.randn(6, 8), torch.randint(0, 6, (2, 20))
    supernet = fxelastic.expand(model, 0.4, example_inputs=(x, edges))
    basic = [block for block in supernet.partition.blocks if block.kind == "basic"]
    assert len(basic) == len(model.layers)
    more = torch.randn(9, 8), torch.randint(0, 9, (2, 20))
    for inputs in ((x, edges), more):
        assert_same_output(supernet(*inputs), model(*inputs))
    bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=2)
    assert bundle.manifest.verification is not None


class Pyramid(nn.Module):
    """A pooled feature, resized to the picture, beside others of the picture's size."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 8, 4, 4)
        self.pooled = nn.Conv2d(8, 4, 1)
        self.grow = nn.ConvTranspose2d(8, 4, 4, 4)
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) to pictures, with h and w multiples of 4."""
        low = self.low(x)
        pooled = self.pooled(low).mean((2, 3), keepdim=True)
        low = self.grow(low) + nn.functional.interpolate(pooled, size=x.shape[2:])
        return self.last(low + self.left(x) * self.right(x).sigmoid())


def test_a_size_from_a_blocks_input_leaves_the_names_of_values_to_them() -> None:
    """The size is a product, and so is a value that two blocks pass on."""
    model, x = Pyramid().eval(), torch.randn(2, 3, 16, 16)
    sizes = {"x": {2: "H", 3: "W"}}
    partition = fxelastic.partition(model, 0.2, example_inputs=x, dynamic_shapes=sizes)
    (block,) = (block for block in partition.blocks if block.name == "add#2")
    assert len(block.inputs) == 2
    assert not block.context
    wider = torch.randn(1, 3, 20, 28)
    assert_same_output(partition(wider), model(wider))


class LinearAttention(nn.Module):
    """Attention without a softmax over the pixels behind two strides, by heads of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.down = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) to pictures of about h/4 times w/4."""
        x = self.down(self.stem(x))
        n, _, h, w = x.shape
        q, k, v = x.reshape(n, -1, 12, h * w).transpose(-1, -2).chunk(3, -1)
        x = torch.relu(q) @ (torch.relu(k).transpose(-1, -2) @ v)
        return self.last(x.transpose(-1, -2).reshape(n, -1, h, w))


def test_a_size_that_never_varies_is_no_quotient_of_others() -> None:
    """Behind strides a size is a floor division, and a quotient of many takes minutes to export."""
    model, x = LinearAttention().eval(), torch.randn(2, 3, 19, 17)
    sizes = {"x": {0: "batch", 2: "H", 3: "W"}}
    partition = fxelastic.partition(model, 0.7, example_inputs=x, dynamic_shapes=sizes)
    reshapes = [
        node
        for node in partition.graph.nodes
        if operator_name(node) in ("aten.view", "aten.reshape")
    ]
    assert len(reshapes) == 2
    for node in reshapes:
        assert -1 not in node.args[1], node.format_node()
    other = torch.randn(3, 3, 33, 26)
    assert_same_output(partition(other), model(other))


class Pooled(nn.Module):
    """Pixels are pooled by 64, so a picture may have few rows or few columns, but not both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) to pictures, for h*w of at least 64."""
        x = self.first(x)
        pooled = nn.functional.avg_pool1d(x.flatten(2), 64)
        return self.last(x + pooled.mean(2)[:, :, None, None])


def test_the_least_sizes_are_those_that_the_model_takes_together(tmp_path: Path) -> None:
    """Symptom: the export fails at the smallest sizes, with the model's own error."""
    model, x = Pooled().eval(), torch.randn(2, 3, 16, 16)
    sizes = {"x": {0: "batch", 2: "H", 3: "W"}}
    supernet = fxelastic.expand(model, 0.6, example_inputs=x, dynamic_shapes=sizes)
    least = {s.symbol.name: s.symbol.min for s in supernet.partition.symbols}
    assert 64 <= least["H"] * least["W"] < 120
    assert max(least["H"], least["W"]) < 16
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=1)
