"""Scores of the EMA during training: the same seeds every time, against the same reference."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn
from tqdm import tqdm

from dit.config import SamplerConfig, TrainConfig
from dit.distributed.device import uses_bf16
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation import references
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.features import OnBatch, extract, no_callback
from dit.evaluation.metrics.compute import NAMES, score_names
from dit.runs.checkpoint_files import find_best
from dit.training.monitoring.eval_protocol import eval_key, read_protocols, record_protocol
from dit.training.monitoring.eval_samples import sample_ema
from dit.training.monitoring.log import EvalResult
from dit.training.monitoring.previews import preview_settings
from dit.training.session import TrainingSession
from dit.utils.image_size import sides

# names for Inception; the first decides which checkpoint is the best
LOGGED = ("FID", "KID", "precision", "recall", "IS")


@dataclass(frozen=True)
class EvalTarget:
    """The reference that samples are compared with, and the network whose features are compared."""

    reference: references.Reference
    extractor: Extractor

    def prepare(self, session: TrainingSession) -> "Scores":
        """Read the reference for the scores of a run."""
        settings = preview_settings(session.card)
        bf16 = uses_bf16(session.ranks.device, settings.precision)
        # `auto` is resolved here: scores in another precision do not compare
        precision: Literal["bf16", "fp32"] = "bf16" if bf16 else "fp32"
        with _flags_of_training():
            prepared = references.prepare_reference(
                self.reference,
                [self.extractor],
                [self.extractor.name],
                None,
                settings.batch_size,
                session.ranks,
                cache=True,
            )
        return Scores(session, self, prepared, dataclasses.replace(settings, precision=precision))


def choose_eval_target(
    config: TrainConfig, ranks: Ranks, images: references.Images | None = None
) -> EvalTarget:
    """Return what the --eval flags ask for; no image is read.

    Args:
        images: of training, if Python code passed them.
    """
    with _flags_of_training():
        name = config.eval_reference or config.data
        # images are cropped as those that training sees
        size = sides(config.image_size)
        if images is not None and config.eval_reference is None:
            reference = references.as_reference(images, name)
        else:
            reference = references.find_reference(name, size, crop=True, trained=config)
        weights = () if config.eval_weights is None else (config.eval_weights,)
        (extractor,) = references.choose_extractors(
            (config.eval_extractor,), weights, reference.network, ranks
        )
    return EvalTarget(reference, extractor)


class Scores:
    """Scores at steps of a run, and the lowest comparable distance so far."""

    def __init__(
        self,
        session: TrainingSession,
        target: EvalTarget,
        prepared: references.PreparedReference,
        settings: SamplerConfig,
    ):
        self.session = session
        self.target = target
        self.prepared = prepared
        self.settings = settings
        names = dict(zip(NAMES, score_names(target.extractor.name), strict=True))
        self.names = [names[name] for name in LOGGED]

        count = session.config.eval_samples
        self.eval = eval_key(count, settings, prepared.digest, target.extractor)
        # read once: a damaged scores.json is refused before training, and does not end it
        self.protocols = session.ranks.on_main(lambda: read_protocols(session.run))
        best = session.ranks.on_main(lambda: find_best(session.run, self.eval))
        self.best = best.distance.value if best else None

    def measure(self, step: int, average: nn.Module, on_batch: OnBatch = no_callback) -> EvalResult:
        """Return the scores of the EMA now, the same on all ranks.

        Early samples may not be finite: then there are no scores, and a warning. Nothing else
        should compute meanwhile, because the feature network sets flags of the whole process.

        Args:
            on_batch: called before each batch, as often on all ranks; it may raise to end this.
        """
        ranks = self.session.ranks
        images = sample_ema(self.session, self.settings, step, average, on_batch)
        if images is None:
            warning = f"warning: no scores at step {step}: samples of the EMA are not finite"
            if ranks.main:
                tqdm.write(warning, file=sys.stderr)
            return EvalResult()

        extractor = self.target.extractor
        title = f"features at step {step}"
        features = extract(images, [extractor], self.settings.batch_size, ranks, title, on_batch)
        scores = ranks.on_main(
            lambda: references.score_samples(
                features, self.prepared, [extractor.name], ranks.device
            )
        )
        values = {name: scores[name].value for name in self.names}
        available = {name: value for name, value in values.items() if value is not None}
        distance = available.get(self.names[0])
        # an equal distance does not lead: the earlier checkpoint stays the best
        is_best = distance is not None and (self.best is None or distance < self.best)
        if is_best:
            self.best = distance

        target = self.target
        digest = self.prepared.digest
        ranks.on_main(
            lambda: record_protocol(
                self.session,
                self.protocols,
                self.eval,
                images,
                self.settings,
                target.reference,
                digest,
                extractor,
            )
        )
        return EvalResult(available, self.eval, is_best)


@contextmanager
def _flags_of_training() -> Iterator[None]:
    """Name flags in error messages as train.py does."""
    try:
        yield
    except UserError as error:
        parts = [error.given, error.expected, error.do]
        for flag in ("reference", "extractor", "weights"):
            parts = [part.replace(f"--{flag}", f"--eval-{flag}") for part in parts]
        raise UserError(*parts) from error
