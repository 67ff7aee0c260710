"""The command `dit convert`: weights of another program as a file that `sample.py --run` takes."""

from pathlib import Path

from dit.config import ConvertConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.formats.foreign import ForeignNetwork, read_foreign
from dit.runs.weights import read_header, write_weights
from dit.utils.files import command_line, shell_quote, write_atomically
from dit.utils.hub import absolute_if_local
from dit.utils.outputs import require_own_file

# Guidance of the published samples. DiT and SiT guide three of four channels; REPA not near noise.
GUIDANCE = {
    "dit": "--cfg-scale 4 --cfg-channels 3",
    "sit": "--cfg-scale 4 --cfg-channels 3",
    "repa": "--cfg-scale 1.8 --cfg-interval 0 0.7",
}


def convert(config: ConvertConfig, ranks: Ranks) -> None:
    """Convert a file; print how it was read and how to sample from it.

    Raises:
        UserError: not such a file, truncated, would run code, or with missing or odd tensors.
    """
    if not ranks.main:
        return
    require_own_file(config.out, "convert", _is_converted, flag="output")
    foreign = read_foreign(config.file, config.format, config.num_classes)
    for note in filter(None, foreign.notes):
        print(note)

    card = write_foreign(foreign, config.out, config.vae)
    guidance = f" {GUIDANCE[foreign.format]}" if card.config.label_dropout else ""
    print(
        f"{card.network.model}, {card.network.num_classes} classes, in {config.out}; next: "
        f"{command_line('sample')} --run {shell_quote(config.out)}{guidance}"
    )


def _is_converted(file: Path) -> bool:
    """Whether a file has converted weights, which were trained for no step here."""
    try:
        return read_header(file)[1] == 0
    except UserError:
        return False


def write_foreign(foreign: ForeignNetwork, out: Path, vae: str) -> ModelCard:
    """Write a network in our format.

    Args:
        foreign: the network.
        out: the .safetensors file to write.
        vae: the autoencoder of the network's latents.
    """
    card = ModelCard(
        config=foreign.config(absolute_if_local(vae)),
        network=foreign.spec,
        classes=[str(i) for i in range(foreign.spec.num_classes)],
    )
    with write_atomically(out) as temporary:
        write_weights(temporary, foreign.state_dict, card, step=0)
    return card
