"""The card: all that one needs to use a network. It is config.json of a run and the header of its weights."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.config import TrainConfig, from_json, to_json
from dit.utils.files import reraise_as_user_error, shell_quote
from dit.utils.image_size import Size, sides, size_of

CONFIG = "config.json"
RELEASE_DATA = "imagenet"  # what the card of a converted release says that it was trained on


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What a network is made from, data and autoencoder known."""

    model: str
    input_size: Size
    in_channels: int
    num_classes: int  # 0: unconditional
    learn_sigma: bool
    conditioning: str = "adaln-zero"
    text_width: int | None = None  # features of a token of text, with conditioning `text`
    unet_attention: tuple[int, ...] | None = (
        None  # sides at which a U-Net attends, where they are not its size's own
    )

    @property
    def sizes(self) -> dict[str, Any]:
        """All but the name, as `create_model` takes it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "model"}

    @property
    def told(self) -> dict[str, Any]:
        """As records tell of it: without what is as it is by default, so that they outlive new fields."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value != default[name]
        }


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that one needs to use a network: settings, shapes, class names, latent statistics."""

    config: TrainConfig
    network: NetworkSpec
    classes: list[str]  # names of those in the data; the network may have room for more
    latent_mean: list[float] | None = None  # of --latent-norm data
    latent_std: list[float] | None = None
    vae_sha256: str | None = (
        None  # of the autoencoder's weights; of earlier versions' runs nobody knows
    )
    text_encoder_sha256: str | None = None  # of --conditioning text
    ema_length: float | None = (
        None  # of weights that are a power function's average, not the decay's
    )

    @property
    def unconditional(self) -> bool:
        """Whether there are no classes to ask for: all labels are the null id, 0."""
        return self.network.num_classes == 0 and not self.classes

    @property
    def average(self) -> float | str:
        """Which average of the trained weights a file has: the decay of the exponential one, or a length in words."""
        return self.config.ema if self.ema_length is None else f"length {self.ema_length:g}"

    @property
    def ids(self) -> list[int]:
        """What can be sampled: ids of the classes that the data had; the null id where there are none."""
        return list(range(len(self.classes))) or [self.network.num_classes]

    @property
    def names(self) -> list[str]:
        """Names that tell which class is which, by id: neither captions nor the bare ids of the DiT release."""
        bare = self.config.data == RELEASE_DATA and self.classes == [
            str(i) for i in range(len(self.classes))
        ]
        return [] if bare or self.network.conditioning == "text" else self.classes

    def class_name(self, label: int) -> str:
        """The name of a class, its id where the data had none of it."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**dataclasses.asdict(self), "config": to_json(self.config)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ModelCard":
        """The inverse of `to_json`."""
        spec = values["network"]
        attention = spec.get("unet_attention")
        network = NetworkSpec(
            **{
                **spec,
                "input_size": size_of(*sides(spec["input_size"])),
                "unet_attention": None if attention is None else tuple(attention),
            }
        )
        config = from_json(TrainConfig, values["config"])
        return ModelCard(**{**values, "config": config, "network": network})

    @staticmethod
    def read(run: Path) -> "ModelCard":
        """From a run's config.json.

        Raises:
            UserError: it is missing or damaged.
        """
        file = run / CONFIG
        with reraise_as_user_error(
            file,
            "the configuration that train.py wrote",
            "copy it again; or, where there is a checkpoint, "
            f"let train.py --resume {shell_quote(run)} write it anew",
        ):
            return ModelCard.from_json(json.loads(file.read_text()))


def class_mismatch(theirs: ModelCard, ours: ModelCard) -> tuple[int, str, str] | None:
    """The first class that two networks do not mean the same by: its id, and their names of it."""
    pairs = enumerate(
        zip(theirs.names, ours.names, strict=False)
    )  # one may know fewer than there is room for
    return next(((label, there, here) for label, (there, here) in pairs if there != here), None)


def same_autoencoder(theirs: ModelCard, ours: ModelCard) -> bool:
    """By the checksums of its weights where both are known, else by its name."""
    known = theirs.vae_sha256 and ours.vae_sha256
    return theirs.vae_sha256 == ours.vae_sha256 if known else theirs.config.vae == ours.config.vae
