"""`dit nll`: how many bits a pixel model needs for an image."""

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
from dit.diffusion.likelihood import Levels, Tick, chain, variational_bound_of_chain
from dit.diffusion.ode_likelihood import UnitProbes, ode_log_density, ode_times
from dit.diffusion.process import DDPM
from dit.distributed.device import autocast, compute_precision, device_kind
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned, Captions
from dit.errors import UserError
from dit.latents.load import build_source
from dit.latents.shards import holds_latents
from dit.latents.store import Latents
from dit.sampling.generate import ImageNoise
from dit.sampling.load import LoadedRun, load_run, with_captions
from dit.utils.files import require_writable, sha256, write_json

LEVEL = 127.5  # pixel levels in a unit of pixels in [-1, 1]
ODE_STEPS = 50


def nll(config: NllConfig, ranks: Ranks) -> Path:
    """Measure, print and write the bits per dimension of images given their classes; returns the JSON file.

    Raises:
        UserError: not a pixel model, flags that do not fit it, other classes, or a likelihood that is not finite.
    """
    run = load_run(config.run, ranks.device)
    plan = choose(run, config)
    out = config.out or run.home / "nll.json"
    ranks.on_main(lambda: require_writable(out, ".json"))
    data = config.data or run.card.config.data
    source = open_data(run, data)
    run, labels = conditioned(run, source, data)
    chosen = (
        np.linspace(0, len(labels) - 1, min(config.num_images, len(labels)))
        .round()
        .astype(np.int64)
    )
    bits = measure(run, plan, config, source, labels, chosen, ranks)  # [N, parts]
    require_finite(bits, chosen)
    if ranks.main:
        result = summary(bits, plan)
        told = {"data": data, "images": len(chosen), "pixels_sha256": pixels_sha256(source, chosen)}
        write_json(out, {**result, "protocol": {**protocol(run, plan, config), **told}})
        print(f"{sentence(result, len(chosen))}\n{out}")
    ranks.barrier()
    return out


@dataclass(frozen=True)
class Plan:
    """A way to measure.

    Args:
        method: vlb or ode.
        times: of its steps.
        parts: what the bits are a sum of.
        variance: vlb's: small, large or learned.
        probes: ode's random vectors for the divergence of an image.
        exact: all unit vectors instead.
    """

    method: str
    times: Tensor
    parts: tuple[str, ...]
    variance: str | None = None
    probes: int | None = None
    exact: bool = False

    @property
    def steps(self) -> int:
        """Number of its steps."""
        return len(self.times) - 1


def choose(run: LoadedRun, config: NllConfig) -> Plan:
    """Resolve `auto`, and refuse what does not fit the run.

    Raises:
        UserError: a run behind an autoencoder, or flags that the method or the network can not serve.
    """
    card, process = run.card, run.denoise.process
    if card.config.vae != "identity":
        raise UserError(
            f"{config.run} generates latents of --vae {card.config.vae}",
            "a run with --vae identity",
            "train one: that autoencoder gives no likelihood of pixels",
        )
    method = (
        config.method if config.method != "auto" else "vlb" if isinstance(process, DDPM) else "ode"
    )
    if method == "ode":
        if config.variance != "auto":
            raise UserError(
                f"--variance {config.variance} with --method ode", "--method vlb", "drop --variance"
            )
        times = ode_times(process, config.steps or ODE_STEPS)
        return Plan(
            "ode",
            times,
            ("density",),
            probes=None if config.exact else config.probes,
            exact=config.exact,
        )
    if not isinstance(process, DDPM):
        raise UserError(
            f"--method vlb for {config.run}, a {card.config.process}",
            "a DDPM: linear or cosine",
            "pass --method ode",
        )
    if config.exact or config.probes != 1:
        raise UserError(
            f"{'--exact' if config.exact else f'--probes {config.probes}'} with --method vlb",
            "--method ode",
            "the bound needs no divergence: drop it",
        )
    steps = config.steps or int(process.end)
    if not 2 <= steps <= process.end:
        raise UserError(
            f"--steps {steps} with --method vlb", f"2 to {int(process.end)}", "change --steps"
        )
    variance = (
        config.variance
        if config.variance != "auto"
        else "learned"
        if run.denoise.learn_sigma
        else "large"
    )
    if variance == "learned" and not run.denoise.learn_sigma:
        raise UserError(
            "--variance learned",
            "a network trained with --learn-sigma",
            "pass --variance small or large",
        )
    return Plan("vlb", chain(process, steps), ("prior", "steps", "decoder"), variance=variance)


def open_data(run: LoadedRun, data: str) -> Latents:
    """Images, as the run would see them in training, but never mirrored.

    Raises:
        UserError: as `build_source` does.
    """
    network = run.denoise.network
    encoder = network.captions.encoder.name if isinstance(network, Captioned) else None
    skip = run.card.config.skip_damaged and holds_latents(Path(data))
    config = dataclasses.replace(
        run.card.config, data=data, flip=False, text_encoder=encoder, skip_damaged=skip
    )
    return build_source(config, run.autoencoder)


def conditioned(run: LoadedRun, source: Latents, data: str) -> tuple[LoadedRun, np.ndarray]:
    """The run, and its class ids of the data's images, int64 [N]; classes are told by their names.

    A run of text reads any caption: its ids become those of the data's captions.

    Raises:
        UserError: a class that the run does not know, or no classes where the run has some.
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
            "name the subfolders as the run's classes (see `dit info RUN`)",
        )
    return run, np.array([card.classes.index(name) for name in source.classes])[source.labels]


def levels_of(source: Latents, indices: np.ndarray) -> Tensor:
    """Pixels 0 … 255 of images [B], as float32 [B, 3, H, W]."""
    moments = source.read(indices, np.zeros(len(indices), bool))
    return (moments[:, :3].float() + 1).mul(LEVEL).round()


def pixels_sha256(source: Latents, indices: np.ndarray) -> str:
    """SHA-256 over those of the images in order, each of uint8 [3, H, W]: as reports tell of samples."""
    whole = hashlib.sha256()
    for i in indices:
        whole.update(
            hashlib.sha256(
                levels_of(source, np.array([i])).to(torch.uint8).numpy().tobytes()
            ).digest()
        )
    return whole.hexdigest()


def measure(
    run: LoadedRun,
    plan: Plan,
    config: NllConfig,
    source: Latents,
    labels: np.ndarray,
    chosen: np.ndarray,
    ranks: Ranks,
) -> Tensor:
    """Bits per dimension of the chosen images, by parts: float64 [N, parts], the same on every rank."""
    table = torch.zeros(len(chosen), len(plan.parts), dtype=torch.float64, device=ranks.device)
    mine = range(ranks.rank, len(chosen), ranks.world)
    with tqdm(
        total=len(mine) * plan.steps,
        unit="img-step",
        unit_scale=True,
        desc="nll",
        disable=not ranks.main,
        leave=None,
    ) as bar:
        for start in range(0, len(mine), config.batch_size):
            rows = list(mine[start : start + config.batch_size])
            indices = chosen[rows]
            levels = levels_of(source, indices)
            noise = ImageNoise(config.seed, indices.tolist(), run.latent_shape, run.device)
            y = torch.as_tensor(labels[indices], device=run.device)
            with autocast(run.device, config.precision):
                parts = METHODS[plan.method](run, plan, levels.to(run.device), y, noise, bar.update)
            table[rows] = torch.stack(list(parts), dim=1).double()
    return ranks.total(table)


@torch.inference_mode()
def bits_of_chain(
    run: LoadedRun, plan: Plan, levels: Tensor, y: Tensor, noise: ImageNoise, tick: Tick
) -> Sequence[Tensor]:
    """The variational bound: prior, steps and decoder, each [B]; levels 0 … 255 are [B, 3, H, W]."""
    scaling = Levels(run.autoencoder.shift, run.autoencoder.scale)
    x0 = (levels / LEVEL - 1 - scaling.shift) * scaling.scale
    assert plan.variance
    return variational_bound_of_chain(
        run.denoise, run.denoise.process, x0, y, plan.times, noise, scaling, plan.variance, tick
    )


def bits_of_ode(
    run: LoadedRun, plan: Plan, levels: Tensor, y: Tensor, noise: ImageNoise, tick: Tick
) -> Sequence[Tensor]:
    """-log2 of the ODE's density times the volume of a level, [B]: each level is spread evenly over its width.

    On average over that spread a bound on the bits of the levels themselves (1511.01844, section 3.1).
    """
    shift, scale = run.autoencoder.shift, run.autoencoder.scale
    within = torch.special.ndtr(noise()) - 0.5
    x0 = ((levels + within) / LEVEL - 1 - shift) * scale
    probes = UnitProbes(x0) if plan.exact else [noise().sign() for _ in range(plan.probes or 0)]
    dims = x0[0].numel()
    volume = math.log(LEVEL) - scale.double().log().mean()  # of a level in x, per dimension: -log
    nats = -ode_log_density(run.denoise, run.denoise.process, x0, y, plan.times, probes, tick)
    return ((nats / dims + volume) / math.log(2),)


METHODS = {"vlb": bits_of_chain, "ode": bits_of_ode}


def require_finite(bits: Tensor, chosen: np.ndarray) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: naming the first image that has them.
    """
    bad = (~bits.isfinite().all(1)).nonzero()
    if len(bad):
        raise UserError(
            f"the likelihood of image {chosen[int(bad[0])]} came out as NaN or infinite "
            f"({len(bad)} of {len(chosen)} images)",
            "finite bits",
            "try --precision fp32 or an earlier checkpoint",
        )


def summary(bits: Tensor, plan: Plan) -> dict[str, Any]:
    """Mean over images, its standard error (None of one image), and the means of the parts."""
    each = bits.sum(1)
    error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None
    return {
        "bits_per_dim": float(each.mean()),
        "standard_error": error,
        "parts": dict(zip(plan.parts, bits.mean(0).tolist(), strict=True)),
    }


def sentence(result: dict[str, Any], images: int) -> str:
    """The result in one line."""
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.4f}"
    parts = result["parts"]
    told = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
    bound, how = (
        (" at most", f": {told}") if len(parts) > 1 else ("", ", by the probability-flow ODE")
    )
    return f"{result['bits_per_dim']:.4f}{error} bits/dim{bound} ({images} images{how})"


def protocol(run: LoadedRun, plan: Plan, config: NllConfig) -> dict[str, Any]:
    """All that the numbers depend on, but for the data, as plain JSON values."""
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
