"""A small model of every type in transformers, made by shrinking its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Larger smallest versions take minutes and show nothing new.
_MOST_PARAMETERS = 30_000_000

# Names of depths, and of other sizes that are easy to reduce, in configurations.
_DEPTH: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "vocab_size": 100,
}
# All names of widths: attention with several ranks breaks if only one of them is reduced.
_WIDTH: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim"), 64),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("encoder_hidden_size", "decoder_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), 128),
    **dict.fromkeys(("d_ff", "hidden_dim", "ffn_dim"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "image_size"), 64),
    **dict.fromkeys(("projection_dim", "feature_size"), 32),
    **dict.fromkeys(("state_size", "ssm_state_size"), 8),
    **{"num_experts_per_tok": 2, "num_queries": 10, "d_kv": 16},
}
_HEADS: dict[str, int] = {
    **dict.fromkeys(("head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 8),
    "num_key_value_heads": 2,
}
# Tried in turn: the smallest with which the model can be made and called is used.
_SIZES: tuple[Mapping[str, int], ...] = (
    {**_DEPTH, **_WIDTH, **_HEADS},
    {**_DEPTH, **_WIDTH},
    {**_DEPTH, "image_size": 224},
    _DEPTH,
)
_TOKENS = 16


def types() -> list[str]:
    """The types of models that have a version without a head."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return [name for name in CONFIG_MAPPING_NAMES if name in MODEL_MAPPING_NAMES]


def smallest(model_type: str) -> tuple[nn.Module, dict[str, Any]]:
    """The smallest model of a type that can be called, and a batch of two samples for it.

    Raises:
        Exception: It can't be made or called; the error for the smallest sizes.
    """
    first: Exception | None = None
    for sizes in _SIZES:
        torch.manual_seed(0)
        try:
            model, inputs = _made(model_type, sizes)
            n_params = sum(parameter.numel() for parameter in model.parameters())
            if n_params > _MOST_PARAMETERS:
                raise ValueError(f"{n_params:,} parameters are too many")
            with torch.no_grad():
                model(**inputs)
        except Exception as e:  # noqa: BLE001 - configurations may reject reduced sizes
            first = first or e
        else:
            return model, inputs
    assert first is not None
    raise first


def _made(model_type: str, sizes: Mapping[str, int]) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    _shrink(config, sizes)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model = AutoModel.from_config(config).eval().float()
    return model, _inputs(model, config)


def _shrink(config: Any, sizes: Mapping[str, int], depth: int = 3) -> None:
    """Cut a configuration, and those of its parts, in place."""
    for key, size in sizes.items():
        before = getattr(config, key, None)
        if isinstance(before, int) and not isinstance(before, bool) and before > 0:
            _set(config, key, size if key == "hidden_size" else min(size, before))
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list):
        # At least one layer of each kind.
        n = max(getattr(config, "num_hidden_layers", 2), len(set(kinds)))
        _set(config, "layer_types", [*dict.fromkeys(kinds), *kinds][:n])
        _set(config, "num_hidden_layers", n)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if isinstance(getattr(config, key, None), int):
            _set(config, key, min(getattr(config, key), 2))
    for part in list(vars(config).values()) if depth else ():
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            _shrink(part, sizes, depth - 1)


def _set(config: Any, key: str, value: Any) -> None:
    try:
        setattr(config, key, value)
    except Exception:  # noqa: BLE001 - some are computed from others, or differ by layer
        return


def _inputs(model: Any, config: Any) -> dict[str, Any]:
    """Inputs for the model's forward, as far as the names of its parameters show them."""
    parameters = inspect.signature(model.forward).parameters
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    vision = getattr(config, "vision_config", None)
    made: dict[str, Any] = {}
    for name, make in _MAKERS.items():
        if name in parameters and (name in needed or name == model.main_input_name):
            made[name] = make(config)
    if "input_ids" in parameters and ("input_ids" in made or vision is not None):
        made["input_ids"] = _MAKERS["input_ids"](config)
        mask = torch.ones(2, _TOKENS, dtype=torch.long)
        mask[1, 10:] = 0
        if "attention_mask" in parameters:
            made["attention_mask"] = mask
        if "bbox" in parameters:
            made["bbox"] = torch.zeros(2, _TOKENS, 4, dtype=torch.long)
        if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
            made["decoder_input_ids"] = _MAKERS["input_ids"](config)[:, :8]
    if vision is not None and "pixel_values" in parameters and not _by_tokens(config):
        made["pixel_values"] = _pixels(config)
    return made


def _by_tokens(config: Any) -> bool:
    """Whether tokens mark the positions of pictures, so that the model runs without pictures."""
    names = ("image_token_id", "image_token_index", "image_token")
    return any(getattr(config, name, None) is not None for name in names)


def _pixels(config: Any) -> Tensor:
    """Images, or videos."""
    vision = getattr(config, "vision_config", config)
    parts = (config, vision, getattr(config, "backbone_config", None))
    sizes = [getattr(part, "image_size", None) for part in parts]
    size = next((size for size in sizes if size is not None), 64)
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    frames = [config.num_frames] if hasattr(config, "num_frames") else []
    return torch.randn(2, *frames, getattr(vision, "num_channels", None) or 3, height, width)


def _features(config: Any) -> Tensor:
    n = getattr(config, "max_source_positions", 64)
    return torch.randn(2, getattr(config, "num_mel_bins", 80), 2 * n)


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "input_ids": lambda config: torch.randint(6, 90, (2, _TOKENS)),
    "pixel_values": _pixels,
    "input_values": lambda config: torch.randn(2, 4000),
    "input_features": _features,
    "pixel_values_videos": lambda config: torch.randn(2, 4, 3, *_pixels(config).shape[-2:]),
    "past_values": lambda config: torch.randn(
        2, getattr(config, "context_length", 32), getattr(config, "num_input_channels", 1)
    ),
    "query_embeds": lambda config: torch.randn(2, 5, config.hidden_size),
}
