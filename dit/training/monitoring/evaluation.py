"""Scores of the EMA as it learns: the same samples every time, against the same reference."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from dit.config import SamplerConfig, TrainConfig
from dit.distributed.device import uses_bf16
from dit.distributed.ranks import Ranks
from dit.errors import NotFinite, UserError
from dit.evaluation import references
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.features import OnBatch, extract, gather, no_callback
from dit.evaluation.inputs.images import ImageSet, from_array
from dit.evaluation.metrics.compute import NAMES, score_names
from dit.evaluation.protocol import protocol
from dit.evaluation.references import (
    PreparedReference,
    Reference,
    choose_extractors,
    find_reference,
)
from dit.evaluation.samples import settings_in_use
from dit.runs.checkpoints import find_best
from dit.sampling.generate import generate
from dit.sampling.pipeline import build_pipeline
from dit.training.monitoring.metrics import EvalResult
from dit.training.monitoring.previews import ema_run, sampler_settings
from dit.training.session import TrainingSession
from dit.utils.files import reraise_as_user_error, write_json
from dit.utils.image_size import sides

LOGGED = (
    "FID",
    "KID",
    "precision",
    "recall",
    "IS",
)  # as Inception's are called; the first tells which is best
RECORD = "scores.json"  # in a run: protocols by the `eval` of the scores made so


@dataclass(frozen=True)
class EvalTarget:
    """What samples are compared with, and in the features of which network."""

    reference: Reference
    extractor: Extractor

    def prepare(self, session: TrainingSession) -> "Scores":
        """Read the reference, for the scores of a run.

        Raises:
            UserError: an image can not be read, statistics are of another network, or scores.json is damaged.
        """
        settings = sampler_settings(session.card)
        precision: Literal["bf16", "fp32"] = (
            "bf16" if uses_bf16(session.ranks.device, settings.precision) else "fp32"
        )
        with _flags_of_training():
            standard = references.prepare(
                self.reference,
                [self.extractor],
                [self.extractor.name],
                None,
                settings.batch_size,
                session.ranks,
                cache=True,
            )
        return Scores(session, self, standard, dataclasses.replace(settings, precision=precision))


def choose_eval_target(config: TrainConfig, ranks: Ranks) -> EvalTarget:
    """What the --eval flags ask for; no image is read.

    Raises:
        UserError: a mistake in these flags, or missing weights.
    """
    with _flags_of_training():
        name = config.eval_reference or config.data
        reference = find_reference(
            name, sides(config.image_size), crop=True
        )  # as training sees them
        weights = () if config.eval_weights is None else (config.eval_weights,)
        (extractor,) = choose_extractors(
            (config.eval_extractor,), weights, reference.network, ranks
        )
    return EvalTarget(reference, extractor)


class Scores:
    """Scores at steps of a run, and the lowest distance so far, of those measured as now."""

    def __init__(
        self,
        session: TrainingSession,
        yardstick: EvalTarget,
        standard: PreparedReference,
        settings: SamplerConfig,
    ):
        self.session, self.yardstick, self.standard, self.settings = (
            session,
            yardstick,
            standard,
            settings,
        )
        shown = dict(zip(NAMES, score_names(yardstick.extractor.name), strict=True))
        self.names = [shown[name] for name in LOGGED]
        self.eval = self._hash()
        self.recorded = session.ranks.on_main(self._read_record)
        best = session.ranks.on_main(lambda: find_best(session.run, self.eval))
        self.best = best.distance.value if best else None

    def _hash(self) -> str:
        """Six digits that scores share where they can be compared."""
        samples = [self.session.config.eval_samples, settings_in_use(self.settings)]
        extractor = self.yardstick.extractor
        text = json.dumps([*samples, self.standard.digest, extractor.name, extractor.checksum])
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    def measure(self, step: int, average: nn.Module, heed: OnBatch = no_callback) -> EvalResult:
        """Scores of the EMA now; the same on all ranks.

        Those that are not available are left out; all of them, with a warning, where samples are not finite, as early
        ones may be. Nothing else should compute meanwhile, for the feature network sets flags of the whole process.
        All ranks call `heed` before each batch, as often, and may be left by what it raises.
        """
        ranks, images, extractor = (
            self.session.ranks,
            self._sample(step, average, heed),
            self.yardstick.extractor,
        )
        if images is None:
            if ranks.main:
                tqdm.write(
                    f"warning: no scores at step {step}: samples of the EMA are not finite",
                    file=sys.stderr,
                )
            return EvalResult()
        seen = extract(
            images, [extractor], self.settings.batch_size, ranks, f"features at step {step}", heed
        )
        scores = ranks.on_main(
            lambda: references.score(seen, self.standard, [extractor.name], ranks.device)
        )
        values = {name: value for name in self.names if (value := scores[name].value) is not None}
        distance = values.get(self.names[0])
        leads = distance is not None and (self.best is None or distance < self.best)
        self.best = distance if leads else self.best
        ranks.on_main(lambda: self._record(images))
        return EvalResult(values, self.eval, leads)

    def _sample(self, step: int, average: nn.Module, heed: OnBatch) -> ImageSet | None:
        """The same seeds and classes at every step, the classes evenly; None if an image is not finite.

        Batches are the same on any number of ranks, and so is image i, bit for bit.
        """
        session, count = self.session, self.session.config.eval_samples
        run = ema_run(session.card, average, session.autoencoder, session.captions)
        pipeline = build_pipeline(run, self.settings)
        indices = torch.arange(count)
        labels = torch.tensor(session.card.ids)[indices * len(session.card.ids) // count]
        batches = indices.split(self.settings.batch_size)
        pixels = torch.zeros(count, 3, *run.image_size, dtype=torch.uint8)
        failed = torch.zeros((), device=session.ranks.device)
        world = session.ranks.world
        for turn in range(session.ranks.rank, -(-len(batches) // world) * world, world):
            heed()
            try:
                for mine in batches[turn : turn + 1]:
                    pixels[mine] = generate(pipeline, labels[mine], mine)
            except NotFinite:
                failed += 1
        if session.ranks.total(failed):
            return None
        pixels = gather(pixels, session.ranks)
        classes = (
            None
            if session.card.unconditional
            else [session.card.class_name(label) for label in labels.tolist()]
        )
        return from_array(pixels.permute(0, 2, 3, 1).numpy(), f"samples of step {step}", classes)

    # -- how it was done -----------------------------------------------------------------------------------------

    def _read_record(self) -> dict[str, Any]:
        file = self.session.run / RECORD
        if not file.exists():
            return {}
        with reraise_as_user_error(
            file, "the protocols of scores that train.py wrote", f"remove {file}"
        ):
            return dict(json.loads(file.read_text()))

    def _record(self, images: ImageSet) -> None:
        """Write the protocol of these scores into scores.json, unless it is there."""
        if self.eval in self.recorded:
            return
        shown = dataclasses.replace(images, name="the EMA, the same seeds at every step")
        made = protocol(
            shown,
            "of other pixels at every step",
            self._sampling(),
            self.yardstick.reference,
            self.standard.digest,
            [self.yardstick.extractor],
            self.session.ranks.device,
        )
        self.recorded[self.eval] = made
        write_json(self.session.run / RECORD, self.recorded)

    def _sampling(self) -> dict[str, Any]:
        """What samples.json would say, but for the weights, which change."""
        config, autoencoder = self.session.config, self.session.autoencoder
        return {
            **settings_in_use(self.settings),
            **dict.fromkeys(("eta", "variance")),  # none of dpmpp_2m's business
            "weights": "the EMA at every step",
            "weights_sha256": "in meta.json of checkpoints",
            "step": "as in metrics.jsonl",
            "ema": config.ema,
            "network": self.session.card.network.told,
            "process": config.process,
            "objective": config.objective,
            "vae": autoencoder.name,
            "vae_sha256": autoencoder.checksum,
            "data": config.data,
            **(
                {"text_encoder_sha256": self.session.card.text_encoder_sha256}
                if self.session.captions
                else {}
            ),
        }


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
