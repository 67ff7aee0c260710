"""Scores of images from Python: the numbers of `evaluate.py`, without its report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit.api.pipeline import MOST_PIXELS, Pipeline, PipelineOutput
from dit.config import ScoringConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.inputs.features import Extracted, extract
from dit.evaluation.inputs.images import ImageSet, from_array, from_batches
from dit.evaluation.metrics.bootstrap import interval
from dit.evaluation.metrics.compute import score_names
from dit.evaluation.references import (
    PreparedReference,
    Reference,
    choose_extractors,
    find_reference,
    prepare_reference,
    same_data,
    score_samples,
    usual_count,
)
from dit.evaluation.samples import read_samples
from dit.sampling.generate import generate
from dit.sampling.python_arguments import find_device, plain_value, python_names

IMAGES = "uint8 [N, H, W, 3], a tensor [N, 3, H, W], a list of PIL images, or a folder"


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """Scores by name, such as `FID` or `FD(digits-cnn)`.

    Args:
        values_by_name: The scores.
        intervals: 95% intervals of Fréchet distances, by name: of other samples of the same number.
        missing: Why a score is not available, by its name.

    >>> scores["FID"], scores.intervals["FID"]                           # doctest: +SKIP
    (3.52, (3.48, 3.56))
    """

    values_by_name: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __str__(self) -> str:
        lines = []
        for name, value in self.items():
            low, high = self.intervals.get(name, (None, None))
            lines.append(f"{name} {value:.4g}" + (f" ({low:.4g} to {high:.4g})" if low else ""))
        return "\n".join(lines)


def evaluate(
    samples: Any,
    reference: Any = None,
    *,
    extractor: str | Sequence[str] = "auto",
    weights: Sequence[str] = (),
    num_samples: int | None = None,
    crop: bool | None = None,
    bootstrap: int = 50,
    batch_size: int = 64,
    cache: bool = True,
    device: str | torch.device | None = None,
    **settings: Any,
) -> Scores:
    """Return scores of images against a reference: the numbers of `evaluate.py`.

    Args:
        samples: A folder or an .npz file; uint8 [N, H, W, 3]; a tensor [N, 3, H, W], uint8 or in
            0 … 1; a list of PIL images; what a pipeline returned; or a `Pipeline`, to sample
            from batch by batch.
        reference: The same, or any value of `--reference`; unless given, a pipeline's own data.
        extractor: Feature networks, as `--extractor`; weights: their local files.
        num_samples: Of a pipeline; unless given, as many as the reference has images.
        crop: Crop the reference to the samples' size; unless given, the run's own data only.
        bootstrap: Resamples for the intervals; 0: none.
        batch_size: Images at once, of a pipeline too.
        cache: Keep features of references on the disk.
        device: Of the feature networks; unless given, the fastest kind of this machine.
        settings: Of a pipeline's calls, such as guidance_scale.

    Raises:
        UserError: Images, a reference or feature networks that do not fit.

    >>> dit.evaluate("samples/", reference="photos/", crop=True)["FID"]  # doctest: +SKIP
    >>> dit.evaluate(pipe, num_samples=1000, guidance_scale=1.5)         # doctest: +SKIP
    """
    with python_names():
        names = (extractor,) if isinstance(extractor, str) else tuple(extractor)
        ScoringConfig(extractor=names, bootstrap=bootstrap)  # refuses what is out of range
        ranks = Ranks(device=find_device(device))
        pipe = samples if isinstance(samples, Pipeline) else None
        if not pipe and (settings or num_samples is not None):
            name = next(iter({**settings, "num_samples": num_samples}))
            raise UserError(f"{name} with images", "a pipeline with it", f"drop {name}")
        images = None if pipe else _images(samples, "samples")

        size = images.size if images else pipe.image_size  # type: ignore[union-attr]
        trained = pipe.run.card.config if pipe else None
        found = _reference(reference, size, crop, trained)
        extractors = choose_extractors(names, tuple(weights), found.network, ranks)
        scoring = [one.name for one in extractors]
        if pipe:
            # what the run cannot do shows before the reference is read
            count = usual_count(found) if num_samples is None else num_samples
            images = _sampled(pipe, count, batch_size, settings)
        assert images
        prepared = prepare_reference(found, extractors, scoring, None, batch_size, ranks, cache)
        features = extract(images, extractors, batch_size, ranks, "features of samples")
        return _score(features, prepared, scoring, bootstrap, ranks.device)


def _score(
    features: Extracted,
    prepared: PreparedReference,
    scoring: Sequence[str],
    bootstrap: int,
    device: torch.device,
) -> Scores:
    """Return the scores of samples with these features, and intervals of their distances."""
    scores = score_samples(features, prepared, scoring, device)
    intervals = {}
    for name in scoring:
        distance, *_ = score_names(name)
        target, value = prepared.targets[name].gaussian, scores[distance].value
        if bootstrap and target is not None and value is not None:
            values = features.networks[name].values
            intervals[distance] = interval(values, target, value, bootstrap)
    return Scores(
        {name: score.value for name, score in scores.items() if score.value is not None},
        intervals,
        {name: score.reason or "" for name, score in scores.items() if score.value is None},
    )


def _reference(
    given: Any, size: tuple[int, int], crop: bool | None, trained: TrainConfig | None
) -> Reference:
    """Return the reference, as evaluate.py finds it."""
    if given is None and trained is None:
        raise UserError("no reference", "images to compare with", "pass reference")
    data = trained.data if trained else None
    name = str(data) if given is None else given
    if not isinstance(name, str | Path):
        images = _images(name, "reference")
        if images.size != size:
            given = f"samples of {list(size)} pixels and a reference of {list(images.size)}"
            raise UserError(given, "one size for both", "resize one of them")
        return Reference("reference", images, None)
    own_data = data is not None and same_data(str(name), data) and str(name) != "digits"
    return find_reference(str(name), size, own_data if crop is None else crop, trained)


def _sampled(pipe: Pipeline, count: Any, batch_size: int, settings: Mapping[str, Any]) -> ImageSet:
    """Return images of a pipeline that are made batch by batch, each when it is read."""
    if "num_images" in settings:
        raise UserError("num_images with a pipeline to score", "num_samples", "")
    count = plain_value("num_samples", count)
    if type(count) is not int or count < 2:
        raise UserError(f"num_samples {count!r}", "a whole number, 2 or more", "")
    pipeline, labels = pipe.prepare(num_images=count, batch_size=batch_size, **settings)

    def make(indices: Sequence[int]) -> Tensor:
        chosen = torch.tensor([*indices])
        return generate(pipeline, torch.tensor(labels)[chosen], chosen)

    return from_batches(make, count, pipe.image_size, "samples")


def _images(given: Any, name: str) -> ImageSet:
    """Return images of any of the kinds that `evaluate` takes."""
    if isinstance(given, PipelineOutput):
        given = given.images
    if isinstance(given, str | Path):
        return read_samples(Path(given).expanduser(), _pipeline_of)
    if isinstance(given, list | tuple) and given and isinstance(given[0], Image.Image):
        if len({image.size for image in given}) > 1:
            raise UserError(f"{name} of different sizes", "images of one size", "")
        given = np.stack([np.array(image.convert("RGB")) for image in given])
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        if given.ndim == 4 and given.shape[1] in (1, 3):
            given = given.permute(0, 2, 3, 1)
        given = given.numpy()
    if not isinstance(given, np.ndarray):
        raise UserError(f"{name} of type {type(given).__name__}", IMAGES, "")
    images = from_array(_to_bytes(given), name, None)
    if len(images) < 2:
        raise UserError(f"{len(images)} image in {name}", "at least 2, better thousands", "")
    return images


def _pipeline_of(run: Path) -> str:
    return f"dit.Pipeline.from_pretrained({str(run)!r})"


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Return floats in 0 … 1 as the 8 bits that they were; other values as they are."""
    floats = pixels.dtype.kind == "f" and pixels.size
    if floats and 0 <= pixels.min() <= pixels.max() <= 1:
        return (pixels * MOST_PIXELS).round().astype(np.uint8)
    return pixels
