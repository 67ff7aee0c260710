"""Weights of a run for diffusers' own DiT and AutoencoderKL."""

from typing import Any

import torch
from torch import Tensor, nn

from dit.encoders.autoencoder import KLCodec
from dit.models.embeddings import sinusoids
from dit.runs.card import ModelCard
from dit.runs.formats.state_dict import StateDict
from dit.sampling.load import LoadedRun

NULL = 1000  # the null class in DiTPipeline
TABLE, TIMES = "y_embedder.embedding_table.weight", "t_embedder.mlp.0"
WAVES = 256
RIDGE = 1e-3  # of the fit of times: its weights stay below 40 times those of training


def stock_weights(state_dict: StateDict, card: ModelCard) -> StateDict:
    """Return the weights with 1001 labels, and with times embedded as diffusers does."""
    table = state_dict[TABLE]
    # a label without a class is the null class
    padded = table[-1:].expand(NULL + 1 - len(table), -1)
    changed = {TABLE: torch.cat([table[:-1], padded, table[-1:]])}
    if not card.network.time_endpoint:
        weight, bias = state_dict[f"{TIMES}.weight"], state_dict[f"{TIMES}.bias"]
        changed[f"{TIMES}.weight"], changed[f"{TIMES}.bias"] = fit_times(weight, bias)
    return {**state_dict, **changed}


def fit_times(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return a linear layer that reads diffusers' waves of times as the given one reads ours.

    Least squares over the times 0 … 999. Waves slower than about 60 steps are met to 1e-3; two
    waves that are faster are far from each other after 1000 steps, and no sum of others mends that.

    Args:
        weight: [D, 256].
        bias: [D].
    """
    times = torch.arange(NULL, dtype=torch.float64)
    ours = sinusoids(times, WAVES) @ weight.double().cpu().T + bias.double().cpu()
    theirs = nn.functional.pad(sinusoids(times, WAVES, endpoint=True), (0, 1), value=1.0)
    normal = theirs.T @ theirs + RIDGE * torch.eye(WAVES + 1, dtype=torch.float64)
    fitted = torch.linalg.solve(normal, theirs.T @ ours).T.to(weight.dtype)
    return fitted[:, :WAVES].contiguous(), fitted[:, WAVES].contiguous()


def stock_autoencoder(run: LoadedRun) -> Any:
    """Return a copy of the AutoencoderKL whose z is the run's latents, times one factor."""
    from diffusers import AutoencoderKL

    autoencoder = run.autoencoder
    assert isinstance(autoencoder.codec, KLCodec)
    theirs = autoencoder.codec.network
    shift, scale = autoencoder.shift.flatten().cpu(), autoencoder.scale.flatten().cpu()
    config = {**theirs.config, "shift_factor": None, "latents_mean": None, "latents_std": None}
    network: Any
    if not shift.any() and (scale == scale[0]).all():
        network = AutoencoderKL.from_config(config, scaling_factor=float(scale[0]))
        network.load_state_dict(theirs.state_dict())
        return network.eval()

    whole = dict(scaling_factor=1.0, use_quant_conv=True, use_post_quant_conv=True)
    network = AutoencoderKL.from_config(config, **whole)
    state_dict = {name: tensor.cpu() for name, tensor in theirs.state_dict().items()}
    network.load_state_dict(_with_statistics(state_dict, shift, scale))
    return network.eval()


def _with_statistics(state_dict: StateDict, shift: Tensor, scale: Tensor) -> StateDict:
    """Return weights whose z is (z - shift) * scale, exactly: by 1x1 convolutions, [C] each."""
    channels = len(shift)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, size in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        identity = torch.eye(size)[:, :, None, None]
        found[name] = (
            state_dict.get(f"{name}.weight", identity),
            state_dict.get(f"{name}.bias", torch.zeros(size)),
        )
    # encoder: mean and log variance of z; decoder: z = latents / scale + shift
    weight, bias = found["quant_conv"]
    factor = torch.cat([scale, torch.ones(channels)])
    moved = torch.cat([(bias[:channels] - shift) * scale, bias[channels:] + 2 * scale.log()])
    decode, decode_bias = found["post_quant_conv"]
    return {
        **state_dict,
        "quant_conv.weight": weight * factor[:, None, None, None],
        "quant_conv.bias": moved,
        "post_quant_conv.weight": decode / scale[None, :, None, None],
        "post_quant_conv.bias": decode_bias + decode[:, :, 0, 0] @ shift,
    }
