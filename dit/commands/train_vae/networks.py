"""The networks of first stages: untrained ones, their latents' size, and how they are saved."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.config import VaeConfig
from dit.config.validation import flag_of
from dit.distributed.device import free_memory
from dit.distributed.shortage import require_batch_fits
from dit.encoders.autoencoder import CONFIG, WEIGHTS
from dit.errors import UserError
from dit.utils.files import write_bytes, write_json
from dit.utils.image_size import sides, size_flag


def create_network(cfg: VaeConfig) -> Any:
    """Create diffusers' AutoencoderKL or VQModel, untrained, without attention.

    Without attention it accepts images of any size.
    """
    from diffusers import AutoencoderKL, VQModel

    torch.manual_seed(cfg.seed)
    settings = dict(
        down_block_types=("DownEncoderBlock2D",) * len(cfg.channels),
        up_block_types=("UpDecoderBlock2D",) * len(cfg.channels),
        block_out_channels=cfg.channels,
        latent_channels=cfg.latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=max(sides(cfg.image_size)),
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    if cfg.kind == "kl":
        return AutoencoderKL(**settings)
    return VQModel(**settings, num_vq_embeddings=cfg.codebook_size, vq_embed_dim=cfg.codebook_dim)


def require_network_fits(cfg: VaeConfig, device: torch.device) -> None:
    """Refuse networks whose weights, gradients and moments, or whose batch, exceed the memory."""
    # an activation of full size, four times in the encoder and four times in the decoder
    image_bytes = 8 * 2 * math.prod(sides(cfg.image_size)) * cfg.channels[0]
    require_batch_fits(cfg.batch_size, image_bytes, device)
    with torch.device("meta"):
        network = create_network(cfg)
    need, free = 16 * sum(p.numel() for p in network.parameters()), free_memory(device)
    if need > free:
        raise UserError(
            f"{flag_of(cfg, 'channels')} needs {need / 2**30:.2f} GiB for weights, gradients and "
            "AdamW's moments",
            f"at most the {free / 2**30:.2f} GiB that are free",
            "pass smaller --channels",
        )


def latent_sides(cfg: VaeConfig) -> tuple[int, int]:
    """Return height and width of the latents; refuse an image size that does not fit."""
    factor = 2 ** (len(cfg.channels) - 1)
    height, width = sides(cfg.image_size)
    if height % factor or width % factor:
        channels = f"{len(cfg.channels)} --channels, which shrink it by {factor}"
        raise UserError(
            f"{size_flag(cfg.image_size)} with {channels}",
            f"a multiple of {factor}",
            "change one of them",
        )
    return height // factor, width // factor


def save(network: Any, out: Path, mean: Tensor, std: Tensor) -> None:
    """Write a network in diffusers' layout, with statistics [C] of its latents."""
    from safetensors.torch import save as to_bytes

    network.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    state = network.state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_bytes(out / WEIGHTS, to_bytes(tensors, {"format": "pt"}))
    # written last: a folder with a config.json is complete
    write_json(out / CONFIG, json.loads(network.to_json_string()))
