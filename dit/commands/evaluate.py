"""Score a run's samples, or a folder of them, against a reference."""

import dataclasses
from pathlib import Path

from dit.config import EvalConfig, SamplerConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import ImageSet, read_images
from dit.evaluation.metrics.memorisation import TrainingImages, pixel_extractor
from dit.evaluation.references import (
    PreparedReference,
    Reference,
    choose_extractors,
    find_reference,
    prepare,
)
from dit.evaluation.samples import recorded_settings, sampled
from dit.report.contact_sheets import draw_grid
from dit.report.evaluation_page import Report, to_text, write_report
from dit.report.findings import Comparison, build_report
from dit.sampling.load import load_to_sample
from dit.sampling.pipeline import build_pipeline
from dit.utils.files import make_folder

MOST_SAMPLES = 50_000


def evaluate(cfg: EvalConfig, ranks: Ranks) -> Path:
    """Sample where needed, score, and write the report; returns the folder of the report.

    All that can be wrong with flags, weights and reference is found before anything is sampled.

    Raises:
        UserError: a mistake in flags, files or images.
    """
    _check_flags(cfg)
    run = load_to_sample(cfg.run, ranks.device, cfg) if cfg.run else None
    given = read_images(cfg.samples) if cfg.samples else None
    settings = recorded_settings(cfg.samples)
    data = run.card.config.data if run else settings.get("data")
    size = given.size if given else run.image_size  # type: ignore[union-attr]
    sampler = SamplerConfig(
        **{f.name: getattr(cfg, f.name) for f in dataclasses.fields(SamplerConfig)}
    )
    if run:
        build_pipeline(run, sampler)  # tells at once what the run can not do
    reference = _reference(cfg, size, data)
    networks = choose_extractors(cfg.extractor, cfg.weights, reference.network, ranks)
    count = len(given) if given else cfg.num_samples or _reference_count(reference)
    if count < 2:
        where = f"sample in {cfg.samples}" if given else f"image in the reference {reference.name}"
        raise UserError(f"{count} {where}", "at least 2, better thousands", "add images")
    copied = _copied(cfg, data, size, reference)
    # all that look at an image, once
    eyes = networks if isinstance(copied, str) else [*networks, pixel_extractor(ranks.device)]
    out = cfg.out or (run.home / "evaluation" if run else _beside(cfg.samples))
    ranks.on_main(lambda: make_folder(out))
    standard = prepare(
        reference, eyes, [n.name for n in networks], count, cfg.batch_size, ranks, cfg.cache
    )
    training = (
        copied
        if isinstance(copied, str)
        else _training(cfg, copied, reference, standard, eyes, ranks)
    )
    samples = given
    if run:
        folder = sampled(run, sampler, count, out, ranks)
        samples, settings = read_images(folder), recorded_settings(folder)
    assert samples
    found = extract(samples, eyes, cfg.batch_size, ranks, "features of samples")
    made = Comparison(samples, settings, found, reference, standard, networks, training)
    title = f"Evaluation of {cfg.run or cfg.samples}"
    with ranks.whole_machine():
        ranks.on_main(
            lambda: _write(
                build_report(made, cfg.run, title, cfg.bootstrap, ranks.device), samples, out
            )
        )
    return out


# -- what to compare ---------------------------------------------------------------------------------------------


def _check_flags(cfg: EvalConfig) -> None:
    if (cfg.run is None) == (cfg.samples is None):
        given = "neither --run nor --samples" if cfg.run is None else "both --run and --samples"
        raise UserError(
            given,
            "one of the two",
            "pass --run RUN to sample from it, or --samples DIR to score images",
        )
    if cfg.samples is None:
        return
    of_sampling = {f.name for f in dataclasses.fields(SamplerConfig)} - {"batch_size"} | {
        "num_samples"
    }
    for setting in dataclasses.fields(EvalConfig):
        value = getattr(cfg, setting.name)
        if setting.name in of_sampling and value != setting.default:
            flag = "--" + setting.name.replace("_", "-")
            raise UserError(
                f"{flag} {value} with --samples",
                f"{flag} with --run only, for these images are made",
                f"drop {flag}",
            )


def _reference(cfg: EvalConfig, size: tuple[int, int], data: str | None) -> Reference:
    """The reference that the flags name, else the data of the run that made the samples, cropped as for training."""
    if cfg.reference is None and data is None:
        raise UserError(
            f"no --reference for {cfg.samples}",
            "digits, a folder of images, or an .npz file",
            "pass --reference",
        )
    name = cfg.reference or str(data)
    own = _same(name, str(data)) and name != "digits"
    return find_reference(name, size, own if cfg.crop is None else cfg.crop)


def _same(name: str, other: str) -> bool:
    """Whether two names of data stand for the same."""
    return name == other or Path(name).expanduser().resolve() == Path(other).expanduser().resolve()


def _reference_count(reference: Reference) -> int:
    """As many as the reference has images; statistics tell of more images than lie beside them."""
    images = reference.images if reference.statistics is None else None
    return min(MOST_SAMPLES, len(images) if images else MOST_SAMPLES)


def _copied(
    cfg: EvalConfig, data: str | None, size: tuple[int, int], reference: Reference
) -> ImageSet | str:
    """The images that samples may be copies of, or why they are not looked through.

    Those of --train-data, else the reference where it is the training data.
    """
    name = cfg.train_data or data
    if name is None:
        return "the training images are not known: pass --train-data"
    if reference.images and _same(name, reference.name):
        return reference.images
    if cfg.train_data is None:
        return f"the training images, {name}, are not the reference: pass --train-data to have them looked through"
    images = find_reference(name, size, crop=True).images
    if images is None or len(images) < 2:
        raise UserError(
            f"--train-data {name} with {len(images) if images else 'no'} images",
            "2 or more",
            "pass the folder of training images",
        )
    return images


def _training(
    cfg: EvalConfig,
    images: ImageSet,
    reference: Reference,
    standard: PreparedReference,
    eyes: list[Extractor],
    ranks: Ranks,
) -> TrainingImages:
    """With their features, which those of the reference already have."""
    if images is reference.images:
        values = {
            key: target.values
            for key, target in standard.targets.items()
            if target.values is not None
        }
        return TrainingImages(images, values)
    found = extract_cached(
        images, eyes, cfg.batch_size, ranks, "features of training images", cfg.cache
    )
    return TrainingImages(
        images, {key: features.values for key, features in found.networks.items()}
    )


def _beside(samples: Path | None) -> Path:
    assert samples
    return samples.resolve().with_name(f"{samples.stem}-evaluation")


def _write(whole: Report, samples: ImageSet, out: Path) -> None:
    draw_grid(samples).save(out / "grid.png")
    paths = write_report(whole, out)
    print(to_text(whole))
    for path in (*paths, out / "grid.png"):
        print(path)
