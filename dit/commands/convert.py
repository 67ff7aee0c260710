"""The command `dit convert`: weights of another program as a file that `sample.py --run` takes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dit.config import ConvertConfig
from dit.config.validation import require_use
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import find_saved
from dit.runs.formats.diffusers_folder import is_diffusers_network
from dit.runs.formats.foreign import NAMES, ForeignNetwork, read_foreign
from dit.runs.formats.imagenet import CLASSES, imagenet_names
from dit.runs.formats.lightningdit import read_statistics
from dit.runs.weights import read_header, read_weights, write_weights
from dit.sampling.classes import given_names
from dit.utils.files import command_line, shell_quote, write_atomically
from dit.utils.hub import absolute_if_local
from dit.utils.outputs import require_own_file

DEFAULT_VAE = "stabilityai/sd-vae-ft-ema"
GUIDED_CHANNELS = 3  # of the four of its latents
# Guidance of the published samples. DiT, SiT and LightningDiT guide three channels; REPA and
# LightningDiT not near noise. The latter's 250 times are 249 steps.
GUIDANCE = {
    "dit": "--cfg-scale 4 --cfg-channels 3",
    "sit": "--cfg-scale 4 --cfg-channels 3",
    "repa": "--cfg-scale 1.8 --cfg-interval 0 0.7",
    "lightningdit": "--sampler euler --steps 249 --cfg-scale 6.7 --cfg-channels 3 "
    "--cfg-interval 0 0.875",
}


def convert(config: ConvertConfig, ranks: Ranks) -> None:
    """Convert a file; print how it was read and how to sample from it.

    Raises:
        UserError: not such a file, truncated, would run code, or with missing or odd tensors.
    """
    if not ranks.main:
        return
    require_own_file(config.out, "convert", _is_converted, flag="output")
    if saved := find_saved(config.file):
        _convert_folder(config, saved)
        return
    foreign = read_foreign(config.file, config.format, config.num_classes)
    for note in filter(None, foreign.notes):
        print(note)

    _require_latents(config, foreign)
    names = _class_names(config.classes, foreign.spec.num_classes)
    statistics = None
    if config.latent_stats:
        statistics = read_statistics(config.latent_stats, foreign.spec.in_channels)
    card = write_foreign(foreign, config.out, config.vae or DEFAULT_VAE, statistics, names)
    if foreign.time_shift != 1:
        print(f"sampling shifts times by {foreign.time_shift:g}, as the card records")
    guidance = GUIDANCE[foreign.format]
    if card.network.in_channels < GUIDED_CHANNELS:
        guidance = guidance.replace(f" --cfg-channels {GUIDED_CHANNELS}", "")
    _print_next(config.out, card, guidance)


def _convert_folder(config: ConvertConfig, file: Path) -> None:
    """Convert the DiT in a folder of diffusers, with the settings that its files have.

    Args:
        file: the network's weights in the folder.
    """
    if not is_diffusers_network(file):
        raise UserError(
            f"{config.file} is a folder of dit export",
            "weights of another program",
            f"pass it without conversion: {command_line('sample')} --run "
            f"{shell_quote(config.file)}",
        )
    given = f"for {config.file}, whose files say it"
    unread = ("format", "num_classes", "latent_stats")
    require_use(config, unread, False, given, "weights of another program")

    weights = read_weights(file)
    vae = config.vae or weights.card.config.vae
    if not config.vae and not any(Path(vae).glob("*.safetensors")):
        raise UserError(
            f"{vae} has no weights in safetensors format",
            "the autoencoder of the network's latents",
            f"pass --vae, such as --vae {DEFAULT_VAE}",
        )
    settings = replace(weights.card.config, vae=absolute_if_local(vae))
    card = replace(weights.card, config=settings)
    if config.classes is not None:
        names = _class_names(config.classes, card.network.num_classes)
        card = replace(card, classes=names)
    with write_atomically(config.out) as temporary:
        write_weights(temporary, weights.state_dict, card, step=0)
    print("read as diffusers computes it: times at frequencies 10000^(-i/127), not i/128")
    _print_next(config.out, card, "--cfg-scale 4")


def _print_next(out: Path, card: ModelCard, guidance: str) -> None:
    """Print what was written, and the command that samples from it."""
    flags = f" {guidance}" if card.config.label_dropout else ""
    print(
        f"{card.network.model}, {card.network.num_classes} classes, in {out}; next: "
        f"{command_line('sample')} --run {shell_quote(out)}{flags}"
    )


def _require_latents(config: ConvertConfig, foreign: ForeignNetwork) -> None:
    """Demand what says how the latents of a LightningDiT are made, and refuse it of others."""
    is_lightningdit = foreign.format == "lightningdit"
    given = f"{config.file} is a LightningDiT"
    if is_lightningdit and config.vae is None:
        raise UserError(
            f"{given} of {foreign.spec.in_channels} latent channels",
            "the autoencoder of its latents",
            "pass --vae with its folder in diffusers' layout, or its name on the hub",
        )
    if is_lightningdit and config.latent_stats is None:
        raise UserError(
            f"{given}, whose latents have zero mean and unit deviation",
            "the statistics of its data",
            "pass --latent-stats latents_stats.pt, which is published beside VA-VAE",
        )
    if config.latent_stats and not is_lightningdit:
        raise UserError(
            f"--latent-stats {config.latent_stats} with a {NAMES[foreign.format]}",
            "a LightningDiT with it",
            "drop --latent-stats: the autoencoder's constants scale its latents",
        )


def _class_names(words: Sequence[str] | None, count: int) -> list[str]:
    """Return the names of so many classes: those of --classes, ImageNet's, or their ids."""
    if words is not None:
        return given_names(words, count)
    if count != CLASSES:
        return [str(label) for label in range(count)]
    print("its 1000 classes have ImageNet's names; --classes gives others")
    return imagenet_names()


def _is_converted(file: Path) -> bool:
    """Whether a file has converted weights, which were trained for no step here."""
    try:
        return read_header(file)[1] == 0
    except UserError:
        return False


def write_foreign(
    foreign: ForeignNetwork,
    out: Path,
    vae: str,
    statistics: tuple[list[float], list[float]] | None = None,
    names: list[str] | None = None,
) -> ModelCard:
    """Write a network in our format.

    Args:
        foreign: the network.
        out: the .safetensors file to write.
        vae: the autoencoder of the network's latents.
        statistics: mean and deviation of each channel of these, if they are scaled by the data's.
        names: of the classes; their ids unless given.
    """
    mean, std = statistics or (None, None)
    card = ModelCard(
        config=foreign.config(absolute_if_local(vae)),
        network=foreign.spec,
        classes=names or [str(i) for i in range(foreign.spec.num_classes)],
        latent_mean=mean,
        latent_std=std,
    )
    with write_atomically(out) as temporary:
        write_weights(temporary, foreign.state_dict, card, step=0)
    return card
