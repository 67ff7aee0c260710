"""What rank 0 writes about a run in training: log, trackers, pictures and curves."""

import sys
from typing import Any

from torch import nn
from tqdm import tqdm

from dit.models.registry import is_classifier
from dit.runs.logs import read_metrics
from dit.training.cost.flops import Meter
from dit.training.monitoring.accuracy import AccuracyCurve
from dit.training.monitoring.environment import record_start
from dit.training.monitoring.log import EvalResult, MetricsLog, Tracker
from dit.training.monitoring.previews import Previews
from dit.training.monitoring.trackers import TensorBoard, Wandb, has_tensorboard
from dit.training.session import TrainingSession
from dit.utils.pictures import loss_curve


class Reporter:
    """metrics.jsonl, trackers, pictures and curves; those of steps done again are dropped."""

    def __init__(self, session: TrainingSession, meter: Meter):
        self.run = session.run
        trackers: list[Tracker] = []
        if has_tensorboard():
            trackers.append(TensorBoard(session.run, session.start))
        if session.config.wandb:
            trackers.append(Wandb(session.run, session.card))
        self.log = MetricsLog(session.run, session.start, trackers)
        # a run that was finished before does not start again
        if not session.finished:
            record_start(session, meter)

        self.pictures: AccuracyCurve | Previews
        if is_classifier(session.config.model):
            self.pictures = AccuracyCurve(session)
        else:
            self.pictures = Previews(
                session.run, session.card, session.autoencoder, session.start, session.captions
            )

    def write(self, step: int, values: dict[str, float], result: EvalResult) -> None:
        """Log numbers and scores, if any, and draw the curve of comparable scores."""
        if values or result.scores:
            self.log.write(step, values, result)
        if result.scores:
            # imported here: matplotlib is slow to load, and most runs have no scores
            from dit.report.figures import training_scores

            lines = read_metrics(self.log.file)
            comparable = [line for line in lines if line.get("eval") == result.eval]
            training_scores(comparable, self.run / "scores.png")

    def event(self, step: int, entries: dict[str, Any]) -> None:
        """Log and print an event."""
        text = ", ".join(f"{name} {value}" for name, value in entries.items())
        # through tqdm, which keeps the progress bar intact
        tqdm.write(f"step {step}: {text}", file=sys.stderr)
        self.log.event(step, entries)

    def draw(self, step: int, average: nn.Module) -> None:
        """Write a grid of samples of the EMA, or a classifier's accuracy."""
        self.log.image(step, self.pictures.draw(step, average))

    def finish(self) -> None:
        """Write the pictures of all of the run."""
        self.pictures.finish()
        lines = [line for line in read_metrics(self.log.file) if "loss" in line]
        if lines:
            loss_curve(lines, self.run / "loss.png")

    def close(self) -> None:
        """Close the trackers, however training ends."""
        self.log.close()
