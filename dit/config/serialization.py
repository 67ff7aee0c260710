"""Configurations to plain JSON values; `utils.typed_json.from_json` reads them."""

import dataclasses
import json
from typing import Any

NOT_SAVED = ("gpus", "gpu")
"""Flags that ask --dry-run a question, and are no settings of a run."""


def to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values, without the flags `NOT_SAVED`."""
    values = dataclasses.asdict(config)
    for name in NOT_SAVED:
        values.pop(name, None)
    return json.loads(json.dumps(values, default=str))
