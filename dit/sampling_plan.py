"""How a run is sampled: sampler, times and guidance, as the flags ask."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.config import SamplerConfig
from dit.config.validation import NOT_DDPM, require_use
from dit.diffusion import samplers
from dit.diffusion.classifier import NoisyClassifier
from dit.diffusion.guidance import cfg, classifier_guidance, ignoring_labels, restated
from dit.diffusion.process import DDPM, Denoise, Prediction, Process
from dit.encoders.autoencoder import load_autoencoder
from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.inference import compiled, filled, ready
from dit.models.caching import Cached, full, short
from dit.models.registry import is_classifier
from dit.runs.card import Card, named_otherwise
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_header, read_weights
from dit.trained import Run, load_network, load_run, with_captions
from dit.utils.files import quoted
from dit.utils.image_size import show_size, sides


@dataclass(frozen=True)
class SamplingPlan:
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

    def counting(self, tick: Callable[[float], object]) -> "SamplingPlan":
        """The plan, telling at each call of the denoiser how many images that is worth, of all that make one image.

        Nothing waits for the device: a call counts once it is on its way.
        """
        calls = 2 * self.steps - 1 if self.name == "heun" else self.steps

        def counted(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
            said = self.denoise(x_t, t, y)
            tick(len(x_t) / calls)
            return said

        return replace(self, denoise=counted)


def build_sampling(run: Run, config: SamplerConfig) -> SamplingPlan:
    """Choose sampler, steps and guidance; `auto` is resolved here.

    Raises:
        UserError: a sampler, variance or guidance that the network can not serve.
    """
    card, denoise = run.card, run.denoise
    name = find_sampler(config.sampler, card)
    require_use(config, ("variance",), name == "ddpm", f"with --sampler {name}", *NOT_DDPM)
    variance = config.variance if config.variance != "auto" else "learned" if denoise.learn_sigma else "small"
    if variance == "learned" and not denoise.learn_sigma:
        raise UserError("--variance learned", "a network trained with --learn-sigma", "pass --variance small or large")
    steps = config.steps or (250 if name == "ddpm" else 25)
    if isinstance(denoise.process, DDPM) and steps > denoise.process.start:
        raise UserError(f"--steps {steps}", f"at most {denoise.process.start} with {card.config.process} betas",
                        "pass fewer --steps")
    times = denoise.process.times(steps, config.spacing)
    if (times.diff() == 0).any():
        raise UserError(f"--spacing {config.spacing} with --steps {steps}", "few enough to each have their own times",
                        "pass fewer --steps, or --spacing uniform")
    if config.block_cache and not card.network.model.startswith("DiT"):
        raise UserError(f"--block-cache {config.block_cache} for a {card.network.model}",
                        "a DiT, whose blocks are alike", "drop --block-cache")
    guide = load_guide(run, config.guide) if config.guide else None
    run = _readied(run, config, config.block_cache)
    guide = _readied(guide, config) if guide else None
    denoise = run.denoise
    judge = load_classifier(run, config.classifier) if config.classifier else None
    guided = build_guidance(run, config, guide, judge)
    if config.compile:
        guided = filled(guided, config.batch_size)
    options: dict[str, dict[str, float | str]] = {"ddpm": dict(variance=variance), "ddim": dict(eta=config.eta)}
    sampler = partial(getattr(samplers, name), **options.get(name, {}))
    networks = tuple(one.network for one in (denoise, guide and guide.denoise, judge) if one)
    return SamplingPlan(guided, denoise.process, sampler, name, times, networks)


def find_sampler(name: str, card: Card) -> str:
    """The sampler of that name, or the one that `auto` stands for."""
    return name if name != "auto" else "dpmpp_2m" if card.config.process == "flow" else "ddpm"


def _readied(run: Run, config: SamplerConfig, every: int | None = None) -> Run:
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


def build_guidance(run: Run, config: SamplerConfig, guide: Run | None, judge: NoisyClassifier | None) -> Denoise:
    """The run's denoiser, guided by what is given.

    Raises:
        UserError: guidance that the network can not serve.
    """
    spec, denoise, channels = run.card.network, run.denoise, config.cfg_channels
    if channels is not None and channels > spec.in_channels:
        raise UserError(f"--cfg-channels {channels}", f"at most {spec.in_channels} latent channels",
                        "pass fewer, or drop it to guide all")
    if config.cfg_scale != 1 and not guide and not has_null_class(run.card):
        why = "was trained with --label-dropout 0" if spec.num_classes else "knows no classes"
        raise UserError(f"--cfg-scale {config.cfg_scale:g} for {run.weights.path}, which {why}",
                        "a network with classes and a null class", "pass --cfg-scale 1, or a weaker run with --guide")
    process, objective = denoise.process, denoise.objective
    guided = cfg(denoise, process, config.cfg_scale, spec.num_classes, interval=config.cfg_interval, channels=channels,
                 guide=restated(guide.denoise, process, objective) if guide else None)
    if not spec.num_classes:
        guided = ignoring_labels(guided, 0)  # labels, if there are any, are the classifier's: see `labelled`
    if judge is None:
        return guided
    return classifier_guidance(guided, process, objective, judge.gradient, config.classifier_scale)


def has_null_class(card: Card) -> bool:
    """Whether a network learned what an image of no class is, which classifier-free guidance leads away from."""
    return bool(card.network.num_classes and card.config.label_dropout)


def load_guide(run: Run, path: Path) -> Run:
    """A weaker run to guide `run`: in its size and on its captions.

    Raises:
        UserError: it is none of the same latents, noise and classes.
    """
    with _named(f"--guide {path}"):
        guide = load_run(path, run.device, run.image_size if run.trained_size else None)
    ours, theirs = run.denoise.network, guide.denoise.network
    if isinstance(ours, Captioned) and isinstance(theirs, Captioned):
        guide = with_captions(guide, theirs.network, ours.captions)
    _require_kin(f"--guide {path}", guide.card, run, run.card.network.num_classes)
    return guide


def load_classifier(run: Run, path: Path) -> NoisyClassifier:
    """A classifier to guide `run`, in its size.

    Raises:
        UserError: it is none, or not of the same latents, noise and classes.
    """
    with _named(f"--classifier {path}"):
        weights = read_weights(find_weights(path))
    if not is_classifier(weights.card.network.model):
        raise UserError(f"--classifier {path} is a {weights.card.network.model}", "a run of `dit train-classifier`",
                        f"train one: dit train-classifier --run {quoted(run.home)}")
    _require_kin(f"--classifier {path}", weights.card, run, run.card.network.num_classes or len(run.card.classes))
    network: Any = load_network(weights, run.device)
    if run.trained_size:
        network.resize(run.card.network.input_size)
    return NoisyClassifier(network, run.denoise.process)


def load_to_sample(path: Path, device: torch.device, config: SamplerConfig) -> Run:
    """A run at the size that the flags ask for, and with the classes of the classifier where it has none.

    Raises:
        UserError: as `load_run` does, or no weights of a classifier.
    """
    return labelled(load_run(path, device, config.image_size), config.classifier)


def labelled(run: Run, classifier: Path | None) -> Run:
    """A run without classes that a classifier guides has the classifier's; any other is as it was."""
    if classifier is None or run.card.network.num_classes:
        return run
    judge, _ = read_header(find_weights(classifier))
    classes = [judge.class_name(i) for i in range(judge.network.num_classes)]
    return replace(run, weights=replace(run.weights, card=replace(run.card, classes=classes)))


def _require_kin(flag: str, theirs: Card, run: Run, num_classes: int) -> None:
    """That another network reads the latents and the noise of a run, and means the same `num_classes` classes.

    Times of training may differ; so may the size, where both are resized to another one.
    """
    ours = run.card
    with _named(flag):
        known = run.autoencoder.checksum if theirs.config.vae == ours.config.vae else None
        checksum = theirs.vae_sha256 or known or load_autoencoder(theirs.config.vae, run.device).checksum
    facts: dict[str, tuple[Any, Any]] = {
        "conditions that are": (_conditions(theirs), _conditions(ours)),
        "process": (theirs.config.process, ours.config.process),
        "autoencoder": ("that one", "that one") if checksum == run.autoencoder.checksum else (
            f"{theirs.config.vae} (SHA-256 {str(checksum)[:8]})",
            f"{ours.config.vae} (SHA-256 {str(run.autoencoder.checksum)[:8]})"),
        "latent statistics": (_statistics(theirs), _statistics(ours)),
        "latents of": (_latents(theirs, run), _latents(ours, run)),
        "text encoder": (theirs.text_encoder_sha256, ours.text_encoder_sha256),
        "number of classes": (theirs.network.num_classes, num_classes),
    }
    if other := named_otherwise(theirs, ours):
        label, there, here = other
        facts[f"class {label}"] = repr(there), repr(here)
    for name, (there, here) in facts.items():
        if there != here:
            raise UserError(f"{flag} has {name} {there}, {run.weights.path} has {here}", "the same for both",
                            "pass a network that was trained on what this run was trained on")


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """Mistakes in loading another network name the flag that asks for it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag}: {error.given}", error.expected, error.do) from error


def _conditions(card: Card) -> str:
    return "captions" if card.network.conditioning == "text" else "classes"


def _statistics(card: Card) -> str:
    """Mean and deviation of each channel, in words."""
    if card.latent_mean is None or card.latent_std is None:
        return "of the autoencoder"
    return ", ".join(f"{mean:.4g}±{std:.4g}" for mean, std in zip(card.latent_mean, card.latent_std, strict=True))


def _latents(card: Card, run: Run) -> str:
    size = "any size" if run.trained_size else show_size(sides(card.network.input_size))
    return f"{card.network.in_channels} channels, {size}"


def class_ids(text: str | None, card: Card) -> list[int]:
    """Class ids from a flag such as `0,1,2`; for None all that the network was trained on.

    Raises:
        UserError: not numbers, or out of range.
    """
    if text is None:
        return card.ids
    if card.unconditional:
        raise UserError(f"--classes {text} for a run without classes", "a run that was trained with classes",
                        "drop --classes")
    ids, num_classes = text.split(","), card.network.num_classes or len(card.classes)
    if not all(i.strip().isdecimal() and int(i) < num_classes for i in ids):
        raise UserError(f"--classes {text}", f"class ids from 0 to {num_classes - 1}, separated by commas",
                        "see `dit info RUN` for the classes of a run")
    return [int(i) for i in ids]
