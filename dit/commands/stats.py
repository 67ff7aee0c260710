"""Statistics of a data set's features, to be a reference for ever after."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from dit.config import StatsConfig
from dit.data.images import Digits
from dit.data.sources import is_packed, load_images
from dit.distributed.device import library_versions
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.load import DIGITS_CNN
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.images import ImageSet, from_data, read_images
from dit.evaluation.inputs.statistics import Moments, read_statistics, write_statistics
from dit.evaluation.metrics.frechet import Counted, merge, moments
from dit.evaluation.references import choose_extractors
from dit.latents.shards import holds_latents
from dit.utils.files import sha256, shell_quote
from dit.utils.image_size import format_size

DIGITS_SIZE = 32
MOST = 50_000  # images whose features are in memory at a time
LIBRARIES = ("dit", "torch", "torch-fidelity", "timm", "numpy", "pillow")


def stats(config: StatsConfig, ranks: Ranks) -> Path:
    """Write mean and covariance of the images' features to `config.out`, and tell what is in it; returns that path.

    Raises:
        UserError: images missing, damaged, of several sizes or fewer than 2; weights; `out` is no .npz file.
    """
    _check_out(config.out)
    images = _images(config)
    if len(images) < 2:
        raise UserError(
            f"{len(images)} image in {config.data}", "at least 2, better thousands", "add images"
        )
    auto = DIGITS_CNN if config.data == "digits" else "inception"
    extractors = choose_extractors(config.extractor, config.weights, auto, ranks)
    found, digest = _all_moments(config, images, extractors, ranks)
    if ranks.main:
        write_statistics(
            config.out, found, len(images), _record(config, images, extractors, digest)
        )
        print(_table(config.out, images, extractors, digest))
    ranks.barrier()
    return config.out


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise UserError(
            f"--out {out}, which is a folder",
            "the .npz file to write",
            f"pass --out {shell_quote(out / 'stats.npz')}",
        )
    if (
        out.exists()
        and out.suffix == ".npz"
        and not ((found := read_statistics(out)) and found.record)
    ):
        raise UserError(
            f"--out {out} exists, and dit stats did not write it",
            "a new file, or one of dit stats",
            "pass another --out",
        )
    if out.suffix != ".npz":
        raise UserError(
            f"--out {out}",
            "the .npz file to write",
            f"pass --out {shell_quote(out.with_suffix('.npz'))}",
        )


def _images(config: StatsConfig) -> ImageSet:
    path = Path(config.data).expanduser()
    if config.data == "digits":
        return from_data(Digits(config.image_size or DIGITS_SIZE), config.data)
    if holds_latents(path):
        raise UserError(
            f"{config.data} holds latents", "images", "pass the folder of images that was encoded"
        )
    if is_packed(config.data):
        if config.image_size is None:
            raise UserError(
                f"--data {config.data} without --image-size",
                "the size to crop its images to",
                "pass --image-size",
            )
        return from_data(load_images(config.data, config.image_size), config.data)
    return read_images(path, config.image_size)


def _all_moments(
    config: StatsConfig, images: ImageSet, extractors: Sequence[Extractor], ranks: Ranks
) -> tuple[dict[str, Moments], str]:
    """Moments by network (on rank 0), and a SHA-256 of the pixels, of several parts that of theirs."""
    parts, digests = _parts(images), []
    sums: dict[str, list[Counted | None]] = {e.name: [None, None] for e in extractors}
    for i, part in enumerate(parts, start=1):
        title = f"features of {config.data}" + (
            f", part {i} of {len(parts)}" if len(parts) > 1 else ""
        )
        made = extract_cached(
            part, extractors, config.batch_size, ranks, title, config.cache and len(parts) == 1
        )
        digests.append(made.digest)
        for name, found in made.networks.items() if ranks.main else ():
            sums[name] = [_add(sums[name][0], found.values), _add(sums[name][1], found.spatial)]
    whole = digests[0] if len(parts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {
        name: Moments(*(layer and layer[1:] for layer in layers)) for name, layers in sums.items()
    }, whole  # type: ignore


def _add(before: Counted | None, layer: Tensor | None) -> Counted | None:
    """Moments with those of one more part; None where the network has no such layer."""
    if layer is None:
        return None
    counted = (len(layer), *moments(layer))
    return merge(before, counted) if before else counted


def _parts(images: ImageSet) -> list[ImageSet]:
    """Of nearly equal size, none of more than `MOST` images: the features of all may be more than memory holds."""
    count = -(-len(images) // MOST)
    ends = [i * len(images) // count for i in range(count + 1)]
    return [
        replace(images, count=stop - start, read=partial(_read, images, start), labels=None)
        for start, stop in pairwise(ends)
    ]


def _read(images: ImageSet, start: int, index: int) -> Tensor:
    return images.read(start + index)


def _record(
    config: StatsConfig, images: ImageSet, extractors: Sequence[Extractor], digest: str
) -> dict[str, Any]:
    """How the statistics were made."""
    return {
        "data": config.data,
        "count": len(images),
        "size": format_size(images.size),
        "crop": config.image_size if config.data != "digits" else None,
        "pixels_sha256": digest,
        "networks": {
            e.name: {"weights": e.weights, "checksum": e.checksum, "preprocessing": e.preprocessing}
            for e in extractors
        },
        "versions": library_versions(*LIBRARIES),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _table(out: Path, images: ImageSet, extractors: Sequence[Extractor], digest: str) -> str:
    width = max(len("network"), *(len(e.name) for e in extractors))
    count = f"{len(images):>9,}"
    rows = [
        f"{e.name:<{width}}  {count}  {e.widths[0]:>8,}  {e.weights} ({e.checksum[:8]})"
        for e in extractors
    ]
    return "\n".join(
        [
            f"{'network':<{width}}  {'images':>9}  {'features':>8}  weights (SHA-256)",
            *rows,
            f"pixels  {format_size(images.size)}, SHA-256 {digest}",
            f"file    {out}, {out.stat().st_size / 1e6:.2f} MB, SHA-256 {sha256(out)}",
        ]
    )
