"""Stored latents in words."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dit.commands.info.model import Rows, list_classes, listed, numbers
from dit.data.counts import count_of
from dit.latents.shards import ENCODE_AGAIN, LABELS
from dit.latents.store import DAMAGED, Damage, find_damaged_shards, read_index


def latent_rows(root: Path) -> tuple[Rows, list[Damage]]:
    """Return what a folder of latents holds, and its damaged files."""
    index = read_index(root)
    kind = "captions" if index.captions else "class names"
    names = listed(index.classes, len(index.classes)) or "none (unconditional)"
    if index.classes and not index.captions:
        names = list_classes(index.classes, count_images(root, index.classes))
    rows = [
        ("latents", str(root)),
        ("images", f"{index.images:,}, mirrored too: {'yes' if index.flips else 'no'}"),
        (kind, names),
        ("latents of each", " x ".join(map(str, index.shape))),
        ("autoencoder", index.vae),
        ("mean by channel", numbers(index.mean)),
        ("deviation", numbers(index.std)),
    ]
    damages = find_damaged_shards(root)
    for damage in damages:
        rows.append((damage.file, f"DAMAGED: {damage.reason}; {damage.images:,} images"))
    if not damages:
        # earlier versions did not record the checksum of labels
        labels = ", and their labels" if index.labels_sha256 else ""
        shards = f"{count_of(len(index.shards), 'shard')} with {count_of(index.images, 'image')}"
        rows.append(("files", f"{shards}{labels}, checksums verified"))
    return rows, damages


def advice(damaged: Collection[str]) -> str:
    """Return what to do about damaged files."""
    # shards can be skipped in training, the labels of all images cannot
    return ENCODE_AGAIN if LABELS in damaged else DAMAGED


def count_images(root: Path, classes: Sequence[str]) -> list[int] | None:
    """Return the images of each class; None if labels are damaged, which has a row of its own."""
    try:
        labels = np.load(root / LABELS, mmap_mode="r")
        if not len(labels) or not 0 <= labels.min() <= labels.max() < len(classes):
            return None
        return np.bincount(labels, minlength=len(classes)).tolist()
    except (OSError, ValueError, EOFError, TypeError):
        return None
