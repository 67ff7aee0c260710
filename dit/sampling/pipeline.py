"""How a run is sampled: sampler, times and guidance, as the flags ask."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit.config import SamplerConfig
from dit.config.validation import NOT_DDPM, require_use
from dit.diffusion import samplers
from dit.diffusion.process import DDPM, Denoise, Prediction, Process
from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.models.caching import Cached, full, short
from dit.runs.card import ModelCard
from dit.sampling.compile import compiled, filled, ready
from dit.sampling.guides import build_guidance, load_classifier, load_guide
from dit.sampling.load import LoadedRun


@dataclass(frozen=True)
class SamplingPipeline:
    """A sampler with its guidance and times: what `generate` runs on each batch.

    Args:
        networks: those that it calls; the run's own is the first.
    """

    denoise: Denoise
    process: Process
    sampler: samplers.Sampler
    name: str
    times: torch.Tensor
    networks: tuple[Callable[..., Tensor], ...]

    @property
    def steps(self) -> int:
        """Number of its steps."""
        return len(self.times) - 1

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """What the network remembers from one time to the next, if anything, is forgotten at the end."""
        network = self.networks[0]
        inner = network.network if isinstance(network, Captioned) else network
        try:
            yield
        finally:
            if isinstance(inner, Cached):
                inner.forget()

    def counting(self, tick: Callable[[float], object]) -> "SamplingPipeline":
        """The plan, telling at each call of the denoiser how many images that is worth, of all that make one image.

        Nothing waits for the device: a call counts once it is on its way.
        """
        calls = 2 * self.steps - 1 if self.name == "heun" else self.steps

        def counted(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
            said = self.denoise(x_t, t, y)
            tick(len(x_t) / calls)
            return said

        return replace(self, denoise=counted)


def build_pipeline(run: LoadedRun, config: SamplerConfig) -> SamplingPipeline:
    """Choose sampler, steps and guidance; `auto` is resolved here.

    Raises:
        UserError: a sampler, variance or guidance that the network can not serve.
    """
    card, denoise = run.card, run.denoise
    name = find_sampler(config.sampler, card)
    require_use(config, ("variance",), name == "ddpm", f"with --sampler {name}", *NOT_DDPM)
    variance = (
        config.variance
        if config.variance != "auto"
        else "learned"
        if denoise.learn_sigma
        else "small"
    )
    if variance == "learned" and not denoise.learn_sigma:
        raise UserError(
            "--variance learned",
            "a network trained with --learn-sigma",
            "pass --variance small or large",
        )
    steps = config.steps or (250 if name == "ddpm" else 25)
    if isinstance(denoise.process, DDPM) and steps > denoise.process.start:
        raise UserError(
            f"--steps {steps}",
            f"at most {denoise.process.start} with {card.config.process} betas",
            "pass fewer --steps",
        )
    times = denoise.process.times(steps, config.spacing)
    if (times.diff() == 0).any():
        raise UserError(
            f"--spacing {config.spacing} with --steps {steps}",
            "few enough to each have their own times",
            "pass fewer --steps, or --spacing uniform",
        )
    if config.block_cache and not card.network.model.startswith("DiT"):
        raise UserError(
            f"--block-cache {config.block_cache} for a {card.network.model}",
            "a DiT, whose blocks are alike",
            "drop --block-cache",
        )
    guide = load_guide(run, config.guide) if config.guide else None
    run = _readied(run, config, config.block_cache)
    guide = _readied(guide, config) if guide else None
    denoise = run.denoise
    judge = load_classifier(run, config.classifier) if config.classifier else None
    guided = build_guidance(run, config, guide, judge)
    if config.compile:
        guided = filled(guided, config.batch_size)
    options: dict[str, dict[str, float | str]] = {
        "ddpm": dict(variance=variance),
        "ddim": dict(eta=config.eta),
    }
    sampler = partial(getattr(samplers, name), **options.get(name, {}))
    networks = tuple(one.network for one in (denoise, guide and guide.denoise, judge) if one)
    return SamplingPipeline(guided, denoise.process, sampler, name, times, networks)


def find_sampler(name: str, card: ModelCard) -> str:
    """The sampler of that name, or the one that `auto` stands for."""
    return name if name != "auto" else "dpmpp_2m" if card.config.process == "flow" else "ddpm"


def _readied(run: LoadedRun, config: SamplerConfig, every: int | None = None) -> LoadedRun:
    """The run with its network as sampling calls it; its middle blocks compute in one of `every` calls, or always."""
    captioned = run.denoise.network if isinstance(run.denoise.network, Captioned) else None
    plain: Any = captioned.network if captioned else run.denoise.network
    network: Any = ready(plain, run.device, config.precision)
    halves = 2 if config.cfg_scale != 1 and not config.guide else 1

    def called(part: Callable[..., Any]) -> Callable[..., Any]:
        return compiled(part, run.device, halves * config.batch_size) if config.compile else part

    if every:
        network = Cached(called(partial(full, network)), called(partial(short, network)), every)
    else:
        network = called(network)
    network = replace(captioned, network=network) if captioned else network
    return replace(run, denoise=replace(run.denoise, network=network))
