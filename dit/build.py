"""From configuration to objects: the only file that knows both."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dit.config import SamplerConfig, TrainConfig
from dit.data.images import load_images, show_size, sides, size_of
from dit.diffusion import samplers
from dit.diffusion.denoiser import Denoise, Denoiser
from dit.diffusion.guidance import cfg
from dit.diffusion.objective import LossFunction, diffusion_loss, loss_terms
from dit.diffusion.process import DDPM, Flow, Process
from dit.errors import UserError
from dit.latents.autoencoder import Autoencoder, load_autoencoder
from dit.latents.store import Latents, LatentStore, MemoryLatents, OnlineLatents, holds_latents
from dit.models.create import create_model
from dit.runs import Card, NetworkSpec, Weights, find_weights, read_weights


def build_process(config: TrainConfig) -> Process:
    """The noise process of a run."""
    if config.process == "flow":
        return Flow(config.time_sampling, config.time_shift)
    return DDPM(config.process)


def build_network(spec: NetworkSpec) -> nn.Module:
    """A fresh network."""
    sizes = {name: value for name, value in asdict(spec).items() if name != "model"}
    return create_model(spec.model, **sizes)


def initialise(network: nn.Module, card: Card, weights: Path) -> None:
    """Start a network from another run's EMA; with another number of classes all but the null label starts afresh.

    Raises:
        UserError: no weights there, or of another network.
    """
    config, spec = card.config, card.network
    found = read_weights(find_weights(weights))
    theirs = found.card.network
    if replace(theirs, num_classes=spec.num_classes) != spec:
        raise UserError(f"--init {weights} is {theirs}", f"{spec}", "give the flags that the weights were trained with")
    for name in ("process", "objective", "vae", "latent_norm"):
        old, new = getattr(found.card.config, name), getattr(config, name)
        if old != new:
            raise UserError(f"--init {weights} was trained with {name} {old}, not {new}", "the same for both",
                            f"pass --{name.replace('_', '-')} {old}")
    state_dict, table = found.state_dict, "y_embedder.embedding_table.weight"
    if theirs.num_classes != spec.num_classes:
        fresh = network.state_dict()[table].clone()
        fresh[-1] = state_dict[table][-1]
        state_dict = {**state_dict, table: fresh}
    load_weights(network, state_dict, found.path)


def load_weights(network: nn.Module, state_dict: dict[str, Tensor], file: Path) -> None:
    """Fill a network.

    Raises:
        UserError: tensors missing, unknown or of other shapes.
    """
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        cause = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise UserError(f"{file} does not fit its network ({cause})", "all of the network's tensors, in their shapes",
                        "take another checkpoint") from None


def build_loss(config: TrainConfig, network: nn.Module, process: Process) -> tuple[LossFunction, tuple[str, ...]]:
    """What training descends, and the names of its terms."""
    denoise = Denoiser(network, process, config.objective, config.learn_sigma)
    return partial(diffusion_loss, denoise, min_snr_gamma=config.min_snr_gamma), loss_terms(config.learn_sigma)


def build_denoiser(config: TrainConfig, network: nn.Module) -> Denoiser:
    """Network and process as one."""
    return Denoiser(network, build_process(config), config.objective, config.learn_sigma)


def build_source(config: TrainConfig, autoencoder: Autoencoder) -> Latents:
    """The latents to train on: stored ones, digits encoded now, or a folder's images encoded as they come."""
    if holds_latents(Path(config.data)):
        return open_store(config, autoencoder)
    images = load_images(config.data, config.image_size)
    flips = images.flips if config.flip is None else config.flip
    if config.data == "digits":
        return MemoryLatents.encode(images, autoencoder, flips)
    return OnlineLatents(images, autoencoder, flips)


def open_store(config: TrainConfig, autoencoder: Autoencoder) -> LatentStore:
    """Stored latents, if they are what this configuration would encode.

    Raises:
        UserError: encoded by another autoencoder, at another size, or without the flips asked for.
    """
    store = LatentStore(config.data)
    again = f"encode again: dit encode --data IMAGES --out OTHER --vae {config.vae} --image-size {config.image_size}"
    if store.checksum != autoencoder.checksum:
        raise UserError(f"--data {config.data} was encoded by {store.vae}, not by --vae {config.vae}",
                        "the autoencoder of the latents", f"pass --vae {store.vae}, or {again}")
    if sides(store.image_size) != sides(config.image_size):
        raise UserError(f"--data {config.data} was encoded at {show_size(store.image_size)} px, not --image-size "
                        f"{show_size(config.image_size)}", "the size of the latents",
                        f"pass --image-size {' '.join(map(str, sides(store.image_size)))}")
    if config.flip and not store.flips:
        raise UserError(f"--flip with --data {config.data}, which holds no mirrored images", "latents with flips",
                        f"drop --flip, or {again} --flip")
    return store


def build_card(config: TrainConfig, source: Latents) -> Card:
    """Describe the network that this configuration trains on this data.

    Raises:
        UserError: more classes in the data than --num-classes.
    """
    num_classes = config.num_classes or len(source.classes)
    if num_classes < len(source.classes):
        raise UserError(f"--num-classes {num_classes} for data with {len(source.classes)} classes",
                        f"{len(source.classes)} or more", "drop --num-classes to count them in the data")
    channels, *size = source.shape
    spec = NetworkSpec(model=config.model, input_size=size_of(*size), in_channels=channels, num_classes=num_classes,
                       learn_sigma=config.learn_sigma, conditioning=config.conditioning)
    card = Card(config=config, network=spec, classes=source.classes)
    if config.latent_norm == "vae":
        return card
    mean, std = source.statistics()
    return replace(card, latent_mean=mean.tolist(), latent_std=std.tolist())


def build_autoencoder(card: Card, device: torch.device) -> Autoencoder:
    """The autoencoder of a run, with the run's own normalisation."""
    return normalised(load_autoencoder(card.config.vae, device), card)


def normalised(autoencoder: Autoencoder, card: Card) -> Autoencoder:
    """The autoencoder with the latent statistics of the data, where the run measured them."""
    if card.latent_mean is None or card.latent_std is None:
        return autoencoder
    return autoencoder.with_statistics(card.latent_mean, card.latent_std)


@dataclass(frozen=True)
class Run:
    """A trained network, ready to sample from."""

    weights: Weights
    denoise: Denoiser
    autoencoder: Autoencoder
    device: torch.device

    @property
    def card(self) -> Card:
        """What the network is."""
        return self.weights.card

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        height, width = sides(self.card.network.input_size)
        return self.card.network.in_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return sides(self.card.config.image_size)

    @property
    def home(self) -> Path:
        """The run directory that the weights lie in, or the folder of weights that lie alone."""
        folder = self.weights.path.parent
        return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def load_run(path: Path, device: torch.device) -> Run:
    """The EMA of a run directory, a checkpoint directory or a weights file.

    Raises:
        UserError: missing, damaged, or its autoencoder is missing.
    """
    weights = read_weights(find_weights(path))
    with device:
        network = build_network(weights.card.network)
    load_weights(network, weights.state_dict, weights.path)
    network.eval().requires_grad_(False)
    denoise = build_denoiser(weights.card.config, network)
    return Run(weights, denoise, build_autoencoder(weights.card, device), device)


@dataclass(frozen=True)
class SamplingPlan:
    """A sampler with its guidance and times: what `generate` runs on each batch."""

    denoise: Denoise
    process: Process
    sampler: samplers.Sampler
    name: str
    times: torch.Tensor


def build_sampling(run: Run, config: SamplerConfig) -> SamplingPlan:
    """Choose sampler, steps and guidance; `auto` is resolved here.

    Raises:
        UserError: a sampler or variance that the network can not serve.
    """
    card, denoise = run.card, run.denoise
    flow = card.config.process == "flow"
    name = config.sampler if config.sampler != "auto" else "dpmpp_2m" if flow else "ddpm"
    variance = config.variance if config.variance != "auto" else "learned" if denoise.learn_sigma else "small"
    if variance == "learned" and not denoise.learn_sigma:
        raise UserError("--variance learned", "a network trained with --learn-sigma", "pass --variance small or large")
    steps = config.steps or (250 if name == "ddpm" else 25)
    if isinstance(denoise.process, DDPM) and steps > denoise.process.start:
        raise UserError(f"--steps {steps}", f"at most {denoise.process.start} with {card.config.process} betas",
                        "pass fewer --steps")
    channels = config.cfg_channels
    if channels is not None and channels > card.network.in_channels:
        raise UserError(f"--cfg-channels {channels}", f"at most {card.network.in_channels} latent channels",
                        "pass fewer, or drop it to guide all")
    guided = cfg(denoise, denoise.process, config.cfg_scale, card.network.num_classes,
                 interval=config.cfg_interval, channels=channels)
    options: dict[str, dict[str, float | str]] = {"ddpm": dict(variance=variance), "ddim": dict(eta=config.eta)}
    sampler = partial(getattr(samplers, name), **options.get(name, {}))
    return SamplingPlan(guided, denoise.process, sampler, name, denoise.process.times(steps))


def class_ids(text: str | None, card: Card) -> list[int]:
    """Class ids from a flag such as `0,1,2`; for None all that the network was trained on.

    Raises:
        UserError: not numbers, or out of range.
    """
    if text is None:
        return list(range(len(card.classes)))
    ids, num_classes = text.split(","), card.network.num_classes
    if not all(i.strip().isdecimal() and int(i) < num_classes for i in ids):
        raise UserError(f"--classes {text}", f"class ids from 0 to {num_classes - 1}, separated by commas",
                        "see `dit info RUN` for the classes of a run")
    return [int(i) for i in ids]
