"""The networks of first stages: untrained ones, their latents' size, and how they are saved."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
        # at most 8, of 8 channels or more: plain areas lose their colours in groups of 2
        norm_num_groups=math.gcd(8, *(width // 8 for width in cfg.channels)),
        sample_size=max(sides(cfg.image_size)),
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    network: Any
    if cfg.kind == "kl":
        network = AutoencoderKL(**settings)
    else:
        network = VQModel(
            **settings, num_vq_embeddings=cfg.codebook_size, vq_embed_dim=cfg.codebook_dim
        )
    _start_near_linear(network)
    if cfg.kind == "kl":
        _start_with_little_noise(network.quant_conv, cfg.latent_channels)
    return network


def _start_near_linear(network: nn.Module) -> None:
    """Initialise orthogonal convolutions without bias, and residual blocks as the identity.

    With diffusers' start, many of the first steps learn little but the mean colours.
    """
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        gain = 1.0 if "upsamplers" in name else math.sqrt(2)
        nn.init.orthogonal_(module.weight, gain)
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)  # last of a residual block
        assert module.bias is not None
        nn.init.zeros_(module.bias)


@torch.no_grad()
def _start_with_little_noise(quant_conv: nn.Conv2d, latent_channels: int) -> None:
    """Start with a deviation of the posterior of about exp(-3), for the decoder to see the mean."""
    assert quant_conv.bias is not None
    quant_conv.weight[latent_channels:] *= 0.1
    quant_conv.bias[latent_channels:] = -6


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
