"""Accuracy of a classifier of noised latents while it trains, against the noise."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit.diffusion.classifier import NoisyClassifier
from dit.diffusion.process import DDPM, add_noise
from dit.distributed.device import autocast
from dit.training.session import TrainingSession
from dit.utils.pictures import write_png

IMAGES = 500
BATCH = 250
TIMES = 11


class AccuracyCurve:
    """accuracy.png of a run: the accuracy of its EMA, from data to pure noise."""

    def __init__(self, session: TrainingSession):
        self.session = session

    def draw(self, step: int, average: nn.Module) -> Image.Image:
        """Measure, and write the picture."""
        from dit.report.figures import accuracy_by_time

        accuracy = self.measure(NoisyClassifier(average, self.session.stream.process))
        classes = len(self.session.card.classes)
        picture = accuracy_by_time(accuracy, classes, f"after {step:,} steps")
        write_png(picture, self.session.run / "accuracy.png")
        return picture

    def finish(self) -> None:
        """Do nothing: the last picture is up to date."""

    @torch.inference_mode()
    def measure(self, classifier: NoisyClassifier) -> dict[float, float]:
        """Return accuracy by time, 0 (data) to 1 (noise), on evenly spaced training images."""
        session = self.session
        source = session.stream.source
        size = len(source.labels)
        chosen = np.arange(min(IMAGES, size)) * size // min(IMAGES, size)
        times = torch.linspace(0, 1, TIMES, dtype=torch.float64)
        # the same noise every time, from a stream apart from training's
        random = torch.Generator().manual_seed(0)
        right = torch.zeros(TIMES)

        for part in np.split(chosen, range(BATCH, len(chosen), BATCH)):
            moments = source.read(part, np.zeros(len(part), dtype=bool))
            mean, _ = moments.chunk(2, dim=1)
            # without noise the autoencoder draws the mean of the latent
            x0 = session.autoencoder.draw(moments, torch.zeros_like(mean))
            eps = torch.randn(mean.shape, generator=random).to(x0)
            labels = torch.as_tensor(source.labels[part], device=x0.device)
            for number, t in enumerate(times):
                right[number] += self._right(classifier, x0, eps, labels, t)
        shares = (right / len(chosen)).tolist()
        return dict(zip(times.tolist(), shares, strict=True))

    def _right(
        self, classifier: NoisyClassifier, x0: Tensor, eps: Tensor, labels: Tensor, t: Tensor
    ) -> Tensor:
        """Return how many of a batch are classified correctly, []."""
        process = classifier.process
        if isinstance(process, DDPM):
            # DDPM has integer steps, from 1
            t = (t * process.end).round().clamp(min=1)
        with autocast(x0.device, self.session.config.precision):
            logits = classifier.logits(add_noise(process, x0, eps, t), t)
        return (logits.argmax(1) == labels).sum().float().cpu()
