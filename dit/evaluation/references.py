"""The reference of an evaluation: images, statistics or both, in the features of every network."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.extractors.load import DIGITS_CNN, load_extractors, usual_network
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.data_sets import read_data_set, read_encoded, read_listed
from dit.evaluation.inputs.features import Extracted, Features
from dit.evaluation.inputs.images import (
    Images,
    ImageSet,
    from_data,
    has_images,
    read_images,
    select,
)
from dit.evaluation.inputs.statistics import Statistics, read_statistics
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import RealVsReal, Score, Target
from dit.evaluation.metrics.frechet import from_moments
from dit.latents.shards import holds_latents, read_encoding
from dit.utils.image_size import Size, describe_size, format_size, size_flag, size_of

MOST_SAMPLES = 50_000  # that are drawn, unless their number is given
STATISTICS_ONLY = "the reference has statistics only, no images"


@dataclass(frozen=True)
class Reference:
    """Images, statistics, or both; `crop` is the size to which the images were cropped."""

    name: str
    images: ImageSet | None
    statistics: Statistics | None
    crop: Size | None = None

    @property
    def digits(self) -> bool:
        """Whether it is scikit-learn's digits."""
        return self.name == "digits"

    @property
    def network(self) -> str | None:
        """Name of the extractor `auto`: that of the statistics, Inception if they do not name it.

        None for images, which any network can see.
        """
        if self.digits:
            return DIGITS_CNN
        if not self.statistics:
            return None
        named = [name for name in self.statistics.networks if name]
        return "inception" if not named or INCEPTION in named else named[0]


def find_reference(
    name: str, size: tuple[int, int], crop: bool, trained: TrainConfig | None = None
) -> Reference:
    """Return the reference of this name, in the samples' size (height, width).

    Args:
        name: `digits`, a folder of images or an .npz file; tar shards, a data set of Hugging Face
            or the images of latents, which are always cropped.
        crop: whether to crop its images to `size`, as ADM does.
        trained: settings of a run, whose columns hold if this is its data.
    """
    path = Path(name).expanduser()
    side = size_of(*size)
    if holds_latents(path):
        images = read_encoded(path, side)
        return Reference(images.name, images, None, None if images.name == "digits" else side)
    if found := read_data_set(name, side, trained):
        return Reference(name, found, None, None if name == "digits" else side)

    listed = None
    if crop and trained and same_data(name, trained.data):
        listed = read_listed(name, side, trained)
    if listed:
        return Reference(name, listed, None, side)

    statistics = read_statistics(path) if path.suffix == ".npz" else None
    if statistics and statistics.record.get("size", format_size(size)) != format_size(size):
        recorded = statistics.record["size"]
        raise UserError(
            f"samples of {describe_size(size)} and statistics of {recorded} in {name}",
            "one size for both",
            f"make statistics with `dit stats {size_flag(size)}`",
        )
    if statistics and not has_images(path):
        return Reference(name, None, statistics)

    images = read_images(path, side if crop else None)
    if images.size != size:
        raise UserError(
            f"samples of {describe_size(size)} and a reference of {describe_size(images.size)} "
            f"in {images.name}",
            "one size for both",
            "pass --crop to crop the reference to the samples' size as ADM does",
        )
    return Reference(name, images, statistics, side if crop else None)


def as_reference(images: Images, name: str) -> Reference:
    """Return images that Python code passed for training as a reference."""
    return Reference(name, from_data(images, name), None, images.image_size)


def keep_classes(reference: Reference, names: Collection[str]) -> Reference:
    """Return a reference with the images of these classes only."""
    images = reference.images
    if images is None or images.labels is None or reference.statistics:
        raise UserError(
            f"--classes with the reference {reference.name}, whose images have no classes",
            "a reference with the classes of the run",
            "drop --classes, or pass --reference with a folder that has a subfolder for each class",
        )
    kept = [i for i, label in enumerate(images.labels) if label in names]
    if len(kept) < 2:
        raise UserError(
            f"{len(kept)} images of the classes {', '.join(names)} in {reference.name}",
            "at least 2, better thousands",
            "pass other --classes, or another --reference",
        )
    return replace(reference, images=select(images, kept))


def usual_count(reference: Reference) -> int:
    """Return how many samples to draw: as many as the reference has images, at most 50,000.

    Raises:
        UserError: The reference has one image.
    """
    # Statistics are usually of more images than an .npz file holds.
    images = reference.images if reference.statistics is None else None
    if images and len(images) < 2:
        given = f"{len(images)} image in reference {reference.name}"
        raise UserError(given, "at least 2, better thousands", "add images")
    return min(MOST_SAMPLES, len(images)) if images else MOST_SAMPLES


def same_data(name: str, other: str) -> bool:
    """Return whether two names are of the same images; latents are of those they were made of."""
    one, two = (Path(_source(data)).expanduser() for data in (name, other))
    return one.resolve() == two.resolve()


def _source(data: str) -> str:
    root = Path(data).expanduser()
    return read_encoding(root).data or data if holds_latents(root) else data


def choose_extractors(
    names: Sequence[str], weights: Sequence[str], auto: str | None, ranks: Ranks
) -> list[Extractor]:
    """Return feature networks by name.

    Args:
        auto: the name of the default one; None: see `usual_network`.
    """
    if auto is None and "auto" in names:
        auto, note = ranks.on_main(lambda: usual_network(names, weights, ranks.device))
        ranks.say([note] if note else [])
    chosen = [str(auto) if name == "auto" else name for name in names]
    # Rank 0 goes first: it may download weights.
    if not ranks.main:
        ranks.barrier()
    extractors = load_extractors(chosen, weights, ranks.device)
    if ranks.main:
        ranks.barrier()
    return extractors


@dataclass(frozen=True)
class PreparedReference:
    """A reference ready to score samples with; on ranks but 0 the dictionaries are empty.

    Args:
        targets: by the name of each network.
        real_vs_real: by the name of each score.
        digest: SHA-256 of the images' pixels, of the statistics, or of both.
    """

    targets: dict[str, Target]
    real_vs_real: dict[str, RealVsReal]
    digest: str

    @property
    def features(self) -> dict[str, torch.Tensor]:
        """Return the features of its images by network."""
        targets = self.targets.items()
        return {name: target.values for name, target in targets if target.values is not None}


def prepare_reference(
    reference: Reference,
    extractors: Sequence[Extractor],
    scoring: Sequence[str],
    count: int | None,
    batch_size: int,
    ranks: Ranks,
    cache: bool,
) -> PreparedReference:
    """Extract the features of the reference, and score real images against real images.

    Args:
        extractors: networks to run on the images; `scoring`: names of those that samples are
            scored with.
        count: number of samples, for real against real; None skips that.
    """
    found: dict[str, Features] = {}
    digests = [reference.statistics.digest] if reference.statistics else []
    if reference.images:
        ranks.say(reference.images.notes)
        title = "features of reference"
        extracted = extract_cached(reference.images, extractors, batch_size, ranks, title, cache)
        found = extracted.networks
        digests.append(extracted.digest)
    digest = digests[0]
    if len(digests) > 1:
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    prepared = PreparedReference({}, {}, digest)

    # A closure, for what `on_main` returns would be sent to all ranks.
    def fill() -> None:
        for extractor in extractors:
            scored = extractor.name in scoring
            target = _target(reference, found.get(extractor.name), extractor, scored)
            prepared.targets[extractor.name] = target
        targets = [prepared.targets[name] for name in scoring]
        if all(target.values is None and target.gaussian is None for target in targets):
            raise UserError(
                f"{reference.name} cannot be compared with: {targets[0].missing}",
                "images, or statistics of a chosen feature network",
                "pass another --extractor or --reference",
            )
        for name in scoring:
            if count is not None and name in found:
                ranges = metrics.compute_real_vs_real(found[name], count, name, ranks.device)
                prepared.real_vs_real.update(_comparable(ranges, reference))

    with ranks.all_cores():
        ranks.on_main(fill)
    return prepared


def _comparable(ranges: dict[str, RealVsReal], reference: Reference) -> dict[str, RealVsReal]:
    """Drop Fréchet distances where the reference has statistics, which are of other images."""
    if not reference.statistics:
        return ranges
    return {name: value for name, value in ranges.items() if not metrics.is_frechet(name)}


def _target(
    reference: Reference, features: Features | None, extractor: Extractor, scored: bool
) -> Target:
    """Return images' features and, for scores, Gaussians: preferably those of the statistics."""
    statistics = reference.statistics
    values = features.values if features else None
    if not scored:
        return Target(values)
    if statistics is None:
        assert features
        return Target.of(features)

    moments = statistics.of(extractor)
    if isinstance(moments, str):
        return Target(values, missing=moments)
    gaussian, spatial = (from_moments(*pair, statistics.name) if pair else None for pair in moments)
    missing = STATISTICS_ONLY if values is None else f"{statistics.name} has no spatial statistics"
    return Target(values, gaussian, spatial, missing, statistics.count)


def score_samples(
    samples: Extracted, prepared: PreparedReference, scoring: Sequence[str], device: torch.device
) -> dict[str, Score]:
    """Return all scores of samples by name, network by network; on rank 0."""
    scores: dict[str, Score] = {}
    for name in scoring:
        features, target = samples.networks[name], prepared.targets[name]
        scores |= metrics.compute_scores(features, target, name, device)
    return scores
