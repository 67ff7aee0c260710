"""The original DiT release (2212.09748), whose tensors have the names of this package."""

import re

import torch

from dit.config import TrainConfig
from dit.errors import UserError
from dit.models.sizes import PATCHES, SIZES
from dit.runs.card import RELEASE_DATA, NetworkSpec
from dit.runs.formats.state_dict import StateDict, not_a_dit
from dit.utils.image_size import sides

TABLE = "y_embedder.embedding_table.weight"
OUTPUT = "final_layer.linear"


def infer_spec(state_dict: StateDict) -> NetworkSpec:
    """Infer the network of a state dict from its shapes; depth and width determine the heads."""
    axes = {"x_embedder.proj.weight": 4, "pos_embed": 3, TABLE: 2, f"{OUTPUT}.weight": 2}
    for name, ndim in axes.items():
        if name not in state_dict:
            raise not_a_dit(f"no {name} among the tensors")
        if state_dict[name].ndim != ndim:
            raise not_a_dit(f"{name} with {state_dict[name].ndim} axes instead of {ndim}")

    width, channels, patch = state_dict["x_embedder.proj.weight"].shape[:3]
    tokens = state_dict["pos_embed"].shape[1]
    outputs = len(state_dict[f"{OUTPUT}.weight"])
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
        # the last row is the null class
        num_classes=len(state_dict[TABLE]) - 1,
        # twice the outputs: a variance for each value of the noise
        learn_sigma=outputs == 2 * channels * patch**2,
    )


def with_null_class(state_dict: StateDict, num_classes: int) -> StateDict:
    """Return a label table with a null class; that of a network trained without one is unused."""
    table = state_dict[TABLE]
    if len(table) > num_classes:
        return state_dict
    return {**state_dict, TABLE: torch.cat([table, torch.zeros_like(table[:1])])}


def release_config(
    spec: NetworkSpec, vae: str, label_dropout: float = 0.1, image_size: int | None = None
) -> TrainConfig:
    """Return the training configuration of the release (2212.09748, section 4)."""
    return TrainConfig(
        preset="imagenet-256",
        data=RELEASE_DATA,
        vae=vae,
        image_size=image_size or 8 * sides(spec.input_size)[0],
        num_classes=spec.num_classes,
        flip=True,
        model=spec.model,
        process="linear",
        objective="eps",
        learn_sigma=spec.learn_sigma,
        time_sampling="uniform",
        label_dropout=label_dropout,
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
