"""A folder for diffusers' own DiTPipeline: what it can express of a run, and what remains.

It knows one null class, id 1000: the table of labels is padded to 1001 rows. It scales latents by
one number: statistics per channel are folded into the autoencoder's 1x1 convolutions. It embeds
times at frequencies 10000^(-i/127) where the release and this package have 10000^(-i/128): the
first layer that reads them is fitted anew to the 1000 times. An error of the fast waves remains.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.config import SamplerConfig
from dit.encoders.autoencoder import KLCodec, quiet_diffusers
from dit.errors import UserError
from dit.export.diffusers import id_to_label
from dit.export.folder import claim_folder
from dit.export.model_card import NOTHING_SAID, USE_IN_DIT, USE_IN_STOCK, About, write_model_card
from dit.models.embeddings import sinusoids
from dit.runs.card import ModelCard
from dit.runs.formats.diffusers import diffusers_config, to_diffusers
from dit.runs.formats.diffusers_folder import INDEX, OBJECTIVES
from dit.runs.formats.state_dict import StateDict
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.sampling.resolve import has_null_class
from dit.training.monitoring.previews import sampler_settings
from dit.utils.files import write_json
from dit.utils.image_size import sides
from dit.utils.pictures import spread
from dit.utils.typed_json import read_json

NULL = 1000  # the null class in DiTPipeline
TABLE, TIMES = "y_embedder.embedding_table.weight", "t_embedder.mlp.0"
WAVES = 256
RIDGE = 1e-3  # of the fit of times: weights stay below 40 times the ones of training
SEEDS, STEPS = 4, 25  # of the measurement


@dataclass(frozen=True)
class Difference:
    """How the images of two samplers differ, in steps of 0 … 255."""

    largest: int
    mean: float
    scale: float  # of guidance

    def __str__(self) -> str:
        return (
            f"DiTPipeline's images and those of dpmpp_2m here, {SEEDS} seeds of equal noise, "
            f"{STEPS} steps, guidance {self.scale:g}: difference at most {self.largest}, on "
            f"average {self.mean:.2g} of 255"
        )


def export_stock(run: LoadedRun, out: Path, about: About = NOTHING_SAID) -> Path:
    """Save a network for diffusers' DiTPipeline, measure the difference and print it.

    Raises:
        UserError: What DiTPipeline cannot express, by name.
    """
    from diffusers import DiTPipeline, DiTTransformer2DModel

    require_stock(run)
    claim_folder(run, out)
    spec = replace(run.card.network, num_classes=NULL, time_endpoint=True)
    state_dict = stock_weights(run.weights.state_dict, run.card)
    transformer = DiTTransformer2DModel(**diffusers_config(spec))
    transformer.load_state_dict(to_diffusers(state_dict, spec))
    pipeline = DiTPipeline(transformer, stock_autoencoder(run), stock_scheduler(run.card))
    pipeline.save_pretrained(out)
    # it saves no names of classes
    index = read_json(out / INDEX, dict[str, Any], "what was written", "export again")
    write_json(out / INDEX, {**index, "id2label": id_to_label(run.card)})

    difference = measure(run, out)
    print(difference)
    write_model_card(run, out, about, USE_IN_DIT + "\n" + USE_IN_STOCK, f"{difference}.")
    return out


def require_stock(run: LoadedRun) -> None:
    """Refuse what DiTTransformer2DModel, DiTPipeline and its schedulers cannot express."""
    card, spec = run.card, run.card.network
    height, width = sides(spec.input_size)
    reasons = {
        f"a {spec.model}": not spec.model.startswith("DiT-"),
        f"--conditioning {spec.conditioning}": spec.conditioning != "adaln-zero",
        f"--block {spec.block}": spec.block != "plain",
        "another size than that of training": run.trained_size is not None,
        "an inner head": spec.inner_head,
        "lengths of steps (--objective meanflow)": spec.interval,
        f"times scaled by {spec.time_scale:g}": spec.time_scale != 1,
        f"latents of {height} x {width}": height != width,
        f"{spec.num_classes:,} classes, more than {NULL:,}": spec.num_classes > NULL,
        "classes, but no null class (--label-dropout 0)": (
            spec.num_classes > 0 and not has_null_class(card)
        ),
        f"{card.config.process} betas": card.config.process not in ("linear", "flow"),
        f"--objective {card.config.objective} of a flow": (
            card.config.process == "flow" and card.config.objective != "v"
        ),
        f"--vae {card.config.vae}": not isinstance(run.autoencoder.codec, KLCodec),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(
                f"--stock for {run.weights.path} with {reason}",
                "what DiTPipeline has: a plain adaLN-Zero DiT of square latents of an "
                f"AutoencoderKL, at most {NULL:,} classes and a null class, linear betas or the "
                "velocity of a flow",
                "drop --stock: the folder's own pipeline makes the same images",
            )


# -- network ---------------------------------------------------------------------------------------


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


# -- autoencoder and scheduler ---------------------------------------------------------------------


def stock_autoencoder(run: LoadedRun) -> Any:
    """Return a copy of the AutoencoderKL whose z is the run's latents, times one factor."""
    from diffusers import AutoencoderKL

    autoencoder = run.autoencoder
    assert isinstance(autoencoder.codec, KLCodec)
    theirs = autoencoder.codec.network
    shift, scale = autoencoder.shift.flatten().cpu(), autoencoder.scale.flatten().cpu()
    config = {**theirs.config, "shift_factor": None, "latents_mean": None, "latents_std": None}
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
    convolution = dict.fromkeys(("quant_conv", "post_quant_conv"))
    found = {}
    for name, size in zip(convolution, (2 * channels, channels), strict=True):
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


def stock_scheduler(card: ModelCard) -> Any:
    """Return DPM-Solver++(2M) for the run's process, our `dpmpp_2m` but for the choice of times."""
    from diffusers import DPMSolverMultistepScheduler

    config = card.config
    if config.process == "flow":
        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.time_shift
        )
    names = {ours: theirs for theirs, ours in OBJECTIVES.items()}
    return DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=names[config.objective],
        timestep_spacing="trailing",
    )


# -- what remains ----------------------------------------------------------------------------------


def measure(run: LoadedRun, folder: Path) -> Difference:
    """Return the difference between the images of a written folder and ours, from equal noise."""
    from diffusers import DiTPipeline

    scale = sampler_settings(run.card).cfg_scale
    labels = (spread(run.card.ids, SEEDS) * SEEDS)[:SEEDS]
    # it warns of ids that are texts, as in every JSON file
    with quiet_diffusers():
        pipe = DiTPipeline.from_pretrained(folder).to(run.device)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        labels,
        guidance_scale=scale,
        num_inference_steps=STEPS,
        generator=_generators(),
        output_type="pt",
    ).images
    images = (theirs.cpu() * 255).round().int()

    settings = SamplerConfig(sampler="dpmpp_2m", steps=STEPS, cfg_scale=scale, precision="fp32")
    pipeline = build_pipeline(run, settings, labels)
    noise = [torch.randn((1, *run.latent_shape), generator=one) for one in _generators()]
    x, y = torch.cat(noise).to(run.device), torch.tensor(labels, device=run.device)
    with torch.inference_mode():
        latents = pipeline.sampler(
            pipeline.denoise, pipeline.process, x, y, pipeline.times, lambda: x
        )
    difference = (run.autoencoder.decode(latents).cpu().int() - images).abs()
    return Difference(int(difference.max()), difference.float().mean().item(), scale)


def _generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
