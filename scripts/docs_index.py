"""A hook of MkDocs: README.md is the first page of the site, with links as they are from there."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[(`?[^\]]+?`?)\]\((?!https?://|#|docs/)[^)]+\)")


def on_files(files: Files, config: Any) -> Files:
    """Add index.md."""
    text = (ROOT / "README.md").read_text("utf-8")
    # files of the repository are no pages of the site
    text = OUTSIDE.sub(r"\1", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files
