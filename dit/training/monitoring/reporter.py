"""What a run writes about itself as it goes; by rank 0."""

import sys
from typing import Any, Protocol

from PIL import Image
from torch import nn
from tqdm import tqdm

from dit.models.registry import is_classifier
from dit.runs.metrics import read_metrics
from dit.training.cost.flops import Meter
from dit.training.monitoring.accuracy import AccuracyCurve
from dit.training.monitoring.environment import record_start
from dit.training.monitoring.metrics import Board, EvalResult, MetricsLog
from dit.training.monitoring.previews import Previews
from dit.training.monitoring.trackers import TensorBoard, Wandb
from dit.training.session import TrainingSession
from dit.utils.pictures import loss_curve


class Progress(Protocol):
    """How well the EMA does its task, as a picture."""

    def draw(self, step: int, average: nn.Module) -> Image.Image:
        """Write the picture of now, by the EMA."""

    def finish(self) -> None:
        """Write what there is to see of the whole run, if anything beside the last picture."""


class Reporter:
    """metrics.jsonl, boards, pictures and curves; what lies there of steps done again is dropped."""

    def __init__(self, session: TrainingSession, meter: Meter):
        self.run = session.run
        boards: list[Board] = [TensorBoard(session.run, session.start)]
        boards += [Wandb(session.run, session.card)] if session.config.wandb else []
        self.log = MetricsLog(session.run, session.start, boards)
        if not session.finished:
            record_start(session, meter)
        self.progress: Progress = (
            AccuracyCurve(session)
            if is_classifier(session.config.model)
            else Previews(
                session.run, session.card, session.autoencoder, session.start, session.captions
            )
        )

    def write(self, step: int, values: dict[str, float], found: EvalResult) -> None:
        """A line of the log, where there is anything to tell, and the curve of scores that compare with this one."""
        if values or found.scores:
            self.log.write(step, values, found)
        if found.scores:
            from dit.report.figures import training_scores

            alike = [line for line in read_metrics(self.log.file) if line.get("eval") == found.eval]
            training_scores(alike, self.run / "scores.png")

    def event(self, step: int, what: dict[str, Any]) -> None:
        """Something that happened at a step, in the log and for those who watch."""
        tqdm.write(
            f"step {step}: " + ", ".join(f"{name} {value}" for name, value in what.items()),
            file=sys.stderr,
        )
        self.log.event(step, what)

    def draw(self, step: int, average: nn.Module) -> None:
        """A grid of samples of the EMA, or how well it tells classes."""
        self.log.image(step, self.progress.draw(step, average))

    def finish(self) -> None:
        """The pictures of the whole run."""
        self.progress.finish()
        if lines := [line for line in read_metrics(self.log.file) if "loss" in line]:
            loss_curve(lines, self.run / "loss.png")

    def close(self) -> None:
        """However training ends: bring all of it to the boards."""
        self.log.close()
