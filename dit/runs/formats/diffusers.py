"""diffusers' `DiTTransformer2DModel`: weights of a DiT in its names, and back."""

import re
from typing import Any

import torch
from torch import Tensor

from dit.errors import UserError
from dit.models.embeddings import position_embedding
from dit.models.registry import split_name
from dit.models.sizes import SIZES
from dit.runs.card import NetworkSpec
from dit.runs.formats.state_dict import (
    StateDict,
    check_names,
    check_shapes,
    expected_shapes,
    not_a_dit,
)
from dit.utils.image_size import sides

# Modules of this package, and those of diffusers that hold their weights, in order.
MODULES = {
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


def _require_plain(spec: NetworkSpec) -> None:
    """Refuse a network that diffusers' class cannot compute, though names and shapes may fit."""
    if spec.block != "plain" or spec.conditioning != "adaln-zero":
        raise UserError(
            f"a DiT of --block {spec.block} --conditioning {spec.conditioning} for diffusers",
            "plain and adaln-zero, the only ones of DiTTransformer2DModel",
            "use this package for it",
        )
    if spec.inner_head:
        raise UserError(
            "a DiT with an inner head for diffusers",
            "one last layer, as DiTTransformer2DModel has",
            "use this package for it",
        )


def diffusers_config(spec: NetworkSpec) -> dict[str, Any]:
    """Return the arguments of the `DiTTransformer2DModel` for the weights of `to_diffusers`."""
    _require_plain(spec)
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
        norm_eps=spec.mlp_norm_eps,
    )


def to_diffusers(state_dict: StateDict, spec: NetworkSpec) -> StateDict:
    """Convert weights of a DiT to diffusers' names.

    Every block gets a copy of the time and label embedders. One difference between the networks
    remains: diffusers embeds times at frequencies 10000^(-i/127), the release at 10000^(-i/128).
    """
    _require_plain(spec)
    check_shapes(state_dict, spec)
    if spec.time_scale != 1:
        raise not_a_dit(f"times scaled by {spec.time_scale:g}, which diffusers' network has not")
    if spec.interval:
        raise not_a_dit("lengths of steps beside times, which diffusers' network has not")
    if not torch.allclose(state_dict["pos_embed"].float().cpu(), _positions(spec), atol=1e-4):
        raise not_a_dit(
            "pos_embed differs from the fixed sin-cos positions, the only ones diffusers has"
        )
    converted: StateDict = {}
    for name, tensor in state_dict.items():
        if name == "pos_embed":  # computed by diffusers, not stored
            continue
        theirs = _diffusers_names(name, spec)
        parts = [tensor] * len(theirs) if _is_shared(name) else tensor.chunk(len(theirs))
        converted |= {key: part.clone() for key, part in zip(theirs, parts, strict=True)}
    return converted


def from_diffusers(state_dict: StateDict, spec: NetworkSpec) -> StateDict:
    """Convert diffusers' weights to ours, the inverse of `to_diffusers`."""
    _require_plain(spec)
    theirs = {n: _diffusers_names(n, spec) for n in expected_shapes(spec) if n != "pos_embed"}
    given = [name for name in state_dict if name != "pos_embed.pos_embed"]
    check_names([name for names in theirs.values() for name in names], given)

    converted: StateDict = {"pos_embed": _positions(spec)}
    for name, names in theirs.items():
        parts = [state_dict[key] for key in names]
        if _is_shared(name):
            if not all(torch.equal(part, parts[0]) for part in parts):
                raise not_a_dit(f"{names[0]} is not the same in all blocks")
            converted[name] = parts[0]
        else:
            converted[name] = torch.cat(parts)
    check_shapes(converted, spec)
    return converted


def _diffusers_names(name: str, spec: NetworkSpec) -> list[str]:
    """Return diffusers' tensors: one, three (qkv), or one a block (the embedders)."""
    module, kind = name.rsplit(".", 1)
    number = re.match(r"blocks\.(\d+)\.", module)
    blocks = [int(number[1])] if number else [0]
    if _is_shared(name):
        blocks = list(range(SIZES[split_name(spec.model)[0]]["depth"]))
    theirs = MODULES[re.sub(r"blocks\.\d+\.", "blocks.{block}.", module)]
    return [f"{key.format(block=block)}.{kind}" for block in blocks for key in theirs]


def _is_shared(name: str) -> bool:
    return name.startswith(("t_embedder.", "y_embedder."))


def _positions(spec: NetworkSpec) -> Tensor:
    size, patch = split_name(spec.model)
    grid = sides(spec.input_size)[0] // patch
    return position_embedding(SIZES[size]["hidden_size"], (grid, grid))[None]
