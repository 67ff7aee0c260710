"""Configurations to and from plain JSON values."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from dit.errors import UserError, did_you_mean

Config = TypeVar("Config")

NOT_SAVED = ("gpus", "gpu")
"""Flags that ask --dry-run a question, and are no settings of a run."""


def to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values, without the flags `NOT_SAVED`."""
    values = dataclasses.asdict(config)
    for name in NOT_SAVED:
        values.pop(name, None)
    return json.loads(json.dumps(values, default=str))


def from_json(cls: type[Config], values: dict[str, Any]) -> Config:
    """Return the configuration of `to_json`; refuse keys that `cls` does not have."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(
                f"unknown setting {key!r} in a saved {cls.__name__}",
                "a setting of this version",
                did_you_mean(key, fields),
            )
    settings = {}
    for name, value in values.items():
        settings[name] = _from_plain(fields[name].type, value)
    return cls(**settings)


def _from_plain(kind: Any, value: Any) -> Any:
    if value is not None and "Path" in str(kind):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
