"""LightningDiT (2501.01423): the process of SiT, with modern blocks.

    here    mlp.fc1, mlp.fc2;  a hidden width in multiples of 8;     shift, scale and gate
    theirs  mlp.w12, mlp.w3;   the same, rounded down to an integer;  perhaps no shift

Rotary positions, SwiGLU, RMSNorm and QK-norm are computed alike. So names change, and weights that
a LightningDiT does without are zeros here, which is exact. Times and velocities are those of SiT.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.config import TrainConfig
from dit.errors import UserError
from dit.models.embeddings import axial_rotation
from dit.models.layers import HEAD_SIZE, BlockLayers
from dit.models.registry import split_name
from dit.models.sizes import SIZES
from dit.runs.card import NetworkSpec
from dit.runs.formats.foreign_file import open_foreign
from dit.runs.formats.state_dict import StateDict, first_names, not_a_dit
from dit.utils.image_size import sides

ROTATION = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")  # [T, d]: each pair's value twice
SAMPLING_SHIFT = 0.3  # of the published samples, for files without flags
WIDTH_OF_1P0B = 1536  # its heads have 64 features there, and 128 here
FACTOR = 16  # of its autoencoders, but for those of Stable Diffusion with 4 channels
STATISTICS = "the latents_stats.pt of its data: mean and std of each channel"


def modern_layers(state_dict: StateDict) -> list[str]:
    """Return the tensors that tell a LightningDiT from a DiT or SiT; none of these."""
    names = ("blocks.0.mlp.w12.weight", "blocks.0.norm1.weight", ROTATION[0])
    return [name for name in names if name in state_dict]


def block_of(state_dict: StateDict, spec: NetworkSpec) -> str:
    """Return the layers of its blocks, as `--block` names them.

    Args:
        state_dict: with the names of LightningDiT.
        spec: of the DiT of its depth and width.
    """
    if "blocks.0.attn.q_norm.bias" in state_dict:
        raise not_a_dit("queries and keys with LayerNorm, where QK-norm here is RMSNorm")
    size = SIZES[split_name(spec.model)[0]]
    usual = size["hidden_size"] // size["num_heads"]
    head = _head_size(state_dict, size["hidden_size"], usual)
    if head not in (usual, HEAD_SIZE):
        raise not_a_dit(f"heads of {head} features where {spec.model} has {usual} or {HEAD_SIZE}")
    layers = BlockLayers(
        rmsnorm="blocks.0.norm1.weight" in state_dict,
        rope=ROTATION[0] in state_dict,
        qknorm="blocks.0.attn.q_norm.weight" in state_dict,
        swiglu="blocks.0.mlp.w12.weight" in state_dict,
        heads64=head != usual,
    )
    if usual == HEAD_SIZE:
        # the same network either way: users write the shorter name
        return min(layers.spec, replace(layers, heads64=True).spec, key=len)
    return layers.spec


def from_lightningdit(state_dict: StateDict) -> StateDict:
    """Return the weights with names and shapes of this package, without rotary positions.

    Raises:
        UserError: rotary positions that are not those of this package.
    """
    _check_rotation(state_dict)
    width = len(state_dict["x_embedder.proj.weight"])
    converted = {}
    for name, tensor in state_dict.items():
        if name.endswith((".mlp.w12.weight", ".mlp.w12.bias")):
            converted[name.replace("w12", "fc1")] = _wider(tensor, parts=2)
        elif name.endswith(".mlp.w3.weight") and tensor.ndim == 2:
            # its columns are the hidden features
            converted[name.replace("w3", "fc2")] = _wider(tensor.mT).mT
        elif name.endswith((".mlp.w3.weight", ".mlp.w3.bias")):
            converted[name.replace("w3", "fc2")] = tensor
        elif name.startswith("blocks.") and ".adaLN_modulation.1." in name:
            converted[name] = _with_shifts(tensor, width)
        elif name not in ROTATION:
            converted[name] = tensor
    return converted


def lightningdit_config(flow: TrainConfig, spec: NetworkSpec, time_shift: float) -> TrainConfig:
    """Return the configuration of its training (2501.01423, appendix), and shift of sampling."""
    return replace(
        flow,
        block=spec.block,
        latent_norm="data",
        time_sampling="logit-normal",
        time_shift=time_shift,
        cosine=1.0,
        steps=80_000,
        global_batch_size=1024,
        lr=2e-4,
        beta2=0.95,
    )


def usual_image_size(spec: NetworkSpec) -> int | None:
    """Return the size of its images in pixels, where the usual one of a DiT does not hold."""
    return FACTOR * sides(spec.input_size)[0] if spec.in_channels > 4 else None


def time_shift(flags: Mapping[str, Any]) -> float:
    """Return the shift of sampling's times in our direction.

    Theirs takes 1 - t to s (1 - t) / (1 + (s - 1) (1 - t)), which takes t to its shift by 1 / s.
    """
    # its code does not shift where its flags have no shift, or 0
    shift = flags.get("timestep_shift", 0 if flags else SAMPLING_SHIFT)
    return 1 / shift if isinstance(shift, int | float) and shift > 0 else 1.0


def read_statistics(file: Path, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel of z, from latents_stats.pt.

    Raises:
        UserError: not such a file, would run code, or numbers that do not fit the channels.
    """
    try:
        loaded = open_foreign(file)
    except UserError as error:
        raise UserError(f"--latent-stats: {error.given}", STATISTICS, error.do) from None
    mean = _values(loaded, "mean", channels, file)
    std = _values(loaded, "std", channels, file)
    if min(std) <= 0:
        raise UserError(
            f"--latent-stats {file} with deviations down to {min(std):g}",
            "all above 0",
            "copy it again",
        )
    return mean, std


def _values(loaded: Any, name: str, channels: int, file: Path) -> list[float]:
    """Return a number for each channel, by its name in a loaded file."""
    tensor = loaded.get(name) if isinstance(loaded, Mapping) else None
    if not isinstance(tensor, Tensor) or not _is_plain(tensor):
        has = f", only {first_names(map(str, loaded))}" if isinstance(loaded, Mapping) else ""
        given = f"--latent-stats {file} has no numbers {name}{has}"
        raise UserError(given, STATISTICS, "check the path")
    values = tensor.float().flatten()
    if len(values) != channels or not values.isfinite().all():
        raise UserError(
            f"--latent-stats {file} with {name} of shape {list(tensor.shape)}",
            f"a finite number for each of {channels} channels",
            "take the file of the same autoencoder",
        )
    return values.tolist()


def _check_rotation(state_dict: StateDict) -> None:
    """Refuse other rotary positions than those that are computed here."""
    given = [state_dict[name] for name in ROTATION if name in state_dict]
    if not given:
        return
    side = round(state_dict["pos_embed"].shape[1] ** 0.5)
    ours = axial_rotation(given[0].shape[-1], (side, side)).repeat_interleave(2, dim=-1)
    for theirs, expected in zip(given, ours, strict=False):
        # files in half precision have three digits
        tolerance = 1e-4 if theirs.dtype in (torch.float32, torch.float64) else 1e-2
        fits = _is_plain(theirs) and theirs.shape == expected.shape
        if not fits or not torch.allclose(theirs.float(), expected, rtol=0, atol=tolerance):
            raise UserError(
                f"{ROTATION[0]} of other positions than axial ones of base 10,000",
                "those, which are computed here",
                "a network with other positions cannot be imported",
            )


def _head_size(state_dict: StateDict, width: int, usual: int) -> int:
    """Return the features of a head, from tensors that have them; else those of its code."""
    for name in (ROTATION[0], "blocks.0.attn.q_norm.weight"):
        if name in state_dict:
            return state_dict[name].shape[-1] if state_dict[name].ndim else 0
    return HEAD_SIZE if width == WIDTH_OF_1P0B else usual


def _wider(rows: Tensor, parts: int = 1) -> Tensor:
    """Return rows [parts * h, …] with zero rows up to the next multiple of 8 of h, in each part.

    A hidden feature of zeros is silu(0) * 0 = 0.
    """
    if not _is_plain(rows) or len(rows) % parts:
        return rows
    hidden = len(rows) // parts
    missing = -hidden % 8
    if missing == 0:
        return rows
    by_part = rows.float().unflatten(0, (parts, hidden))
    zeros = by_part.new_zeros(parts, missing, *rows.shape[1:])
    return torch.cat([by_part, zeros], dim=1).flatten(0, 1)


def _with_shifts(rows: Tensor, width: int) -> Tensor:
    """Return rows of shift, scale and gate, twice, where the file has scale and gate alone."""
    if not _is_plain(rows) or len(rows) != 4 * width:
        return rows
    scales_and_gates = rows.float().unflatten(0, (2, 2 * width))
    shifts = torch.zeros_like(scales_and_gates[:, :width])
    return torch.cat([shifts, scales_and_gates], dim=1).flatten(0, 1)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a list of numbers, or more; others are refused by name later."""
    is_stored = tensor.layout is torch.strided and not tensor.is_meta
    return is_stored and tensor.is_floating_point() and tensor.ndim > 0
