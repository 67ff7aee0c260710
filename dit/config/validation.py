"""What several configurations refuse."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from dit.errors import UserError

NOTHING_GUIDED = (
    "with --cfg-scale 1",
    "another scale",
    "at scale 1 nothing is extrapolated: pass --cfg-scale 2",
)
NOT_DDIM = "ddim, the only sampler that reads it,", "pass --sampler ddim"
NOT_DDPM = "ddpm, the only sampler that reads it,", "pass --sampler ddpm"
NO_CLASSIFIER = (
    "without --classifier",
    "a classifier",
    "pass --classifier RUN, a run of `dit train-classifier`",
)
MEAN = (
    12**-0.5
)  # deviation of a uniform distribution: relative length of the plain mean of all steps


def require_range(config: Any, names: tuple[str, ...], holds: Any, expected: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value) or value in (math.inf, -math.inf):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value}", expected, f"change {flag}")


def require_use(
    config: Any, names: tuple[str, ...], used: bool, given: str, expected: str, do: str
) -> None:
    """Refuse values other than the default where nothing would read them: `FLAG VALUE GIVEN; expected …`."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    changed = [name for name in names if getattr(config, name) != defaults[name]]
    require_none(config, () if used else changed, given, expected, do)


def require_none(config: Any, names: Iterable[str], given: str, expected: str, do: str) -> None:
    """Refuse these settings, which nothing would read."""
    for name in names:
        flag, value = "--" + name.replace("_", "-"), getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        shown = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        raise UserError(
            f"{flag} {shown} {given}", f"{expected} with {flag}", f"{do}, or drop {flag}"
        )


def require_lengths(flag: str, lengths: tuple[float, ...]) -> None:
    """Refuse what is no length of a power-function average, and the same one twice."""
    for length in lengths:
        if not 0 < length < MEAN:
            raise UserError(
                f"{flag} {length:g}",
                f"lengths above 0 and below {MEAN:.4f}, that of a plain mean",
                f"change {flag}: 0.05 and 0.1 are usual",
            )
    if len({f"{length:g}" for length in lengths}) < len(lengths):
        raise UserError(
            f"{flag} {' '.join(f'{length:g}' for length in lengths)}",
            "each length once",
            "drop one",
        )


def require_sides(config: Any) -> None:
    size = config.image_size
    if size is not None and min(size if isinstance(size, tuple) else (size,)) <= 0:
        given = " ".join(map(str, size if isinstance(size, tuple) else (size,)))
        raise UserError(f"--image-size {given}", "numbers above 0", "change --image-size")


def require_words(config: Any) -> None:
    """Refuse prompts that say nothing."""
    if config.prompt is not None and not (config.prompt and all(map(str.strip, config.prompt))):
        raise UserError(
            "--prompt" + " ''" * ("" in map(str.strip, config.prompt)),
            "captions of one word or more",
            'such as --prompt "a seven" "a one", or drop --prompt for captions of the data',
        )
