"""Models of public libraries: one of each architecture, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.public_model_samples import SAMPLES
from benchmarks.public_networks import NETWORKS, Case
from benchmarks.public_transformers import smallest, types


def timm_names() -> list[str]:
    """The smallest model of each of timm's modules, by its number of parameters."""
    import timm

    names = []
    for module in timm.list_modules():
        sizes = {name: _size("timm", name) for name in timm.list_models(module=module)}
        if sizes:
            names.append(min(sizes, key=lambda name: (sizes[name], name)))
    return names


def timm_case(name: str) -> Case:
    """A model of timm, with images of its default size."""
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    return Case(model, (torch.randn(2, *model.default_cfg["input_size"]),), {})


def torchvision_names() -> list[str]:
    """The smallest model of each of torchvision's modules, by its number of parameters.

    Detection is left out: the sizes of its results depend on the data.
    """
    import torchvision

    families: dict[str, list[str]] = {}
    for name in torchvision.models.list_models():
        module = torchvision.models.get_model_builder(name).__module__
        if not module.startswith(("torchvision.models.detection", "torchvision.models.quant")):
            families.setdefault(module, []).append(name)
    sizes = {name: _size("torchvision", name) for names in families.values() for name in names}
    return [min(names, key=lambda name: (sizes[name], name)) for names in families.values()]


def torchvision_case(name: str) -> Case:
    """A model of torchvision; pictures, clips, or pairs of pictures."""
    import torchvision

    model = _of_torchvision(name).eval()
    module = torchvision.models.get_model_builder(name).__module__
    if ".video" in module:
        side = 112 if "resnet" in module else 224
        return Case(model, (torch.randn(2, 3, 16, side, side),), {})
    if ".optical_flow" in module:
        return Case(model, (torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)), {})
    side = 299 if "inception" in module else 224
    return Case(model, (torch.randn(2, 3, side, side),), {})


def _of_torchvision(name: str) -> nn.Module:
    import torchvision

    own = {"weights_backbone": None} if name.startswith(("deeplab", "fcn", "lraspp")) else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **own)
    return model


def _size(library: str, name: str) -> float:
    try:
        with torch.device("meta"):
            if library == "timm":
                import timm

                model = timm.create_model(name, pretrained=False)
            else:
                model = _of_torchvision(name)
    except Exception:  # noqa: BLE001 - some compute in __init__, which fails on "meta"
        return float("inf")
    return sum(parameter.numel() for parameter in model.parameters())


def _tokens(n: int = 16) -> Tensor:
    return torch.randint(1, 100, (2, n))


# The names of sizes in most of the library's text models.
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
_VISION = {k: v for k, v in _TEXT.items() if k != "vocab_size"}
_PATCHES = {**_VISION, "image_size": 32, "patch_size": 8}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "use_cache": False}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}


def _masked() -> dict[str, Tensor]:
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    return {"input_ids": _tokens(), "attention_mask": mask}


def _unmasked() -> dict[str, Tensor]:
    return {"input_ids": _tokens(4)}


def _translated() -> dict[str, Tensor]:
    return {**_masked(), "decoder_input_ids": _tokens(8)}


def _pixels(size: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def _backbone(**more: Any) -> dict[str, Any]:
    """A small ResNet as a part of another model."""
    return {"embedding_size": 16, **_STAGES, "layer_type": "basic", **more}


# Before the name of a type of model.
_BARE = "bare:"

#: Class, class of its configuration, configuration, inputs.
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    name: (model, f"{config}Config", options, inputs)
    for name, model, config, options, inputs in (
        ("bert", "BertForSequenceClassification", "Bert", _TEXT, _masked),
        (
            *("bert-hidden-states", "BertModel", "Bert"),
            *({**_TEXT, "output_hidden_states": True}, _masked),
        ),
        ("roberta", "RobertaForTokenClassification", "Roberta", _TEXT, _masked),
        (
            *("distilbert", "DistilBertForSequenceClassification", "DistilBert"),
            {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 100},
            _masked,
        ),
        (
            *("albert", "AlbertForSequenceClassification", "Albert"),
            *({**_TEXT, "embedding_size": 32}, _masked),
        ),
        (
            *("electra", "ElectraForSequenceClassification", "Electra"),
            *({**_TEXT, "embedding_size": 32}, _masked),
        ),
        (
            *("deberta-v2", "DebertaV2ForSequenceClassification", "DebertaV2"),
            {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
            _masked,
        ),
        ("mpnet", "MPNetModel", "MPNet", _TEXT, _masked),
        (
            *("squeezebert", "SqueezeBertForSequenceClassification", "SqueezeBert"),
            *({**_TEXT, "embedding_size": 64}, _masked),
        ),
        (
            *("funnel", "FunnelForSequenceClassification", "Funnel"),
            {
                **{"vocab_size": 100, "block_sizes": [1, 1], "d_model": 64},
                **{"n_head": 4, "d_head": 16, "d_inner": 128},
            },
            _masked,
        ),
        (
            *("fnet", "FNetForSequenceClassification", "FNet"),
            {
                **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128},
                **{"vocab_size": 100, "max_position_embeddings": 32},
            },
            lambda: {"input_ids": _tokens()},
        ),
        (
            *("layoutlm", "LayoutLMForTokenClassification", "LayoutLM", _TEXT),
            lambda: {**_masked(), "bbox": torch.zeros(2, 16, 4, dtype=torch.long)},
        ),
        (
            *("gpt2", "GPT2LMHeadModel", "GPT2"),
            {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "use_cache": False},
            _masked,
        ),
        (
            *("gpt2-cache", "GPT2LMHeadModel", "GPT2"),
            {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100},
            _masked,
        ),
        ("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoX", {**_TEXT, "use_cache": False}, _masked),
        (
            *("bloom", "BloomForCausalLM", "Bloom"),
            {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "use_cache": False},
            _masked,
        ),
        (
            *("opt", "OPTForCausalLM", "OPT"),
            {
                **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
                **{"ffn_dim": 128, "vocab_size": 100, "word_embed_proj_dim": 64},
                "use_cache": False,
            },
            _masked,
        ),
        ("llama", "LlamaForCausalLM", "Llama", _GROUPED, _masked),
        ("qwen2", "Qwen2ForCausalLM", "Qwen2", _GROUPED, _masked),
        ("gemma2", "Gemma2ForCausalLM", "Gemma2", {**_GROUPED, "head_dim": 16}, _masked),
        (
            *("mixtral", "MixtralForCausalLM", "Mixtral"),
            *({**_GROUPED, "num_local_experts": 4}, _masked),
        ),
        (
            *("mamba", "MambaForCausalLM", "Mamba"),
            {
                **{"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100},
                **{"state_size": 8, "use_cache": False},
            },
            lambda: {"input_ids": _tokens()},
        ),
        (
            *("rwkv", "RwkvForCausalLM", "Rwkv"),
            {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "use_cache": False},
            _unmasked,
        ),
        (
            *("t5", "T5ForConditionalGeneration", "T5"),
            {
                **{"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
                **{"vocab_size": 100, "use_cache": False},
            },
            _translated,
        ),
        (
            *("bart", "BartForConditionalGeneration", "Bart"),
            *({**_SEQ2SEQ, "vocab_size": 100, "use_cache": False}, _translated),
        ),
        (
            *("whisper", "WhisperForConditionalGeneration", "Whisper"),
            {
                **{**_SEQ2SEQ, "vocab_size": 100, "num_mel_bins": 16, "use_cache": False},
                **{"max_source_positions": 32, "max_target_positions": 20},
                **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
                "decoder_start_token_id": 1,
            },
            lambda: {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": _tokens(8)},
        ),
        (
            *("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2"),
            {
                **{**_VISION, "vocab_size": 30, "conv_dim": (32,) * 7},
                **{"num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16},
            },
            lambda: {"input_values": torch.randn(2, 4000)},
        ),
        (
            *("audio-spectrogram", "ASTForAudioClassification", "AST"),
            {**_VISION, "max_length": 64, "num_mel_bins": 32},
            lambda: {"input_values": torch.randn(2, 64, 32)},
        ),
        (
            *("patchtst", "PatchTSTForPrediction", "PatchTST"),
            {
                **{"num_input_channels": 3, "context_length": 32, "patch_length": 8},
                **{"patch_stride": 8, "prediction_length": 8, "d_model": 32},
                **{"num_attention_heads": 4, "ffn_dim": 64, "num_hidden_layers": 2},
            },
            lambda: {"past_values": torch.randn(2, 32, 3)},
        ),
        ("vit", "ViTForImageClassification", "ViT", _PATCHES, _pixels(32)),
        ("vit-mae", "ViTMAEModel", "ViTMAE", {**_PATCHES, "mask_ratio": 0.0}, _pixels(32)),
        ("siglip", "SiglipVisionModel", "SiglipVision", _PATCHES, _pixels(32)),
        (
            *("dinov2", "Dinov2ForImageClassification", "Dinov2"),
            {
                **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
                **{"image_size": 28, "patch_size": 14},
            },
            _pixels(28),
        ),
        (
            *("swin", "SwinForImageClassification", "Swin"),
            {
                **{"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
                **{"image_size": 32, "patch_size": 4, "window_size": 4},
            },
            _pixels(32),
        ),
        (
            *("clip", "CLIPModel", "CLIP"),
            {
                "text_config": {**_TEXT, "max_position_embeddings": 20, "projection_dim": 32},
                "vision_config": {**_PATCHES, "projection_dim": 32},
                "projection_dim": 32,
            },
            lambda: {**_masked(), **_pixels(32)()},
        ),
        (
            *("segformer", "SegformerForSemanticSegmentation", "Segformer"),
            {**_STAGES, "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 32},
            _pixels(64),
        ),
        ("convnext-v2", "ConvNextV2ForImageClassification", "ConvNextV2", _STAGES, _pixels(64)),
        ("poolformer", "PoolFormerForImageClassification", "PoolFormer", _STAGES, _pixels(64)),
        (
            *("mobilevit", "MobileViTForImageClassification", "MobileViT"),
            *({"image_size": 64}, _pixels(64)),
        ),
        (
            *("dpt", "DPTForDepthEstimation", "DPT"),
            {
                **{**_PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
                **{"neck_hidden_sizes": [16, 32, 48, 64], "fusion_hidden_size": 32},
            },
            _pixels(32),
        ),
        (
            *("yolos", "YolosForObjectDetection", "Yolos"),
            {**_VISION, "image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 10},
            _pixels(64),
        ),
        ("rt-detr-resnet", "RTDetrResNetBackbone", "RTDetrResNet", _backbone(), _pixels(64)),
        (
            *("detr", "DetrForObjectDetection", "Detr"),
            {
                **{**_SEQ2SEQ, "num_queries": 10, "backbone": None},
                **{"use_timm_backbone": False, "use_pretrained_backbone": False},
                "backbone_config": ("ResNetConfig", _backbone(out_features=["stage4"])),
            },
            _pixels(64),
        ),
        (
            *("upernet", "UperNetForSemanticSegmentation", "UperNet"),
            {
                **{"hidden_size": 32, "auxiliary_channels": 32, "auxiliary_in_channels": 48},
                "backbone_config": (
                    "ConvNextConfig",
                    {**_STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
                ),
            },
            _pixels(64),
        ),
    )
}


def transformers_names() -> list[str]:
    """Models of transformers: some with heads and masks, and the bare model of every other type."""
    return [*_TRANSFORMERS, *(_BARE + name for name in types() if name not in _TRANSFORMERS)]


def transformers_case(name: str) -> Case:
    """A model of transformers."""
    import transformers

    if name.startswith(_BARE):
        instance, made = smallest(name.removeprefix(_BARE))
        return Case(instance, (), made)

    model, config, options, inputs = _TRANSFORMERS[name]
    options = dict(_resolved(transformers, options))
    instance = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    return Case(instance, (), inputs())


def _resolved(library: Any, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options in which the configurations of parts are objects."""
    for key, value in options.items():
        if isinstance(value, tuple) and value and isinstance(value[0], str):
            yield key, getattr(library, value[0])(**value[1])
        else:
            yield key, value


def _of_samples(library: str) -> tuple[Callable[[], list[str]], Callable[[str], Case]]:
    samples = SAMPLES[library]

    def case(name: str) -> Case:
        make, inputs = samples()[name]
        made, model = inputs(), make().eval()
        return Case(model, (), made) if isinstance(made, dict) else Case(model, made, {})

    return lambda: list(samples()), case


#: By library: functions that list the names of its models, and that make one.
LIBRARIES: dict[str, tuple[Callable[[], list[str]], Callable[[str], Case]]] = {
    "timm": (timm_names, timm_case),
    "torchvision": (torchvision_names, torchvision_case),
    "transformers": (transformers_names, transformers_case),
    **{library: _of_samples(library) for library in SAMPLES},
    **NETWORKS,
}
