"""What --help and --help-all print: examples, the basic flags, and all flags by group.

The text of a flag is the string under its field in dit/config. Its group is the last line of the
form `# -- GROUP ---` above it.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from dit.config.flag_names import flag_name, is_positional, is_switch, value_words

GROUP = re.compile(r"\s*# -- (.+?) -+")
OTHER = "options"  # group of flags above the first line that names one
VALUES = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
INDENT = 16  # columns before the text of a flag
MOST_COLUMNS = 100  # longer lines are hard to read
LEAST_COLUMNS = 40


@dataclasses.dataclass(frozen=True)
class HelpText:
    """The text and the group of a flag."""

    text: str
    group: str


@dataclasses.dataclass(frozen=True)
class Guide:
    """What a new user needs of a command: flags of `{prog}` to copy, and the basic settings."""

    examples: tuple[tuple[str, str], ...]
    basics: tuple[str, ...] = ()


def help_texts(kind: type) -> dict[str, HelpText]:
    """Return text and group of each setting; the text is one line, without the source's breaks."""
    texts = {}
    for base in kind.__mro__[-2::-1]:
        source = inspect.getsource(base)
        (tree,) = ast.parse(source).body
        lines = source.splitlines()
        for field, text in pairwise(getattr(tree, "body", ())):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                above = [GROUP.match(line) for line in lines[: field.lineno]]
                groups = [match[1] for match in above if match]
                words = ast.literal_eval(text.value).split()
                texts[ast.unparse(field.target)] = HelpText(
                    " ".join(words), groups[-1] if groups else OTHER
                )
    return texts


def help_page(
    kind: type,
    guide: Guide,
    prog: str,
    defaults: dict[str, Any],
    columns: int,
    everything: bool,
    as_started: Callable[[str], str],
) -> str:
    """Return the page of a command.

    Args:
        kind: Its configuration.
        prog: Its name, such as `train.py` or `dit sample`.
        defaults: Defaults of its settings, such as those of a preset.
        columns: Width of the terminal.
        everything: Whether all flags get their text, not only the basic ones.
        as_started: Names train.py, sample.py and evaluate.py in a text as they are started here.
    """
    columns = max(LEAST_COLUMNS, min(columns, MOST_COLUMNS))
    texts = {name: as_started(one.text) for name, one in help_texts(kind).items()}
    group_of = {name: one.group for name, one in help_texts(kind).items()}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    basics = guide.basics or tuple(fields)

    lines = [f"usage: {usage(kind, prog)} [FLAGS]", ""]
    lines += _wrap(as_started(" ".join((kind.__doc__ or "").split())), 0, columns)
    started = f"python {prog}" if prog.endswith(".py") else prog
    lines += ["", "examples:"]
    for flags, what in guide.examples:
        lines += [f"  {started} {flags}".rstrip(), *_wrap(what, 6, columns)]

    groups: dict[str, list[str]] = {"basics" if guide.basics else "flags": [*basics]}
    for name in fields:
        if name not in basics:
            groups.setdefault(group_of[name], []).append(name)
    described = groups if everything else [*groups][:1]
    for group in described:
        lines += ["", f"{group}:"]
        for name in groups[group]:
            lines += _entry(fields[name], texts[name], defaults.get(name), columns)

    named = [group for group in groups if group not in described]
    if named:
        lines += ["", f"more, described by `{started} --help-all`:"]
    for group in named:
        lines += _names(group, groups[group], columns)
    return "\n".join(lines)


def usage(kind: type, prog: str) -> str:
    """Return the shortest command line: what is required."""
    words = [prog]
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING:
            if not is_positional(field):
                words.append(flag_name(field.name))
            words.append(field.name.upper())
    return " ".join(words)


def _names(group: str, names: Iterable[str], columns: int) -> list[str]:
    """Return the flags of a group without their texts."""
    flags = " ".join(flag_name(name) for name in names)
    first = f"  {group}".ljust(INDENT)
    # break_on_hyphens would cut flags
    return textwrap.wrap(
        flags, columns, initial_indent=first, subsequent_indent=" " * INDENT, break_on_hyphens=False
    )


def _entry(field: dataclasses.Field, text: str, default: Any, columns: int) -> list[str]:
    """Return the lines of a flag: its name and value, its text, and its default."""
    head = f"  {_typed(field)}"
    if (shown := _shown(default)) and not is_positional(field):
        text = f"{text} (default: {shown})"
    body = _wrap(text, INDENT, columns)
    if len(head) < INDENT - 1 and body:
        return [head.ljust(INDENT) + body[0].lstrip(), *body[1:]]
    return [*_wrap(head.strip(), 2, columns), *body]


def _typed(field: dataclasses.Field) -> str:
    """Return a flag with the kind of its value, such as `--image-size N [N]`."""
    if is_positional(field):
        return field.name.upper()
    flag = flag_name(field.name)
    if is_switch(field.type):
        return flag if field.default is False else f"{flag}, --no-{flag[2:]}"
    return f"{flag} {_value(field.type)}"


def _value(kind: Any) -> str:
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) is Literal:
        return parts[0] if len(parts) == 1 else f"{{{', '.join(parts)}}}"
    if get_origin(kind) is tuple:
        word = VALUES[parts[0]]
        return f"{word} ..." if Ellipsis in parts else " ".join(VALUES[part] for part in parts)
    if int in parts and any(get_origin(part) is tuple for part in parts):
        return "N [N]"
    return "|".join(_value(part) for part in parts) if parts else VALUES[kind]


def _shown(default: Any) -> str:
    """Return a default as it is typed; nothing where a setting is off, empty or depends."""
    if default is None or default is False or default in ((), ""):
        return ""
    return "on" if default is True else value_words(default)


def _wrap(text: str, indent: int, columns: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        text, columns, initial_indent=space, subsequent_indent=space, break_on_hyphens=False
    )
