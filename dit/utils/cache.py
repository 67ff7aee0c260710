"""Where this package keeps what it can compute again."""

import os
from pathlib import Path


def cache_root() -> Path | None:
    """Return $DIT_CACHE, $XDG_CACHE_HOME/dit or ~/.cache/dit; None without a home."""
    try:
        own = os.environ.get("DIT_CACHE")
        root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dit"
        return root.expanduser()
    except RuntimeError:
        return None
