"""The training loop of a first stage."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from dit.commands.train_vae.batches import batches
from dit.commands.train_vae.checkpoint import Progress, load_checkpoint, save_checkpoint
from dit.commands.train_vae.inputs import stamp_of
from dit.commands.train_vae.learner import Learner, learning_rate
from dit.commands.train_vae.log_window import LogWindow
from dit.commands.train_vae.quality import freeze_copy
from dit.commands.train_vae.report import Previews
from dit.config import VaeConfig
from dit.data.images import Images
from dit.errors import UserError
from dit.training.events import is_due
from dit.training.monitoring.log import EvalResult, MetricsLog, Stopwatch
from dit.training.monitoring.progress import Bar

LOG_EVERY = 20  # steps


@dataclass(frozen=True)
class Split:
    """The images of a training.

    Attributes:
        indices: of those to train on.
        shown: held-out ones that the pictures show, uint8 [B, 3, H, W].
    """

    images: Images
    indices: np.ndarray
    shown: Tensor


def fit(
    learner: Learner,
    split: Split,
    cfg: VaeConfig,
    stopped: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train until the last step, or until asked to stop; return how far the training is.

    It writes log, pictures and checkpoints.

    Args:
        stopped: the training to continue, whose checkpoint is in --out.
    """
    window = LogWindow()
    start = Progress(0, len(split.indices), 0.0, cfg, stamp_of(split.images))
    if stopped:
        load_checkpoint(cfg.out, stopped.step, learner, window)
        start = replace(stopped, config=cfg, stamp=start.stamp)
    return Loop(learner, split, cfg, start, window).run(should_stop)


@dataclass
class Loop:
    """The steps of a training, and what is due after each."""

    learner: Learner
    split: Split
    cfg: VaeConfig
    start: Progress
    window: LogWindow
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.log = MetricsLog(self.cfg.out, self.start.step)
        self.previews = Previews(self.cfg.out, self.split.shown, self.start.step)

    def run(self, should_stop: Callable[[], bool]) -> Progress:
        """Train until the last step, or until asked to stop; return how far the training is."""
        cfg, done = self.cfg, self.start
        source = batches(self.split.images, self.split.indices, cfg, done.step)
        with closing(source), Bar(done.step, cfg.steps, shown=True) as bar:
            while done.step < cfg.steps:
                step = done.step + 1
                x, noise = next(source)
                self.window.add(self.learner.step(step, x.to(self.learner.device), noise, cfg))
                seconds = self.start.seconds + time.monotonic() - self.began
                done = replace(done, step=step, seconds=seconds)
                stop = should_stop()
                with self.stopwatch.paused():
                    values = self.run_events(done, stop)
                bar.update(step, values)
                if stop:
                    break
        return done

    def run_events(self, done: Progress, stop: bool) -> dict[str, float]:
        """Do what is due after a step; return the numbers that it logged."""
        cfg, step = self.cfg, done.step
        values: dict[str, float] = {}

        if is_due(step, LOG_EVERY, cfg.steps):
            values = self.window.take_means()
            check_finite(values, step, cfg)
            speed = self.stopwatch.lap(step - self.start.step).steps_per_second
            values |= {"lr": learning_rate(cfg, step - 1), "img_per_s": speed * cfg.batch_size}

        assert cfg.sample_every is not None
        if is_due(step, cfg.sample_every, cfg.steps):
            frozen = freeze_copy(self.learner.network, cfg, self.learner.device)
            values["psnr"] = self.previews.draw(step, frozen)
        if values:
            self.log.write(step, values, EvalResult())

        if stop or step == cfg.steps or is_due(step, cfg.ckpt_every, cfg.steps):
            save_checkpoint(cfg.out, done, self.learner, self.window)
        return values


def check_finite(values: dict[str, float], step: int, cfg: VaeConfig) -> None:
    """Refuse to go on after a loss that is not finite."""
    if not np.isfinite(list(values.values())).all():
        shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        raise UserError(
            f"the loss is not finite by step {step} ({shown})",
            "finite numbers",
            f"lower --lr (it is {cfg.lr:g}) or pass --precision fp32",
        )
