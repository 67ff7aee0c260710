"""What the flags of a sample mean for one network: checked, then resolved.

These checks need the card of a run. So they are here and not in dit.config, which knows no runs.
"""

from dataclasses import replace
from typing import Any

from dit.build import build_process
from dit.config import SamplerConfig
from dit.config.sampling import INTERNAL
from dit.config.validation import NOT_DDPM, require_use
from dit.diffusion.process import DDPM
from dit.distributed.device import compute_precision
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.sampling.load import LoadedRun
from dit.utils.image_size import size_of

DDPM_STEPS, ODE_STEPS, AVERAGE_STEPS = 250, 25, 2  # unless --steps is given


def validate(config: SamplerConfig, card: ModelCard) -> None:
    """Refuse sampler flags that the network of this card cannot serve."""
    sampler = find_sampler(config.sampler, card)
    require_use(config, ("variance",), sampler == "ddpm", f"with --sampler {sampler}", *NOT_DDPM)
    if config.variance == "learned" and not card.config.learn_sigma:
        raise UserError(
            "--variance learned",
            "a network trained with --learn-sigma",
            "pass --variance small or large",
        )
    _validate_times(config, card)
    _validate_guidance(config, card)
    _validate_inner_head(config, card)

    if config.block_cache and not card.network.model.startswith("DiT-"):
        raise UserError(
            f"--block-cache {config.block_cache} for a {card.network.model}",
            "a DiT, whose blocks are alike",
            "drop --block-cache",
        )


def _validate_times(config: SamplerConfig, card: ModelCard) -> None:
    process = build_process(card.config)
    steps = find_steps(config, card)
    # `start` is 1000 for linear betas; cosine sampling starts later, see DDPM.times
    if isinstance(process, DDPM) and steps > process.start:
        raise UserError(
            f"--steps {steps}",
            f"at most {process.start} with {card.config.process} betas",
            "pass fewer --steps",
        )

    # a DDPM has whole times only, and cosine spacing is dense at both ends
    gaps = process.times(steps, config.spacing).diff()
    if (gaps == 0).any():
        raise UserError(
            f"--spacing {config.spacing} with --steps {steps}",
            "a different time for every step",
            "pass fewer --steps, or --spacing uniform",
        )


def _validate_guidance(config: SamplerConfig, card: ModelCard) -> None:
    spec = card.network
    if config.cfg_channels is not None and config.cfg_channels > spec.in_channels:
        raise UserError(
            f"--cfg-channels {config.cfg_channels}",
            f"at most {spec.in_channels} latent channels",
            "pass fewer, or drop it to guide all",
        )
    # cfg extrapolates from the null class, which only label dropout trains
    if config.cfg_scale != 1 and not config.guide and not has_null_class(card):
        why = "trained with --label-dropout 0" if spec.num_classes else "without classes"
        raise UserError(
            f"--cfg-scale {config.cfg_scale:g} for a run {why}",
            "a network with classes and a null class",
            "pass --cfg-scale 1, or a weaker run with --guide",
        )


def notes_on_guidance(config: SamplerConfig, card: ModelCard) -> list[str]:
    """Return what the user should know of the guidance of a network that learned its own."""
    learned = card.config.meanflow_scale
    if learned == 1 or config.cfg_scale == 1:
        return []
    return [
        f"--cfg-scale {config.cfg_scale:g} guides a network that learned guidance of scale "
        f"{learned:g} (--meanflow-scale): both apply; --cfg-scale 1 has that one alone"
    ]


def _validate_inner_head(config: SamplerConfig, card: ModelCard) -> None:
    if config.guide != INTERNAL:
        return
    if not card.network.inner_head:
        raise UserError(
            "--guide internal for a run without an inner head",
            "a run trained with --inner-head",
            "train one, or pass a weaker run (a folder of that name: with its full path)",
        )
    if config.block_cache:
        raise UserError(
            f"--guide internal with --block-cache {config.block_cache}",
            "one of the two",
            "the inner head needs the blocks that the cache leaves out: drop --block-cache",
        )


def resolve(config: SamplerConfig, run: LoadedRun) -> SamplerConfig:
    """Return the settings with a value for everything that was `auto` or left to the run."""
    # a learned variance lies between small and large (2102.09672, equation 15)
    variance: Any = config.variance
    if variance == "auto":
        variance = "learned" if run.denoise.learn_sigma else "small"
    sampler: Any = find_sampler(config.sampler, run.card)
    precision: Any = compute_precision(run.device, config.precision)

    return replace(
        config,
        sampler=sampler,
        steps=find_steps(config, run.card),
        variance=variance,
        image_size=size_of(*run.image_size),
        precision=precision,
        compile=bool(config.compile),
    )


def find_sampler(name: str, card: ModelCard) -> str:
    """Return the sampler of this name, or the one that `auto` stands for."""
    if name != "auto":
        return name
    if card.network.interval:
        return "euler"
    return "dpmpp_2m" if card.config.process == "flow" else "ddpm"


def find_steps(config: SamplerConfig, card: ModelCard) -> int:
    """Return --steps, or the usual number for the sampler."""
    sampler = find_sampler(config.sampler, card)
    usual = DDPM_STEPS if sampler == "ddpm" else ODE_STEPS
    if averages_steps(sampler, card):
        usual = AVERAGE_STEPS
    return config.steps or usual


def averages_steps(sampler: str, card: ModelCard) -> bool:
    """Return whether each step takes its average velocity: Euler's of a run of MeanFlow.

    Other samplers take the velocity at times, which such a network has too.
    """
    return sampler == "euler" and card.network.interval


def has_null_class(card: ModelCard) -> bool:
    """Return whether the network learned the null class, which classifier-free guidance needs."""
    return bool(card.network.num_classes and card.config.label_dropout)
