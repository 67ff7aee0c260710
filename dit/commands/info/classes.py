"""All classes of a run, a weights file or a folder of latents: id, name, images."""

from collections.abc import Sequence
from pathlib import Path

from dit.commands.info.latents import count_images
from dit.errors import UserError
from dit.latents.shards import holds_latents
from dit.latents.store import read_index
from dit.runs.card import CONFIG
from dit.runs.checkpoint_files import find_weights, read_card
from dit.runs.weights import read_header


def class_table(path: Path) -> str:
    """Return a line for each class of what lies at a path."""
    names, counts = _classes_of(path)
    if not names:
        raise UserError(
            f"--classes for {path}, which has no classes", "classes with it", "drop --classes"
        )
    numbers = [str(label) for label in range(len(names))]
    images = ["" if counts is None else f"{counts[label]:,}" for label in range(len(names))]
    rows = [("id", "name", "" if counts is None else "images")]
    rows += zip(numbers, names, images, strict=True)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _classes_of(path: Path) -> tuple[Sequence[str], Sequence[int] | None]:
    """Return names of classes, and the images of each where they are known."""
    if holds_latents(path):
        index = read_index(path)
        return ([], None) if index.captions else (index.classes, count_images(path, index.classes))
    card = read_card(path) if (path / CONFIG).exists() else read_header(find_weights(path))[0]
    # names of a network of text are captions
    return ([], None) if card.network.text_width else (card.classes, card.class_counts)
