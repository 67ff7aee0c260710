"""Foreign checkpoints in and out: the original DiT release's .pt files, and diffusers' `DiTTransformer2DModel`."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.config import ConvertConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.dit import PATCHES, SIZES
from dit.models.embeddings import position_embedding
from dit.models.registry import create_model, split_name
from dit.runs.card import RELEASE_DATA, ModelCard, NetworkSpec
from dit.runs.weights import write_weights
from dit.utils.files import shell_quote, write_atomically
from dit.utils.hub import absolute_if_local
from dit.utils.image_size import sides

StateDict = dict[str, Tensor]


def convert(config: ConvertConfig, ranks: Ranks) -> None:
    """The command `dit convert`."""
    if ranks.main:
        card = import_release(config.file, config.out, config.vae)
        print(
            f"{card.network.model}, {card.network.num_classes} classes, in {config.out}; next: "
            f"python sample.py --run {shell_quote(config.out)} --cfg-scale 4 --cfg-channels 3"
        )


def import_release(file: Path, out: Path, vae: str = "stabilityai/sd-vae-ft-ema") -> ModelCard:
    """Write weights of the DiT release as a file that `sample.py --run` takes.

    Args:
        file: a .pt file of the release, or one of its training checkpoints.
        out: the .safetensors file to write.
        vae: the autoencoder whose latents, 8 times smaller than the images, the network knows.

    Raises:
        UserError: see `read_release`.
    """
    spec, state_dict = read_release(file)
    card = ModelCard(
        config=release_config(spec, absolute_if_local(vae)),
        network=spec,
        classes=[str(i) for i in range(spec.num_classes)],
    )
    with write_atomically(out) as beside:
        write_weights(
            beside, {name: tensor.float() for name, tensor in state_dict.items()}, card, step=0
        )
    return card


def release_config(spec: NetworkSpec, vae: str) -> TrainConfig:
    """How the release trained its networks (2212.09748, section 4)."""
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


def read_release(file: Path) -> tuple[NetworkSpec, StateDict]:
    """A network's description, inferred from the shapes, and its weights; the EMA of a training checkpoint.

    No code in the file is run.

    Raises:
        UserError: not such a file, truncated, would run code, or with tensors missing or of odd shapes.
    """
    if file.suffix == ".safetensors":
        raise UserError(
            f"{file} is a safetensors file",
            "a .pt file of the DiT release",
            f"pass it as it is: python sample.py --run {shell_quote(file)}",
        )
    loaded = _load_pickle(file)
    for wrapper in ("ema", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise UserError(
            f"{file} has no named tensors",
            "a state dict, alone or under `ema` or `model`",
            "pass a .pt file of the DiT release",
        )
    spec = infer_spec(loaded)
    _check_shapes(loaded, spec)
    return spec, loaded


def infer_spec(state_dict: StateDict) -> NetworkSpec:
    """The network that a state dict with the release's names is for; heads follow from depth and width.

    Raises:
        UserError: missing tensors, or no network of this package.
    """
    axes = {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "final_layer.linear.weight": 2,
    }
    for name, ndim in axes.items():
        if name not in state_dict:
            raise _odd(f"no {name} among the tensors")
        if state_dict[name].ndim != ndim:
            raise _odd(f"{name} with {state_dict[name].ndim} axes instead of {ndim}")
    width, channels, patch = state_dict["x_embedder.proj.weight"].shape[:3]
    tokens, out = state_dict["pos_embed"].shape[1], state_dict["final_layer.linear.weight"].shape[0]
    depth = sum(bool(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", name)) for name in state_dict)
    names = [
        name
        for name, size in SIZES.items()
        if (size["depth"], size["hidden_size"]) == (depth, width)
    ]
    if not names or patch not in PATCHES:
        raise UserError(
            f"a network of {depth} blocks, width {width} and patch size {patch}",
            f"a size among {', '.join(SIZES)} and a patch among {', '.join(map(str, PATCHES))}",
            "only these can be imported",
        )
    return NetworkSpec(
        model=f"DiT-{names[0]}/{patch}",
        input_size=round(tokens**0.5) * patch,
        in_channels=channels,
        num_classes=len(state_dict["y_embedder.embedding_table.weight"]) - 1,
        learn_sigma=out == 2 * channels * patch**2,
    )


def diffusers_config(spec: NetworkSpec) -> dict[str, Any]:
    """Arguments of the `DiTTransformer2DModel` that takes what `to_diffusers` gives."""
    name, patch = split_name(spec.model)
    size = SIZES[name]
    return dict(
        num_attention_heads=size["num_heads"],
        attention_head_dim=size["hidden_size"] // size["num_heads"],
        num_layers=size["depth"],
        sample_size=spec.input_size,
        patch_size=patch,
        in_channels=spec.in_channels,
        out_channels=spec.in_channels * (1 + spec.learn_sigma),
        num_embeds_ada_norm=spec.num_classes,
        norm_eps=1e-6,
    )


def to_diffusers(state_dict: StateDict, spec: NetworkSpec) -> StateDict:
    """Weights of a DiT as a state dict of diffusers' `DiTTransformer2DModel(**diffusers_config(spec))`.

    Every block gets its own copy of the time and label embedders. The networks then differ in one thing, which weights
    can not mend: diffusers embeds times at frequencies 10000^(-i/127) where the release has 10000^(-i/128).

    Raises:
        UserError: odd tensors, or positions other than the fixed ones, which diffusers does not store.
    """
    _check_shapes(state_dict, spec)
    if not torch.allclose(state_dict["pos_embed"].float().cpu(), _positions(spec), atol=1e-4):
        raise _odd(
            "pos_embed differs from the fixed sin-cos positions, the only ones diffusers knows"
        )
    converted: StateDict = {}
    for name, tensor in state_dict.items():
        if name == "pos_embed":
            continue
        foreign = _foreign_names(name, spec)
        parts = [tensor] * len(foreign) if _is_shared(name) else tensor.chunk(len(foreign))
        converted |= {key: part.clone() for key, part in zip(foreign, parts, strict=True)}
    return converted


def from_diffusers(state_dict: StateDict, spec: NetworkSpec) -> StateDict:
    """The inverse of `to_diffusers`, for diffusers' own checkpoints too.

    Raises:
        UserError: missing or odd tensors, or blocks with different embedders.
    """
    converted: StateDict = {"pos_embed": _positions(spec)}
    left = set(state_dict)
    for name in _shapes(spec):
        if name == "pos_embed":
            continue
        foreign = _foreign_names(name, spec)
        if missing := [f for f in foreign if f not in state_dict]:
            raise _odd(f"no {_list(missing)} among the tensors")
        parts = [state_dict[f] for f in foreign]
        if _is_shared(name) and not all(torch.equal(part, parts[0]) for part in parts):
            raise _odd(f"{foreign[0]} is not the same in all blocks")
        converted[name] = parts[0] if _is_shared(name) else torch.cat(parts)
        left -= set(foreign)
    if left - {"pos_embed.pos_embed"}:
        raise _odd(f"unknown {_list(sorted(left))}")
    _check_shapes(converted, spec)
    return converted


FOREIGN = {
    "x_embedder.proj": ["pos_embed.proj"],
    "t_embedder.mlp.0": ["transformer_blocks.{block}.norm1.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["transformer_blocks.{block}.norm1.emb.timestep_embedder.linear_2"],
    "y_embedder.embedding_table": [
        "transformer_blocks.{block}.norm1.emb.class_embedder.embedding_table"
    ],
    "blocks.{block}.adaLN_modulation.1": ["transformer_blocks.{block}.norm1.linear"],
    "blocks.{block}.attn.qkv": [f"transformer_blocks.{{block}}.attn1.to_{part}" for part in "qkv"],
    "blocks.{block}.attn.proj": ["transformer_blocks.{block}.attn1.to_out.0"],
    "blocks.{block}.mlp.fc1": ["transformer_blocks.{block}.ff.net.0.proj"],
    "blocks.{block}.mlp.fc2": ["transformer_blocks.{block}.ff.net.2"],
    "final_layer.adaLN_modulation.1": ["proj_out_1"],
    "final_layer.linear": ["proj_out_2"],
}
"""Modules of the release and those of diffusers that hold their weights, in order."""


def _foreign_names(name: str, spec: NetworkSpec) -> list[str]:
    """Where diffusers keeps a tensor: in one place, in three parts (qkv), or copied into every block (embedders)."""
    module, kind = name.rsplit(".", 1)
    found = re.match(r"blocks\.(\d+)\.", module)
    own = re.sub(r"blocks\.\d+\.", "blocks.{block}.", module)
    depth = SIZES[split_name(spec.model)[0]]["depth"]
    blocks = [int(found[1])] if found else list(range(depth)) if _is_shared(name) else [0]
    return [f"{foreign.format(block=block)}.{kind}" for block in blocks for foreign in FOREIGN[own]]


def _is_shared(name: str) -> bool:
    return name.startswith(("t_embedder.", "y_embedder."))


def _positions(spec: NetworkSpec) -> Tensor:
    size, patch = split_name(spec.model)
    return position_embedding(
        SIZES[size]["hidden_size"], (sides(spec.input_size)[0] // patch,) * 2
    )[None]


def _load_pickle(file: Path) -> Any:
    """What torch.save wrote, of tensors and plain values only; tensors stay on disk until they are used."""
    if not file.is_file():
        raise UserError(f"no file {file}", "a .pt file of the DiT release", "check the path")
    try:
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # the release saves its flags beside the weights
            return torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except Exception as error:  # a damaged pickle can fail in any way
        if isinstance(error, pickle.UnpicklingError) and (
            code := re.search(r"GLOBAL (\S+)", str(error))
        ):
            raise UserError(
                f"{file} would run code when it is loaded ({code[1]})",
                "tensors and plain values only",
                "do not trust this file; ask for weights in .safetensors",
            ) from None
        raise UserError(
            f"{file} can not be read",
            "a complete .pt file written by torch.save",
            "download it again and compare its size",
        ) from None


def _shapes(spec: NetworkSpec) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = create_model(
            spec.model,
            input_size=spec.input_size,
            in_channels=spec.in_channels,
            num_classes=spec.num_classes,
            learn_sigma=spec.learn_sigma,
        )
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _check_shapes(state_dict: StateDict, spec: NetworkSpec) -> None:
    shapes = _shapes(spec)
    if missing := [name for name in shapes if name not in state_dict]:
        raise _odd(f"no {_list(missing)} among the tensors")
    if unknown := [name for name in state_dict if name not in shapes]:
        raise _odd(f"unknown {_list(unknown)}")
    for name, shape in shapes.items():
        if state_dict[name].shape != shape:
            raise _odd(
                f"{name} is {list(state_dict[name].shape)} where {spec.model} has {list(shape)}"
            )


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _odd(given: str) -> UserError:
    return UserError(given, "the tensors of a DiT", "check that the file is a DiT's and complete")
