"""A page of results, as HTML that needs no other file and as Markdown without figures."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dit.report.table import Table, escape, two_columns
from dit.report.text import show
from dit.utils.files import write_text


@dataclass(frozen=True)
class Section:
    """A titled part of a page.

    Args:
        paragraphs: text below the table or figures.
        figures: caption -> picture; of the kind chart or curve they are inverted on dark pages.
        protocol: group -> name -> value.
    """

    title: str
    table: Table | None = None
    paragraphs: Sequence[str] = ()
    figures: Mapping[str, Image.Image] = field(default_factory=dict)
    figure_kind: str = "chart"
    protocol: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.table or self.paragraphs or self.figures or self.protocol)


@dataclass(frozen=True)
class Highlight:
    """The main result in large print: what it is, its number, and the command that uses it."""

    caption: str
    text: str
    value: str
    small: str
    command: str


@dataclass(frozen=True)
class Page:
    """Everything on a page, from top to bottom.

    Sections that are empty do not appear.

    Args:
        subtitle: date, versions and device.
        essentials: name -> value of what the numbers mean nothing without.
        lead: paragraphs of the main results.
        notes: warnings.
        generator: the program and command that wrote it.
        verdict: the main result in one sentence, below the title.
    """

    title: str
    subtitle: str
    essentials: Mapping[str, str]
    sections: Sequence[Section]
    footer: str
    highlight: Highlight | None = None
    lead: Sequence[str] = ()
    notes: Sequence[str] = ()
    generator: str = ""
    verdict: str = ""

    def to_html(self) -> str:
        # not at the top: jinja2 is needed for pages only
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters |= {"show": show, "embed": embed}
        return templates.get_template("page.html.j2").render(page=self)

    def to_markdown(self) -> str:
        parts = [f"# {escape(self.title)}"]
        parts += [f"**{escape(self.verdict)}**"] if self.verdict else []
        parts.append(two_columns(self.essentials).to_markdown())
        if top := self.highlight:
            parts.append(f"{top.caption}: **{escape(top.text)}**, {top.value} ({top.small})")
            parts.append(f"    {top.command}")

        parts += map(escape, self.lead)
        parts += [f"**Note:** {escape(note)}" for note in self.notes]
        for section in self.sections:
            parts += _section_markdown(section)
        return "\n\n".join(parts) + "\n"

    def write(self, stem: Path) -> list[Path]:
        """Write STEM.md and STEM.html; return their paths."""
        texts = {stem.with_suffix(".md"): self.to_markdown()}
        texts[stem.with_suffix(".html")] = self.to_html()
        for path, text in texts.items():
            write_text(path, text)
        return [*texts]


def _section_markdown(section: Section) -> list[str]:
    parts = [section.table.to_markdown()] if section.table else []
    parts += map(escape, section.paragraphs)
    for group, entries in section.protocol.items():
        values = {name: show(value) for name, value in entries.items()}
        parts += [f"### {escape(group)}", two_columns(values).to_markdown()]
    return [f"## {escape(section.title)}", *parts] if parts else []


def software_subtitle(software: Mapping[str, Any]) -> str:
    """Return date, version and device of a protocol's section `software`, as far as it has them."""
    date = software.get("date", "").replace("T", " ").replace("+00:00", " UTC")
    version = f"dit {software['dit']}" if software.get("dit") else ""
    return " · ".join(filter(None, (date, version, software.get("device"))))


def embed(picture: Image.Image) -> str:
    """Return a picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
