"""A run directory and what lies in it.

    config.json                 the Card: settings, network, classes
    metrics.jsonl               one line per logged step
    machine.json                what it was trained on, a record per start
    scores.json                 how scores in it were made, by their `eval`, where --eval-every is on
    samples/step-0000400.png    grids from the EMA
    ema/                        snapshots of the averages of --ema-lengths
    checkpoints/step-0000800/   state/ (to train on), ema-0.999.safetensors (to sample from), meta.json (checksums)
    best                        link to the checkpoint with the lowest Fréchet distance, where --eval-every is on

A weights file carries the Card in its header, so that it can be used without the run.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit.config import TrainConfig, from_json, to_json
from dit.errors import UserError
from dit.utils.files import damaged, quoted, sha256
from dit.utils.image_size import Size, sides, size_of

CONFIG = "config.json"
WEIGHTS = "ema-*.safetensors"
BEST = "best"  # in a run, a link to its best checkpoint
MACHINE = "machine.json"
NOTED = {"step", "device", "ranks", "flops_per_image", "peak_flops_per_rank", "versions"}  # of each start, at least
BY_TIME = "loss_by_time/"  # before the ends of a bucket of times, in a line of the log
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
    unet_attention: tuple[int, ...] | None = None  # sides at which a U-Net attends, where they are not its size's own

    @property
    def sizes(self) -> dict[str, Any]:
        """All but the name, as `create_model` takes it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "model"}

    @property
    def told(self) -> dict[str, Any]:
        """As records tell of it: without what is as it is by default, so that they outlive new fields."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if value != default[name]}


@dataclass(frozen=True, kw_only=True)
class Card:
    """All that one needs to use a network: settings, shapes, class names, latent statistics."""

    config: TrainConfig
    network: NetworkSpec
    classes: list[str]  # names of those in the data; the network may have room for more
    latent_mean: list[float] | None = None  # of --latent-norm data
    latent_std: list[float] | None = None
    vae_sha256: str | None = None  # of the autoencoder's weights; of earlier versions' runs nobody knows
    text_encoder_sha256: str | None = None  # of --conditioning text
    ema_length: float | None = None  # of weights that are a power function's average, not the decay's

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
        bare = self.config.data == RELEASE_DATA and self.classes == [str(i) for i in range(len(self.classes))]
        return [] if bare or self.network.conditioning == "text" else self.classes

    def class_name(self, label: int) -> str:
        """The name of a class, its id where the data had none of it."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**dataclasses.asdict(self), "config": to_json(self.config)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Card":
        """The inverse of `to_json`."""
        spec = values["network"]
        attention = spec.get("unet_attention")
        network = NetworkSpec(**{**spec, "input_size": size_of(*sides(spec["input_size"])),
                                 "unet_attention": None if attention is None else tuple(attention)})
        config = from_json(TrainConfig, values["config"])
        return Card(**{**values, "config": config, "network": network})

    @staticmethod
    def read(run: Path) -> "Card":
        """From a run's config.json.

        Raises:
            UserError: it is missing or damaged.
        """
        file = run / CONFIG
        with damaged(file, "the configuration that train.py wrote", "copy it again; or, where there is a checkpoint, "
                     f"let train.py --resume {quoted(run)} write it anew"):
            return Card.from_json(json.loads(file.read_text()))


def card_of(run: Path) -> Card:
    """The Card of a run, where its config.json is lost that of its newest checkpoint.

    Raises:
        UserError: config.json is missing or damaged, and there is no checkpoint that has it too.
    """
    try:
        return Card.read(run)
    except UserError:
        with suppress(UserError):
            if last := latest(run):
                return checkpoint_card(last)
        raise


def checkpoint_card(checkpoint: Path) -> Card:
    """What the run was when it wrote a checkpoint; raises as `read_weights`."""
    return read_header(next(checkpoint.glob(WEIGHTS), checkpoint / WEIGHTS))[0]


def is_run(folder: Path) -> bool:
    """Whether training began there: it has the config.json of a run, not that of an autoencoder."""
    try:
        Card.read(folder)
    except UserError:
        return False
    return True


def named_otherwise(theirs: Card, ours: Card) -> tuple[int, str, str] | None:
    """The first class that two networks do not mean the same by: its id, and their names of it."""
    pairs = enumerate(zip(theirs.names, ours.names, strict=False))  # one may know fewer than there is room for
    return next(((label, there, here) for label, (there, here) in pairs if there != here), None)


def same_autoencoder(theirs: Card, ours: Card) -> bool:
    """By the checksums of its weights where both are known, else by its name."""
    known = theirs.vae_sha256 and ours.vae_sha256
    return theirs.vae_sha256 == ours.vae_sha256 if known else theirs.config.vae == ours.config.vae


@dataclass(frozen=True)
class Weights:
    """EMA weights with their origin."""

    path: Path
    card: Card
    step: int
    state_dict: dict[str, Tensor]

    @property
    def home(self) -> Path:
        """The run directory that they lie in, or the folder of weights that lie alone."""
        folder = self.path.parent
        return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return [folder for folder in by_step(run / "checkpoints").values() if (folder / "meta.json").exists()]


def unsealed(run: Path) -> list[Path]:
    """Folders of checkpoints that have no meta.json and so are not counted, oldest first. A kill leaves none: what is
    being written or removed has a hidden name."""
    return [folder for folder in by_step(run / "checkpoints").values() if not (folder / "meta.json").exists()]


def run_of(path: Path) -> Path | None:
    """The run that has this checkpoint, or to whose best one it links; None of other paths."""
    folder = path.absolute()
    if folder.parent.name == "checkpoints" and folder in by_step(folder.parent).values():
        return Path(os.path.normpath(path / ".." / ".."))
    return path.parent if path.name == BEST and path.is_symlink() else None


def by_step(folder: Path, suffix: str = "") -> dict[int, Path]:
    """What is called step-DIGITS and the suffix, by that number, lowest first; what is called otherwise is not ours."""
    named = re.compile(rf"step-([0-9]+){re.escape(suffix)}")
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := named.fullmatch(path.name))}
    return dict(sorted(found.items()))


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step-{step:07d}"


def checkpoint_step(checkpoint: Path) -> int:
    """The inverse of `checkpoint_name`."""
    return int(checkpoint.name.removeprefix("step-"))


def latest(run: Path) -> Path | None:
    """The newest finished checkpoint of a run."""
    return next(reversed(checkpoints(run)), None)


def verify(checkpoint: Path, pattern: str = "*") -> dict[str, Any]:
    """The checkpoint's meta.json, after comparing every file that fits the pattern with it.

    Raises:
        UserError: a file that is missing, truncated or changed; or they are not of one step.
    """
    do = f"remove {checkpoint} to go on from the checkpoint before it"
    with damaged(checkpoint / "meta.json", "the list of files that train.py wrote", do):
        meta = json.loads((checkpoint / "meta.json").read_text())
        step, files = int(meta["step"]), dict(meta["files"])
    for name, recorded in files.items():
        if fnmatch(name, pattern):
            require_intact(checkpoint / name, recorded, do)
    _require_one_step(checkpoint, step, [checkpoint / name for name in files if fnmatch(name, WEIGHTS)], do)
    return {"step": step, "files": files}


def _require_one_step(checkpoint: Path, step: int, weights: list[Path], do: str) -> None:
    """Refuse a checkpoint that is of several steps, by its folder's name (if that is of ours), meta.json, weights."""
    named = [number for number, folder in by_step(checkpoint.parent).items() if folder == checkpoint]
    said = {"its name": named[0] if named else step, "meta.json": step,
            **{file.name: read_header(file)[1] for file in weights}}
    if len({*said.values()}) > 1:
        told = ", ".join(f"{number} by {what}" for what, number in said.items())
        raise UserError(f"{checkpoint} is of step {told}", "one step", do)


def sums(file: Path) -> dict[str, Any]:
    """What meta.json lists of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def require_intact(file: Path, recorded: Mapping[str, Any], do: str) -> None:
    """Compare a file with what the meta.json beside it lists.

    Raises:
        UserError: it is missing, truncated or changed.
    """
    found = sums(file) if file.exists() else {"bytes": 0}
    for what, value in recorded.items():
        if found.get(what) != value:
            raise UserError(f"{file} has {what} {found.get(what)}", f"{value}, as its meta.json says", do)


def find_weights(path: Path) -> Path:
    """The weights file that a run, a checkpoint or a file stands for.

    Raises:
        UserError: there is none, or its checkpoint is damaged.
    """
    if path.is_file():
        return path
    checkpoint = path if (path / "meta.json").exists() else latest(path)
    if checkpoint is None:
        raise _no_weights(path)
    if checkpoint.is_symlink():  # RUN/best: what it names lies in the run, where samples of it belong too
        checkpoint = checkpoint.parent / checkpoint.readlink()
    verify(checkpoint, WEIGHTS)
    return next(checkpoint.glob(WEIGHTS))


def _no_weights(path: Path) -> UserError:
    """What lies there instead of a checkpoint."""
    expected = "a run directory, a checkpoint directory or a .safetensors file"
    if is_run(path):
        return UserError(f"no checkpoint in {path}, a run that has none yet", "a run with a checkpoint",
                         "wait for its first, or start it again with the flags that it had")
    if (path / "config.json").is_file():
        return UserError(f"no checkpoint in {path}, which has the config.json of another network", expected,
                         f"see what it is: dit info {quoted(path)}; an autoencoder goes to --vae of train.py")
    if not path.exists():
        return UserError(f"no checkpoint in {path}, which is not there", expected, "check the path")
    return UserError(f"no checkpoint in {path}", expected, "train one: python train.py --out RUN")


def write_weights(file: Path, state_dict: dict[str, Tensor], card: Card, step: int) -> None:
    """EMA weights with the card in the header."""
    header = json.dumps({**card.to_json(), "step": step})
    save_file({k: v.detach().cpu().contiguous() for k, v in state_dict.items()}, file, {"dit": header})
    os.umask(umask := os.umask(0))
    file.chmod(0o666 & ~umask)  # safetensors keeps its files private


def read_weights(file: Path) -> Weights:
    """The inverse of `write_weights`.

    Raises:
        UserError: not such a file, or truncated.
    """
    card, step = read_header(file)
    return Weights(file, card, step, load_file(file))


def read_header(file: Path) -> tuple[Card, int]:
    """Card and step of a file of weights; raises as `read_weights`."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get("dit")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can not be read ({error})", "a complete .safetensors file of EMA weights",
                        "copy it again; a .pt file of the DiT release goes through `dit convert`") from None
    if header is None:
        raise UserError(f"{file} has no network description", "EMA weights written by train.py",
                        "pass a file from RUN/checkpoints/")
    with damaged(file, "EMA weights written by train.py", "take another checkpoint"):
        values = json.loads(header)
        step = int(values.pop("step"))
        card = Card.from_json(values)
    return card, step


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that is damaged is left out with a warning, a last one cut short without."""
    texts = file.read_bytes().split(b"\n") if file.exists() else []
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(_logged(text))
        except ValueError as error:
            if number < len(texts):  # else what comes after the last line's end: nothing, or a part of another line
                print(f"warning: {file}, line {number}, is damaged and left out ({error})", file=sys.stderr)
    return lines


def _logged(text: bytes) -> dict[str, Any]:
    line = json.loads(text.decode())
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise ValueError("no object with a step")
    return line


def read_starts(run: Path) -> list[dict[str, Any]]:
    """What the run was trained on, start by start, as machine.json has it; nothing where it is missing, or, with a
    warning, damaged: nothing depends on it."""
    file = run / MACHINE
    if not file.exists():
        return []
    try:
        starts = json.loads(file.read_text())
        if not all(one.keys() >= NOTED for one in starts):
            raise ValueError("a start without all that is noted of one")
        return list(starts)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"warning: {file} is damaged and left out ({error})", file=sys.stderr)
        return []


class Distance(NamedTuple):
    """A Fréchet distance by the name it is shown with; `eval` is the same where two were measured in the same way."""

    name: str
    value: float
    eval: str


class Best(NamedTuple):
    """The checkpoint whose EMA has the lowest distance."""

    checkpoint: Path
    distance: Distance


def find_best(run: Path, eval: str | None = None) -> Best | None:
    """The best of a run's checkpoints, the first of equal ones, among those measured as `eval` or, unless given, as the
    newest that has a distance."""
    scored = [Best(path, distance) for path in checkpoints(run) if (distance := read_distance(path))]
    alike = [one for one in scored if one.distance.eval == (eval or scored[-1].distance.eval)]
    return min(alike, key=lambda one: one.distance.value, default=None)


def read_distance(checkpoint: Path) -> Distance | None:
    """What a checkpoint's meta.json says of its distance; None where it was not measured, or the file is damaged."""
    try:
        return Distance(**json.loads((checkpoint / "meta.json").read_text())["distance"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_distance(name: str) -> bool:
    """Whether a score is a Fréchet distance."""
    return name == "FID" or name.startswith("FD(")
