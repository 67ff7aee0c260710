"""Score a run's samples, or a folder of them, against a reference."""

import collections
import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dit import pictures
from dit.build import Run, load_run
from dit.config import EvalConfig, SamplerConfig
from dit.data.images import Digits, load_images
from dit.errors import UserError
from dit.evaluation import metrics, report
from dit.evaluation.extractors import DIGITS_CNN, Extractor, load_extractor
from dit.evaluation.features import extract
from dit.evaluation.images import ImageSet, from_data, has_images, read_images, show_size
from dit.evaluation.statistics import Statistics, read_statistics
from dit.files import sha256
from dit.hardware import Ranks, versions
from dit.latents.store import holds_latents
from dit.runs import read_metrics
from dit.sample_folder import sample_folder

MOST_SAMPLES = 50_000
GRID_CLASSES, GRID_COLUMNS, GRID_WIDTH = 10, 10, 900
LIBRARIES = ("dit", "torch", "torch-fidelity", "numpy", "scipy", "scikit-learn", "diffusers", "timm")
SAMPLING = (
    *("sampler", "steps", "cfg_scale", "cfg_interval", "cfg_channels", "eta", "variance", "seed", "precision"),
    *("weights", "weights_sha256", "step", "ema", "process", "objective", "vae", "vae_sha256", "data"),
)
"""Entries of samples.json that the protocol shows, `unknown` where it lacks them; the rest follows."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: images, statistics, or both."""

    name: str
    images: ImageSet | None
    statistics: Statistics | None

    @property
    def digits(self) -> bool:
        """Whether it is scikit-learn's digits."""
        return self.name == "digits"


def evaluate(cfg: EvalConfig, ranks: Ranks) -> Path:
    """Sample where needed, score, and write the report; returns the folder of the report.

    All that can be wrong with flags, weights and reference is found before anything is sampled.

    Raises:
        UserError: a mistake in flags, files or images.
    """
    _check_flags(cfg)
    run = load_run(cfg.run, ranks.device) if cfg.run else None
    given = read_images(cfg.samples) if cfg.samples else None
    reference = _reference(cfg, run, given)
    extractor = _extractor(cfg, reference, ranks)
    if reference.statistics:
        metrics.check_widths(extractor.width, len(reference.statistics.mean))
    out = cfg.out or _default_out(cfg)
    out.mkdir(parents=True, exist_ok=True)
    samples, settings = (given, _settings(cfg.samples)) if given else _sample(cfg, run, reference, out, ranks)
    _check_sizes(samples, reference)
    found = _score(samples, reference, extractor, cfg.batch_size, ranks)
    if ranks.main:
        protocol = _protocol(samples, settings, reference, extractor, found, ranks)
        _write(samples, settings, protocol, found, cfg, out)
    ranks.barrier()
    return out


# -- what to compare ---------------------------------------------------------------------------------------------


def _check_flags(cfg: EvalConfig) -> None:
    if (cfg.run is None) == (cfg.samples is None):
        given = "neither --run nor --samples" if cfg.run is None else "both --run and --samples"
        raise UserError(given, "one of the two", "pass --run RUN to sample from it, or --samples DIR to score images")
    if cfg.samples is None:
        return
    for setting in dataclasses.fields(EvalConfig):
        of_sampling = setting.name == "num_samples" or setting.name in {
            f.name for f in dataclasses.fields(SamplerConfig)
        }
        value = getattr(cfg, setting.name)
        if of_sampling and setting.name != "batch_size" and value != setting.default:
            flag = "--" + setting.name.replace("_", "-")
            raise UserError(f"{flag} {value} with --samples", f"{flag} with --run only, for these images are made",
                            f"drop {flag}")


def _reference(cfg: EvalConfig, run: Run | None, given: ImageSet | None) -> Reference:
    """The reference that the flags name, else the data of the run that made the samples."""
    size = (run.card.config.image_size,) * 2 if run else given.size  # type: ignore[union-attr]
    data = run.card.config.data if run else _settings(cfg.samples).get("data")
    if cfg.reference is None and data is None:
        raise UserError(f"no --reference for {cfg.samples}", "digits, a folder of images, or an .npz file",
                        "pass --reference")
    name = cfg.reference or str(data)
    path = Path(name).expanduser()
    if holds_latents(path):
        raise UserError(f"{name} holds latents, which can not be the reference", "images, or an .npz file",
                        "pass --reference with the folder of images that was encoded")
    if name == "digits":
        if size[0] != size[1]:
            raise UserError(f"samples of {show_size(size)} with the reference digits", "square samples",
                            "pass another --reference")
        return Reference(name, from_data(Digits(size[0]), name), None)
    if path.suffix == ".npz":
        return _archive(path)
    if run and path.is_dir() and any(p.is_dir() for p in path.iterdir()):
        return Reference(name, _cropped(name, size), None)
    return Reference(name, read_images(path), None)


def _archive(path: Path) -> Reference:
    """Statistics, images, or both, as in ADM's reference batches."""
    statistics = read_statistics(path)
    images = read_images(path) if statistics is None or has_images(path) else None
    return Reference(str(path), images, statistics)


def _cropped(data: str, size: tuple[int, int]) -> ImageSet:
    """The images of class folders, cropped as they are for training."""
    try:
        return from_data(load_images(data, size[0]), data)
    except UserError as error:
        raise UserError(f"{data} can not be the reference: {error.given}", error.expected,
                        "pass another --reference") from error


def _extractor(cfg: EvalConfig, reference: Reference, ranks: Ranks) -> Extractor:
    """The feature network; rank 0 goes first, for it may have to download."""
    name = cfg.extractor if cfg.extractor != "auto" else DIGITS_CNN if reference.digits else "inception"
    if not ranks.main:
        ranks.barrier()
    extractor = load_extractor(name, cfg.weights, ranks.device)
    if ranks.main:
        ranks.barrier()
    return extractor


def _check_sizes(samples: ImageSet, reference: Reference) -> None:
    if reference.images and reference.images.size != samples.size:
        raise UserError(f"samples of {show_size(samples.size)} in {samples.name}, reference of "
                        f"{show_size(reference.images.size)} in {reference.name}", "one size for both",
                        "crop the reference to the samples' size, or sample at the reference's")
    if len(samples) < 2:
        raise UserError(f"{len(samples)} sample in {samples.name}", "at least 2, better thousands", "add samples")


def _default_out(cfg: EvalConfig) -> Path:
    if cfg.samples:
        return cfg.samples.resolve().with_name(f"{cfg.samples.stem}-evaluation")
    assert cfg.run
    inside = next((p for p in (cfg.run, *cfg.run.resolve().parents) if (p / "config.json").is_file()), None)
    return (inside or cfg.run.parent) / "evaluation"


# -- samples -----------------------------------------------------------------------------------------------------


def _sample(cfg: EvalConfig, run: Run | None, reference: Reference, out: Path, ranks: Ranks
            ) -> tuple[ImageSet, dict[str, Any]]:
    """Sample from the run into a folder named by the settings, so that other settings need not begin again."""
    assert run
    images = reference.images if reference.statistics is None else None  # statistics tell of more images than are there
    count = cfg.num_samples or min(MOST_SAMPLES, len(images) if images else MOST_SAMPLES)
    if reference.images:
        _check_run_size(run, reference.images)
    sampler = SamplerConfig(**{f.name: getattr(cfg, f.name) for f in dataclasses.fields(SamplerConfig)})
    settings = json.dumps([dataclasses.asdict(sampler), count, sha256(run.weights.path)])
    key = hashlib.sha256(settings.encode()).hexdigest()
    folder = out / f"samples-{key[:8]}"
    sample_folder(run, sampler, range(len(run.card.classes)), count, folder, "png", ranks)
    return read_images(folder), _settings(folder)


def _check_run_size(run: Run, reference: ImageSet) -> None:
    size = run.card.config.image_size
    if reference.size != (size, size):
        raise UserError(f"a run of {size}x{size} images and a reference of {show_size(reference.size)} in "
                        f"{reference.name}", "one size for both", "pass a reference of the run's size")


def _settings(samples: Path | None) -> dict[str, Any]:
    """What samples.json says of how the images were made; nothing where there is none."""
    path = (samples if samples.is_dir() else samples.parent) / "samples.json" if samples else None
    if path is None or not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON ({error})", "the file that sample.py wrote", "remove it") from error
    return settings if isinstance(settings, dict) else {}


# -- scores ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Scores, their floor, and hashes of the pixels they were computed on."""

    scores: dict[str, metrics.Score]
    floor: dict[str, metrics.Score]
    digits: report.Digits | None
    samples_digest: str
    reference_digest: str


def _score(samples: ImageSet, reference: Reference, extractor: Extractor, batch_size: int, ranks: Ranks) -> Found:
    ours = extract(samples, extractor, batch_size, ranks, "features of samples")
    real = (
        extract(reference.images, extractor, batch_size, ranks, "features of reference") if reference.images else None
    )
    digest = reference.statistics.digest if reference.statistics else real.digest if real else ""
    empty: dict[str, metrics.Score] = {}
    if not ranks.main:
        return Found(empty, empty, None, ours.digest, digest)
    return Found(
        scores=metrics.compute_scores(ours, real, reference.statistics, extractor.name),
        floor=metrics.compute_floor(real, len(samples), extractor.name),
        digits=_recognise(samples) if reference.digits else None,
        samples_digest=ours.digest,
        reference_digest=digest,
    )


def _recognise(samples: ImageSet) -> report.Digits:
    """How many samples show the digit they should, if it is known which."""
    if samples.labels is None:
        return report.Digits(reason="the samples have no labels (labels.csv, class folders, or arr_1)")
    strange = set(samples.labels) - {str(i) for i in range(10)}
    if strange:
        return report.Digits(reason=f"label {min(strange)!r} is no digit from 0 to 9")
    images = samples.stack(range(len(samples)))
    return report.Digits(metrics.svm_accuracy(images, [int(label) for label in samples.labels]), metrics.svm_floor())


# -- the report --------------------------------------------------------------------------------------------------


def _protocol(samples: ImageSet, settings: dict[str, Any], reference: Reference, extractor: Extractor, found: Found,
              ranks: Ranks) -> dict[str, dict[str, Any]]:
    shown = {**dict.fromkeys(SAMPLING, report.UNKNOWN), **{k: v for k, v in settings.items() if k != "versions"}}
    if shown["cfg_channels"] is None:
        shown["cfg_channels"] = "all"
    real = reference.images
    return {
        "samples": {"source": samples.name, "count": len(samples), "size": show_size(samples.size),
                    "labels": _balance(samples.labels), "pixels_sha256": found.samples_digest},
        "sampling": shown,
        "reference": {"source": reference.name, "count": len(real) if real else report.UNKNOWN,
                      "size": show_size(real.size) if real else report.UNKNOWN,
                      "statistics": "from the file" if reference.statistics else "computed",
                      "sha256": found.reference_digest},
        "features": {"extractor": extractor.name, "weights": extractor.weights, "weights_sha256": extractor.checksum,
                     "width": extractor.width, "neighbours (precision, recall)": metrics.NEIGHBOURS,
                     "reference images (precision, recall)": f"at most {metrics.PRC_REFERENCE}",
                     "subset seed": metrics.SEED},
        "software": _software(ranks.device),
    }


def _balance(labels: Sequence[str] | None) -> str:
    if labels is None:
        return report.UNKNOWN
    counts = collections.Counter(labels).values()
    each = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{len(counts)} classes, {each} images each"


def _software(device: torch.device) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        **versions(*LIBRARIES),
    }


def _write(samples: ImageSet, settings: dict[str, Any], protocol: dict[str, dict[str, Any]], found: Found,
           cfg: EvalConfig, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    grid = draw_grid(samples)
    grid.save(out / "grid.png")
    figures = {"Samples": grid, **_loss_figure(cfg.run, out)}
    title = f"Evaluation of {cfg.run or cfg.samples}"
    whole = report.Report(title, found.scores, found.floor, protocol, found.digits, figures)
    paths = report.write_report(whole, out)
    print(_table(report.rows(whole)))
    for path in (*paths, out / "grid.png"):
        print(path)


def draw_grid(samples: ImageSet) -> Image.Image:
    """The first samples of each of the first classes, a row for each; without labels just the first samples."""
    scale = pictures.fitting_scale(max(samples.size))
    columns = max(1, min(GRID_COLUMNS, GRID_WIDTH // (samples.size[1] * scale)))
    if samples.labels is None:
        return pictures.grid(samples.stack(range(min(len(samples), columns * columns))), None, columns, scale)
    places: dict[str, list[int]] = {}
    for i, label in enumerate(samples.labels):
        places.setdefault(label, []).append(i)
    names = sorted(places, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    names = names[:GRID_CLASSES]
    columns = min(columns, *(len(places[name]) for name in names)) if names else columns
    chosen = [i for name in names for i in places[name][:columns]]
    return pictures.grid(samples.stack(chosen), names, columns, scale)


def _loss_figure(run: Path | None, out: Path) -> dict[str, Image.Image]:
    """The run's loss curve, where it has logged one."""
    places = (run, *run.resolve().parents[:3]) if run else ()
    lines = next((found for p in places if (found := read_metrics(p / "metrics.jsonl"))), None)
    if lines is None:
        return {}
    pictures.loss_curve(lines, out / "loss.png")
    with Image.open(out / "loss.png") as picture:
        return {"Training loss": picture.convert("RGB")}


def _table(rows: Sequence[report.Row]) -> str:
    head = ("score", "value", "real against real", "N")
    body = [(row.name, f"{row.value} {row.deviation}".strip() if row.value else f"not available: {row.remark}",
             row.floor if row.value else "", row.count if row.value else "") for row in rows]
    widths = [max(len(line[i]) for line in (head, *(b for b in body if b[3] or i == 0))) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in (head, *body))
