"""The check of image files, before work that reads them all."""

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from dit.data.counts import count_of
from dit.data.image_files import reading_threads
from dit.data.images import ImageFiles, Images
from dit.errors import UserError

CHECKED_AT_ONCE = 10_000  # images
NAMED = 5  # damaged files, in a message


def find_damaged_images(
    images: ImageFiles, indices: Sequence[int], quiet: bool = False
) -> Iterator[int]:
    """Yield those of the images at `indices` that cannot be read."""
    # a few are checked at once; only a longer check needs a bar
    bar = tqdm(total=len(indices), unit="img", desc="checking", disable=quiet, delay=1)
    with bar, reading_threads() as pool:
        # in parts: a map over all images at once would hold a future for each
        for start in range(0, len(indices), CHECKED_AT_ONCE):
            part = indices[start : start + CHECKED_AT_ONCE]
            for index, damage in zip(part, pool.map(images.damage, part), strict=True):
                bar.update()
                if damage:
                    yield index


def damage_error(images: ImageFiles, damaged: Sequence[int]) -> UserError:
    """Return the error that names the first damaged images."""
    names = _list_names(images, damaged)
    count = f"{len(damaged):,} of {count_of(len(images), 'image')}"
    reason = images.damage(damaged[0]) or "now it can: it changes while it is read"
    return UserError(
        f"{count} cannot be read: {names} ({reason})",
        "intact image files",
        "replace or delete them, or pass --skip-damaged to leave them out",
    )


def describe_damage(images: Images, damaged: Sequence[int]) -> str:
    """Return how many images are damaged, and the names of the first of them."""
    assert isinstance(images, ImageFiles), "others are never damaged"
    return f"{count_of(len(damaged), 'damaged image')}: {_list_names(images, damaged)}"


def _list_names(images: ImageFiles, indices: Sequence[int]) -> str:
    names = ", ".join(map(images.name, indices[:NAMED]))
    return f"{names}, …" if len(indices) > NAMED else names


def no_files_to_skip() -> UserError:
    """Return the error of --skip-damaged with the only images that are not in files."""
    return UserError(
        "--skip-damaged with --data digits",
        "images or latents on the disk, which may be damaged",
        "drop --skip-damaged",
    )
