"""Trackers that show the log of a run: TensorBoard, and Weights & Biases with --wandb."""

import importlib.util
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from dit.config import to_json
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.logs import BY_TIME
from dit.training.monitoring.log import tag
from dit.utils.files import name_file_in_errors, write_json
from dit.utils.typed_json import read_json

SAMPLES = "samples"  # tag of pictures
WANDB_FILE = "wandb.json"  # in a run: its ids by project


def multiline(*prefixes: str) -> list[Any]:
    """Return one chart of TensorBoard, of all tags with these prefixes."""
    return ["Multiline", [f"^{prefix}" for prefix in prefixes]]


LAYOUT = {
    "training": {
        "loss": multiline("train/loss$"),
        "loss by time: 0 is data, 1 is noise": multiline(tag(BY_TIME)),
        "Fréchet distance of the EMA": multiline("eval/F"),
    },
    "optimizer": {
        "gradient norm": multiline("optim/grad_norm"),
        "norm of the update / norm of the weights": multiline("optim/update_ratio"),
        "learning rate": multiline("optim/lr"),
    },
    "speed": {
        "images a second": multiline("speed/img_per_s"),
        "shares: of peak FLOP/s, of time waiting for data": multiline(
            "speed/mfu", "speed/data_wait"
        ),
        "peak memory, GiB": multiline("speed/memory_gib"),
    },
}
"""The page "Custom Scalars" of TensorBoard."""


def has_tensorboard() -> bool:
    """Return whether the optional package tensorboard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard:
    """RUN/tensorboard; entries after step `start` are dropped."""

    def __init__(self, run: Path, start: int):
        # imported here: it takes a second
        from torch.utils.tensorboard import SummaryWriter

        self.folder = run / "tensorboard"
        self.writer = SummaryWriter(str(self.folder), purge_step=start + 1)
        self.writer.add_custom_scalars(LAYOUT)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        # a thread writes; what failed in it is raised by the next call
        with name_file_in_errors(self.folder):
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, step)

    def image(self, step: int, picture: Any) -> None:
        with name_file_in_errors(self.folder):
            self.writer.add_image(SAMPLES, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        with name_file_in_errors(self.folder):
            self.writer.close()


class Wandb:
    """A run of a Weights & Biases project, continued when training is resumed.

    With WANDB_MODE=offline all is kept in RUN/wandb, for `wandb sync`.
    """

    def __init__(self, run: Path, card: ModelCard):
        # an optional dependency
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
        # The step is one of the numbers: wandb's own counter refuses steps that a kill repeats.
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log({"step": step, **numbers})

    def image(self, step: int, picture: Any) -> None:
        import wandb

        self.run.log({"step": step, SAMPLES: wandb.Image(picture)})

    def close(self) -> None:
        self.run.finish()


def require_wandb(project: str | None) -> None:
    """Refuse --wandb without a project's name, or where wandb is not installed."""
    if project is None:
        return
    if not project.strip():
        do = "pass --wandb PROJECT, or drop --wandb"
        raise UserError("--wandb without a name", "the name of a project", do)
    if importlib.util.find_spec("wandb") is None:
        given = f"--wandb {project}, but wandb is not installed"
        raise UserError(given, "the package wandb", "pip install wandb, or drop --wandb")


def wandb_id(run: Path, project: str) -> str:
    """Return the id of a run in a project, which is chosen once and kept in the run's directory."""
    file = run / WANDB_FILE
    ids: dict[str, str] = {}
    if file.exists():
        do = f"remove {file}, for a new run of the project"
        ids = read_json(file, dict[str, str], "the ids of the run by project", do)
    if project not in ids:
        ids[project] = uuid.uuid4().hex[:8]
        write_json(file, ids)
    return ids[project]
