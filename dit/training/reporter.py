"""What a run writes about itself as it goes; by rank 0."""

from typing import Protocol

from PIL import Image

from dit.models.create import is_classifier
from dit.pictures import loss_curve
from dit.runs import read_metrics
from dit.training.accuracy import AccuracyCurve
from dit.training.job import Job
from dit.training.metrics_log import Found, MetricsLog
from dit.training.previews import Previews


class Progress(Protocol):
    """How well the EMA does its task, as a picture."""

    def draw(self, step: int) -> Image.Image:
        """Write the picture of now."""

    def finish(self) -> None:
        """Write what there is to see of the whole run, if anything beside the last picture."""


class Reporter:
    """metrics.jsonl, TensorBoard, pictures and curves; what lies there of steps done again is dropped."""

    def __init__(self, job: Job):
        self.run = job.run
        self.log = MetricsLog(job.run, job.start)
        self.progress: Progress = AccuracyCurve(job) if is_classifier(job.config.model) else Previews(
            job.run, job.card, job.state.ema, job.autoencoder, job.start, job.captions)

    def write(self, step: int, values: dict[str, float], found: Found) -> None:
        """A line of the log, where there is anything to tell, and the curve of scores that compare with this one."""
        if values or found.scores:
            self.log.write(step, values, found)
        if found.scores:
            from dit.evaluation.pages.figures import training_scores

            alike = [line for line in read_metrics(self.log.file) if line.get("eval") == found.eval]
            training_scores(alike, self.run / "scores.png")

    def draw(self, step: int) -> None:
        """A grid of samples, or how well classes are told."""
        self.log.image(step, self.progress.draw(step))

    def finish(self) -> None:
        """The pictures of the whole run."""
        self.log.close()
        self.progress.finish()
        if lines := [line for line in read_metrics(self.log.file) if "loss" in line]:
            loss_curve(lines, self.run / "loss.png")
