"""Scores of the EMA as it learns: the same samples every time, against the same reference."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dit.build import build_sampling
from dit.config import SamplerConfig, TrainConfig
from dit.errors import UserError
from dit.evaluation import references
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import ImageSet, from_array
from dit.evaluation.networks.base import Extractor
from dit.evaluation.references import Reference, Standard, choose_extractors, find_reference
from dit.evaluation.scores.metrics import NAMES, score_names
from dit.generate import generate
from dit.hardware import Ranks
from dit.latents.store import holds_latents
from dit.runs import find_best, read_metrics
from dit.training.job import Job
from dit.training.previews import ema_run, sampler_settings

LOGGED = ("FID", "KID", "precision", "recall", "IS")  # as Inception's are called; the first tells which is best


@dataclass(frozen=True)
class Comparison:
    """What samples are compared with, and in the features of which network."""

    reference: Reference
    extractor: Extractor

    def prepare(self, job: Job) -> "Scores":
        """Read the reference, for the scores of a run.

        Raises:
            UserError: an image can not be read, or statistics are of another network.
        """
        settings = sampler_settings(job.config)
        with _flags_of_training():
            standard = references.prepare(self.reference, [self.extractor], [self.extractor.name], None,
                                          settings.batch_size, job.ranks, cache=True)
        return Scores(job, self.extractor, standard, settings)


def choose_comparison(config: TrainConfig, ranks: Ranks) -> Comparison:
    """What the --eval flags ask for; no image is read.

    Raises:
        UserError: a mistake in these flags, or missing weights.
    """
    if config.eval_reference is None and holds_latents(Path(config.data)):
        raise UserError(f"--eval-every {config.eval_every} with --data {config.data}, which holds latents",
                        "images to compare samples with",
                        "pass --eval-reference with the folder of images that was encoded, or statistics of it (.npz)")
    with _flags_of_training():
        name = config.eval_reference or config.data
        reference = find_reference(name, (config.image_size,) * 2, crop=True)  # as training sees them
        weights = () if config.eval_weights is None else (config.eval_weights,)
        (extractor,) = choose_extractors((config.eval_extractor,), weights, reference.digits, ranks)
    return Comparison(reference, extractor)


class Scores:
    """Scores at steps of a run, and the best of them so far."""

    def __init__(self, job: Job, extractor: Extractor, standard: Standard, settings: SamplerConfig):
        self.job, self.extractor, self.standard, self.settings = job, extractor, standard, settings
        shown = dict(zip(NAMES, score_names(extractor.name), strict=True))
        self.names = [shown[name] for name in LOGGED]
        self.best = job.ranks.on_main(self._best_before)

    def _best_before(self) -> float | None:
        """The lowest distance up to where the run goes on."""
        lines = [line for line in read_metrics(self.job.run / "metrics.jsonl") if line["step"] <= self.job.start]
        best = find_best(lines, self.names[0])
        return best.value if best else None

    def measure(self, step: int) -> tuple[dict[str, float], bool]:
        """Scores of the EMA now, and whether its distance is the lowest so far; the same on all ranks.

        Those that are not available are left out; all of them, with a warning, where samples are not finite, as early
        ones may be.
        """
        ranks, images = self.job.ranks, self._sample(step)
        if images is None:
            if ranks.main:
                tqdm.write(f"warning: no scores at step {step}: samples of the EMA are not finite", file=sys.stderr)
            return {}, False
        found = extract(images, [self.extractor], self.settings.batch_size, ranks, f"features at step {step}")
        scores = ranks.on_main(lambda: references.score(found, self.standard, [self.extractor.name], ranks.device))
        values = {name: value for name in self.names if (value := scores[name].value) is not None}
        distance = values.get(self.names[0])
        leads = distance is not None and (self.best is None or distance < self.best)
        self.best = distance if leads else self.best
        return values, leads

    def _sample(self, step: int) -> ImageSet | None:
        """The same seeds and classes at every step, the classes evenly; None if an image is not finite.

        Batches are the same on any number of ranks, and so is image i, bit for bit.
        """
        job, count, size = self.job, self.job.config.eval_samples, self.job.config.image_size
        run = ema_run(job.run, job.card, job.state.ema, job.autoencoder, step)
        plan = build_sampling(run.denoise, run.card, self.settings)
        indices = torch.arange(count)
        labels = indices * len(job.card.classes) // count
        batches = indices.split(self.settings.batch_size)
        pixels = torch.zeros(count, 3, size, size, dtype=torch.uint8)
        failed = torch.zeros((), device=job.ranks.device)
        try:
            for mine in batches[job.ranks.rank :: job.ranks.world]:
                pixels[mine] = generate(run, plan, self.settings, labels[mine], mine)
        except UserError:
            failed += 1
        if job.ranks.total(failed):
            return None
        pixels = job.ranks.total(pixels.to(job.ranks.device)).cpu()  # those of other ranks were zero
        return from_array(pixels.permute(0, 2, 3, 1).numpy(), f"samples of step {step}")


@contextmanager
def _flags_of_training() -> Iterator[None]:
    """Name flags in messages as train.py has them."""
    try:
        yield
    except UserError as error:
        parts = [error.given, error.expected, error.do]
        for flag in ("reference", "extractor", "weights"):
            parts = [part.replace(f"--{flag}", f"--eval-{flag}") for part in parts]
        raise UserError(*parts) from error
