"""What a classifier of noised latents can tell, as it learns: its accuracy against the noise."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit.diffusion.classifier import NoisyClassifier
from dit.diffusion.process import DDPM, add_noise
from dit.distributed.device import autocast
from dit.training.session import TrainingSession

IMAGES, BATCH, TIMES = 500, 250, 11


class AccuracyCurve:
    """accuracy.png of a run: how often its EMA names the class, from data to pure noise."""

    def __init__(self, session: TrainingSession):
        self.session = session

    def draw(self, step: int, average: nn.Module) -> Image.Image:
        """Measure, and write the picture."""
        from dit.report.figures import accuracy_by_time

        found = self.measure(NoisyClassifier(average, self.session.process))
        picture = accuracy_by_time(found, len(self.session.card.classes), f"after {step:,} steps")
        picture.save(self.session.run / "accuracy.png")
        return picture

    def finish(self) -> None:
        """Nothing: the last picture tells the whole run."""

    @torch.inference_mode()
    def measure(self, classifier: NoisyClassifier) -> dict[float, float]:
        """Accuracy by time, 0 (data) to 1 (noise), on training images spread over the data."""
        session, size = self.session, len(self.session.source.labels)
        chosen = np.arange(min(IMAGES, size)) * size // min(IMAGES, size)
        right, times = torch.zeros(TIMES), torch.linspace(0, 1, TIMES, dtype=torch.float64)
        random = torch.Generator().manual_seed(0)
        for part in np.split(chosen, range(BATCH, len(chosen), BATCH)):
            moments = session.source.read(part, np.zeros(len(part), dtype=bool))
            mean = moments.chunk(2, dim=1)[0]
            x0, eps = (
                session.autoencoder.draw(moments, torch.zeros_like(mean)),
                torch.randn(mean.shape, generator=random),
            )
            labels = torch.as_tensor(session.source.labels[part], device=x0.device)
            right += torch.stack(
                [self._right(classifier, x0, eps.to(x0), labels, t) for t in times]
            )
        return dict(zip(times.tolist(), (right / len(chosen)).tolist(), strict=True))

    def _right(
        self, classifier: NoisyClassifier, x0: Tensor, eps: Tensor, labels: Tensor, t: Tensor
    ) -> Tensor:
        """How many of a batch are named, []."""
        process = classifier.process
        time = (
            (t * process.end).round().clamp(min=1) if isinstance(process, DDPM) else t
        )  # whole steps, from 1
        with autocast(x0.device, self.session.config.precision):
            said = classifier.logits(add_noise(process, x0, eps, time), time)
        return (said.argmax(1) == labels).sum().float().cpu()
