"""What several configurations refuse."""

import math
from typing import Any

from dit.errors import UserError


def require_range(config: Any, names: tuple[str, ...], holds: Any, expected: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value) or value in (math.inf, -math.inf):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value}", expected, f"change {flag}")


def require_sides(config: Any) -> None:
    size = config.image_size
    if size is not None and min(size if isinstance(size, tuple) else (size,)) <= 0:
        given = " ".join(map(str, size if isinstance(size, tuple) else (size,)))
        raise UserError(f"--image-size {given}", "numbers above 0", "change --image-size")
