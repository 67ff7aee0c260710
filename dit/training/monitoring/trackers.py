"""Where the log of a run can be watched: TensorBoard, and Weights & Biases where asked for."""

import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

from dit.config import to_json
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.metrics import BY_TIME
from dit.training.monitoring.metrics import tag
from dit.utils.files import write_json

SAMPLES, WANDB = "samples", "wandb.json"  # the tag of pictures; the file of a run's id there


def lines(*tags: str) -> list[Any]:
    """One chart of TensorBoard, of all tags that begin so."""
    return ["Multiline", [f"^{one}" for one in tags]]


LAYOUT = {
    "training": {
        "loss": lines("train/loss$"),
        "loss by time: 0 is data, 1 is noise": lines(tag(BY_TIME)),
        "Fréchet distance of the EMA": lines("eval/F"),
    },
    "optimizer": {
        "gradient norm": lines("optim/grad_norm"),
        "norm of the update / norm of the weights": lines("optim/update_ratio"),
        "learning rate": lines("optim/lr"),
    },
    "speed": {
        "images a second": lines("speed/img_per_s"),
        "shares: of peak FLOP/s, of time waiting for data": lines("speed/mfu", "speed/data_wait"),
        "peak memory, GiB": lines("speed/memory_gib"),
    },
}
"""The page "Custom Scalars" of TensorBoard."""


class TensorBoard:
    """RUN/tensorboard; what it has of steps after `start` is dropped."""

    def __init__(self, run: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        self.writer.add_custom_scalars(LAYOUT)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers by tag."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, picture: Any) -> None:
        """A sample grid."""
        import numpy as np

        self.writer.add_image(SAMPLES, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        self.writer.close()


class Wandb:
    """A run of a project at Weights & Biases; the same one when training goes on.

    The step is one of the numbers, not wandb's own counter, which refuses the steps that are done again after a kill.
    WANDB_MODE=offline keeps all in RUN/wandb, for `wandb sync`.

    Raises:
        UserError: wandb does not let it start.
    """

    def __init__(self, run: Path, card: ModelCard):
        import wandb

        project = str(card.config.wandb)
        try:
            self.run = wandb.init(
                project=project,
                id=wandb_id(run, project),
                resume="allow",
                name=run.name,
                dir=str(run),
                config=to_json(card.config),
            )
        except wandb.Error as error:
            raise UserError(
                f"--wandb {project} does not start ({error})",
                "a login that may write there",
                "run `wandb login`, set WANDB_MODE=offline, or drop --wandb",
            ) from error
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers by tag."""
        self.run.log({"step": step, **numbers})

    def image(self, step: int, picture: Any) -> None:
        """A sample grid."""
        import wandb

        self.run.log({"step": step, SAMPLES: wandb.Image(picture)})

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


def require_wandb(project: str | None) -> None:
    """Whether --wandb can be followed.

    Raises:
        UserError: wandb is not installed, or the project has no name.
    """
    if project is None:
        return
    if not project.strip():
        raise UserError(
            "--wandb without a name",
            "the name of a project",
            "pass --wandb PROJECT, or drop --wandb",
        )
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"--wandb {project}, but wandb is not installed",
            "the package wandb",
            "pip install wandb, or drop --wandb",
        )


def wandb_id(run: Path, project: str) -> str:
    """The id of a run in a project, made once and kept in the run's directory."""
    file = run / WANDB
    known = json.loads(file.read_text()) if file.exists() else {}
    if project not in known:
        known[project] = uuid.uuid4().hex[:8]
        write_json(file, known)
    return str(known[project])
