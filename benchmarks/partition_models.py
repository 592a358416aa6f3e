"""The models that the partitioner is measured on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from examples.models import ResNet50, VisionTransformer
from fxelastic.ir.signature import Signature
from fxelastic.ir.traced import Traced
from fxelastic.ir.trees import flatten
from tests.models.llama import LlamaForCausalLM

_WIDTH = 8


def resnet50() -> tuple[nn.Module, Any]:
    """ResNet-50 at 224 pixels."""
    return ResNet50(), torch.randn(2, 3, 224, 224)


def vit_b16() -> tuple[nn.Module, Any]:
    """ViT-B/16 at 224 pixels."""
    return VisionTransformer(), torch.randn(2, 3, 224, 224)


def llama_like() -> tuple[nn.Module, Any]:
    """Twelve layers with rotary embeddings, grouped queries and gated networks."""
    ids = torch.arange(64).repeat(2, 1) % 80
    model = LlamaForCausalLM(width=256, n_heads=8, n_kv_heads=4, depth=12)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def chain_graph(n_operators: int, kind: str) -> Traced:
    """A captured chain of ``n_operators`` linear layers, activations and, if residual, sums.

    It is built directly: tracing 16k operators would take minutes, and is not measured.
    """
    graph, root = fx.Graph(), nn.Module()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    value = mode.from_tensor(torch.zeros(2, _WIDTH))
    weight_value = mode.from_tensor(torch.zeros(_WIDTH, _WIDTH))

    def add(target: Any, args: tuple[Any, ...], path: str) -> fx.Node:
        node = graph.call_function(target, args)
        stack = {"": ("", "Chain"), path: (path, "Layer")}
        node.meta = {"val": value, "nn_module_stack": stack}
        return node

    x = graph.placeholder("x")
    x.meta = {"val": value, "nn_module_stack": {}}
    layers, count, last = nn.ModuleList(), 0, x
    root.layers = layers
    while count < n_operators:
        path = f"layers.{len(layers)}"
        layers.append(nn.Linear(_WIDTH, _WIDTH, bias=False))
        weight = graph.get_attr(f"{path}.weight")
        weight.meta = {"val": weight_value, "nn_module_stack": {}}
        linear = add(torch.ops.aten.linear.default, (last, weight), path)
        out = add(torch.ops.aten.relu.default, (linear,), path)
        if kind == "residual":
            out = add(torch.ops.aten.add.Tensor, (out, last), path)
        count += 3 if kind == "residual" else 2
        last = out
    output = graph.output((last,))
    output.meta["val"] = (value,)
    leaves: list[Tensor] = [torch.zeros(2, _WIDTH)]
    signature = Signature(flatten({"x": leaves[0]})[1], flatten(leaves[0])[1], ("x",), ("x",))
    return Traced(fx.GraphModule(root, graph), signature, "Chain", "export", dynamic_batch=False)
