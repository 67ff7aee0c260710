"""Encode images to latents once, so that training need not."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.config import EncodeConfig
from dit.data.hub_datasets import DatasetStream, Reading
from dit.data.images import ImageFiles, ImageFolder, Images, decode
from dit.data.labels import Columns, Value
from dit.data.sources import load_images, load_stream
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.errors import UserError
from dit.latents import shards
from dit.latents.moments import decode_batches, encode_views, in_batches
from dit.latents.shards import Encoding
from dit.utils.files import shell_quote
from dit.utils.image_size import size_flag


@dataclass(frozen=True)
class Job:
    """What is to be encoded, how and where to."""

    config: EncodeConfig
    autoencoder: Autoencoder
    encoding: Encoding
    ranks: Ranks

    @property
    def out(self) -> Path:
        """The folder of the shards."""
        return self.config.out

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        return self.autoencoder.latent_shape(self.config.image_size)

    @property
    def view(self) -> tuple[int, int, int, int]:
        """(F, 2C, h, w): the moments of an image and, with flips, of the mirrored one."""
        channels, height, width = self.shape
        return 2 if self.encoding.flips else 1, 2 * channels, height, width

    def encoded(self, batches: Iterable[Tensor], bar: tqdm) -> Iterator[Tensor]:
        """uint8 [B, 3, H, W] -> moments [B, F, 2C, h, w], counted on a bar."""
        for images in batches:
            yield encode_views(images, self.autoencoder, self.encoding.flips)
            bar.update(len(images))

    def bar(self, total: int | None, quiet: bool) -> tqdm:
        """Of images, for this rank."""
        world = self.ranks.world
        name = "encode" if world == 1 else f"encode, rank 0 of {world}"
        return tqdm(total=total, unit="img", desc=name, disable=quiet or not self.ranks.main)


def encode(cfg: EncodeConfig, ranks: Ranks) -> Path:
    """Write the folder of latents that `cfg` asks for; complete shards of an earlier run are kept.

    Every rank calls this and makes its share of the missing shards. What can be checked is checked before anything is
    written.

    Returns:
        The folder, which `LatentStore` opens.

    Raises:
        UserError: bad images, autoencoder or sizes; the folder holds something else, or another process
            encodes there; the disk is too small.
    """
    load = load_stream if cfg.streaming else load_images
    images = load(
        cfg.data, cfg.image_size, Columns(cfg.captions, cfg.image_column, cfg.label_column)
    )
    autoencoder = load_autoencoder(cfg.vae, ranks.device)
    job = Job(cfg, autoencoder, describe(cfg, images, autoencoder), ranks)
    if isinstance(images, ImageFolder) and cfg.out.resolve().parent == images.root.resolve():
        raise UserError(
            f"--out {cfg.out} lies in --data {cfg.data}",
            "a folder elsewhere: there it would be a class",
            "choose another --out",
        )
    autoencoder.latent_shape(
        cfg.image_size
    )  # tells of a size that does not fit before there is a folder
    ranks.on_main(lambda: shards.check_folder(cfg.out, job.encoding))
    with ranks.alone_in(cfg.out):
        made = (
            encode_stream(job, images)
            if isinstance(images, DatasetStream)
            else encode_all(job, images)
        )
        ranks.barrier()
        if ranks.main:
            finish(job, images, made)
        ranks.barrier()
    return cfg.out


def describe(
    cfg: EncodeConfig, images: Images | DatasetStream, autoencoder: Autoencoder
) -> Encoding:
    """What the folder is going to hold."""
    return Encoding(
        vae=autoencoder.name,
        checksum=autoencoder.checksum,
        image_size=shards.plain_size(cfg.image_size),
        flips=images.flips if cfg.flip is None else cfg.flip,
        count=None if isinstance(images, DatasetStream) else len(images),
        shard_size=cfg.shard_size,
        fingerprint=images.fingerprint,
        captions=cfg.captions,
    )


def finish(job: Job, images: Images | DatasetStream, made: int) -> None:
    """Write labels and index of so many shards, and tell what to do next."""
    cfg = job.config
    classes, labels = (
        name_classes(job.out, images, made)
        if isinstance(images, DatasetStream)
        else (images.classes, iter([images.labels]))
    )
    number = shards.write_index(cfg.out, job.encoding, made, classes, labels, job.shape)
    text = " --conditioning text --text-encoder NAME" if cfg.captions else ""
    print(
        f"{number:,} latents {' x '.join(map(str, job.shape))} in {cfg.out}; next: "
        f"python train.py --data {shell_quote(cfg.out)} --vae {shell_quote(cfg.vae)} {size_flag(cfg.image_size)}{text}"
    )


def complete_shards(job: Job, number: int) -> set[int]:
    """Those of the first shards that are complete, the same on every rank; each rank checks its share."""
    complete = torch.zeros(number, device=job.ranks.device)
    for shard in range(job.ranks.rank, number, job.ranks.world):
        complete[shard] = shards.is_complete(job.out, shard)
    return set(job.ranks.total(complete).nonzero().flatten().tolist())


# -- images in any order -----------------------------------------------------------------------------------------


def encode_all(job: Job, images: Images) -> int:
    """Make this rank's share of the missing shards; how many there are in all."""
    cfg, ranks, indices = job.config, job.ranks, job.encoding.indices
    number = -(-len(images) // cfg.shard_size)
    complete = complete_shards(job, number)
    missing = [shard for shard in range(number) if shard not in complete]
    _check_space(cfg.out, sum(len(indices(shard)) for shard in missing), job.view)
    own = missing[ranks.rank :: ranks.world]
    if isinstance(images, ImageFiles):
        _check_images(images, cfg.out, [indices(shard).tolist() for shard in own], ranks)
    ranks.on_main(lambda: shards.claim(cfg.out, job.encoding))
    with job.bar(sum(len(indices(shard)) for shard in own), quiet=not own) as bar:
        for shard in own:
            batches = decode_batches(images, indices(shard), cfg.batch_size)
            shards.write_shard(cfg.out, shard, job.encoded(batches, bar), job.view)
    return number


def _check_images(images: ImageFiles, root: Path, parts: list[list[int]], ranks: Ranks) -> None:
    """Each rank looks at the images of its `parts`; all raise the same error."""
    bad = torch.zeros(len(images), device=ranks.device)
    total = sum(map(len, parts))
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=total, unit="img", desc="checking", disable=not (ranks.main and total)) as bar,
    ):
        for part in parts:
            for index, damage in zip(part, pool.map(images.damage, part), strict=True):
                if damage:
                    bad[index] = 1
                bar.update()
    found = ranks.total(bad).nonzero().flatten().tolist()
    if found:
        names = ", ".join(map(images.name, found[:5])) + (", …" if len(found) > 5 else "")
        begun = shards.holds_latents(root)  # then the names and the order of the images must stay
        raise UserError(
            f"{len(found)} of {len(images)} images can not be read: {names} ({images.damage(found[0])})",
            "intact image files",
            "replace them by images of the same names"
            if begun
            else "replace or delete them: no shard is written yet",
        )


def _check_space(root: Path, number: int, view: tuple[int, ...]) -> None:
    needed, free = number * 2, shutil.disk_usage(root).free  # float16
    for size in view:
        needed *= size
    if needed > free:
        raise UserError(
            f"the latents need {needed / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB",
            "room for all of them",
            "free some space or pass another --out",
        )


# -- images from front to back -----------------------------------------------------------------------------------


def encode_stream(job: Job, stream: DatasetStream) -> int:
    """Make this rank's share of the missing shards; how many there are in all.

    Every rank reads the whole stream, but for the shards that are complete: the note of each says where the next one
    begins. The first shard that is not full is the last.
    """
    cfg, ranks = job.config, job.ranks
    complete = complete_shards(job, ranks.share(shards.begun(cfg.out)))
    ranks.on_main(lambda: shards.claim(cfg.out, job.encoding))
    reading, position = None, None
    with job.bar(None, quiet=False) as bar:
        for shard in count():
            if shard in complete:
                note = shards.read_note(cfg.out, shard)
                found, position, reading = note["count"], note["position"], None
                bar.update(found)
            else:
                reading = reading or stream.start(position)
                mine = shard % ranks.world == ranks.rank
                found = (_write_rows if mine else _pass_over)(job, shard, reading, bar)
            if found < cfg.shard_size:
                return shard + (found > 0)
    raise AssertionError("streams end")


def _write_rows(job: Job, shard: int, reading: Reading, bar: tqdm) -> int:
    """Encode the next shard of a stream; how many images it has. There is none of 0 images."""
    cfg, values = job.config, list[Value]()

    def images() -> Iterator[Callable[[], Tensor]]:
        for row in islice(reading, cfg.shard_size):
            values.append(row.value)
            yield partial(decode, row.open, row.name, cfg.image_size)

    batches = job.encoded(in_batches(images(), cfg.batch_size), bar)
    first = list(islice(batches, 1))
    if first:
        shards.write_shard(
            cfg.out,
            shard,
            chain(first, batches),
            job.view,
            lambda: {"labels": values, "position": reading.position},
        )
    return len(values)


def _pass_over(job: Job, shard: int, reading: Reading, bar: tqdm) -> int:
    """Leave the next shard to another rank."""
    return sum(1 for _ in islice(reading, job.config.shard_size))


def name_classes(
    root: Path, stream: DatasetStream, made: int
) -> tuple[list[str], Iterator[np.ndarray]]:
    """Classes of a stream that was encoded, and the label of every image, shard by shard."""

    def values(shard: int) -> list[Value]:
        return shards.read_note(root, shard)["labels"]

    if stream.labels is None:
        return [], (np.zeros(len(values(shard)), np.int64) for shard in range(made))
    labels = stream.labels
    classes = labels.classes(chain.from_iterable(map(values, range(made))))
    return classes, (labels.number(values(shard), classes) for shard in range(made))
