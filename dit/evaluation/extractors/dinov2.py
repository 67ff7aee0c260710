"""DINOv2 ViT-L/14 through timm, with EDM2's preprocessing, for FD-DINOv2."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.weights import check_shapes, read_tensors, shapes
from dit.utils.files import sha256
from dit.utils.imports import reason

DINOV2 = "dinov2-vitl14"
MODEL = "vit_large_patch14_dinov2.lvd142m"  # timm's name
RELEASE_FILE = "dinov2_vitl14_pretrain.pth"  # the name in facebookresearch/dinov2
HUB_FILE = "model.safetensors"
SIZE, GRID = 224, 16  # pixels, patches
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_dinov2(weights: Path | None, device: torch.device, model: str = MODEL) -> Extractor:
    """Return EDM2's network of FD-DINOv2 (2312.02696): 1024 features, the normalised class token.

    Args:
        weights: local file, timm's or the release's; unless given, the hub's cache or a download.
        model: timm's name.
    """
    path = weights if weights is not None else find_dinov2(model)
    network = make_network(path, model).to(device)
    return Extractor(
        lambda images: Outputs(network(preprocess(images))),
        DINOV2,
        path.name,
        sha256(path),
        "antialiased bicubic to 224x224, ImageNet's mean and deviation; "
        "position embedding resampled as in the release",
        device,
        (network.num_features, 0, 0),
    )


def preprocess(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> [B, 3, 224, 224], antialiased bicubic, not clamped, normalised."""
    size = (SIZE, SIZE)
    images = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True) / 255
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    deviation = torch.tensor(DEVIATION, device=images.device)[:, None, None]
    return (images - mean) / deviation


def make_network(path: Path, model: str) -> Any:
    """Return timm's VisionTransformer for 224 pixels: [B, 3, 224, 224] -> [B, D]."""
    import timm

    tensors = read_tensors(path, f"{HUB_FILE} of timm/{model} or {RELEASE_FILE}")
    tensors.pop("mask_token", None)  # in the release's file only, for training
    with torch.device("meta"):  # no random weights that would be overwritten
        network: Any = timm.create_model(model, num_classes=0)  # for 518 pixels, as in training
    expected = shapes(network.state_dict())
    check_shapes(path, shapes(tensors), expected, f"those of {model}", f"timm/{model}")
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)

    # timm would resample positions in another way when the size is set.
    resampled = resample_positions(network.pos_embed.detach())
    network.set_input_size(img_size=(SIZE, SIZE))
    network.pos_embed = nn.Parameter(resampled)
    return network.eval().requires_grad_(False)


def resample_positions(embedding: Tensor) -> Tensor:
    """Position embedding [1, 1 + 37², D] -> [1, 1 + 16², D], exactly as in the released network.

    The release interpolates by the factor (16 + 0.1) / 37 without antialiasing; timm by 16 / 37
    with it, which gives other features.
    """
    token, grid = embedding[:, :1], embedding[:, 1:]
    side = math.isqrt(grid.shape[1])
    factor = (GRID + 0.1) / side
    grid = grid.transpose(1, 2).unflatten(2, (side, side))  # [1, D, 37, 37]
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    patches = grid.flatten(2).transpose(1, 2)
    return torch.cat([token, patches], dim=1)


def find_dinov2(model: str = MODEL) -> Path:
    """Return the weights in the hub's cache, downloaded if they are missing."""
    import huggingface_hub as hub

    name = f"timm/{model}"
    cached = hub.try_to_load_from_cache(name, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One request first: offline, the download itself would retry for 23 seconds.
        hub.get_hf_file_metadata(hub.hf_hub_url(name, HUB_FILE), timeout=10)
        return Path(hub.hf_hub_download(name, HUB_FILE))
    except Exception as error:  # the hub's client raises many kinds, also of its HTTP library
        raise UserError(
            f"DINOv2's weights {HUB_FILE} of {name} are missing and cannot be downloaded "
            f"({reason(error)})",
            f"{HUB_FILE} of https://huggingface.co/{name}, or {RELEASE_FILE}",
            "download one elsewhere and pass it as --weights dinov2=FILE",
        ) from error
