"""`dit nll`: the bits that a pixel model needs for an image."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.config import NllConfig
from dit.diffusion.likelihood import Levels, Tick, bound_of_chain, chain_times
from dit.diffusion.ode_likelihood import UnitProbes, ode_log_density, ode_times
from dit.diffusion.process import DDPM
from dit.distributed.device import autocast, compute_precision, device_kind, with_float64
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned, Captions
from dit.errors import UserError
from dit.latents.load import build_source, require_latents_of
from dit.latents.store import Latents
from dit.sampling.fit import require_samples_fit
from dit.sampling.generate import ImageNoise
from dit.sampling.load import LoadedRun, load_run, with_captions
from dit.utils.files import sha256, write_json
from dit.utils.outputs import is_record, require_own_file, require_writable_file

LEVEL = 127.5  # pixel levels per unit of pixels in [-1, 1]
ODE_STEPS = 50


def nll(config: NllConfig, ranks: Ranks) -> Path:
    """Measure, print and write the bits per dimension of images given their classes.

    Returns:
        The JSON file.

    Raises:
        UserError: Not a pixel model, flags or classes that do not fit it, or NaN.
    """
    # likelihoods are sums in float64
    ranks = dataclasses.replace(ranks, device=with_float64(ranks.device))
    run = load_run(config.run, ranks.device)
    plan = make_plan(run, config)
    out = config.out or run.home / "nll.json"
    ranks.on_main(lambda: require_writable_file(out, ".json"))
    ranks.on_main(lambda: require_own_file(out, "nll", _is_own))

    data = config.data or run.card.config.data
    require_latents_of(run.card, config.run, data)
    source = open_data(run, data)
    run, labels = match_classes(run, source, data)
    count = min(config.num_images, len(labels))
    indices = np.linspace(0, len(labels) - 1, count).round().astype(np.int64)

    require_samples_fit(run, min(config.batch_size, count), config.precision)
    bits = measure(run, plan, config, source, labels, indices, ranks)  # [N, parts]
    require_finite(bits, indices)
    if ranks.main:
        result = summary(bits, plan)
        record = {
            **protocol(run, plan, config),
            "data": data,
            "images": count,
            "pixels_sha256": pixels_sha256(source, indices, config.batch_size),
        }
        write_json(out, {**result, "protocol": record})
        print(f"{sentence(result, count)}\n{out}")
    ranks.barrier()
    return out


# -- the method ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How to measure, with nothing left to choose.

    Args:
        method: vlb or ode.
        times: Of the chain or the ODE, float64 [steps + 1].
        parts: Names of the terms of the bits.
        variance: For vlb: small, large or learned.
        probes: For ode: random vectors that estimate the divergence of an image.
        exact: For ode: all unit vectors instead.
    """

    method: str
    times: Tensor
    parts: tuple[str, ...]
    variance: str | None = None
    probes: int | None = None
    exact: bool = False

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.times) - 1


def make_plan(run: LoadedRun, config: NllConfig) -> Plan:
    """Check the flags against the run, and resolve them."""
    card, process = run.card, run.denoise.process
    if card.config.vae != "identity":
        raise UserError(
            f"{config.run} generates latents of --vae {card.config.vae}",
            "a run with --vae identity",
            "train one: that autoencoder gives no likelihood of pixels",
        )
    method = config.method
    if method == "auto":
        method = "vlb" if isinstance(process, DDPM) else "ode"

    if method == "ode":
        if config.variance != "auto":
            given = f"--variance {config.variance} with --method ode"
            raise UserError(given, "--method vlb", "drop --variance")
        # the ODE has a density under any process
        times = ode_times(process, config.steps or ODE_STEPS)
        probes = None if config.exact else config.probes
        return Plan("ode", times, ("density",), probes=probes, exact=config.exact)

    if not isinstance(process, DDPM):
        raise UserError(
            f"--method vlb for {config.run}, a {card.config.process}",
            "a DDPM: linear or cosine",
            "pass --method ode",
        )
    if config.exact or config.probes != 1:
        flag = "--exact" if config.exact else f"--probes {config.probes}"
        given = f"{flag} with --method vlb"
        raise UserError(given, "--method ode", "the bound needs no divergence: drop it")
    steps = config.steps or int(process.end)
    if not 2 <= steps <= process.end:
        given = f"--steps {steps} with --method vlb"
        raise UserError(given, f"2 to {int(process.end)}", "change --steps")
    return Plan(
        "vlb",
        chain_times(process, steps),
        ("prior", "steps", "decoder"),
        variance=_variance(config.variance, run.denoise.learn_sigma),
    )


def _variance(variance: str, learn_sigma: bool) -> str:
    if variance == "auto":
        return "learned" if learn_sigma else "large"
    if variance == "learned" and not learn_sigma:
        raise UserError(
            "--variance learned",
            "a network trained with --learn-sigma",
            "pass --variance small or large",
        )
    return variance


# -- the data ------------------------------------------------------------------------------------


def open_data(run: LoadedRun, data: str) -> Latents:
    """Open images as the run saw them in training, but never mirrored."""
    network, config = run.denoise.network, run.card.config
    # a run on bundled captions has no --text-encoder of its own; other data needs it
    encoder = network.captions.encoder.name if isinstance(network, Captioned) else None
    changes: dict[str, Any] = dict(data=data, flip=False, text_encoder=encoder)
    changes["skip_damaged"] = config.skip_damaged and data != "digits"
    if data != config.data:
        # other data may have other names of columns
        changes |= dict(image_column=None, label_column=None)
    return build_source(dataclasses.replace(config, **changes), run.autoencoder)


def match_classes(run: LoadedRun, source: Latents, data: str) -> tuple[LoadedRun, np.ndarray]:
    """Return the run and its class ids of the images, int64 [N]; classes are matched by name.

    A text run takes any caption: its ids become those of the data's captions.
    """
    card, network = run.card, run.denoise.network
    if isinstance(network, Captioned):
        captions = Captions(source.classes, "", network.captions.encoder)
        return with_captions(run, network.network, captions), source.labels
    if card.unconditional:
        return run, np.zeros_like(source.labels)
    if source.classes == card.classes:
        return run, source.labels

    unknown = [name for name in source.classes if name not in card.classes]
    if unknown or not source.classes:
        raise UserError(
            f"--data {data} has {f'class {unknown[0]}' if unknown else 'no classes'}",
            f"classes of the run: {', '.join(card.classes[:5])} …",
            "name the subfolders as the run's classes (see `dit info RUN --classes`)",
        )
    ids = np.array([card.classes.index(name) for name in source.classes])
    return run, ids[source.labels]


def read_levels(source: Latents, indices: np.ndarray) -> Tensor:
    """Return pixels 0 … 255 of images [B], as float32 [B, 3, H, W]."""
    moments = source.read(indices, np.zeros(len(indices), bool))
    return (moments[:, :3].float() + 1).mul(LEVEL).round()


def pixels_sha256(source: Latents, indices: np.ndarray, batch_size: int) -> str:
    """Return one hash over the hashes of the images, uint8 [3, H, W], as reports have it."""
    total = hashlib.sha256()
    for start in range(0, len(indices), batch_size):
        for pixels in read_levels(source, indices[start : start + batch_size]).to(torch.uint8):
            total.update(hashlib.sha256(pixels.numpy().tobytes()).digest())
    return total.hexdigest()


# -- measuring -----------------------------------------------------------------------------------


def measure(
    run: LoadedRun,
    plan: Plan,
    config: NllConfig,
    source: Latents,
    labels: np.ndarray,
    chosen: np.ndarray,
    ranks: Ranks,
) -> Tensor:
    """Return bits per dimension of the chosen images, float64 [N, parts], alike on every rank."""
    table = torch.zeros(len(chosen), len(plan.parts), dtype=torch.float64, device=ranks.device)
    mine = range(ranks.rank, len(chosen), ranks.world)
    bar = tqdm(
        total=len(mine) * plan.steps,
        unit="img-step",
        unit_scale=True,
        desc="nll",
        disable=not ranks.main,
        leave=None,
    )
    with bar:
        for start in range(0, len(mine), config.batch_size):
            rows = list(mine[start : start + config.batch_size])
            indices = chosen[rows]
            levels = read_levels(source, indices).to(run.device)
            y = torch.as_tensor(labels[indices], device=run.device)
            noise = ImageNoise(config.seed, indices.tolist(), run.latent_shape, run.device)

            with autocast(run.device, config.precision):
                parts = METHODS[plan.method](run, plan, levels, y, noise, bar.update)
            table[rows] = torch.stack(list(parts), dim=1).double()
    # each rank has zeros in the rows of the others
    return ranks.sum(table)


@torch.inference_mode()
def bits_of_chain(
    run: LoadedRun, plan: Plan, levels: Tensor, y: Tensor, noise: ImageNoise, tick: Tick
) -> Sequence[Tensor]:
    """Return the variational bound as prior, steps and decoder, each [B].

    Args:
        run: A pixel model.
        plan: Of method vlb.
        levels: Pixels 0 … 255, [B, 3, H, W].
        y: Class ids [B].
        noise: Of these images.
        tick: Called with the number of images after each step.
    """
    scaling = Levels(run.autoencoder.shift, run.autoencoder.scale)
    x0 = (levels / LEVEL - 1 - scaling.shift) * scaling.scale
    assert plan.variance
    return bound_of_chain(
        run.denoise, run.denoise.process, x0, y, plan.times, noise, scaling, plan.variance, tick
    )


def bits_of_ode(
    run: LoadedRun, plan: Plan, levels: Tensor, y: Tensor, noise: ImageNoise, tick: Tick
) -> Sequence[Tensor]:
    """Return -log2 of the ODE's density times the volume of a level, [B].

    Each level is spread evenly over its width (uniform dequantisation). On average over that
    spread this is a bound on the bits of the levels themselves (1511.01844, section 3.1).
    """
    shift, scale = run.autoencoder.shift, run.autoencoder.scale
    # Φ of a normal draw is uniform in (0, 1)
    within_level = torch.special.ndtr(noise()) - 0.5
    x0 = ((levels + within_level) / LEVEL - 1 - shift) * scale

    # Hutchinson's estimator with signs (1810.01367), or the trace itself
    probes: UnitProbes | list[Tensor]
    if plan.exact:
        probes = UnitProbes(x0)
    else:
        probes = [noise().sign() for _ in range(plan.probes or 0)]
    nats = -ode_log_density(run.denoise, run.denoise.process, x0, y, plan.times, probes, tick)
    # -log of the width of a level in x, per dimension
    volume = math.log(LEVEL) - scale.double().log().mean()
    return ((nats / x0[0].numel() + volume) / math.log(2),)


METHODS = {"vlb": bits_of_chain, "ode": bits_of_ode}


def require_finite(bits: Tensor, chosen: np.ndarray) -> None:
    """Refuse NaN and infinity, and name the first image that has them."""
    bad = (~bits.isfinite().all(1)).nonzero()
    if len(bad):
        raise UserError(
            f"the likelihood of image {chosen[int(bad[0])]} came out as NaN or infinite "
            f"({len(bad)} of {len(chosen)} images)",
            "finite bits",
            "try --precision fp32 or an earlier checkpoint",
        )


# -- the report ----------------------------------------------------------------------------------


def _is_own(file: Path) -> bool:
    return is_record(file, {"bits_per_dim", "parts", "protocol"})


def summary(bits: Tensor, plan: Plan) -> dict[str, Any]:
    """Return the mean over images, its standard error (None for one), and the mean parts."""
    # of the mean over images, taken as independent
    each = bits.sum(1)
    error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None
    return {
        "bits_per_dim": float(each.mean()),
        "standard_error": error,
        "parts": dict(zip(plan.parts, bits.mean(0).tolist(), strict=True)),
    }


def sentence(result: dict[str, Any], images: int) -> str:
    """Return the result in one line."""
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.4f}"
    bound, method = "", ", by the probability-flow ODE"
    if len(result["parts"]) > 1:
        parts = ", ".join(f"{name} {value:.4f}" for name, value in result["parts"].items())
        bound, method = " at most", f": {parts}"
    return f"{result['bits_per_dim']:.4f}{error} bits/dim{bound} ({images} images{method})"


def protocol(run: LoadedRun, plan: Plan, config: NllConfig) -> dict[str, Any]:
    """Return all that the numbers depend on, but the data, as plain JSON values."""
    weights = run.weights
    return {
        "weights": weights.path.name,
        "weights_sha256": sha256(weights.path),
        "step": weights.step,
        "ema": run.card.average,
        "process": run.card.config.process,
        "method": plan.method,
        "steps": plan.steps,
        "variance": plan.variance,
        "probes": plan.probes,
        "exact": plan.exact,
        "seed": config.seed,
        "precision": compute_precision(run.device, config.precision),
        "device": device_kind(run.device),
        "versions": run.versions,
    }
