"""Which images a shard was made of, for its note: a rerun encodes again what was replaced."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from dit.data.images import ImageFiles, Images
from dit.latents.moments import reading_threads


def describe_images(images: Images, indices: Sequence[int]) -> dict[str, str]:
    """Return entries of a note that identify these images.

    The stamp has names, sizes and times of files. The content is a SHA-256 of their bytes, since
    copied files have the content of the originals, but not their time.
    """
    note = {"stamp": images.stamp(indices)}
    if isinstance(images, ImageFiles):
        note["content"] = _hash_content(images, indices)
    return note


def is_made_of(note: dict[str, Any], images: Images, indices: Sequence[int]) -> bool:
    """Return whether a shard with this note was made of these images."""
    if note["stamp"] == images.stamp(indices):
        return True
    return isinstance(images, ImageFiles) and note.get("content") == _hash_content(images, indices)


def _hash_content(images: ImageFiles, indices: Iterable[int]) -> str:
    total = hashlib.sha256()
    with reading_threads() as pool:
        for digest in pool.map(partial(_hash_file, images), indices):
            total.update(digest)
    return total.hexdigest()


def _hash_file(images: ImageFiles, index: int) -> bytes:
    try:
        with images.open(index) as file:
            return hashlib.sha256(file.read()).digest()
    except (OSError, ValueError):
        return b"unreadable"  # the check of images names it
