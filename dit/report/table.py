"""A table of results: terminal, Markdown and HTML pages print the same object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

NOTHING = "–"  # the text of a cell without a value
NUMBER = "number"  # the kind of cells that a terminal aligns to the right


@dataclass(frozen=True)
class Axis:
    """A score drawn on a line, on pages only; all positions are percents from the left.

    Args:
        real: the range of real images against real images.
        ends: numbers at both ends of the line.
        label: the same in words, for those who do not see it.
    """

    value: float
    interval: tuple[float, float] | None
    real: tuple[float, float] | None
    ends: tuple[str, str]
    label: str


@dataclass(frozen=True)
class Cell:
    """The text of a cell and how a page shows it.

    Args:
        kind: CSS class; cells of kind `number` are aligned to the right in a terminal.
        small: small print beside the text, such as an interval.
        strong: whether it is the main number of its row.
        bar: length of a bar beside the text, from 0 to 1; pages only.
    """

    text: str
    kind: str = ""
    small: str = ""
    strong: bool = False
    bar: float | None = None
    axis: Axis | None = None

    @property
    def plain(self) -> str:
        """Text and small print on one line, the latter in brackets unless it begins with ±."""
        return self._with_small(self.text)

    @property
    def markdown(self) -> str:
        text = f"**{self.text}**" if self.strong else self.text
        return escape(self._with_small(text))

    def _with_small(self, text: str) -> str:
        if not self.small:
            return text
        if self.small.startswith("±"):
            return f"{text} {self.small}"
        return f"{text} ({self.small})"


@dataclass(frozen=True)
class Row:
    """The cells of a line; the last one spans the columns that remain. `kind` is a CSS class."""

    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under the titles of their columns."""

    columns: Sequence[str]
    rows: Sequence[Row]

    def select(self, columns: Sequence[str], most: int | None = None) -> "Table":
        """Return the table of some columns and, at most, the first `most` rows."""
        kept = [i for i, column in enumerate(self.columns) if column in columns]
        rows = []
        for row in self.rows[:most]:
            cells = [row.cells[i] for i in kept if i < len(row.cells)]
            rows.append(replace(row, cells=cells))
        return Table([self.columns[i] for i in kept], rows)

    def without_empty_columns(self) -> "Table":
        """Return the table without columns in which no row has a value."""
        full = [row for row in self.rows if len(row.cells) == len(self.columns)]
        kept = []
        for i, column in enumerate(self.columns):
            if i == 0 or any(row.cells[i].text not in ("", NOTHING) for row in full):
                kept.append(column)
        return self.select(kept) if full else self

    def to_text(self) -> str:
        """Return aligned columns, two spaces apart."""
        lines = [[*self.columns]]
        lines += [[cell.plain for cell in row.cells] for row in self.rows]
        columns = range(len(self.columns))
        pads = [str.rjust if self._is_numeric(i) else str.ljust for i in columns]
        widths = []
        for i in columns:
            counted = [line for line in lines if self._counts(line, i)]
            widths.append(max(len(line[i]) for line in counted))

        texts = []
        for line in lines:
            # a row may be shorter than the table: its last cell spans the rest
            cells = zip(pads, line, widths, strict=False)
            padded = (pad(cell, width) for pad, cell, width in cells)
            texts.append("  ".join(padded).rstrip())
        return "\n".join(texts)

    def to_markdown(self) -> str:
        lines = [[*self.columns], ["---"] * len(self.columns)]
        lines += [[cell.markdown for cell in row.cells] for row in self.rows]

        texts = []
        for line in lines:
            empty = [""] * (len(self.columns) - len(line))
            cells = " | ".join([*line, *empty])
            texts.append(f"| {cells} |")
        return "\n".join(texts)

    @property
    def has_axes(self) -> bool:
        return any(cell.axis for row in self.rows for cell in row.cells)

    def _counts(self, line: list[str], column: int) -> bool:
        """Whether a line has its own cell in a column, so that the column must be as wide."""
        return column < len(line) - 1 or len(line) == len(self.columns)

    def _is_numeric(self, column: int) -> bool:
        # headings of groups and reasons of missing scores span columns, and are text
        full = [row for row in self.rows if len(row.cells) == len(self.columns)]
        return all(row.cells[column].kind == NUMBER for row in full)


def two_columns(entries: Mapping[str, str]) -> Table:
    """Return a table of names and values without titles."""
    rows = [Row((Cell(name), Cell(value))) for name, value in entries.items()]
    return Table(("", ""), rows)


def escape(text: str) -> str:
    """Return text as Markdown shows it, also within a table."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
