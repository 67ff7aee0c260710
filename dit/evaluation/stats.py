"""Statistics of a data set's features, to be a reference for ever after."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dit.config import StatsConfig
from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.features import Extracted, Features
from dit.evaluation.inputs.images import ImageSet, from_data, read_images, show_size
from dit.evaluation.inputs.statistics import Moments, write_statistics
from dit.evaluation.networks.base import Extractor
from dit.evaluation.references import choose_extractors
from dit.evaluation.scores.frechet import moments
from dit.files import sha256
from dit.hardware import Ranks, versions
from dit.latents.store import holds_latents

DIGITS_SIZE = 32
LIBRARIES = ("dit", "torch", "torch-fidelity", "timm", "numpy", "pillow")


def stats(config: StatsConfig, ranks: Ranks) -> Path:
    """Write mean and covariance of the images' features to `config.out`, and tell what is in it; returns that path.

    Raises:
        UserError: images missing, damaged, of several sizes or fewer than 2; weights; `out` is no .npz file.
    """
    _check_out(config.out)
    images = _images(config)
    if len(images) < 2:
        raise UserError(f"{len(images)} image in {config.data}", "at least 2, better thousands", "add images")
    extractors = choose_extractors(config.extractor, config.weights, config.data == "digits", ranks)
    extracted = extract_cached(images, extractors, config.batch_size, ranks, f"features of {config.data}", config.cache)
    if ranks.main:
        found = {name: _moments(features) for name, features in extracted.networks.items()}
        record = _record(config, images, extractors, extracted.digest)
        write_statistics(config.out, found, len(images), record)
        print(_table(config.out, images, extractors, extracted))
    ranks.barrier()
    return config.out


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out}, which is a folder", "the .npz file to write", f"pass --out {out / 'stats.npz'}")
    if out.suffix != ".npz":
        raise UserError(f"--out {out}", "the .npz file to write", f"pass --out {out.with_suffix('.npz')}")


def _images(config: StatsConfig) -> ImageSet:
    path = Path(config.data).expanduser()
    if config.data == "digits":
        return from_data(Digits(config.image_size or DIGITS_SIZE), config.data)
    if holds_latents(path):
        raise UserError(f"{config.data} holds latents", "images", "pass the folder of images that was encoded")
    return read_images(path, config.image_size)


def _moments(features: Features) -> Moments:
    return Moments(moments(features.values), None if features.spatial is None else moments(features.spatial))


def _record(config: StatsConfig, images: ImageSet, extractors: Sequence[Extractor], digest: str) -> dict[str, Any]:
    """How the statistics were made."""
    return {
        "data": config.data,
        "count": len(images),
        "size": show_size(images.size),
        "crop": config.image_size if config.data != "digits" else None,
        "pixels_sha256": digest,
        "networks": {e.name: {"weights": e.weights, "checksum": e.checksum, "preprocessing": e.preprocessing}
                     for e in extractors},
        "versions": versions(*LIBRARIES),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _table(out: Path, images: ImageSet, extractors: Sequence[Extractor], extracted: Extracted) -> str:
    width = max(len("network"), *(len(e.name) for e in extractors))
    count = f"{len(images):>9,}"
    rows = [f"{e.name:<{width}}  {count}  {e.widths[0]:>8,}  {e.weights} ({e.checksum[:8]})" for e in extractors]
    return "\n".join([
        f"{'network':<{width}}  {'images':>9}  {'features':>8}  weights (SHA-256)",
        *rows,
        f"pixels  {show_size(images.size)}, SHA-256 {extracted.digest}",
        f"file    {out}, {out.stat().st_size / 1e6:.2f} MB, SHA-256 {sha256(out)}",
    ])
