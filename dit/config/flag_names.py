"""How settings are typed: one name for one flag, in all commands."""

import dataclasses
from typing import Any, get_args

from tyro.conf import Positional

TYPED_AS = {
    "global_batch_size": "--batch-size",
    "interval": "--cfg-interval",
    "ema_length": "--ema-lengths",
    "length": "--ema-lengths",
}
"""Settings whose flag has another name. Saved runs keep the name of the setting, and it is still
accepted as a flag, as in `--global-batch-size`."""


def flag_name(setting: str) -> str:
    """Return the flag of a setting, such as `--image-size` of `image_size`."""
    return TYPED_AS.get(setting) or plain_name(setting)


def plain_name(setting: str) -> str:
    """Return the flag that has the name of the setting."""
    return "--" + setting.replace("_", "-")


def earlier_names(kind: type) -> dict[str, str]:
    """Return the flags of a command that earlier versions called otherwise, with today's names."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {plain_name(name): flag for name, flag in TYPED_AS.items() if name in names}


def is_positional(field: dataclasses.Field) -> bool:
    """Whether a setting is typed without a flag before it, as the run in `dit report RUN`."""
    return Positional in get_args(field.type)


def is_switch(kind: Any) -> bool:
    """Whether a flag takes no value, as `--flip` and `--no-flip`."""
    return kind is bool or bool in get_args(kind)


def as_typed(kind: type, setting: str, value: Any) -> str:
    """Return a setting as it is typed, such as `--image-size 30 48`; others by their plain name."""
    if setting not in {field.name for field in dataclasses.fields(kind)}:
        return f"{setting} {value}"
    flag = flag_name(setting)
    if value is None:
        return f"no {flag}"
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    return f"{flag} {value_words(value)}".rstrip()


def value_words(value: Any) -> str:
    """Return the value of a setting as it is typed, such as `30 48`."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
