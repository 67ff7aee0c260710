"""The command `dit encode`: encode images to latents once, before training."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.config import EncodeConfig
from dit.data.hub_datasets import DatasetStream, StreamReader
from dit.data.image_files import read_pixels
from dit.data.images import ImageFiles, ImageFolder, Images
from dit.data.labels import Columns, Label
from dit.data.sources import load_images, load_stream
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.errors import UserError
from dit.latents import shards
from dit.latents.moments import decode_batches, encode_views, prefetch_batches, reading_threads
from dit.utils.files import shell_quote
from dit.utils.image_size import size_flag

CHECKED_AT_ONCE = 10_000  # images


@dataclass(frozen=True)
class Encoder:
    """Encodes batches, for shards of one folder."""

    config: EncodeConfig
    autoencoder: Autoencoder
    encoding: shards.Encoding
    ranks: Ranks

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        return self.autoencoder.latent_shape(self.config.image_size)

    @property
    def view(self) -> tuple[int, int, int, int]:
        """(F, 2C, h, w): the moments of an image and, with flips, of its mirror image."""
        channels, height, width = self.shape
        views = 2 if self.encoding.flips else 1
        return views, 2 * channels, height, width

    def encode(self, batches: Iterable[Tensor], bar: tqdm) -> Iterator[Tensor]:
        """Yield moments [B, F, 2C, h, w] of uint8 [B, 3, H, W]."""
        for images in batches:
            yield encode_views(images, self.autoencoder, self.encoding.flips)
            bar.update(len(images))

    def progress_bar(self, total: int | None, quiet: bool = False) -> tqdm:
        """Return a bar over the images of this rank."""
        world = self.ranks.world
        name = "encode" if world == 1 else f"encode, rank 0 of {world}"
        quiet = quiet or not self.ranks.main
        return tqdm(total=total, unit="img", desc=name, disable=quiet)


def encode(cfg: EncodeConfig, ranks: Ranks) -> Path:
    """Write a folder of latents; complete shards of an earlier run are kept.

    Every rank calls this and encodes its share of the missing shards. All checks precede the first
    write.

    Returns:
        The folder, for `LatentStore`.

    Raises:
        UserError: bad images, autoencoder or sizes; the folder holds something else, or another
            process encodes into it; the disk is too small.
    """
    columns = Columns(cfg.captions, cfg.image_column, cfg.label_column)
    load = load_stream if cfg.streaming else load_images
    images = load(cfg.data, cfg.image_size, columns)
    if not isinstance(images, DatasetStream):
        ranks.say(images.notes)
    autoencoder = load_autoencoder(cfg.vae, ranks.device)
    encoding = describe(cfg, images, autoencoder)
    encoder = Encoder(cfg, autoencoder, encoding, ranks)

    if isinstance(images, ImageFolder) and cfg.out.resolve().parent == images.root.resolve():
        raise UserError(
            f"--out {cfg.out} lies in --data {cfg.data}",
            "a folder elsewhere: inside the data it would be a class",
            "choose another --out",
        )
    autoencoder.latent_shape(cfg.image_size)  # refuses a size before the folder is created
    ranks.on_main(lambda: shards.check_folder(cfg.out, encoder.encoding))

    with ranks.lock_folder(cfg.out):
        if isinstance(images, DatasetStream):
            number = encode_stream(encoder, images)
        else:
            number = encode_all(encoder, images)
        ranks.barrier()
        if ranks.main:
            finish(encoder, images, number)
        ranks.barrier()
    return cfg.out


def describe(
    cfg: EncodeConfig, images: Images | DatasetStream, autoencoder: Autoencoder
) -> shards.Encoding:
    """Return the description of the folder's content."""
    return shards.Encoding(
        vae=autoencoder.name,
        checksum=autoencoder.checksum,
        image_size=shards.size_to_json(cfg.image_size),
        flips=images.flips if cfg.flip is None else cfg.flip,
        count=None if isinstance(images, DatasetStream) else len(images),
        shard_size=cfg.shard_size,
        fingerprint=images.fingerprint,
        captions=cfg.captions,
    )


def finish(encoder: Encoder, images: Images | DatasetStream, number: int) -> None:
    """Write labels and index of so many shards, and print the next command."""
    cfg = encoder.config
    labels: Iterable[np.ndarray]
    if isinstance(images, DatasetStream):
        classes, labels = stream_classes(cfg.out, images, number)
    else:
        classes, labels = images.classes, [images.labels]
    total = shards.write_index(cfg.out, encoder.encoding, number, classes, labels, encoder.shape)

    data = shell_quote(cfg.out)
    vae = shell_quote(cfg.vae)
    text = " --conditioning text --text-encoder NAME" if cfg.captions else ""
    print(
        f"{total:,} latents {' x '.join(map(str, encoder.shape))} in {cfg.out}; next: "
        f"python train.py --data {data} --vae {vae} {size_flag(cfg.image_size)}{text}"
    )


def complete_shards(encoder: Encoder, number: int) -> set[int]:
    """Return those of the first `number` shards that are complete; ranks check a share each."""
    ranks = encoder.ranks
    # a tensor: ranks add up their shares
    complete = torch.zeros(number, device=ranks.device)
    for shard in range(ranks.rank, number, ranks.world):
        complete[shard] = shards.is_complete(encoder.config.out, shard)
    found = ranks.sum(complete).nonzero()
    return set(found.flatten().tolist())


# -- images with random access ---------------------------------------------------------------------


def encode_all(encoder: Encoder, images: Images) -> int:
    """Encode this rank's share of the missing shards; return the number of all shards."""
    cfg = encoder.config
    ranks = encoder.ranks
    indices = encoder.encoding.indices
    number = math.ceil(len(images) / cfg.shard_size)
    complete = complete_shards(encoder, number)
    missing = [shard for shard in range(number) if shard not in complete]
    own = missing[ranks.rank :: ranks.world]

    needed = sum(len(indices(shard)) for shard in missing)
    _check_space(cfg.out, needed, encoder.view)
    if isinstance(images, ImageFiles):
        own_images = [index for shard in own for index in indices(shard).tolist()]
        _check_images(images, cfg.out, own_images, ranks)
    ranks.on_main(lambda: shards.claim(cfg.out, encoder.encoding))

    total = sum(len(indices(shard)) for shard in own)
    with encoder.progress_bar(total, quiet=not own) as bar:
        for shard in own:
            batches = decode_batches(images, indices(shard), cfg.batch_size)
            moments = encoder.encode(batches, bar)
            shards.write_shard(cfg.out, shard, moments, encoder.view)
    return number


def _check_images(images: ImageFiles, root: Path, own: list[int], ranks: Ranks) -> None:
    """Refuse unreadable images; each rank checks its `own`, all raise the same error."""
    damaged = torch.zeros(len(images), device=ranks.device)
    quiet = not (ranks.main and own)
    with (
        reading_threads() as pool,
        tqdm(total=len(own), unit="img", desc="checking", disable=quiet) as bar,
    ):
        # in parts: a map over all images at once would hold a future for each
        for start in range(0, len(own), CHECKED_AT_ONCE):
            part = own[start : start + CHECKED_AT_ONCE]
            checked = pool.map(images.damage, part)
            for index, damage in zip(part, checked, strict=True):
                damaged[index] = bool(damage)
                bar.update()

    indices = ranks.sum(damaged).nonzero().flatten().tolist()
    if not indices:
        return
    names = ", ".join(map(images.name, indices[:5]))
    if len(indices) > 5:
        names += ", …"
    do = "replace or delete them: no shard is written yet"
    if shards.holds_latents(root):  # shards refer to images by their order
        do = "replace them by images of the same names"
    raise UserError(
        f"{len(indices)} of {len(images)} images cannot be read: {names} "
        f"({images.damage(indices[0])})",
        "intact image files",
        do,
    )


def _check_space(root: Path, number: int, view: tuple[int, ...]) -> None:
    needed = 2 * number * math.prod(view)  # float16
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"the latents need {needed / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB",
            "enough free space for all of them",
            "free some space or pass another --out",
        )


# -- streams ---------------------------------------------------------------------------------------


def encode_stream(encoder: Encoder, stream: DatasetStream) -> int:
    """Encode this rank's share of the missing shards; return the number of all shards.

    Every rank reads the full stream, except complete shards: the note of each has the position of
    the next one. The first shard that is not full is the last.
    """
    cfg = encoder.config
    ranks = encoder.ranks
    begun = ranks.broadcast(shards.count_begun(cfg.out))
    complete = complete_shards(encoder, begun)
    ranks.on_main(lambda: shards.claim(cfg.out, encoder.encoding))

    reader = None
    position = None
    with encoder.progress_bar(total=None) as bar:
        for shard in count():
            if shard in complete:
                # skip to the position after this shard, without reading its images
                note = shards.read_note(cfg.out, shard)
                images = note["count"]
                position = note["position"]
                reader = None
                bar.update(images)
            else:
                reader = reader or stream.start(position)
                own = shard % ranks.world == ranks.rank
                write = _write_rows if own else _skip_rows
                images = write(encoder, shard, reader, bar)
            if images < cfg.shard_size:
                return shard + (images > 0)
    raise AssertionError("streams end")


def _write_rows(encoder: Encoder, shard: int, reader: StreamReader, bar: tqdm) -> int:
    """Encode the next shard of a stream, if any rows are left; return its number of images."""
    cfg = encoder.config
    labels: list[Label] = []

    def images() -> Iterator[Callable[[], Tensor]]:
        for row in islice(reader, cfg.shard_size):
            labels.append(row.value)
            yield partial(read_pixels, row.open, row.name, cfg.image_size)

    def note() -> dict[str, object]:
        return {"labels": labels, "position": reader.position}

    batches = encoder.encode(prefetch_batches(images(), cfg.batch_size), bar)
    # a stream may end with a full shard: no rows are left, and no empty shard is written
    first = next(batches, None)
    if first is not None:
        moments = chain([first], batches)
        shards.write_shard(cfg.out, shard, moments, encoder.view, note)
    return len(labels)


def _skip_rows(encoder: Encoder, shard: int, reader: StreamReader, bar: tqdm) -> int:
    return sum(1 for _ in islice(reader, encoder.config.shard_size))


def stream_classes(
    root: Path, stream: DatasetStream, number: int
) -> tuple[list[str], Iterator[np.ndarray]]:
    """Return the classes of an encoded stream, and the labels of its images, shard by shard."""

    def labels_of(shard: int) -> list[Label]:
        return shards.read_note(root, shard)["labels"]

    if stream.labels is None:
        counts = (len(labels_of(shard)) for shard in range(number))
        return [], (np.zeros(count, np.int64) for count in counts)

    meaning = stream.labels
    values = chain.from_iterable(map(labels_of, range(number)))
    classes = meaning.classes(values)
    return classes, (meaning.to_ids(labels_of(shard), classes) for shard in range(number))
