"""Runs of networks that are conditioned on captions."""

from pathlib import Path

import torch

from dit.build import build_network
from dit.config import TrainConfig
from dit.data.captions import DIGIT_CAPTIONS
from dit.encoders.text import load_text_encoder
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import write_weights


def write_text_run(root: Path, classes=DIGIT_CAPTIONS) -> Path:
    """Write weights of an untrained network whose output is not zero."""
    config = TrainConfig(vae="identity", image_size=8, model="DiT-Ti/4", conditioning="text")
    spec = NetworkSpec(
        model=config.model,
        input_size=8,
        in_channels=3,
        num_classes=len(classes),
        learn_sigma=False,
        conditioning="text",
        text_width=64,
    )
    card = ModelCard(
        config=config,
        network=spec,
        classes=list(classes),
        text_encoder_sha256=load_text_encoder("digits").checksum,
    )
    torch.manual_seed(0)
    network = build_network(spec)
    for name, parameter in network.named_parameters():
        if any(part in name for part in ("adaLN", "final_layer", "text_attn.proj.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    root.mkdir(parents=True, exist_ok=True)
    write_weights(root / "ema-0.999.safetensors", network.state_dict(), card, 3)
    return root / "ema-0.999.safetensors"
