"""The command `dit encode`: encode images to latents once, before training."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.config import EncodeConfig
from dit.data.counts import count_of, describe_count
from dit.data.hub_datasets import DatasetStream, StreamReader
from dit.data.images import ImageFiles, Images
from dit.data.labels import Classes, Columns, Label, note_empty
from dit.data.sources import load_images, load_stream, locate
from dit.distributed.ranks import Ranks
from dit.distributed.shortage import require_batch_fits
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.errors import UserError
from dit.latents import shards
from dit.latents.first_stage import FirstStage, choose_first_stage
from dit.latents.load import check_images, warn_of_other_data
from dit.latents.moments import decode_batches, encode_views, prefetch_batches
from dit.utils.files import command_line, name_to_bytes, shell_quote, write_bytes

TEXT_ENCODER = "openai/clip-vit-large-patch14"  # in the next command, for captions
SKIPPED = "skipped.txt"  # in a folder of latents, the damaged images that were left out


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
        return self.autoencoder.latent_shape(self.encoding.image_size)

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
    classes: Classes = "none" if cfg.num_classes == 0 else "ask"
    columns = Columns(cfg.captions, cfg.image_column, cfg.label_column, classes)
    gpu = ranks.device.type == "cuda"
    stage = ranks.on_main(partial(first_stage_of, cfg, gpu))
    ranks.say(stage.notes)
    size = stage.image_size
    load = load_stream if cfg.streaming else load_images
    images = load(cfg.data, size, columns)
    ranks.say(images.notes)
    if not isinstance(images, DatasetStream) and not cfg.captions:
        ranks.say(note_empty(images.classes, images.labels))
    autoencoder = load_autoencoder(stage.vae, ranks.device)
    known = None if isinstance(images, DatasetStream) else images
    warn_of_other_data(autoencoder, known, cfg.data, ranks)
    encoding = describe(cfg, images, autoencoder, stage)
    encoder = Encoder(cfg, autoencoder, encoding, ranks)

    autoencoder.latent_shape(size)  # refuses a size before the folder is created
    images_at_once = min(cfg.batch_size, cfg.shard_size, encoding.count or cfg.batch_size)
    require_batch_fits(images_at_once, autoencoder.image_bytes(size), ranks.device)
    ranks.on_main(lambda: shards.check_folder(cfg.out, encoding))

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


def first_stage_of(cfg: EncodeConfig, gpu: bool) -> FirstStage:
    """Return those of the flags, else of the latents in --out, else what suits the images."""
    vae, size = cfg.vae, cfg.image_size
    if shards.holds_latents(cfg.out):
        stored = shards.read_encoding(cfg.out)
        vae, size = vae or stored.vae, size or stored.image_size
    return choose_first_stage(cfg.data, gpu, vae, size)


def describe(
    cfg: EncodeConfig, images: Images | DatasetStream, autoencoder: Autoencoder, stage: FirstStage
) -> shards.Encoding:
    """Return the description of the folder's content."""
    return shards.Encoding(
        vae=autoencoder.location,
        checksum=autoencoder.checksum,
        image_size=stage.image_size,
        flips=images.flips if cfg.flip is None else cfg.flip,
        count=None if isinstance(images, DatasetStream) else len(images),
        shard_size=cfg.shard_size,
        fingerprint=images.fingerprint,
        captions=cfg.captions,
        data=locate(cfg.data),
        image_column=cfg.image_column,
        label_column=cfg.label_column,
        format=shards.FORMAT,
    )


def finish(encoder: Encoder, images: Images | DatasetStream, number: int) -> None:
    """Write labels and index of so many shards, and print the next command."""
    cfg = encoder.config
    shards.remove_shards(cfg.out, number)
    labels: Iterable[np.ndarray]
    if isinstance(images, DatasetStream):
        classes, labels = stream_classes(cfg.out, images, number)
    else:
        classes, labels = images.classes, _labels_of_shards(encoder, images, number)
    if cfg.num_classes == 0:
        classes, labels = [], map(np.zeros_like, labels)
    total = shards.write_index(cfg.out, encoder.encoding, number, classes, labels, encoder.shape)
    _list_skipped(cfg.out, number)

    # the latents say their autoencoder and size
    text = f" --conditioning text --text-encoder {TEXT_ENCODER}" if cfg.captions else ""
    if cfg.captions and cfg.data == "digits":
        text = " --conditioning text --text-encoder digits"
    print(
        f"{describe_count(total, len(classes), cfg.captions)}: "
        f"latents {' x '.join(map(str, encoder.shape))} in {cfg.out}; next: "
        f"{command_line('train')} --data {shell_quote(cfg.out)}{text}"
    )


def find_shards(ranks: Ranks, candidates: Iterable[int], test: Callable[[int], bool]) -> set[int]:
    """Return those shards for which `test` holds; ranks test a share each."""
    numbers = sorted(candidates)
    # a tensor: ranks add up their shares
    passed = torch.zeros(len(numbers), device=ranks.device)
    for i in range(ranks.rank, len(numbers), ranks.world):
        passed[i] = test(numbers[i])
    return {numbers[i] for i in ranks.sum(passed).nonzero().flatten().tolist()}


# -- images with random access ---------------------------------------------------------------------


def encode_all(encoder: Encoder, images: Images) -> int:
    """Encode this rank's share of the missing shards; return the number of all shards."""
    cfg = encoder.config
    ranks = encoder.ranks
    indices = encoder.encoding.indices
    number = math.ceil(len(images) / cfg.shard_size)
    kept, replaced = _compare_shards(encoder, images, number)
    missing = [shard for shard in range(number) if shard not in kept]
    own = missing[ranks.rank :: ranks.world]

    needed = sum(len(indices(shard)) for shard in missing)
    _check_space(cfg.out, needed, encoder.view)
    own_images = [index for shard in own for index in indices(shard).tolist()]
    damaged = set(check_images(images, own_images, ranks, cfg.skip_damaged))
    ranks.on_main(lambda: shards.claim(cfg.out, encoder.encoding, replaced))

    total = sum(len(indices(shard)) for shard in own)
    with encoder.progress_bar(total, quiet=not own) as bar:
        for shard in own:
            _write_images(encoder, shard, images, damaged, bar)
    return number


def _compare_shards(encoder: Encoder, images: Images, number: int) -> tuple[set[int], bool]:
    """Return the complete shards of these images, and whether others are to be replaced.

    Raises:
        UserError: there are complete shards, but none of these images, nor of others that lay
            where these do: this is other data.
    """
    root = encoder.config.out
    ranks = encoder.ranks
    begun = max(number, ranks.broadcast(shards.count_begun(root)))
    complete = find_shards(ranks, range(begun), partial(shards.is_complete, root))
    change = ranks.broadcast(shards.describe_change(root, encoder.encoding))

    def is_kept(shard: int) -> bool:
        note = shards.read_note(root, shard)
        # earlier versions noted the names of all images alone
        if "stamp" not in note:
            return not change
        return shards.is_made_of(note, images, encoder.encoding.indices(shard).tolist())

    kept = find_shards(ranks, (shard for shard in complete if shard < number), is_kept)
    others = complete - kept
    same_data = ranks.broadcast(shards.is_of_same_data(root, encoder.encoding))
    if others and not kept and not same_data:
        raise UserError(
            f"the images changed since those in {root} were encoded ({change or 'same names'}): "
            "no finished shard is of these",
            "the same --data, or images of which at least one shard is the same",
            f"choose another --out, or delete {root} to start again",
        )
    changed = bool(others or change)
    if changed and complete and ranks.main:
        print(
            f"the images changed ({change or 'same names'}): {len(kept)} of {len(complete)} "
            "finished shards stay"
        )
    return kept, changed


def _write_images(
    encoder: Encoder, shard: int, images: Images, damaged: set[int], bar: tqdm
) -> None:
    """Encode the images of a shard that are not damaged."""
    cfg = encoder.config
    indices = encoder.encoding.indices(shard)
    skipped = [index for index in indices.tolist() if index in damaged]
    # before they are read: a file that is replaced meanwhile is noticed by the next run
    note: dict[str, Any] = shards.describe_images(images, indices.tolist())
    if skipped:
        assert isinstance(images, ImageFiles)
        note["skipped"] = {images.name(index): index for index in skipped}

    batches = decode_batches(images, np.setdiff1d(indices, skipped), cfg.batch_size)
    moments = encoder.encode(batches, bar)
    shards.write_shard(cfg.out, shard, moments, encoder.view, lambda: note)


def _labels_of_shards(encoder: Encoder, images: Images, number: int) -> Iterator[np.ndarray]:
    """Yield the labels of the images in each shard."""
    for shard in range(number):
        skipped = shards.read_note(encoder.config.out, shard).get("skipped", {})
        indices = encoder.encoding.indices(shard)
        yield images.labels[np.setdiff1d(indices, list(skipped.values()))]


def _list_skipped(root: Path, number: int) -> None:
    """Write the names of the damaged images that were left out, if any, and print how many."""
    file = root / SKIPPED
    notes = (shards.read_note(root, shard) for shard in range(number))
    names = [name for note in notes for name in note.get("skipped", {})]
    if not names:
        file.unlink(missing_ok=True)
        return
    # bytes: the names as the disk has them, for other programs to read
    write_bytes(file, name_to_bytes("".join(f"{name}\n" for name in names)))
    print(f"left out: {count_of(len(names), 'damaged image')}, listed in {file}")


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
    complete = find_shards(ranks, range(begun), partial(shards.is_complete, cfg.out))
    ranks.on_main(lambda: shards.claim(cfg.out, encoder.encoding))

    reader = None
    position: dict[str, Any] | None = None
    with encoder.progress_bar(total=None) as bar:
        for shard in count():
            if shard in complete:
                # skip to the position after this shard, without reading its images
                note = shards.read_stream_note(cfg.out, shard)
                images = note["count"]
                position = {**note["position"]}
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
            yield partial(row.pixels, encoder.encoding.image_size)

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
        return shards.read_stream_note(root, shard)["labels"]

    if stream.labels is None:
        counts = (len(labels_of(shard)) for shard in range(number))
        return [], (np.zeros(count, np.int64) for count in counts)

    meaning = stream.labels
    values = chain.from_iterable(map(labels_of, range(number)))
    classes = meaning.classes(values)
    return classes, (meaning.to_ids(labels_of(shard), classes) for shard in range(number))
