"""What to train on: stored latents, digits in memory, or images encoded as they come."""

import sys
from functools import partial
from pathlib import Path

from dit.config import TrainConfig
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.errors import UserError
from dit.latents.online import MemoryLatents, OnlineLatents
from dit.latents.shards import AGAIN, LABELS, holds_latents
from dit.latents.store import Latents, LatentStore, damaged_shards
from dit.utils.files import shell_quote
from dit.utils.image_size import sides, size_flag


def build_source(
    config: TrainConfig, autoencoder: Autoencoder, ranks: Ranks | None = None
) -> Latents:
    """The latents to train on: stored ones, digits encoded now, or other images encoded as they come."""
    autoencoder.latent_shape(
        config.image_size
    )  # tells of a size that does not fit before anything is encoded
    if holds_latents(Path(config.data)):
        return open_store(config, autoencoder, ranks or Ranks())
    if config.skip_damaged:
        raise UserError(
            f"--skip-damaged with --data {config.data}",
            "a folder of latents with it",
            "drop --skip-damaged",
        )
    images = load_images(
        config.data, config.image_size, Columns(captions=config.conditioning == "text")
    )
    flips = images.flips if config.flip is None else config.flip
    if config.data == "digits":
        return MemoryLatents.encode(images, autoencoder, flips)
    return OnlineLatents(images, autoencoder, flips)


def open_store(config: TrainConfig, autoencoder: Autoencoder, ranks: Ranks) -> LatentStore:
    """Stored latents, if they are what this configuration would encode; without damaged shards, if it says so.

    Raises:
        UserError: encoded by another autoencoder, at another size, or without the flips asked for.
    """
    store = LatentStore(
        config.data,
        ranks.on_main(partial(find_damaged, config.data)) if config.skip_damaged else (),
    )
    again = (
        "encode again: dit encode --data IMAGES --out OTHER "
        f"--vae {shell_quote(config.vae)} {size_flag(config.image_size)}"
    )
    if store.checksum != autoencoder.checksum:
        theirs, ours = (
            f"(SHA-256 {str(checksum)[:8]})" for checksum in (store.checksum, autoencoder.checksum)
        )
        raise UserError(
            f"--data {config.data} was encoded by {store.vae} {theirs}, not by --vae {config.vae} {ours}",
            "the autoencoder of the latents",
            f"pass --vae {shell_quote(store.vae)}, or {again}",
        )
    if sides(store.image_size) != sides(config.image_size):
        raise UserError(
            f"--data {config.data} was encoded with {size_flag(store.image_size)}, not "
            f"{size_flag(config.image_size)}",
            "the size of the latents",
            f"pass {size_flag(store.image_size)}",
        )
    text = config.conditioning == "text"
    if store.captions != text and (text or config.num_classes != 0):
        kind, flag = ("captions", "--captions") if text else ("classes", "no --captions")
        raise UserError(
            f"--conditioning {config.conditioning} with --data {config.data}, encoded with"
            f"{'' if store.captions else 'out'} --captions",
            f"latents with {kind}",
            f"encode again with {flag}, or pass --conditioning {'adaln-zero' if text else 'text'}",
        )
    if config.flip and not store.flips:
        raise UserError(
            f"--flip with --data {config.data}, which holds no mirrored images",
            "latents with flips",
            f"drop --flip, or {again} --flip",
        )
    return store


def find_damaged(root: str) -> list[str]:
    """Names of the damaged shards of stored latents; tells of each.

    Raises:
        UserError: the labels are damaged, without which no shard is of use.
    """
    damaged = damaged_shards(root)
    for damage in damaged:
        if damage.file == LABELS:
            raise UserError(
                f"{Path(root) / LABELS} is damaged ({damage.reason})", "intact labels", AGAIN
            )
        print(
            f"left out: {damage.file}, {damage.images:,} images ({damage.reason})", file=sys.stderr
        )
    if damaged:
        print(
            f"left out in all: {len(damaged)} damaged shards with {sum(d.images for d in damaged):,} images",
            file=sys.stderr,
        )
    return [damage.file for damage in damaged]
