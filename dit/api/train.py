"""Training from Python: on images in memory, and of networks of the user's own."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit.api.pipeline import Pipeline, load_trained
from dit.config import TrainConfig, flag_name
from dit.data.own import IN_MEMORY, Arrays, OwnImages
from dit.data.sources import refuse_columns
from dit.distributed.ranks import ranks
from dit.distributed.shortage import shortages_as_user_errors
from dit.errors import UserError, did_you_mean
from dit.latents.first_stage import suitable_size
from dit.latents.load import columns_of, refuse_digits_on_colour
from dit.runs.logs import read_metrics
from dit.sampling.python_arguments import as_arguments, checked, find_device, python_names
from dit.training.checked_data import Given
from dit.training.defaults import default_settings
from dit.training.run_training import run_training
from dit.utils.imports import class_name

NAMES = {"batch_size": "global_batch_size"}
"""Settings of training whose field has another name than their flag."""
ELSEWHERE = {
    "device": "training takes the fastest kind of this machine; CUDA_VISIBLE_DEVICES chooses GPUs",
}
"""Settings of other calls, and what to do instead."""
MOST_ON_GPU, MOST_ON_CPU = 256, 64  # pixels a side of images, unless image_size is given


@dataclass(frozen=True)
class Run:
    """A run that was trained: its directory, and what it logged last.

    Args:
        path: The run directory, as `Pipeline.from_pretrained` and `--run` take it.
        metrics: The last line of its log by name, such as `loss` and `step`.
        model: The name of its network.
        steps: That it was trained for.

    >>> run = dit.train(data="photos/", minutes=5)                       # doctest: +SKIP
    >>> run.pipeline()(["cat"]).images[0]                                # doctest: +SKIP
    """

    path: Path
    metrics: dict[str, float]
    model: str
    steps: int
    _module: nn.Module | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.model}, steps={self.steps})"

    def pipeline(self, device: str | torch.device | None = None) -> Pipeline:
        """Return a pipeline of the EMA of the newest checkpoint.

        >>> run.pipeline(device="cpu")(["cat"])                          # doctest: +SKIP
        """
        return Pipeline(load_trained(self.path, find_device(device), module=self._module))


def train(
    config: TrainConfig | None = None,
    *,
    data: Any = None,
    network: nn.Module | type[nn.Module] | str | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train, or continue, a run, as train.py does; return it.

    Args:
        config: All settings. The defaults of `TrainConfig` are those of the digits. Without it they
            are those that train.py chooses for the data.
        data: A text as `--data`; an object with a length and items (image, label), such as a data
            set of torchvision; or arrays (images uint8 [N, H, W, 3] or [N, 3, H, W], labels [N]).
            Unless given, `config.data`.
        network: A network with forward(x, t, y), to train from its weights; or a class, or
            MODULE:CLASS, created with input_size, in_channels and num_classes. Times t [B] are
            0 … 1000; y [B] has num_classes for the null class. Unless given, `config.model`.
        out: The run directory; unless given, `config.out`, or the next in runs/.
        settings: Fields of `TrainConfig`, in place of those of `config`.

    Raises:
        UserError: Settings, images or a network that do not fit.
        KeyboardInterrupt: A signal, such as Ctrl-C, stopped the run, after it was saved.

    A run continues by the same call with `resume="auto"` and its `out`. Commands can use a run of a
    network of one's own if its class can be imported and created again.

    >>> run = dit.train(dit.TrainConfig(steps=560))                      # doctest: +SKIP
    >>> run = dit.train(data=(images, labels), steps=1000, out="mine")   # doctest: +SKIP
    >>> run = dit.train(data="photos/", network="mynet:Net", minutes=5)  # doctest: +SKIP
    """
    items = _items(data)
    if items is not None:
        settings["data"] = IN_MEMORY
    elif data is not None:
        settings["data"] = str(data)
    module = _module(network)
    if network is not None:
        settings["model"] = network if isinstance(network, str) else _name(network)
    if out is not None:
        settings["out"] = Path(out)
    with python_names(NAMES):
        config = chosen_settings(config, settings, items)
        images = None if items is None else _images(items, config)
        with ranks() as joined, shortages_as_user_errors(config):
            given = Given(images, module, partial(as_arguments, names=NAMES))
            trained = run_training(config, joined, given=given)
    assert trained, "only a dry run has none"
    path = trained.run
    if trained.done < trained.steps:
        # code after this call expects a run that was trained
        saved = f"resume='auto' with out={str(path)!r} continues"
        raise KeyboardInterrupt(f"stopped at step {trained.done} of {trained.steps}; {saved}")
    logged = [line for line in read_metrics(path / "metrics.jsonl") if "event" not in line]
    return Run(path, logged[-1] if logged else {}, trained.model, trained.steps, module)


def chosen_settings(
    config: TrainConfig | None, settings: dict[str, Any], items: Any
) -> TrainConfig:
    """Return all settings; without a config, with the defaults that train.py has for the data."""
    known = list(TrainConfig.__dataclass_fields__)
    for name in settings:
        if name not in known:
            do = ELSEWHERE.get(name) or did_you_mean(name, known, "see dit.TrainConfig")
            raise UserError(f"argument {name!r}", "a field of dit.TrainConfig", do)
    if config is None:
        typed = {flag_name(name): _words(value) for name, value in settings.items()}
        if items is not None and "image_size" not in settings:
            side = OwnImages(items, IN_MEMORY, 32, columns_of(TrainConfig(num_classes=0))).side
            most = MOST_ON_GPU if find_device(None).type == "cuda" else MOST_ON_CPU
            typed["--image-size"] = [str(suitable_size(side, most))]
        config = default_settings(typed) or TrainConfig()
    values = {name: getattr(config, name) for name in known} | settings
    if values["resume"] is True:
        do = "pass resume='auto' and the run as out, or the run as resume"
        raise UserError("resume=True", "'auto', or a run directory", do)
    config = checked(TrainConfig, values, {})
    if config.resume not in (None, "auto") and config.out is None:
        config = replace(config, out=Path(config.resume))
    if config.dry_run:
        raise UserError(
            "dry_run in dit.train", "a training", "use the command `train.py --dry-run`"
        )
    return config


def _words(value: Any) -> list[str]:
    """Return a value as the words that would be typed for it."""
    return [str(one) for one in (value if isinstance(value, tuple | list) else (value,))]


def _items(data: Any) -> Any:
    """Return data that is no name as an object with items; None for a name, or nothing."""
    if data is None or isinstance(data, str | Path):
        return None
    if isinstance(data, tuple | list) and len(data) == 2 and _is_array(data[0]):
        return Arrays(*data)
    return Arrays(data) if _is_array(data) else data


def _images(items: Any, config: TrainConfig) -> OwnImages:
    """Return an object with items as the images of a training."""
    columns = columns_of(config)
    refuse_columns(IN_MEMORY, columns)
    images = OwnImages(items, IN_MEMORY, config.image_size, columns)
    refuse_digits_on_colour(config, images)
    return images


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _module(network: Any) -> nn.Module | None:
    if network is None or isinstance(network, str | type):
        return None
    if not isinstance(network, nn.Module):
        given = f"network of type {type(network).__name__}"
        raise UserError(given, "a torch.nn.Module, its class, or MODULE:CLASS", "")
    if type(network).__module__.startswith("dit.models."):
        raise UserError(
            f"network {class_name(type(network))}, of this package",
            "one of your own",
            "name it in the settings, such as model='DiT-S/2'",
        )
    return network


def _name(network: nn.Module | type[nn.Module]) -> str:
    return class_name(network if isinstance(network, type) else type(network))
