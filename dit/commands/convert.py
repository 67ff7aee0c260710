"""The command `dit convert`: weights of another program as a file that `sample.py --run` takes."""

from pathlib import Path

from dit.config import ConvertConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.formats.dit_release import read_release, release_config
from dit.runs.weights import read_header, write_weights
from dit.utils.files import shell_quote, write_atomically
from dit.utils.hub import absolute_if_local
from dit.utils.outputs import require_own_file


def convert(config: ConvertConfig, ranks: Ranks) -> None:
    """Convert a file and print how to sample from it.

    Raises:
        UserError: not such a file, truncated, would run code, or with missing or odd tensors.
    """
    if ranks.main:
        require_own_file(config.out, "convert", _is_converted, flag="output")
        card = import_release(config.file, config.out, config.vae)
        print(
            f"{card.network.model}, {card.network.num_classes} classes, in {config.out}; next: "
            f"python sample.py --run {shell_quote(config.out)} --cfg-scale 4 --cfg-channels 3"
        )


def _is_converted(file: Path) -> bool:
    """Whether a file has converted weights, which were trained for no step here."""
    try:
        return read_header(file)[1] == 0
    except UserError:
        return False


def import_release(file: Path, out: Path, vae: str) -> ModelCard:
    """Write weights of the DiT release in our format.

    Args:
        file: a .pt file of the release, or one of its training checkpoints.
        out: the .safetensors file to write.
        vae: the autoencoder of the network's latents, 8 times smaller than the images.
    """
    spec, state_dict = read_release(file)
    card = ModelCard(
        config=release_config(spec, absolute_if_local(vae)),
        network=spec,
        classes=[str(i) for i in range(spec.num_classes)],
    )
    weights = {name: tensor.float() for name, tensor in state_dict.items()}
    with write_atomically(out) as temporary:
        write_weights(temporary, weights, card, step=0)
    return card
