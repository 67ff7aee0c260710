"""The sampling pipeline: a run, its guidance and all settings, resolved at one place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from dit.config import SamplerConfig
from dit.config.sampling import INTERNAL
from dit.diffusion import samplers
from dit.diffusion.meanflow import steps_between
from dit.diffusion.process import Denoise, Denoiser, Prediction, Process
from dit.encoders.text import Captioned
from dit.models.feature_cache import CachedNetwork, run_all_blocks, run_outer_blocks
from dit.models.parts import BothHeads
from dit.sampling.compile import compile_network, pad_batches, round_weights
from dit.sampling.guides import build_guidance, load_classifier, load_guide
from dit.sampling.load import LoadedRun, without_captions
from dit.sampling.resolve import averages_steps, notes_on_guidance, resolve, validate


@dataclass(frozen=True)
class SamplingPipeline:
    """A run, its guidance and all settings of sampling; nothing is left to choose.

    Args:
        run: Network, autoencoder and device.
        settings: Resolved flags: no `auto`, and a value for steps, size and compile.
        classes: Class ids; image i has class classes[i % len(classes)].
        denoise: The run's denoiser, guided, cached and compiled as the settings ask.
        sampler: A function of dit.diffusion.samplers with its options.
        times: Float64 [steps + 1], descending to 0.
        networks: All networks that `denoise` calls; the first is the run's own.
    """

    run: LoadedRun
    settings: SamplerConfig
    classes: tuple[int, ...]
    denoise: Denoise
    sampler: samplers.Sampler
    times: Tensor
    networks: tuple[Callable[..., Tensor], ...]

    @property
    def process(self) -> Process:
        """The noise process of the run."""
        return self.run.denoise.process

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.times) - 1

    @property
    def notes(self) -> list[str]:
        """What the user should know of the settings."""
        return notes_on_guidance(self.settings, self.run.card)

    @property
    def calls(self) -> int:
        """Number of calls of the denoiser for a batch."""
        # heun calls it twice in each step but the last
        return max(0, 2 * self.steps - 1) if self.settings.sampler == "heun" else self.steps

    @contextmanager
    def clearing_block_cache(self) -> Iterator[None]:
        """Empty the block cache when the block ends, so that no batch sees another's features."""
        network = without_captions(self.networks[0])
        try:
            yield
        finally:
            if isinstance(network, CachedNetwork):
                network.forget()

    def with_progress(self, callback: Callable[[float], object]) -> "SamplingPipeline":
        """Return a pipeline that calls `callback` with the images that each call completes.

        One call of several completes a fraction of its batch.

        It does not wait for the device: a call counts once it has been launched.
        """
        calls = self.calls

        def counted(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
            prediction = self.denoise(x_t, t, y)
            callback(len(x_t) / calls)
            return prediction

        return replace(self, denoise=counted)


def build_pipeline(
    run: LoadedRun, config: SamplerConfig, classes: Sequence[int] | None = None
) -> SamplingPipeline:
    """Check the flags against the run, resolve them, and load and prepare all networks.

    Args:
        run: What to sample from.
        config: Flags, `auto` among them.
        classes: Class ids to sample; all that the run was trained on unless given.
    """
    validate(config, run.card)
    settings = resolve(config, run)
    assert settings.steps

    # before anything is compiled: these may not fit the run
    other = settings.guide if settings.guide != INTERNAL else None
    guide = load_guide(run, other) if other else None
    classifier = load_classifier(run, settings.classifier) if settings.classifier else None

    denoise = prepare_for_inference(run, settings)
    times = denoise.process.times(settings.steps, settings.spacing)
    networks: list[Callable[..., Tensor]] = [denoise.network]
    weaker = None
    if guide:
        weaker = prepare_for_inference(guide, replace(settings, block_cache=None))
        networks.append(weaker.network)
    # 2505.13447, section 4.3: Euler's steps with the average velocity of each
    if averages_steps(settings.sampler, run.card):
        denoise = steps_between(denoise, times)
        weaker = steps_between(weaker, times) if weaker else None
    if classifier:
        networks.append(classifier.network)

    # samplers get one denoiser and do not know what guides it
    guided = build_guidance(denoise, run.card, settings, weaker, classifier)
    if settings.compile:
        guided = pad_batches(guided, settings.batch_size)

    return SamplingPipeline(
        run=run,
        settings=settings,
        classes=tuple(run.card.ids if classes is None else classes),
        denoise=guided,
        sampler=choose_sampler(settings),
        times=times,
        networks=tuple(networks),
    )


def choose_sampler(settings: SamplerConfig) -> samplers.Sampler:
    """Return the sampler with the options that it alone has."""
    # 2006.11239, algorithm 2
    if settings.sampler == "ddpm":
        return partial(samplers.ddpm, variance=settings.variance)
    # 2010.02502, equation 16
    if settings.sampler == "ddim":
        return partial(samplers.ddim, eta=settings.eta)
    return getattr(samplers, settings.sampler)


def prepare_for_inference(run: LoadedRun, settings: SamplerConfig) -> Denoiser:
    """Return the run's denoiser with its weights rounded once, cached and compiled if asked."""
    network: Any = round_weights(
        without_captions(run.denoise.network), run.device, settings.precision
    )

    # classifier-free guidance puts the conditional and the null-class rows into one call
    halves = 2 if settings.cfg_scale != 1 and not settings.guide else 1
    rows = halves * settings.batch_size

    def compiled(part: Callable[..., Any]) -> Callable[..., Any]:
        return compile_network(part, run.device, rows) if settings.compile else part

    # 2406.01125, section 3.2: middle blocks change the tokens alike at neighbouring times
    if settings.block_cache:
        all_blocks = compiled(partial(run_all_blocks, network))
        outer_blocks = compiled(partial(run_outer_blocks, network))
        network = CachedNetwork(all_blocks, outer_blocks, settings.block_cache)
    elif settings.guide == INTERNAL:
        # 2512.24176: the inner head is the weaker network
        network = compiled(BothHeads(network))
    else:
        network = compiled(network)

    # captions are encoded outside of the compiled code
    if isinstance(run.denoise.network, Captioned):
        network = replace(run.denoise.network, network=network)
    return replace(run.denoise, network=network)
