"""The model card, all that is needed to use a network: a run's config.json, a weights file's
header."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dit.config import TrainConfig, to_json
from dit.errors import UserError
from dit.models.layers import EPS, parse_layers
from dit.models.registry import check_name, is_own
from dit.utils.files import shell_quote
from dit.utils.hub import is_downloaded
from dit.utils.image_size import Size, sides
from dit.utils.imports import is_class_name, lies_in
from dit.utils.typed_json import LARGEST, from_json, read_json

CONFIG = "config.json"
RELEASE_DATA = "imagenet"  # data in the card of a converted release
LONGEST_SIDE, MOST_CHANNELS, MOST_CLASSES = 1 << 16, 1 << 16, 10**7  # more is damage, no network
INTACT = "take an intact copy"
EARLIER_SMOOTHING = 25.0  # of networks whose card does not say it


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
    inner_head: bool = False  # a second last layer after an early block
    time_scale: float = 1.0  # factor on times 0 … 1000 before they are embedded; SiT has 1/1000
    interval: bool = (
        False  # whether it takes lengths of steps beside times, see models/embeddings.py
    )
    interval_smoothing: float = EARLIER_SMOOTHING  # of waves of an interval, of times 0 … 1000
    time_endpoint: bool = False  # times at 10000^(-i / 127), as of diffusers, not i / 128
    mlp_norm_eps: float = EPS  # of the norm before the MLP; diffusers has 1e-5

    def __post_init__(self) -> None:
        text = self.conditioning == "text"
        most_classes = LARGEST if text else MOST_CLASSES  # a network of text has no table of them
        ranges = {
            "input_size": (sides(self.input_size), 1, LONGEST_SIDE),
            "in_channels": ([self.in_channels], 1, MOST_CHANNELS),
            "num_classes": ([self.num_classes], 0, most_classes),
            "unet_attention": (self.unet_attention or (), 1, LONGEST_SIDE),
            "text_width": ([self.text_width] if text else (), 1, MOST_CHANNELS),
        }
        for name, (values, low, high) in ranges.items():
            if not all(value is not None and low <= value <= high for value in values):
                given = f"{name} {getattr(self, name)}"
                raise UserError(given, f"{low} to {high:,}", INTACT)
        check_name(self.model, self.conditioning, self.block, self.inner_head)
        # networks are compared as text, and plain+rope+qknorm is plain+qknorm+rope
        object.__setattr__(self, "block", parse_layers(self.block).spec)
        is_dit = self.model.startswith("DiT-")
        for name in ("interval", "time_endpoint"):
            if getattr(self, name) and not is_dit:
                raise UserError(f"{name} with model {self.model}", "a DiT with it", INTACT)
        if not 0 < self.mlp_norm_eps < 1 or (self.mlp_norm_eps != EPS and not is_dit):
            given = f"mlp_norm_eps {self.mlp_norm_eps:g} with model {self.model}"
            raise UserError(given, f"a small number, {EPS:g} but for a DiT", INTACT)
        if not 0 <= self.interval_smoothing <= 1000:
            given = f"interval_smoothing {self.interval_smoothing:g}"
            raise UserError(given, "a number from 0 to 1000", INTACT)
        if not text and self.text_width is not None:
            given = f"text_width {self.text_width} with conditioning {self.conditioning}"
            raise UserError(given, "conditioning text with it", INTACT)

    @property
    def sizes(self) -> dict[str, Any]:
        """Return all but the name, as `create_model` takes it."""
        return {name: value for name, value in self.to_json().items() if name != "model"}

    @property
    def summary(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, so that records outlive new fields."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        values = self.to_json()
        return {name: value for name, value in values.items() if value != default[name]}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(NetworkSpec)}


@dataclass(frozen=True, kw_only=True)
class GivenSpec(NetworkSpec):
    """Of a network that is copied instead of created: code in Python passed it.

    Files have its name alone.
    """

    module: nn.Module = field(compare=False, repr=False)

    @classmethod
    def of(cls, spec: NetworkSpec, module: nn.Module | None) -> NetworkSpec:
        """Return the spec with this network; itself without one."""
        return spec if module is None else cls(**spec.to_json(), module=module)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Settings, shapes, class names and latent statistics of a network."""

    config: TrainConfig
    network: NetworkSpec
    classes: list[str]  # names of the classes in the data; the network may take more
    class_counts: list[int] | None = None  # images of each; unknown in early versions, of captions
    latent_mean: list[float] | None = None  # of --latent-norm data
    latent_std: list[float] | None = None
    vae_sha256: str | None = None  # of the autoencoder's weights; unknown in early versions
    text_encoder_sha256: str | None = None  # of --conditioning text
    align_sha256: str | None = None  # of the encoder of --align
    align_steps: int | None = None  # that --align lasts: resumed with other --steps, still these
    ema_length: float | None = None  # of weights that are a power-function average (2312.02696)

    def __post_init__(self) -> None:
        for name in ("latent_mean", "latent_std"):
            statistic, channels = getattr(self, name), self.network.in_channels
            if statistic is not None and len(statistic) != channels:
                given = f"{name} of length {len(statistic)}"
                raise UserError(given, f"a value for each of {channels} channels", INTACT)
        if not all(value > 0 for value in self.latent_std or ()):
            raise UserError(f"latent_std {self.latent_std}", "numbers above 0", INTACT)
        counts = self.class_counts
        if counts is not None and (len(counts) != len(self.classes) or min(counts, default=0) < 0):
            expected = f"a number of images for each of {len(self.classes)} classes"
            raise UserError(f"class_counts {counts[:5]}", expected, INTACT)

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
        """Return the labels to sample: ids of classes with images; without any, the null id."""
        if self.class_counts:
            return [label for label, count in enumerate(self.class_counts) if count]
        return list(range(len(self.classes))) or [self.network.num_classes]

    @property
    def names(self) -> list[str]:
        """Return names that identify classes, by id: neither captions nor those of a release."""
        # its names are not those of ImageNet's folders, and nothing counted its images
        is_release = self.config.data == RELEASE_DATA and self.class_counts is None
        return [] if is_release or self.network.conditioning == "text" else self.classes

    def class_name(self, label: int) -> str:
        """Return the name of a class; its id if the data had none of it."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def without_foreign_code(self, file: Path) -> "ModelCard":
        """Return this card without code of others that loading would import.

        A file never chooses code that came with it, or that the hub's cache has. A network without
        its code is none, so it is refused.
        """
        model = self.network.model
        folders = [file.parent]
        if file.parent.parent.name == "checkpoints":
            folders.append(file.parents[2])
        if is_own(model) and (is_downloaded(file) or lies_in(model, folders)):
            raise UserError(
                f"{file} has --model {model}, code that came with it or from the hub",
                "a network of this package, or code in a folder of your own",
                "read the code; if you trust it, move it out of this folder, and the run out of "
                "the cache",
            )
        if not is_downloaded(file) or not is_class_name(self.config.data):
            return self
        data = f"{self.config.data} of another machine"
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {"config": to_json(self.config), "network": self.network.to_json()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ModelCard":
        """Return the card of such values, also of earlier versions."""
        return from_json(ModelCard, values)

    @staticmethod
    def read(run: Path) -> "ModelCard":
        """Read a run's config.json."""
        file = run / CONFIG
        resume = f"train.py --resume {shell_quote(run)}"
        do = f"copy it again; or, if there is a checkpoint, let {resume} write it again"
        card = read_json(file, ModelCard, "the configuration that train.py wrote", do)
        return card.without_foreign_code(file)


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
