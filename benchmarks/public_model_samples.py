"""Models of further public libraries: segmentation, diffusion, detection, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Sample = tuple[Callable[[], nn.Module], Callable[[], Inputs]]


def _noise(*sizes: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, *sizes),)


def _steps() -> Tensor:
    return torch.tensor([3, 9])


def monai_samples() -> dict[str, Sample]:
    """Networks for medical images of two and three dimensions."""
    from monai.networks import blocks, nets

    image, small, volume = _noise(1, 64, 64), _noise(1, 48, 48), _noise(1, 32, 32, 32)
    widths, levels = (8, 16, 32, 64), (8, 8, 16, 32, 32, 8)
    diffusion: dict[str, Any] = {"norm_num_groups": 4, "num_head_channels": 8}
    return {
        "unet-3d": (lambda: nets.UNet(3, 1, 2, widths, (2, 2, 2), num_res_units=2), volume),
        "unet-2d": (lambda: nets.UNet(2, 1, 2, widths[:3], (2, 2), norm="batch"), small),
        "basic-unet": (lambda: nets.BasicUNet(2, 1, 2, levels), _noise(1, 50, 50)),
        "basic-unet-plus-plus": (lambda: nets.BasicUNetPlusPlus(2, 1, 2, levels), image),
        "dyn-unet": (
            lambda: nets.DynUNet(
                *(3, 1, 2, [3] * 4, [1, 2, 2, 2], [2, 2, 2]),
                filters=[8, 16, 32, 32],
                deep_supervision=False,
            ),
            volume,
        ),
        "seg-resnet": (lambda: nets.SegResNet(3, 8, 1, 2), volume),
        "unetr": (
            lambda: nets.UNETR(
                *(1, 2, (32, 32, 32)), feature_size=8, hidden_size=48, mlp_dim=64, num_heads=4
            ),
            volume,
        ),
        "vnet": (lambda: nets.VNet(3, 1, 2), volume),
        "attention-unet": (lambda: nets.AttentionUnet(2, 1, 2, (8, 16, 32), (2, 2)), small),
        "high-res-net": (lambda: nets.HighResNet(3, 1, 2), _noise(1, 16, 16, 16)),
        "densenet-3d": (
            lambda: nets.DenseNet(
                *(3, 1, 2), init_features=8, growth_rate=4, block_config=(2, 2, 2, 2)
            ),
            volume,
        ),
        "senet": (
            lambda: nets.SENet(2, 1, blocks.SEBottleneck, (1, 1, 1, 1), 64, 16, num_classes=3),
            image,
        ),
        "ahnet": (
            lambda: nets.AHNet((1, 1, 1, 1), 2, in_channels=1, out_channels=2, psp_block_num=0),
            image,
        ),
        "var-autoencoder": (
            lambda: nets.VarAutoEncoder(2, (1, 32, 32), 1, 8, (8, 16), (2, 2)),
            _noise(1, 32, 32),
        ),
        "diffusion-unet": (
            lambda: nets.DiffusionModelUNet(
                *(2, 1, 1, (1, 1), (8, 16), (False, True)), **diffusion
            ),
            lambda: (torch.randn(2, 1, 32, 32), _steps()),
        ),
        "quicknat": (lambda: nets.Quicknat(num_classes=2, num_filters=8), image),
        "resnet-3d": (
            lambda: nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2),
            volume,
        ),
        "mednext": (lambda: nets.MedNeXt(3, 8, 1, 2), volume),
        "efficientnet": (
            lambda: nets.EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=1),
            image,
        ),
    }


def diffusers_samples() -> dict[str, Sample]:
    """The networks of diffusion models."""
    import diffusers

    def blocks(*kinds: str) -> tuple[str, ...]:
        return tuple(f"{kind}Block2D" for kind in kinds)

    coder: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": blocks("DownEncoder", "DownEncoder"),
        "up_block_types": blocks("UpDecoder", "UpDecoder"),
        **{"norm_num_groups": 4, "latent_channels": 4},
    }
    unet: dict[str, Any] = {
        **{"block_out_channels": (16, 32), "layers_per_block": 1},
        **{"norm_num_groups": 4, "attention_head_dim": 4},
    }
    dit: dict[str, Any] = {
        **{"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4},
        **{"num_layers": 2, "sample_size": 8, "patch_size": 2, "norm_num_groups": 4},
    }
    picture, latent = _noise(3, 32, 32), _noise(4, 8, 8)
    return {
        "unet-2d": (
            lambda: diffusers.UNet2DModel(
                *(16, 3, 3),
                down_block_types=blocks("Down", "AttnDown"),
                up_block_types=blocks("AttnUp", "Up"),
                **unet,
            ),
            lambda: (torch.randn(2, 3, 16, 16), _steps()),
        ),
        "unet-2d-condition": (
            lambda: diffusers.UNet2DConditionModel(
                *(16, 4, 4),
                down_block_types=blocks("CrossAttnDown", "Down"),
                up_block_types=blocks("Up", "CrossAttnUp"),
                cross_attention_dim=24,
                **unet,
            ),
            lambda: (torch.randn(2, 4, 16, 16), _steps(), torch.randn(2, 7, 24)),
        ),
        "controlnet": (
            lambda: diffusers.ControlNetModel(
                4,
                down_block_types=blocks("CrossAttnDown", "Down"),
                cross_attention_dim=24,
                conditioning_embedding_out_channels=(8, 16),
                **unet,
            ),
            lambda: (
                *(torch.randn(2, 4, 16, 16), _steps()),
                *(torch.randn(2, 7, 24), torch.randn(2, 3, 32, 32)),
            ),
        ),
        "autoencoder-kl": (lambda: diffusers.AutoencoderKL(**coder), picture),
        "vq-model": (lambda: diffusers.VQModel(num_vq_embeddings=16, **coder), picture),
        "autoencoder-tiny": (
            lambda: diffusers.AutoencoderTiny(
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1),
            ),
            picture,
        ),
        "dit": (
            lambda: diffusers.DiTTransformer2DModel(out_channels=4, num_embeds_ada_norm=10, **dit),
            lambda: (*latent(), _steps(), torch.tensor([1, 2])),
        ),
        "pixart": (
            lambda: diffusers.PixArtTransformer2DModel(
                out_channels=8,
                cross_attention_dim=16,
                caption_channels=12,
                use_additional_conditions=False,
                **dit,
            ),
            lambda: (*latent(), torch.randn(2, 5, 12), _steps()),
        ),
        "sd3": (
            lambda: diffusers.SD3Transformer2DModel(
                *(8, 2, 4, 2, 8, 2),
                joint_attention_dim=12,
                caption_projection_dim=16,
                pooled_projection_dim=10,
                out_channels=4,
            ),
            lambda: (*latent(), torch.randn(2, 5, 12), torch.randn(2, 10), _steps()),
        ),
        "flux": (
            lambda: diffusers.FluxTransformer2DModel(
                patch_size=1,
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=12,
                pooled_projection_dim=10,
                axes_dims_rope=(4, 4, 8),
            ),
            lambda: {
                "hidden_states": torch.randn(2, 16, 4),
                "encoder_hidden_states": torch.randn(2, 5, 12),
                "pooled_projections": torch.randn(2, 10),
                "timestep": torch.tensor([0.3, 0.9]),
                "img_ids": torch.zeros(16, 3),
                "txt_ids": torch.zeros(5, 3),
            },
        ),
    }


def segmentation_samples() -> dict[str, Sample]:
    """Each decoder of segmentation_models_pytorch."""
    import segmentation_models_pytorch as smp

    def made(name: str, encoder: str, **more: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(smp, name)(encoder, encoder_weights=None, classes=3, **more)

    names = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3")
    names += ("DeepLabV3Plus", "PAN", "UPerNet", "Segformer")
    picture = _noise(3, 128, 128)
    return {
        **{
            name: (made(name, "resnet18" if name == "PAN" else "mobilenet_v2"), picture)
            for name in names
        },
        "Unet-mit-aux": (made("Unet", "mit_b0", aux_params={"classes": 4}), picture),
    }


def ultralytics_samples() -> dict[str, Sample]:
    """Detection, segmentation, poses and classification, by the library's configurations."""
    from ultralytics.nn import tasks

    kinds = {"-seg": "Segmentation", "-pose": "Pose", "-cls": "Classification", "rtdetr": "RTDETR"}

    def made(name: str) -> Callable[[], nn.Module]:
        kind = next((kind for part, kind in kinds.items() if part in name), "")
        kind += "" if kind and kind != "RTDETR" else "Detection"
        return lambda: getattr(tasks, f"{kind}Model")(f"{name}.yaml", verbose=False)

    names = ("yolov5n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-cls", "yolov9t")
    names += ("yolov10n", "yolo11n", "yolo12n", "rtdetr-resnet50")
    return {name: (made(name), lambda: (torch.rand(2, 3, 128, 128),)) for name in names}


def graph_samples() -> dict[str, Sample]:
    """Graph networks of torch_geometric, on ten nodes and thirty edges."""
    from torch_geometric import nn as graphs

    def made(name: str, **more: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(graphs, name)(8, 16, 3, 4, **more)

    def inputs() -> tuple[Tensor, ...]:
        return torch.randn(10, 8), torch.randint(0, 10, (2, 30))

    pna = {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.tensor([1, 2, 3])}
    names = ("GCN", "GAT", "GraphSAGE", "GIN", "EdgeCNN")
    return {**{n: (made(n), inputs) for n in names}, "PNA": (made("PNA", **pna), inputs)}


#: By library, the function that makes its samples.
SAMPLES: dict[str, Callable[[], dict[str, Sample]]] = {
    "monai": monai_samples,
    "diffusers": diffusers_samples,
    "segmentation_models_pytorch": segmentation_samples,
    "ultralytics": ultralytics_samples,
    "torch_geometric": graph_samples,
}
