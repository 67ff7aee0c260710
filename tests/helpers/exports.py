"""Weights files to export, and the images that they make."""

from pathlib import Path

import torch
from conftest import DIGITS, random_weights
from helpers.autoencoders import save_tiny

from dit.config import SamplerConfig, TrainConfig
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import write_weights
from dit.sampling.generate import generate
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import build_pipeline
from dit.utils.files import sha256
from dit.utils.stored_weights import WEIGHTS

CPU = torch.device("cpu")
DDPM = dict(process="linear", objective="eps", learn_sigma=True, time_sampling="uniform")
STATISTICS = dict(latent_mean=[0.4, -0.2], latent_std=[0.5, 2.0])
CLASSES = [3, 1, 4]


def write_latent_run(
    folder: Path, kind: str = "kl", vae: dict | None = None, card: dict | None = None, **settings
) -> Path:
    """Write a weights file, on latents of a tiny autoencoder, with random weights."""
    autoencoder = save_tiny(folder / "first-stage", kind, **(vae or {}))
    config = TrainConfig(
        vae=str(autoencoder), image_size=16, model="DiT-Ti/4", data="/home/me/photos", **settings
    )
    spec = NetworkSpec(
        model=config.model,
        input_size=8,
        in_channels=2,
        num_classes=10,
        learn_sigma=config.learn_sigma,
        block=config.block,
    )
    checksum = sha256(autoencoder / WEIGHTS)
    about = ModelCard(
        config=config, network=spec, classes=DIGITS, vae_sha256=checksum, **(card or {})
    )
    file = folder / "latent.safetensors"
    write_weights(file, random_weights(spec), about, 7)
    return file


def images_of(run: LoadedRun | Path, labels: list[int] = CLASSES, **settings) -> torch.Tensor:
    """Sample images, int [N, H, W, 3]; they must not be black and white alone."""
    loaded = load_run(run, CPU) if isinstance(run, Path) else run
    pipeline = build_pipeline(loaded, SamplerConfig(**settings), labels)
    images = generate(pipeline, torch.tensor(labels), torch.arange(len(labels)))
    assert ((images > 0) & (images < 255)).float().mean() > 0.2
    return images.permute(0, 2, 3, 1).int()
