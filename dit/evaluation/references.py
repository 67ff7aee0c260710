"""What samples are compared with: a reference's images, its statistics, or both, in the features of every network."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dit.data.images import Digits
from dit.data.sources import is_packed, load_images
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.extractors.load import DIGITS_CNN, load_extractors
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.features import Extracted, Features
from dit.evaluation.inputs.images import ImageSet, from_data, has_images, read_images
from dit.evaluation.inputs.statistics import Statistics, read_statistics
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import Range, Score, Target
from dit.evaluation.metrics.frechet import from_moments
from dit.latents.shards import holds_latents
from dit.utils.image_size import Size, describe_size, format_size, size_flag, size_of

STATISTICS_ONLY = "the reference has statistics only, no images"


@dataclass(frozen=True)
class Reference:
    """Images, statistics, or both."""

    name: str
    images: ImageSet | None
    statistics: Statistics | None
    crop: Size | None = None  # to which the images were cropped

    @property
    def digits(self) -> bool:
        """Whether it is scikit-learn's digits."""
        return self.name == "digits"

    @property
    def network(self) -> str:
        """What the extractor `auto` stands for: Inception, or a network of the statistics that do not have it."""
        named = [name for name in self.statistics.networks if name] if self.statistics else []
        if self.digits:
            return DIGITS_CNN
        return "inception" if not named or INCEPTION in named else named[0]


def find_reference(name: str, size: tuple[int, int], crop: bool) -> Reference:
    """The reference that a name stands for, in the samples' size (height, width).

    Args:
        name: `digits`, a folder of images, tar shards or a data set of Hugging Face, which are always cropped, or an
            .npz file.
        crop: whether to crop its images to `size`, as ADM does.

    Raises:
        UserError: missing, damaged, latents instead of images, or images of another size.
    """
    path = Path(name).expanduser()
    if holds_latents(path):
        raise UserError(
            f"{name} holds latents, which can not be the reference",
            "images, or an .npz file",
            "pass --reference with the folder of images that was encoded",
        )
    if name == "digits":
        return Reference(name, from_data(Digits(size_of(*size)), name), None)
    if is_packed(name):
        return Reference(
            name, from_data(load_images(name, size_of(*size)), name), None, size_of(*size)
        )
    statistics = read_statistics(path) if path.suffix == ".npz" else None
    if statistics and statistics.record.get("size", format_size(size)) != format_size(size):
        raise UserError(
            f"samples of {describe_size(size)} and statistics of {statistics.record['size']} in {name}",
            "one size for both",
            f"make statistics with dit stats {size_flag(size)}",
        )
    images = None
    if statistics is None or has_images(path):
        images = read_images(path, size_of(*size) if crop else None)
        _check_size(images, size)
    return Reference(name, images, statistics, size_of(*size) if crop and images else None)


def _check_size(images: ImageSet, size: tuple[int, int]) -> None:
    if images.size != size:
        raise UserError(
            f"samples of {describe_size(size)} and a reference of {describe_size(images.size)} in {images.name}",
            "one size for both",
            "pass --crop to crop the reference to the samples' size as ADM does",
        )


def choose_extractors(
    names: Sequence[str], weights: Sequence[str], auto: str, ranks: Ranks
) -> list[Extractor]:
    """Feature networks by name, with what `auto` stands for; rank 0 goes first, for it may have to download."""
    chosen = [auto if name == "auto" else name for name in names]
    if not ranks.main:
        ranks.barrier()
    extractors = load_extractors(chosen, weights, ranks.device)
    if ranks.main:
        ranks.barrier()
    return extractors


@dataclass(frozen=True)
class PreparedReference:
    """A reference as rank 0 compares with it; nothing on other ranks.

    Args:
        targets: by the name of each network; `real_vs_real`: by the name of each score.
        digest: SHA-256 of the images' pixels, of the statistics, or of both.
    """

    targets: dict[str, Target]
    real_vs_real: dict[str, Range]
    digest: str


def prepare(
    reference: Reference,
    extractors: Sequence[Extractor],
    networks: Sequence[str],
    count: int | None,
    batch_size: int,
    ranks: Ranks,
    cache: bool,
) -> PreparedReference:
    """Features of the reference, from the cache where they are, and what real images score at `count`.

    Args:
        extractors: all that see the images in this one pass; `networks`: names of those that make scores.
        count: how many samples the floor is for; without it there is none.

    Raises:
        UserError: an image can not be read; or the reference tells none of the networks anything.
    """
    found: dict[str, Features] = {}
    digests = [reference.statistics.digest] if reference.statistics else []
    if reference.images:
        extracted = extract_cached(
            reference.images, extractors, batch_size, ranks, "features of reference", cache
        )
        found, digests = extracted.networks, [*digests, extracted.digest]
    digest = (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
    standard = PreparedReference({}, {}, digest)

    def fill() -> None:
        standard.targets.update(
            {
                e.name: _target(reference, found.get(e.name), e, e.name in networks)
                for e in extractors
            }
        )
        _check_some(reference, [standard.targets[name] for name in networks])
        for name in networks:
            if count is not None and name in found:
                standard.real_vs_real.update(_floor(reference, found[name], count, name, ranks.device))

    with ranks.whole_machine():
        ranks.on_main(fill)
    return standard


def _floor(
    reference: Reference, features: Features, count: int, name: str, device: torch.device
) -> dict[str, Range]:
    """Without the Fréchet distances where samples are compared with statistics: those are of more or other images."""
    floor = metrics.compute_floor(features, count, name, device)
    return {
        score: found
        for score, found in floor.items()
        if not (reference.statistics and metrics.is_frechet(score))
    }


def _target(
    reference: Reference, features: Features | None, extractor: Extractor, scored: bool
) -> Target:
    """Images' features; for scores also Gaussians, those of the statistics file where it has them."""
    statistics = reference.statistics
    if not scored:
        return Target(features.values if features else None)
    if statistics is None:
        assert features
        return Target.of(features)
    values, moments = features.values if features else None, statistics.of(extractor)
    if isinstance(moments, str):
        return Target(values, missing=moments)
    gaussian, spatial = (from_moments(*pair, statistics.name) if pair else None for pair in moments)
    missing = STATISTICS_ONLY if values is None else f"{statistics.name} has no spatial statistics"
    return Target(values, gaussian, spatial, missing, statistics.count)


def _check_some(reference: Reference, targets: Sequence[Target]) -> None:
    if all(target.values is None and target.gaussian is None for target in targets):
        raise UserError(
            f"{reference.name} can not be compared with: {targets[0].missing}",
            "images, or statistics of a chosen feature network",
            "pass another --extractor or --reference",
        )


def score(
    samples: Extracted, standard: PreparedReference, networks: Sequence[str], device: torch.device
) -> dict[str, Score]:
    """All scores of samples by their names, network by network; on rank 0."""
    scores: dict[str, Score] = {}
    for name in networks:
        scores |= metrics.compute_scores(
            samples.networks[name], standard.targets[name], name, device
        )
    return scores
