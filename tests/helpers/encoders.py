"""A small encoder of --align in a folder."""

import json

import timm
import torch
from safetensors.torch import save_file

ARGUMENTS = dict(img_size=28, patch_size=7, embed_dim=24, depth=2, num_heads=2, reg_tokens=1)


def write_encoder(path, **changes):
    """As a hub's: a classifier of 28 pixels, of which the head is not read."""
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, **changes}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments)
    path.mkdir()
    save_file(network.state_dict(), path / "model.safetensors")
    statistics = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    # the last argument would let timm read a pickle
    arguments["checkpoint_path"] = str(path.parent / "evil.bin")
    config = dict(
        architecture="vit_tiny_patch16_224", model_args=arguments, pretrained_cfg=statistics
    )
    (path / "config.json").write_text(json.dumps(config))
    return path
