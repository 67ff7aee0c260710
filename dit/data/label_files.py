"""Files beside images without classes that say their labels, which no folder of images reads."""

import csv
import json
import os
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dit.data.images import ImageFolder
from dit.errors import UserError
from dit.utils.files import shell_quote

SIDECARS = (".cls", ".txt", ".caption", ".json")  # 1.txt beside 1.png
TABLES = (".csv", ".tsv", ".txt")
LISTS = (*TABLES, ".json", ".jsonl")
MOST = 200  # files that are opened in a folder
HEAD, ROWS = 65_536, 20  # bytes and rows that are read of each
USUAL = re.compile("label|class|categor|species|breed|target", re.IGNORECASE)  # in names of columns


class Table(NamedTuple):
    """A table with an image and its label in each row.

    Args:
        image, label: numbers of their columns.
        suffix: of the images, where the table leaves it out.
    """

    file: Path
    delimiter: str
    image: int
    label: int
    suffix: str


def refuse_unread_labels(root: Path, images: ImageFolder) -> None:
    """Refuse a folder of images without classes if files in it or beside it say their labels."""
    names = {os.path.basename(name): name for name in images.files}
    stems = {os.path.splitext(name)[0]: name for name in names}
    folder = images.path(0).parent
    for file in _text_files(root, folder):
        if file.parent == folder and file.suffix.lower() in SIDECARS and file.stem in stems:
            raise UserError(
                f"{file} lies beside {stems[file.stem]}: labels or captions in such files are not "
                "read in a folder",
                "to know that there are no classes, or tar shards, where .cls, .txt and .json are "
                "read",
                f"pass --num-classes 0, or pack them: `tar --sort=name -C {shell_quote(folder)} "
                f"-cf {shell_quote(root.resolve().name + '.tar')} .`",
            )
        table = _find_table(file, names, stems, file.parent in (root, folder))
        if table or _quotes_image(file, names):
            raise _unread(root, folder, file, table)


def _unread(root: Path, folder: Path, file: Path, table: Table | None) -> UserError:
    expected = "to know that there are no classes, or one subfolder of images per class"
    do = "pass --num-classes 0, or move the images into a subfolder for each class"
    if table:
        out = Path(f"{root.resolve()}-classes")
        command = f"python -c {shlex.quote(_write_links(table, folder, out))}"
        do = f"pass --num-classes 0, or --data {shell_quote(out)} after linking them by: {command}"
    return UserError(f"{file} lists images of {root}: labels in it are not read", expected, do)


def _write_links(table: Table, folder: Path, out: Path) -> str:
    """Return a line of Python that makes a folder for each class, with links to its images."""

    def quote(value: object) -> str:
        return json.dumps(str(value), ensure_ascii=False)

    suffix = f" + {quote(table.suffix)}" if table.suffix else ""
    return (
        f"import csv, os; [(os.makedirs(d := os.path.join({quote(out)}, r[{table.label}].strip()), "
        "exist_ok=True), os.symlink(f, os.path.join(d, os.path.basename(f)))) for r in "
        f"csv.reader(open({quote(table.file.resolve())}), delimiter={quote(table.delimiter)}) "
        f"if len(r) > {max(table.image, table.label)} and os.path.isfile(f := os.path.join("
        f"{quote(folder.resolve())}, os.path.basename(r[{table.image}].strip()){suffix}))]"
    )


def _text_files(root: Path, folder: Path) -> Iterator[Path]:
    """Yield the text files in the folders of the images and in the one around them."""
    for place in dict.fromkeys((folder, root, root.resolve().parent)):
        try:
            with os.scandir(place) as scan:
                suffixes = (
                    entry for entry in scan if entry.name.lower().endswith((*LISTS, ".cls"))
                )
                names = [entry.name for entry in islice(suffixes, MOST) if entry.is_file()]
        except OSError:  # a parent that may not be read
            continue
        for name in sorted(names):
            if not name.startswith("."):
                yield place / name


def _read_head(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _find_table(
    file: Path, names: dict[str, str], stems: dict[str, str], is_inside: bool
) -> Table | None:
    """Return where a file has images and labels; None if most rows name no image of ours."""
    if file.suffix.lower() not in TABLES:
        return None
    lines = [line for line in _read_head(file).splitlines() if line.strip()][:ROWS]
    # numbers name images only where the file says that it holds labels: they may be epochs
    numbers = is_inside or "label" in file.name.lower()
    for delimiter in "\t,;| ":
        try:
            rows = list(csv.reader(lines, delimiter=delimiter))
        except csv.Error:
            continue
        width = min(map(len, rows), default=0)
        for column in range(min(width, 2) if width > 1 else 0):
            cells = [os.path.basename(row[column].strip()) for row in rows]
            found = [cell for cell in cells if cell in names]
            suffix = ""
            if not found:
                found = [c for c in cells if c in stems and (numbers or not c.isdecimal())]
                suffix = os.path.splitext(stems[found[0]])[1] if found else ""
            if found and 2 * len(found) >= len(lines):
                return Table(file, delimiter, column, _label_column(rows[0], column), suffix)
    return None


def _label_column(header: list[str], image: int) -> int:
    others = [i for i in range(len(header)) if i != image]
    return next((i for i in others if USUAL.search(header[i])), others[0])


def _quotes_image(file: Path, names: dict[str, str]) -> bool:
    """Return whether the beginning of a JSON file has the name of an image."""
    if file.suffix.lower() not in (".json", ".jsonl"):
        return False
    return any(
        os.path.basename(text) in names for text in re.findall(r'"([^"]+)"', _read_head(file))
    )
