"""The latents to train on: stored, digits in memory, or images encoded on access."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dit.config import TrainConfig
from dit.data.damage import damage_error, find_damaged_images, no_files_to_skip
from dit.data.first_look import have_colours
from dit.data.images import ImageFiles, Images
from dit.data.labels import Classes, Columns
from dit.data.sources import load_images, refuse_columns
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.errors import UserError
from dit.latents.on_the_fly import MemoryLatents, OnlineLatents
from dit.latents.shards import ENCODE_AGAIN, LABELS, holds_latents
from dit.latents.store import Latents, LatentStore, find_damaged_shards, read_index
from dit.runs.card import ModelCard
from dit.utils.files import describe_checksum, shell_quote
from dit.utils.image_size import sides, size_flag


def build_source(
    config: TrainConfig,
    autoencoder: Autoencoder,
    ranks: Ranks | None = None,
    images: Images | None = None,
) -> Latents:
    """Open stored latents, encode digits, or wrap other images to be encoded on access.

    Args:
        images: those that Python code passed, instead of those that --data names.
    """
    autoencoder.latent_shape(config.image_size)  # refuses a size before anything is encoded
    if images is None and holds_latents(Path(config.data)):
        refuse_columns(config.data, columns_of(config))
        return open_store(config, autoencoder, ranks or Ranks())
    if config.skip_damaged and config.data == "digits":
        raise no_files_to_skip()
    if images is None:
        images = load_images(config.data, config.image_size, columns_of(config))
    if ranks:
        ranks.say(images.notes)
        warn_of_other_data(autoencoder, images, config.data, ranks)
    flips = images.flips if config.flip is None else config.flip
    if config.data == "digits":
        return MemoryLatents.encode(images, autoencoder, flips)
    return OnlineLatents(images, autoencoder, flips)


def warn_of_other_data(
    autoencoder: Autoencoder, images: Images | None, data: str, ranks: Ranks
) -> None:
    """Say that the autoencoder of digits knows nothing else, if the images are others.

    Args:
        images: None where they are not known beforehand.
    """
    if autoencoder.name != "digits" or data == "digits" or not ranks.main:
        return
    colours = images is not None and have_colours(images)
    lost = ": these images lose their colours" if colours else ""
    ranks.say(
        [
            f"--vae digits was trained on gray digits alone{lost}; for small colour images pass "
            "--vae tiny, for photographs --vae stabilityai/sd-vae-ft-ema, or --vae identity for "
            "pixels"
        ],
        "warning" if colours else "note",
    )


def refuse_digits_on_colour(config: TrainConfig, images: Images) -> None:
    """Refuse the autoencoder of `TrainConfig()` for images whose colours it does not know."""
    if config.vae == "digits" and have_colours(images):
        raise UserError(
            "vae='digits', the default of TrainConfig, for images in colour",
            "an autoencoder of colour images",
            "pass vae='tiny' with their image_size, or no config: then both follow from the images",
        )


def columns_of(config: TrainConfig) -> Columns:
    """Return which parts of a sample training reads."""
    captions = config.conditioning == "text"
    classes: Classes = "none" if config.num_classes == 0 else "ask"
    return Columns(captions, config.image_column, config.label_column, classes)


def keep_class_order(source: Latents, classes: Sequence[str]) -> None:
    """Give a source's classes the ids that a run has for them, if they differ in order alone.

    Runs of earlier versions have the classes 0 … 11 in the order of texts: 0, 1, 10, 11, 2, …
    """
    same = source.classes != [*classes] and sorted(source.classes) == sorted(classes)
    if same and len(set(classes)) == len(classes):
        ids = np.array([classes.index(name) for name in source.classes])
        source.labels = ids[source.labels]
        source.classes = [*classes]


def check_images(images: Images, own: Sequence[int], ranks: Ranks, skip: bool) -> list[int]:
    """Return which images cannot be read; each rank checks its `own`, all return the same.

    Raises:
        UserError: there are some and not `skip`, or no other images are left; on all ranks.
    """
    if not isinstance(images, ImageFiles):
        if skip:
            raise no_files_to_skip()
        return []
    flags = torch.zeros(len(images), device=ranks.device)
    for index in find_damaged_images(images, own, quiet=not ranks.main):
        flags[index] = 1
    damaged = ranks.sum(flags).nonzero().flatten().tolist()
    if damaged and (not skip or len(damaged) == len(images)):
        raise damage_error(images, damaged)
    return damaged


def open_store(config: TrainConfig, autoencoder: Autoencoder, ranks: Ranks) -> LatentStore:
    """Open stored latents; refuse them if this configuration would encode others."""
    skipped: list[str] = []
    if config.skip_damaged:
        skipped = ranks.on_main(partial(list_damaged, config.data))
    store = LatentStore(config.data, skipped)

    data = f"--data {config.data}"
    vae, size = f"--vae {shell_quote(config.vae)}", size_flag(config.image_size)
    again = f"dit encode --data IMAGES --out OTHER {vae} {size}"
    # checksums, not names: the same autoencoder may be in another folder; pixels have none
    same_name = store.checksum is not None or store.vae == autoencoder.name
    if store.checksum != autoencoder.checksum or not same_name:
        theirs, ours = describe_checksum(store.checksum), describe_checksum(autoencoder.checksum)
        raise UserError(
            f"{data} was encoded by {store.vae} ({theirs}), not by --vae {config.vae} ({ours})",
            "the autoencoder of the latents",
            f"pass --vae {shell_quote(store.vae)}, or encode again: `{again}`",
        )
    if sides(store.image_size) != sides(config.image_size):
        stored = size_flag(store.image_size)
        raise UserError(
            f"{data} was encoded with {stored}, not {size}",
            "the size of the latents",
            f"pass {stored}",
        )
    _check_captions(config, store)
    ranks.on_main(store.check_labels)
    if config.flip and not store.flips:
        raise UserError(
            f"--flip with {data}, which holds no mirrored images",
            "latents with flips",
            f"drop --flip, or encode again: `{again} --flip`",
        )
    return store


def require_latents_of(card: ModelCard, run: Path, data: str) -> None:
    """Refuse latents of another autoencoder or image size than those of a run; images are fine."""
    if not holds_latents(Path(data)):
        return
    index, config = read_index(Path(data)), card.config
    theirs = f"--vae {shell_quote(index.vae)} {size_flag(index.image_size)}"
    ours = f"--vae {shell_quote(config.vae)} {size_flag(config.image_size)}"
    # by checksum where both are known: folders move
    known = card.vae_sha256 is not None
    same_vae = index.checksum == card.vae_sha256 if known else index.vae == config.vae
    if not same_vae or sides(index.image_size) != sides(config.image_size):
        raise UserError(
            f"--data {data} was encoded with {theirs}, the run {run} was trained with {ours}",
            "latents like those of the run, or images",
            f"encode again: `dit encode --data IMAGES --out OTHER {ours}`",
        )


def _check_captions(config: TrainConfig, store: LatentStore) -> None:
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
