"""Rules that several configurations share."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from dit.config.flag_names import as_typed, flag_name
from dit.errors import UserError, UserErrors

Range = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is, in words."""

POSITIVE: Range = (lambda v: v > 0, "a number above 0")
POSITIVE_OR_NONE: Range = (lambda v: v is None or v > 0, "a number above 0")
NOT_NEGATIVE: Range = (lambda v: v >= 0, "0 or more")
NOT_NEGATIVE_OR_NONE: Range = (lambda v: v is None or v >= 0, "0 or more")
TWO_OR_MORE: Range = (lambda v: v is None or v > 1, "2 or more")
SEED: Range = (lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
NOT_EMPTY: Range = (lambda v: len(v) > 0, "one name or more")
SIDES: Range = (
    lambda v: v is None or min(v if isinstance(v, tuple) else (v,)) > 0,
    "numbers above 0",
)

Limit = tuple[float, str]
"""The largest value of a flag, and why there is no use for more."""

SAMPLING_STEPS: Limit = (100_000, "more steps do not change the images")
LIMITS: dict[str, Limit] = {
    "steps": (10**9, "eleven days at a thousand steps a second"),
    "epochs": (10**6, "a million passes over the data"),
    **dict.fromkeys(
        ("global_batch_size", "batch_size", "grad_accum"),
        (10**6, "about as many images as ImageNet has"),
    ),
    **dict.fromkeys(
        ("num_samples", "eval_samples", "num_images"),
        (10**7, "a day's work at a hundred images a second"),
    ),
    "image_size": (65_536, "such an image takes 13 GB as pixels alone"),
    "per_class": (1000, "a picture of more columns cannot be viewed; --num-samples fills a folder"),
    "frames": (1000, "a picture of more columns cannot be viewed"),
    "bootstrap": (100_000, "an interval no longer changes after some thousand replicates"),
    "shard_size": (10**7, "a shard that is interrupted is encoded again as a whole"),
    "probes": (10_000, "the error falls only with the square root of their number"),
    "gpus": (10**6, "no cluster has more"),
    **dict.fromkeys(
        ("channels", "latent_channels", "codebook_dim", "cfg_channels"),
        (16_384, "wider than any network that fits into memory"),
    ),
    "codebook_size": (2**24, "more entries than a data set has patches"),
    "shift": (65_536, "no image is larger"),
    **dict.fromkeys(
        ("cfg_scale", "classifier_scale"),
        (10**6, "images are saturated long before"),
    ),
    "timeout": (10**7, "nineteen years"),
}
"""Limits of flags by name, in all commands. They refuse what would fill the memory, overflow or
never end, with a wide margin to all that makes sense."""
OTHER_LIMITS: dict[type, Limit] = {
    int: (10**12, "a trillion, which nothing here reaches"),
    float: (1e38, "float32 holds numbers up to 3e38"),
}
"""Limits of numbers that `LIMITS` does not have."""

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

# an average over less than a step of the longest run
SHORTEST_MEAN_LENGTH = 1e-9
# deviation of a uniform distribution: relative length of the mean of all steps
PLAIN_MEAN_LENGTH = 12**-0.5


def flag_of(config: Any, name: str) -> str:
    """Return a field as it is typed, such as `--image-size 30 48`."""
    return as_typed(type(config), name, getattr(config, name))


def require_values(config: Any, ranges: dict[tuple[str, ...], Range], **own: Limit) -> None:
    """Refuse values outside their ranges, infinity, and numbers above the limits, all at once.

    Args:
        own: Limits of this command, in the place of those of `LIMITS`.
    """
    if hasattr(config, "image_size"):
        ranges = {**ranges, ("image_size",): SIDES}
    expected: dict[str, str] = {}
    for names, (holds, allowed) in ranges.items():
        for name in names:
            value = getattr(config, name)
            if not holds(value) or value in (math.inf, -math.inf):
                expected[name] = allowed

    wrong: list[UserError] = []
    for field in dataclasses.fields(config):
        name = field.name
        most = _above_limit(name, getattr(config, name), LIMITS | own)
        allowed = expected.get(name, most)
        if allowed:
            wrong.append(UserError(flag_of(config, name), allowed, f"change {flag_name(name)}"))
    if wrong:
        raise UserErrors(wrong)


def _above_limit(name: str, value: Any, limits: dict[str, Limit]) -> str:
    """Return what would be allowed if a number is above its limit."""
    for number in value if isinstance(value, tuple) else (value,):
        # a bool is not one of these types, and a seed has a range of its own
        if type(number) not in OTHER_LIMITS or name == "seed":
            continue
        most, why = limits.get(name, OTHER_LIMITS[type(number)])
        if abs(number) > most:
            shown = f"{most:,}" if isinstance(most, int) else f"{most:g}"
            return f"at most {shown} ({why})"
    return ""


def require_none_of(conflicts: Iterable[tuple[object, str, str, str]]) -> None:
    """Raise UserError for the first conflict (holds, given, expected, do) that holds."""
    for holds, given, expected, do in conflicts:
        if holds:
            raise UserError(given, expected, do)


def require_use(
    config: Any, names: Iterable[str], used: bool, given: str, expected: str, do: str = ""
) -> None:
    """Refuse values other than the default where nothing would read them."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    changed = [name for name in names if getattr(config, name) != defaults[name]]
    require_none(config, () if used else changed, given, expected, do)


def require_none(
    config: Any, names: Iterable[str], given: str, expected: str, do: str = ""
) -> None:
    """Refuse these settings, which nothing would read."""
    for name in names:
        flag = flag_name(name)
        drop = f"{do}, or drop {flag}" if do else f"drop {flag}"
        raise UserError(f"{flag_of(config, name)} {given}", f"{expected} with {flag}", drop)


def require_lengths(flag: str, lengths: tuple[float, ...]) -> None:
    """Refuse lengths outside the range of power-function averages, and doubles."""
    for length in lengths:
        if not SHORTEST_MEAN_LENGTH <= length < PLAIN_MEAN_LENGTH:
            raise UserError(
                f"{flag} {length:g}",
                f"lengths from {SHORTEST_MEAN_LENGTH:g} to below {PLAIN_MEAN_LENGTH:.4f}, "
                "that of a plain mean",
                f"change {flag}: 0.05 and 0.1 are usual",
            )
    shown = [f"{length:g}" for length in lengths]
    if len(set(shown)) < len(shown):
        raise UserError(f"{flag} {' '.join(shown)}", "each length once", "drop one")


def require_words(config: Any) -> None:
    """Refuse empty prompts."""
    if config.prompt is None:
        return
    stripped = [prompt.strip() for prompt in config.prompt]
    if not stripped or "" in stripped:
        raise UserError(
            "--prompt ''" if stripped else "--prompt",
            "captions of one word or more",
            'such as --prompt "a seven" "a one", or drop --prompt for captions of the data',
        )
