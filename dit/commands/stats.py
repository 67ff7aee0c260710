"""Write statistics of a data set's features, to be used as a reference."""

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
from dit.distributed.device import library_versions
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.load import DIGITS_CNN
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.data_sets import read_data_set
from dit.evaluation.inputs.images import ImageSet, read_images
from dit.evaluation.inputs.statistics import (
    Moments,
    digest_of_numbers,
    require_own_statistics,
    write_statistics,
)
from dit.evaluation.metrics.frechet import Counted, merge, moments
from dit.evaluation.references import choose_extractors
from dit.latents.shards import holds_latents, read_encoding
from dit.utils.files import shell_quote
from dit.utils.image_size import format_size, size_flag

DIGITS_SIZE = 32
MOST = 50_000  # images whose features are in memory at a time
LIBRARIES = ("dit", "torch", "torch-fidelity", "timm", "numpy", "pillow")


def stats(config: StatsConfig, ranks: Ranks) -> Path:
    """Write mean and covariance of the images' features to `config.out`; return that path.

    Raises:
        UserError: images missing, damaged, of several sizes or fewer than 2; weights; `out` is no
            .npz file.
    """
    _check_out(config.out, config.data)
    images = _read(config)
    ranks.say(images.notes)
    if len(images) < 2:
        raise UserError(
            f"{len(images)} image in {config.data}", "at least 2, better thousands", "add images"
        )
    # No network is loaded before the data are known to be good.
    auto = DIGITS_CNN if config.data == "digits" else None
    extractors = choose_extractors(config.extractor, config.weights, auto, ranks)
    networks, digest = _all_moments(config, images, extractors, ranks)
    if ranks.main:
        record = _record(config, images, extractors, digest)
        write_statistics(config.out, networks, len(images), record)
        numbers = digest_of_numbers(networks)
        print(_table(config.out, images, extractors, digest, numbers))
    ranks.barrier()
    return config.out


def _check_out(out: Path, data: str) -> None:
    if out.is_dir() or out.suffix != ".npz":
        suggestion = out / "stats.npz" if out.is_dir() else out.with_suffix(".npz")
        raise UserError(
            f"--out {out}" + (", which is a folder" if out.is_dir() else ""),
            "the .npz file to write",
            f"pass --out {shell_quote(suggestion)}",
        )
    require_own_statistics(out, data)


def _read(config: StatsConfig) -> ImageSet:
    path = Path(config.data).expanduser()
    if holds_latents(path):
        latents = read_encoding(path)
        encoded = f"--data {shell_quote(latents.data or 'IMAGES')} {size_flag(latents.image_size)}"
        raise UserError(f"{config.data} holds latents", "the images encoded", f"pass {encoded}")
    size = config.image_size or (DIGITS_SIZE if config.data == "digits" else None)
    images = read_data_set(config.data, size, labelled=False, column=config.image_column)
    return images or read_images(path, config.image_size)


def _all_moments(
    config: StatsConfig, images: ImageSet, extractors: Sequence[Extractor], ranks: Ranks
) -> tuple[dict[str, Moments], str]:
    """Return moments by network (on rank 0), and a SHA-256 of the pixels."""
    parts = _parts(images)
    # `contents`, the key in the cache, is that of all images, also in a part of them.
    use_cache = config.cache and len(parts) == 1
    digests: list[str] = []
    values: dict[str, Counted] = {}
    spatial: dict[str, Counted] = {}
    for number, part in enumerate(parts, start=1):
        title = f"features of {config.data}"
        if len(parts) > 1:
            title += f", part {number} of {len(parts)}"
        extracted = extract_cached(part, extractors, config.batch_size, ranks, title, use_cache)
        digests.append(extracted.digest)
        if ranks.main:
            for name, features in extracted.networks.items():
                _add(values, name, features.values)
                if features.spatial is not None:
                    _add(spatial, name, features.spatial)

    networks = {}
    for name, (_, mean, covariance) in values.items():
        pair = spatial[name][1:] if name in spatial else None
        networks[name] = Moments((mean, covariance), pair)
    digest = digests[0]
    if len(parts) > 1:
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return networks, digest


def _add(sums: dict[str, Counted], name: str, layer: Tensor) -> None:
    """Merge the moments of one more part [N, D] into those of network `name`."""
    counted = (len(layer), *moments(layer))
    sums[name] = merge(sums[name], counted) if name in sums else counted


def _parts(images: ImageSet) -> list[ImageSet]:
    """Split into nearly equal parts of at most `MOST`: the features of all may exceed memory."""
    count = -(-len(images) // MOST)
    ends = [i * len(images) // count for i in range(count + 1)]
    return [
        replace(images, count=stop - start, read=partial(_read_from, images, start), labels=None)
        for start, stop in pairwise(ends)
    ]


def _read_from(images: ImageSet, start: int, index: int) -> Tensor:
    return images.read(start + index)


def _record(
    config: StatsConfig, images: ImageSet, extractors: Sequence[Extractor], digest: str
) -> dict[str, Any]:
    """Return the record that `Statistics` reads back."""
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


def _table(
    out: Path, images: ImageSet, extractors: Sequence[Extractor], digest: str, numbers: str
) -> str:
    """Return what is printed; the checksums do not depend on the date or the name of the data."""
    width = max(len("network"), *(len(e.name) for e in extractors))
    lines = [f"{'network':<{width}}  {'images':>9}  {'features':>8}  weights (SHA-256)"]
    for e in extractors:
        counts = f"{len(images):>9,}  {e.widths[0]:>8,}"
        lines.append(f"{e.name:<{width}}  {counts}  {e.weights} ({e.checksum[:8]})")
    lines.append(f"pixels  {format_size(images.size)}, SHA-256 {digest}")
    lines.append(f"file    {out}, {out.stat().st_size / 1e6:.2f} MB, numbers SHA-256 {numbers}")
    return "\n".join(lines)
