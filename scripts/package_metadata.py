"""Metadata that names the repository's address: links of the package, and a README without paths.

The address is that of `DIT_REPOSITORY`, such as https://github.com/OWNER/dit, when the package is
built. Without it there are no links, and the README has those of the repository.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


class RepositoryMetadata(MetadataHookInterface):
    """Fills `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to the metadata of the package."""
        address = os.environ.get("DIT_REPOSITORY", "").rstrip("/")
        text = Path(self.root, "README.md").read_text("utf-8")
        if address:
            text = with_absolute_links(text, address)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = links(address) if address else {}


def links(address: str) -> dict[str, str]:
    """Return the links that a package index shows."""
    return {
        "Repository": address,
        "Documentation": f"{address}/tree/main/docs",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def with_absolute_links(text: str, address: str) -> str:
    """Return Markdown whose pictures and links lead to the repository at this address."""

    def absolute(found: re.Match[str]) -> str:
        picture, label, path = found.groups()
        # a page of the repository is no picture
        kind = "raw" if picture else "blob"
        return f"{picture}[{label}]({address}/{kind}/main/{path})"

    return LINK.sub(absolute, text).replace("URL_OF_THIS_REPOSITORY", address)
