"""Arguments of the Python interface: checked, and named in errors as they are in Python."""

import json
import numbers
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from dit.config import SamplerConfig
from dit.distributed.device import choose_device
from dit.distributed.launcher import read_launch
from dit.errors import UserError, did_you_mean
from dit.utils.image_size import Size
from dit.utils.typed_json import WrongJson, from_json

NAMES = {"cfg_scale": "guidance_scale", "steps": "num_inference_steps"}
"""Settings of a sampler that have diffusers' names in Python."""
ELSEWHERE = {
    "cfg_scale": "pass guidance_scale",
    "steps": "pass num_inference_steps",
    "image_size": "pass it to dit.Pipeline.from_pretrained",
    "compile": "it belongs to the command line, where one process samples many images",
}
"""Settings that a call does not take, and what to do instead."""
PYTHON_WORDS = {"null": "None", "true": "True", "false": "False"}
Kind = TypeVar("Kind")
NAME = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
FLAG = re.compile(rf"(?<![\w-])--({NAME})")
NUMBER = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?"
PLACEHOLDER = r"[A-Z]{2,}(?:[_:/][A-Z]+)*"
UNQUOTED = re.compile(rf"{NUMBER}|{PLACEHOLDER}")
ENDS = r"(?=[\]),.;:!?]*(?:\s|$))"  # but 2024/photos or 000-digits goes on
PAIR = re.compile(rf"(?<![\w-])--({NAME}) ({NUMBER}(?: {NUMBER})*|{PLACEHOLDER}){ENDS}")


@contextmanager
def python_names(names: Mapping[str, str] = NAMES) -> Iterator[None]:
    """Name arguments in errors of the block, where a command would name its flags.

    Args:
        names: in Python, of settings that have another.
    """
    try:
        yield
    except UserError as error:
        # in place: its kind may be another, such as NotFinite
        for one in (error, *getattr(error, "mistakes", ())):
            one.given = as_arguments(one.given, names)
            one.expected = as_arguments(one.expected, names)
            one.do = as_arguments(one.do, names)
        raise


def as_arguments(text: str, names: Mapping[str, str] = NAMES) -> str:
    """Return a message with `--cfg-scale 3` as `guidance_scale=3`, and `--no-flip` as `flip=False`.

    Commands between backticks keep their flags. Flags alone there become arguments, to be copied.
    """
    parts = text.split("`")
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pairs = PAIR.sub(lambda found: _argument(found[1], found[2].split(), names), part)
            parts[i] = FLAG.sub(lambda found: _argument(found[1], (), names), pairs)
        elif part.startswith("--"):
            parts[i] = _to_copy(part, names)
    return "`".join(parts)


def _argument(flag: str, values: Sequence[str], names: Mapping[str, str]) -> str:
    """Return a flag without dashes and its values as an argument; `no-flip` is flip=False."""
    shown = [value if UNQUOTED.fullmatch(value) else repr(value) for value in values]
    if not values and flag.startswith("no-"):
        flag, shown = flag.removeprefix("no-"), ["False"]
    setting = flag.replace("-", "_")
    name = names.get(setting, setting)
    if not shown:
        return name
    value = shown[0] if len(shown) == 1 else f"({', '.join(shown)})"
    return f"{name}={value}"


def _to_copy(flags: str, names: Mapping[str, str]) -> str:
    """Return flags, as they are typed in a shell, as arguments of a call."""
    try:
        words = shlex.split(flags)
    except ValueError:  # half of a name that has a backtick
        return flags
    if "$'" in flags:  # bash's way to type a name that is not UTF-8
        return flags
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    spans = zip(starts, [*starts[1:], len(words)], strict=True)
    return ", ".join(
        _argument(words[first].removeprefix("--"), words[first + 1 : stop], names)
        for first, stop in spans
    )


def sampler_settings(**values: Any) -> SamplerConfig:
    """Return the settings of a sampler, by their names in Python; refuse wrong names and types."""
    known = [NAMES.get(name, name) for name in SamplerConfig.__dataclass_fields__]
    for name in values:
        if name in ELSEWHERE:
            given = f"{name} in a call of the pipeline"
            raise UserError(given, "no such argument", ELSEWHERE[name])
        if name not in known:
            taken = [one for one in known if one not in ELSEWHERE]
            do = did_you_mean(name, taken)
            raise UserError(f"argument {name!r}", f"one of {', '.join(taken)}", do)
    ours = {python: name for name, python in NAMES.items()}
    return checked(SamplerConfig, {ours.get(name, name): v for name, v in values.items()}, NAMES)


def checked(kind: type[Kind], values: Mapping[str, Any], names: Mapping[str, str]) -> Kind:
    """Return settings of these values; refuse wrong types and ranges."""
    plain = {name: plain_value(names.get(name, name), value) for name, value in values.items()}
    try:
        return from_json(kind, plain)
    except WrongJson as error:
        text = as_arguments(str(error), names)
        for name, python in names.items():
            text = re.sub(rf"^{name}\b", python, text)
        # JSON's words for Python's
        text = re.sub(r"\b(null|true|false)\b", lambda word: PYTHON_WORDS[word[0]], text)
        given, _, expected = text.rpartition(", not ")
        raise UserError(given or text, expected or "other settings", "") from None


def checked_size(size: Any) -> Size | None:
    """Return the size of images: a side, or height and width; None: that of training."""
    return checked(SamplerConfig, {"image_size": size}, {}).image_size


def plain_value(name: str, value: Any) -> Any:
    """Return a value as JSON has it: numbers of NumPy as Python's, paths as text."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, tuple | list):
        return [plain_value(name, one) for one in value]
    if hasattr(value, "__fspath__"):
        return str(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} of type {type(value).__name__}", "a plain value", "") from None
    return value


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the device of this name, if this machine has it; None: the fastest kind it has."""
    if device is None:
        return choose_device(read_launch())
    there = ["cpu"]
    if torch.cuda.is_available():
        there = ["cpu", "cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    found: torch.device | None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or str(found) not in [*there, "cpu:0", "mps:0"]:
        expected = f"{', '.join(there)}, which this machine has"
        do = f"pass device={there[-1]!r}, or no device for the fastest kind"
        raise UserError(f"device {str(device)!r}", expected, do)
    return found
