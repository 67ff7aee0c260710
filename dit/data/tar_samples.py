"""The samples of a tar shard: files of one key, wherever they lie in it."""

import copy
import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dit.data.image_formats import is_image
from dit.errors import UserError

Files = dict[str, tarfile.TarInfo]  # by extension, in lower case


class Sample(NamedTuple):
    """The files of one key: an image, its label and more."""

    key: str
    files: Files


@contextmanager
def open_tar(shard: Path) -> Iterator[tarfile.TarFile]:
    """Open a shard; a damaged one is an error with its name, also while it is read."""
    try:
        with tarfile.open(shard, "r:") as tar:
            yield tar
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{shard} cannot be read as a tar ({error})",
            "an intact tar file, not compressed",
            "copy it again, unpack a .tar.gz, or pass the shards without it",
        ) from error


def list_samples(
    tar: tarfile.TarFile, shard: Path, image: str | None
) -> tuple[list[Sample], list[str]]:
    """Return the samples of a shard in the order of their first files, and files without a key.

    The extension starts at the first dot of the file name, as in WebDataset; or at the last one,
    where names have dots.

    Args:
        image: the image's extension, if one was chosen.
    """
    from webdataset.tariterators import base_plus_ext

    groups: dict[str, Files] = {}
    without_key = []
    for member in _regular_files(tar, shard):
        key, extension = base_plus_ext(member.name)
        if key is None:  # such as README
            without_key.append(member.name)
            continue
        files = groups.setdefault(key, {})
        previous = files.setdefault(extension.lower(), member)
        if previous is not member:
            raise UserError(
                f"{shard} has {previous.name} and later {member.name}",
                "each file once",
                "pack it again",
            )
    _check_end(shard, tar.offset)

    samples = []
    for key, files in groups.items():
        samples += _split_dotted_names(Sample(key, files), image)
    return samples, without_key


def _split_dotted_names(sample: Sample, image: str | None) -> list[Sample]:
    """Return the samples of files such as img.v1.jpg, img.v1.cls and img.v2.jpg.

    They have the key img up to the first dot. Where an image has a file of the same name up to the
    last dot, that name is the key.
    """
    if image and image.lower() in sample.files:
        return [sample]
    parts: dict[str, Files] = {}
    for extension, member in sample.files.items():
        name, _, last = extension.rpartition(".")
        parts.setdefault(name, {})[last] = member

    in_pairs = any(len(files) > 1 and _images(files) for files in parts.values())
    chosen = image is not None and any(image.lower() in files for files in parts.values())
    if "" in parts or not (in_pairs or chosen):
        return [sample]
    return [Sample(f"{sample.key}.{name}", files) for name, files in parts.items()]


def find_image(sample: Sample, image: str | None, shard: Path) -> tarfile.TarInfo | None:
    """Return the image of a sample; refuse several."""
    if image:
        return sample.files.get(image.lower())
    images = _images(sample.files)
    if len(images) > 1:
        one, other = (sample.files[extension].name for extension in images[:2])
        last = images[0].rpartition(".")[2]
        each = f"; or {last}, if each is a sample of its own" if last != images[0] else ""
        raise UserError(
            f"{one} and {other} in {shard} are images of one sample",
            "one image a sample",
            f"choose by --image-column, such as --image-column {images[0]}{each}",
        )
    return sample.files[images[0]] if images else None


def _images(files: Files) -> list[str]:
    return [extension for extension in files if is_image(f"x.{extension}")]


# -- files of a tar --------------------------------------------------------------------------------


def _regular_files(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yield files and links to them, except hidden ones, as macOS and editors leave them."""
    files: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if any(map(_is_hidden, member.name.split("/"))):
            continue
        if member.islnk() or member.issym():
            member = _follow_link(member, files, shard)
        if member.isreg():
            files[posixpath.normpath(member.name)] = member
            yield member


def _is_hidden(part: str) -> bool:
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


def _follow_link(
    link: tarfile.TarInfo, files: dict[str, tarfile.TarInfo], shard: Path
) -> tarfile.TarInfo:
    """Return a link's file, by the name of the link."""
    # the target of a symbolic link is relative to its folder, that of a hard link to the tar
    folder = posixpath.dirname(link.name) if link.issym() else ""
    target = files.get(posixpath.normpath(posixpath.join(folder, link.linkname)))
    if target is None:
        raise UserError(
            f"{link.name} in {shard} is a link to {link.linkname}, which is not before it",
            "files",
            "pack it again, with `tar --dereference --hard-dereference`",
        )
    target = copy.copy(target)
    target.name = link.name
    return target


def _check_end(shard: Path, offset: int) -> None:
    # tarfile takes a missing or damaged header for the end of the file; a real end is a zero block
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off at byte {offset:,}")
