"""The data of a run, checked before its first step: images once, as RUN/data.json notes."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from dit.config import TrainConfig
from dit.data.counts import count_of
from dit.data.damage import describe_damage
from dit.data.images import ImageFiles, Images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.errors import UserError
from dit.latents.load import build_source, check_images
from dit.latents.on_the_fly import OnlineLatents
from dit.latents.store import Latents
from dit.utils.files import write_json
from dit.utils.typed_json import read_json

NOTE = "data.json"  # in a run: which images were checked, and which of them are left out


@dataclass(frozen=True)
class Given:
    """What Python code passes instead of names in the settings.

    Args:
        images, module: The data and the network.
        in_words: How printed lines name settings; those of commands name flags.
    """

    images: Images | None = None
    module: nn.Module | None = None
    in_words: Callable[[str], str] = str


NOTHING = Given()


@dataclass(frozen=True)
class CheckedImages:
    """The content of RUN/data.json."""

    stamp: str  # of all images: names, sizes and times
    images: int  # that the run trains on
    left_out: dict[str, int]  # index of each damaged image, by its name


def open_checked(
    config: TrainConfig,
    autoencoder: Autoencoder,
    ranks: Ranks,
    last: Path | None,
    given: Images | None = None,
) -> Latents:
    """Open the data, once all labels and images are known to be readable.

    Args:
        last: the checkpoint to continue from; its run does not check the same images again.
        given: images that Python code passed, instead of those that --data names.

    Raises:
        UserError: damaged images without --skip-damaged; labels that are no classes.
    """
    source = build_source(config, autoencoder, ranks, given)
    if not isinstance(source, OnlineLatents) or not isinstance(source.images, ImageFiles):
        return source

    images = source.images
    # before the check: a file that is replaced meanwhile is checked when the run resumes
    stamp = ranks.on_main(lambda: images.first_stamp)
    note = ranks.on_main(partial(_read_note, last.parents[1])) if last else None
    left_out = sorted(note.left_out.values()) if note and note.stamp == stamp else None
    if left_out is None or (left_out and not config.skip_damaged):
        own = range(ranks.rank, len(images), ranks.world)
        left_out = check_images(images, own, ranks, config.skip_damaged)
    if left_out and ranks.main:
        print(f"left out: {describe_damage(images, left_out)}", file=sys.stderr)
    checked = source.without(left_out)
    _warn_of_other_number(len(checked.labels), note, ranks)
    return checked


def note_data(run: Path, source: Latents) -> None:
    """Write RUN/data.json, if the data are images in files."""
    if isinstance(source, OnlineLatents) and isinstance(source.images, ImageFiles):
        images = source.images
        left_out = {images.name(index): index for index in source.left_out}
        checked = CheckedImages(images.first_stamp, len(source.labels), left_out)
        write_json(run / NOTE, dataclasses.asdict(checked))


def _read_note(run: Path) -> CheckedImages | None:
    """Return the note of a run; None if it is missing or damaged: then images are checked again."""
    try:
        return read_json(run / NOTE, CheckedImages, "the note of the checked images", "remove it")
    except UserError:
        return None


def _warn_of_other_number(count: int, note: CheckedImages | None, ranks: Ranks) -> None:
    """Say so if the order of the images changes, as it depends on their number."""
    if note and note.images != count and ranks.main:
        print(
            f"warning: {count_of(count, 'image')} now, {note.images:,} when the run last "
            "trained; it continues in another order",
            file=sys.stderr,
        )
