"""Models of collections of networks: many architectures each, made by name or by options."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """A model and a batch of two samples for it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


#: The largest side of a picture for networks whose sizes are free.
_LARGE, _SMALL = 256, 64

# Sizes for the transformers of vit_pytorch, by the names of their arguments.
_VIT: dict[str, Any] = {
    **{"image_size": _SMALL, "patch_size": 8, "num_classes": 10, "dim": 64, "depth": 2},
    **{"heads": 4, "mlp_dim": 128, "dim_head": 16, "channels": 3, "seq_len": 64},
    **{"frames": 8, "frame_patch_size": 2, "image_patch_size": 8, "spatial_depth": 2},
    **{"temporal_depth": 2, "cls_depth": 2, "cross_attn_depth": 2, "num_register_tokens": 4},
    **{"num_memories": 4, "layers": 2, "max_tokens_per_depth": (64, 32)},
}
# Arguments that are set even where they have a default.
_VIT_SIZES = ("num_classes", "dim", "depth", "heads", "image_size", "patch_size")

# Options of the decoders of x_transformers, by a name.
_DECODERS: dict[str, dict[str, Any]] = {
    **{"plain": {}, "rmsnorm": {"use_rmsnorm": True}, "glu": {"ff_glu": True}},
    **{"swish": {"ff_swish": True, "ff_glu": True}, "relu2": {"ff_relu_squared": True}},
    **{"rotary": {"rotary_pos_emb": True}, "alibi": {"alibi_pos_bias": True}},
    **{"t5": {"rel_pos_bias": True}, "dynpos": {"dynamic_pos_bias": True}},
    **{"memkv": {"attn_num_mem_kv": 8}, "onekv": {"attn_one_kv_head": True}},
    "talking": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    **{"gqa": {"attn_kv_heads": 2}, "gate": {"attn_gate_values": True}},
    **{"qknorm": {"attn_qk_norm": True}, "topk": {"attn_sparse_topk": 8}},
    **{"sandwich": {"sandwich_coef": 1}, "macaron": {"macaron": True}},
    **{"shift": {"shift_tokens": 1}, "resi": {"gate_residual": True}},
    **{"scale_res": {"scale_residual": True}, "sandwich_norm": {"sandwich_norm": True}},
    **{"xpos": {"rotary_xpos": True}, "forgetting": {"attn_data_dependent_alibi": True}},
    **{"hyper": {"num_residual_streams": 2}, "integrate": {"integrate_layers": True}},
    **{"softclamp": {"attn_softclamp_logits": True}, "flash": {"attn_flash": True}},
    **{"vres": {"add_value_residual": True}, "nomem": {"zero_init_branch_output": True}},
    "polar": {"polar_pos_emb": True},
}
_ENCODERS = ("plain", "rotary", "t5", "memkv", "macaron", "glu")

_CTR = ("DeepFM", "WDL", "DCN", "DCNMix", "xDeepFM", "AutoInt", "ONN", "FiBiNET", "AFM", "NFM")
_CTR += ("PNN", "CCPM", "AFN", "DIFM", "IFM")
# Models without numbers beside the categories.
_CATEGORIES_ALONE = ("AFM", "CCPM")


def pytorchcv_names() -> list[str]:
    """The first network of each module."""
    from pytorchcv import model_provider

    first: dict[str, str] = {}
    for name, build in model_provider._models.items():
        first.setdefault(build.__module__.split(".")[-1], name)
    return [f"{module}:{name}" for module, name in first.items()]


def pytorchcv_case(name: str) -> Case:
    """A network of pytorchcv, at a quarter of its size if it is large and the size is free."""
    from pytorchcv import model_provider

    name = name.split(":")[1]
    model = model_provider.get_model(name).eval()
    size = getattr(model, "in_size", None) or (224, 224)
    if max(size) > _LARGE and not any(part in name for part in ("inception", "nasnet")):
        smaller = tuple(max(_SMALL, side // 4 // 32 * 32) for side in size)
        try:
            model, size = model_provider.get_model(name, in_size=smaller).eval(), smaller
        except TypeError:
            size = model.in_size
    return Case(model, (torch.randn(2, getattr(model, "in_channels", 3), *size),), {})


def vit_names() -> list[str]:
    """Every module of vit_pytorch; those with arguments of their own fail when they are made."""
    import vit_pytorch

    return [found.name for found in pkgutil.iter_modules(vit_pytorch.__path__)]


def vit_case(name: str) -> Case:
    """The last class of a module that classifies."""
    module = importlib.import_module(f"vit_pytorch.{name}")
    classes = [kind for kind in vars(module).values() if _is_own(kind, module.__name__)]
    classes.sort(key=lambda kind: kind.__name__)
    classifying = [kind for kind in classes if "num_classes" in _arguments(kind)]
    kind = (classifying or classes)[-1]
    options = dict(_vit_options(kind))
    if name == "nest":
        options = {"image_size": 64, "patch_size": 4, "dim": 32, "heads": 2, "num_classes": 10}
        options |= {"num_hierarchies": 3, "block_repeats": (1, 1, 1)}
    side = options.get("image_size", 224)
    shape: tuple[int, ...] = (3, side, side)
    if "3d" in name or "vivit" in name:
        shape = (3, 8, _SMALL, _SMALL)
    elif "1d" in name:
        shape = (3, 64)
    return Case(kind(**options).eval(), (torch.randn(2, *shape),), {})


def _is_own(value: object, module: str) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module


def _arguments(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind.__init__).parameters)


def _vit_options(kind: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    for name, argument in _arguments(kind).items():
        needed = argument.default is inspect.Parameter.empty
        several = isinstance(argument.default, (tuple, list))
        if name in _VIT and (needed or (name in _VIT_SIZES and not several)):
            yield name, _VIT[name]


def transformer_names() -> list[str]:
    """Decoders and encoders of x_transformers with one option each."""
    encoders = [f"enc-{name}" for name in _ENCODERS]
    return [*(f"dec-{name}" for name in _DECODERS), *encoders, "encmask", "vit", "cont"]


def transformer_case(name: str) -> Case:
    """A small transformer of x_transformers."""
    import x_transformers as xt

    sizes = {"dim": 64, "depth": 2, "heads": 4, "attn_dim_head": 16}
    kind, _, option = name.partition("-")
    layers = (xt.Decoder if kind == "dec" else xt.Encoder)(**sizes, **_DECODERS.get(option, {}))
    if name == "vit":
        model = xt.ViTransformerWrapper(
            image_size=_SMALL, patch_size=8, num_classes=10, attn_layers=layers
        )
        return Case(model.eval(), (torch.randn(2, 3, _SMALL, _SMALL),), {})
    if name == "cont":
        model = xt.ContinuousTransformerWrapper(
            dim_in=16, dim_out=8, max_seq_len=64, attn_layers=layers
        )
        return Case(model.eval(), (torch.randn(2, 24, 16),), {})
    model = xt.TransformerWrapper(num_tokens=100, max_seq_len=64, attn_layers=layers)
    masks = {"mask": torch.ones(2, 24, dtype=torch.bool)} if name == "encmask" else {}
    return Case(model.eval(), (torch.randint(0, 100, (2, 24)),), masks)


def ctr_case(name: str) -> Case:
    """A model of deepctr_torch: three columns of categories, and two numbers."""
    from deepctr_torch import inputs, models

    sizes = {"a": 10, "b": 20, "c": 5}
    columns = [inputs.SparseFeat(column, n, 4) for column, n in sizes.items()]
    numbers = 0 if name in _CATEGORIES_ALONE else 2
    if numbers:
        columns.append(inputs.DenseFeat("d", numbers))
    given = (columns,) if name == "PNN" else (columns, columns)
    categories = [torch.randint(0, n, (4, 1)) for n in sizes.values()]
    x: Tensor = torch.cat([*categories, torch.randn(4, numbers)], 1)
    return Case(getattr(models, name)(*given, task="binary").eval(), (x,), {})


#: By library: functions that list the names of its models, and that make one.
NETWORKS: dict[str, tuple[Callable[[], list[str]], Callable[[str], Case]]] = {
    "pytorchcv": (pytorchcv_names, pytorchcv_case),
    "vit_pytorch": (vit_names, vit_case),
    "x_transformers": (transformer_names, transformer_case),
    "deepctr_torch": (lambda: list(_CTR), ctr_case),
}
