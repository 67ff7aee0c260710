"""The latents to train on: stored, digits in memory, or images encoded on access."""

import sys
from functools import partial
from pathlib import Path

from dit.config import TrainConfig
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.errors import UserError
from dit.latents.on_the_fly import MemoryLatents, OnlineLatents
from dit.latents.shards import ENCODE_AGAIN, LABELS, holds_latents
from dit.latents.store import Latents, LatentStore, find_damaged_shards
from dit.utils.files import shell_quote
from dit.utils.image_size import sides, size_flag


def build_source(
    config: TrainConfig, autoencoder: Autoencoder, ranks: Ranks | None = None
) -> Latents:
    """Open stored latents, encode digits, or wrap other images to be encoded on access."""
    autoencoder.latent_shape(config.image_size)  # refuses a size before anything is encoded
    if holds_latents(Path(config.data)):
        return open_store(config, autoencoder, ranks or Ranks())
    if config.skip_damaged:
        raise UserError(
            f"--skip-damaged with --data {config.data}",
            "a folder of latents with it",
            "drop --skip-damaged",
        )
    columns = Columns(captions=config.conditioning == "text")
    images = load_images(config.data, config.image_size, columns)
    flips = images.flips if config.flip is None else config.flip
    if config.data == "digits":
        return MemoryLatents.encode(images, autoencoder, flips)
    return OnlineLatents(images, autoencoder, flips)


def open_store(config: TrainConfig, autoencoder: Autoencoder, ranks: Ranks) -> LatentStore:
    """Open stored latents; refuse them if this configuration would encode others."""
    skipped: list[str] = []
    if config.skip_damaged:
        skipped = ranks.on_main(partial(list_damaged, config.data))
    store = LatentStore(config.data, skipped)

    data = f"--data {config.data}"
    vae, size = f"--vae {shell_quote(config.vae)}", size_flag(config.image_size)
    again = f"encode again: dit encode --data IMAGES --out OTHER {vae} {size}"
    # checksums, not names: the same autoencoder may be in another folder
    if store.checksum != autoencoder.checksum:
        theirs = f"(SHA-256 {str(store.checksum)[:8]})"
        ours = f"(SHA-256 {str(autoencoder.checksum)[:8]})"
        raise UserError(
            f"{data} was encoded by {store.vae} {theirs}, not by --vae {config.vae} {ours}",
            "the autoencoder of the latents",
            f"pass --vae {shell_quote(store.vae)}, or {again}",
        )
    if sides(store.image_size) != sides(config.image_size):
        stored = size_flag(store.image_size)
        raise UserError(
            f"{data} was encoded with {stored}, not {size}",
            "the size of the latents",
            f"pass {stored}",
        )
    _check_labels(config, store)
    if config.flip and not store.flips:
        raise UserError(
            f"--flip with {data}, which holds no mirrored images",
            "latents with flips",
            f"drop --flip, or {again} --flip",
        )
    return store


def _check_labels(config: TrainConfig, store: LatentStore) -> None:
    """Refuse classes for a network of text, and captions for one of classes."""
    text = config.conditioning == "text"
    unconditional = not text and config.num_classes == 0
    if store.captions == text or unconditional:
        return
    kind, flag = ("captions", "--captions") if text else ("classes", "no --captions")
    encoded = "with" if store.captions else "without"
    raise UserError(
        f"--conditioning {config.conditioning} with --data {config.data}, "
        f"encoded {encoded} --captions",
        f"latents with {kind}",
        f"encode again with {flag}, or pass --conditioning {'adaln-zero' if text else 'text'}",
    )


def list_damaged(root: str) -> list[str]:
    """Return the names of the damaged shards of stored latents, and print them."""
    damaged = find_damaged_shards(root)
    for damage in damaged:
        if damage.file == LABELS:  # without labels no shard is of use
            labels = f"{Path(root) / LABELS} is damaged ({damage.reason})"
            raise UserError(labels, "intact labels", ENCODE_AGAIN)
        images = f"{damage.images:,} images ({damage.reason})"
        print(f"skipped: {damage.file}, {images}", file=sys.stderr)
    if damaged:
        images = f"{sum(damage.images for damage in damaged):,} images"
        print(f"skipped in all: {len(damaged)} damaged shards with {images}", file=sys.stderr)
    return [damage.file for damage in damaged]
