"""The original DiT release (2212.09748): its .pt files, which have the names of this package."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.config import TrainConfig
from dit.errors import UserError
from dit.models.sizes import PATCHES, SIZES
from dit.runs.card import RELEASE_DATA, NetworkSpec
from dit.runs.formats.state_dict import StateDict, check_shapes, not_a_dit
from dit.utils.files import shell_quote
from dit.utils.image_size import sides


def read_release(file: Path) -> tuple[NetworkSpec, StateDict]:
    """Return a network's description, inferred from shapes, and its weights.

    Of a training checkpoint these are the EMA weights. No code in the file is run.
    """
    if file.suffix == ".safetensors":
        raise UserError(
            f"{file} is a safetensors file",
            "a .pt file of the DiT release",
            f"pass it without conversion: python sample.py --run {shell_quote(file)}",
        )
    loaded = _load_pickle(file)
    for key in ("ema", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not (isinstance(loaded, dict) and all(isinstance(v, Tensor) for v in loaded.values())):
        raise UserError(
            f"{file} has no named tensors",
            "a state dict, alone or under `ema` or `model`",
            "pass a .pt file of the DiT release",
        )
    spec = infer_spec(loaded)
    check_shapes(loaded, spec)
    return spec, loaded


def infer_spec(state_dict: StateDict) -> NetworkSpec:
    """Infer the network of a state dict from its shapes; depth and width determine the heads."""
    axes = {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "final_layer.linear.weight": 2,
    }
    for name, ndim in axes.items():
        if name not in state_dict:
            raise not_a_dit(f"no {name} among the tensors")
        if state_dict[name].ndim != ndim:
            raise not_a_dit(f"{name} with {state_dict[name].ndim} axes instead of {ndim}")

    width, channels, patch = state_dict["x_embedder.proj.weight"].shape[:3]
    tokens = state_dict["pos_embed"].shape[1]
    outputs = len(state_dict["final_layer.linear.weight"])
    depth = sum(bool(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", name)) for name in state_dict)
    shapes = {}
    for name, size in SIZES.items():
        shapes[size["depth"], size["hidden_size"]] = name
    if (depth, width) not in shapes or patch not in PATCHES:
        patches = ", ".join(map(str, PATCHES))
        raise UserError(
            f"a network of {depth} blocks, width {width} and patch size {patch}",
            f"a size among {', '.join(SIZES)} and a patch among {patches}",
            "only these can be imported",
        )
    return NetworkSpec(
        model=f"DiT-{shapes[depth, width]}/{patch}",
        input_size=round(tokens**0.5) * patch,
        in_channels=channels,
        num_classes=len(state_dict["y_embedder.embedding_table.weight"]) - 1,
        # twice the outputs: a variance for each value of the noise
        learn_sigma=outputs == 2 * channels * patch**2,
    )


def release_config(spec: NetworkSpec, vae: str) -> TrainConfig:
    """Return the training configuration of the release (2212.09748, section 4)."""
    return TrainConfig(
        preset="imagenet-256",
        data=RELEASE_DATA,
        vae=vae,
        image_size=8 * sides(spec.input_size)[0],
        num_classes=spec.num_classes,
        flip=True,
        model=spec.model,
        process="linear",
        objective="eps",
        learn_sigma=spec.learn_sigma,
        time_sampling="uniform",
        label_dropout=0.1,
        steps=400_000,
        global_batch_size=256,
        lr=1e-4,
        weight_decay=0.0,
        beta2=0.999,
        warmup=0,
        cooldown=0.0,
        clip=0.0,
        ema=0.9999,
    )


def _load_pickle(file: Path) -> Any:
    """Load tensors and plain values of torch.save; tensors stay on disk until they are used."""
    if not file.is_file():
        raise UserError(f"no file {file}", "a .pt file of the DiT release", "check the path")
    try:
        # the release saves its flags, a Namespace, beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            mmap = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can fail in any way
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"{file} would run code when it is loaded ({code[1]})",
                "tensors and plain values only",
                "do not trust this file; ask for weights in .safetensors",
            ) from None
        raise UserError(
            f"{file} cannot be read",
            "a complete .pt file written by torch.save",
            "download it again and compare its size",
        ) from None
