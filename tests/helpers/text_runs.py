"""A run of captions, untrained."""

from pathlib import Path

import torch
from conftest import random_weights

from dit.build import build_text_encoder
from dit.config import TrainConfig
from dit.data.captions import DIGIT_CAPTIONS
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import write_weights


def write_text_weights(file: Path) -> Path:
    """Write weights of a network whose classes are the captions of the digits; return the file."""
    settings = TrainConfig(vae="identity", image_size=8, model="DiT-Ti/4", conditioning="text")
    encoder = build_text_encoder(settings, torch.device("cpu"))
    spec = NetworkSpec(
        model=settings.model,
        input_size=8,
        in_channels=3,
        num_classes=10,
        learn_sigma=False,
        conditioning="text",
        text_width=encoder.width,
    )
    card = ModelCard(
        config=settings,
        network=spec,
        classes=list(DIGIT_CAPTIONS),
        text_encoder_sha256=encoder.checksum,
    )
    write_weights(file, random_weights(spec), card, 1)
    return file
