"""The model card, all that is needed to use a network: a run's config.json, a weights file's
header."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.config import TrainConfig, from_json, to_json
from dit.utils.files import reraise_as_user_error, shell_quote
from dit.utils.image_size import Size, sides, size_of

CONFIG = "config.json"
RELEASE_DATA = "imagenet"  # data in the card of a converted release


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What a network is created from, once data and autoencoder are known."""

    model: str
    input_size: Size
    in_channels: int
    num_classes: int  # 0: unconditional
    learn_sigma: bool
    conditioning: str = "adaln-zero"
    block: str = "plain"  # layers of a DiT's blocks, see models/layers.py
    text_width: int | None = None  # features of a text token, with conditioning `text`
    unet_attention: tuple[int, ...] | None = None  # sides where a U-Net attends; None: its default

    @property
    def sizes(self) -> dict[str, Any]:
        """Return all but the name, as `create_model` takes it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "model"}

    @property
    def summary(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, so that records outlive new fields."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value != default[name]}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Settings, shapes, class names and latent statistics of a network."""

    config: TrainConfig
    network: NetworkSpec
    classes: list[str]  # names of the classes in the data; the network may take more
    latent_mean: list[float] | None = None  # of --latent-norm data
    latent_std: list[float] | None = None
    vae_sha256: str | None = None  # of the autoencoder's weights; unknown in early versions
    text_encoder_sha256: str | None = None  # of --conditioning text
    ema_length: float | None = None  # of weights that are a power-function average (2312.02696)

    @property
    def unconditional(self) -> bool:
        """Whether there are no classes: all labels are the null id, 0."""
        return self.network.num_classes == 0 and not self.classes

    @property
    def average(self) -> float | str:
        """Return the average that a weights file has: the EMA's decay, or its length in words."""
        return self.config.ema if self.ema_length is None else f"length {self.ema_length:g}"

    @property
    def ids(self) -> list[int]:
        """Return the labels that can be sampled: ids of the data's classes, else the null id."""
        return list(range(len(self.classes))) or [self.network.num_classes]

    @property
    def names(self) -> list[str]:
        """Return names that identify classes, by id: neither captions nor the DiT release's ids."""
        ids = [str(i) for i in range(len(self.classes))]
        only_ids = self.config.data == RELEASE_DATA and self.classes == ids
        return [] if only_ids or self.network.conditioning == "text" else self.classes

    def class_name(self, label: int) -> str:
        """Return the name of a class; its id if the data had none of it."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "config": to_json(self.config)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ModelCard":
        """Return the card of such values, also of earlier versions."""
        # JSON has lists where the dataclasses have tuples
        network = dict(values["network"])
        network["input_size"] = size_of(*sides(network["input_size"]))
        if network.get("unet_attention") is not None:
            network["unet_attention"] = tuple(network["unet_attention"])
        config = from_json(TrainConfig, values["config"])
        return ModelCard(**{**values, "config": config, "network": NetworkSpec(**network)})

    @staticmethod
    def read(run: Path) -> "ModelCard":
        """Read a run's config.json."""
        file = run / CONFIG
        resume = f"train.py --resume {shell_quote(run)}"
        do = f"copy it again; or, if there is a checkpoint, let {resume} write it again"
        with reraise_as_user_error(file, "the configuration that train.py wrote", do):
            return ModelCard.from_json(json.loads(file.read_text()))


def class_mismatch(theirs: ModelCard, ours: ModelCard) -> tuple[int, str, str] | None:
    """Return the first class with different names in two networks: its id, their name, our name."""
    # not strict: one of them may know fewer classes than the other
    for label, (their_name, our_name) in enumerate(zip(theirs.names, ours.names, strict=False)):
        if their_name != our_name:
            return label, their_name, our_name
    return None


def same_autoencoder(theirs: ModelCard, ours: ModelCard) -> bool:
    """Whether two autoencoders are the same, by checksum if both are known, else by name."""
    if theirs.vae_sha256 and ours.vae_sha256:
        return theirs.vae_sha256 == ours.vae_sha256
    return theirs.config.vae == ours.config.vae
