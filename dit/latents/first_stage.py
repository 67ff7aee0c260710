"""The autoencoder and the image size for images whose owner names neither: they follow from them.

Stable Diffusion's autoencoder is good from about 256 px, and slow without a GPU. The bundled `tiny`
is for all else.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from dit.data.image_files import read_size, read_size_of
from dit.data.image_formats import is_image
from dit.data.labels import Columns
from dit.data.own import is_own, load_own
from dit.data.sources import find_tars, is_packed
from dit.errors import UserError
from dit.utils.hub import is_available
from dit.utils.image_size import Size, sides, size_flag, size_of
from dit.utils.typed_json import read_json

TINY, PIXELS, DIGITS = "tiny", "identity", "digits"
SD_VAE = "stabilityai/sd-vae-ft-ema"
SD_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
USUAL_FACTOR = 8  # of autoencoders on the hub
FACTORS = {PIXELS: 1, DIGITS: 4, TINY: 4}
PATCHES = {8: 64, 4: 16}  # the least side of latents for each
SIZES = (256, 128, 64, 32)  # pixels, to choose from
LEAST_SD_SIDE = 192  # of images that are worth 256 px
ENLARGED = 4 / 3  # at most, in size
LOOKED_AT, PER_FOLDER, FOLDERS = 200, 10, 1000  # images, and folders, to know their sizes


@dataclass(frozen=True)
class FirstStage:
    """What images are encoded with."""

    vae: str
    image_size: Size
    notes: tuple[str, ...] = field(default=(), compare=False)  # of choices made in ignorance


def choose_first_stage(
    data: str, gpu: bool, vae: str | None = None, image_size: Size | None = None
) -> FirstStage:
    """Return autoencoder and image size for these images, where they are not given.

    Args:
        data: As --data: `digits`, a folder, tars, or a data set of Hugging Face.
        gpu: Whether a GPU computes.
    """
    if image_size is not None:
        image_size = size_of(*sides(image_size))
        if vae is not None:
            return FirstStage(vae, image_size)
    if data == DIGITS:
        return FirstStage(vae or DIGITS, image_size or 32)

    side: int | None
    if image_size is not None:
        side = min(sides(image_size))
    elif is_own(data):
        side = load_own(data, SIZES[-1], Columns(classes="none")).side
    else:
        side = typical_side(Path(data).expanduser()) or side_in_tars(data)
    chosen = vae or choose_autoencoder(side, gpu, lambda: is_available(SD_VAE, SD_FILES))
    size = image_size or suitable_size(side, most_pixels(chosen, gpu))

    notes = []
    if vae is None and gpu and chosen == TINY and _is_large(side):
        notes.append(
            f"{SD_VAE}, which suits these images, is not in the cache and the hub does not answer: "
            f"--vae {TINY} {size_flag(size)} instead; pass --vae FOLDER if you have a copy"
        )
    if side is None and _is_packed(data):
        notes.append(
            f"the images of {data} are not looked at before they are opened: {size_flag(size)} "
            "was chosen; pass another if they are smaller"
        )
    return FirstStage(chosen, size, tuple(notes))


def _is_large(side: int | None) -> bool:
    return side is None or side >= LEAST_SD_SIDE


def _is_packed(data: str) -> bool:
    try:
        return is_packed(data)
    except UserError:
        return False  # opening the data will name the mistake


def choose_autoencoder(side: int | None, gpu: bool, has_sd_vae: Callable[[], bool]) -> str:
    """Return the autoencoder for images of this side; None: it is not known."""
    return SD_VAE if gpu and _is_large(side) and has_sd_vae() else TINY


def most_pixels(vae: str, gpu: bool) -> int:
    """Return the largest side that a small network learns in minutes, with this autoencoder."""
    # without an autoencoder a network of patches of 2 has four times as many tokens at 64 px
    known = {PIXELS: 32, DIGITS: 32, TINY: 128 if gpu else 64}.get(vae)
    return known or _trained_side(vae) or 256


def suitable_size(side: int | None, most: int) -> int:
    """Return the largest usual size that the images nearly have, and that is at most `most`."""
    reached = (size for size in SIZES if side is None or size <= ENLARGED * side)
    return next((size for size in reached if size <= most), SIZES[-1])


def latent_sides(stage: FirstStage) -> tuple[int, int]:
    """Return height and width of the latents."""
    factor = FACTORS.get(stage.vae) or factor_of(stage.vae)
    height, width = sides(stage.image_size)
    return height // factor, width // factor


def factor_of(vae: str) -> int:
    """Return the factor that the config.json of a local autoencoder says; 8 if it is not local."""
    widths = _local_settings(vae).get("block_out_channels")
    return 2 ** (len(widths) - 1) if isinstance(widths, list) and widths else USUAL_FACTOR


def _trained_side(vae: str) -> int | None:
    """Return the image size that a local autoencoder was trained with, if it says so."""
    side = _local_settings(vae).get("sample_size")
    return side if isinstance(side, int) and side > 0 else None


def _local_settings(vae: str) -> dict[str, Any]:
    try:
        return read_json(Path(vae).expanduser() / "config.json", dict[str, Any], "", "")
    except UserError:
        return {}  # a hub name, or a mistake that loading it will name


def choose_patch(height: int, width: int) -> int:
    """Return the patch for latents of this size, for a network that a CPU trains in minutes.

    With patches of 4 on latents of 16 x 16, four times as many steps fit into the same time as with
    2, and the pictures are further.
    """
    for patch, least in PATCHES.items():
        if min(height, width) >= least and height % patch == width % patch == 0:
            return patch
    return 2


def typical_side(folder: Path) -> int | None:
    """Return the shorter side that three quarters of a folder's images have; None if unknown.

    Only some images are looked at, and only their headers are read.
    """
    found = []
    for path in islice(_some_images(folder), LOOKED_AT):
        try:
            found.append(min(read_size(path)))
        except UserError:
            continue  # all images are checked later, where the broken ones are named
    return _usual(found)


def side_in_tars(data: str) -> int | None:
    """Return the shorter side that three quarters of the first images of a tar have, if it is one.

    Only their headers are read.
    """
    try:
        shards = find_tars(data)
    except UserError:
        return None  # no tars, or a mistake that opening them will name
    if not shards:
        return None
    found = []
    with suppress(OSError, tarfile.TarError, UserError), tarfile.open(shards[0]) as tar:
        images = (member for member in tar if member.isfile() and is_image(member.name))
        for member in islice(images, PER_FOLDER):
            found.append(min(read_size_of(partial(_open_member, tar, member), member.name)))
    return _usual(found)


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    file = tar.extractfile(member)
    assert file, "members that are files can be opened"
    return cast(BinaryIO, file)


def _usual(found: list[int]) -> int | None:
    return sorted(found)[len(found) // 4] if found else None


def _some_images(folder: Path) -> Iterator[Path]:
    """Yield some images of each folder, in a fixed order."""
    for place, folders, names in islice(os.walk(folder, followlinks=True), FOLDERS):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(filter(is_image, names))[:PER_FOLDER]:
            yield Path(place, name)
