"""From a command line to a configuration; all its wrong flags are told at once."""

import dataclasses
import io
import os
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro

from dit.config.flag_names import earlier_names, flag_name, is_positional, is_switch
from dit.config.help import help_page, usage
from dit.config.help_guides import GUIDES
from dit.config.training import TrainConfig, refuse_unread_flags
from dit.errors import UserError, UserErrors, did_you_mean

TYPES = {int: "whole number", float: "number", Path: "path"}
MAY_BE_EMPTY = {"--prompt", "--negative-prompt"}
NARROWEST = 20  # columns of a terminal
HELP = {"-h", "--help", "--help-all"}

MARK = "\0"  # in no word that is typed
WORD = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="TEXT",
    instance_from_str=lambda words: words[0].removeprefix(MARK),
    is_instance=lambda value: isinstance(value, str),
    str_from_instance=lambda value: [value],
)
"""How the parser reads one of several texts: a mark hides a dash at the start, as of a flag."""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Typed:
    """A flag as it was typed, with its values; the flag is "" for words before any flag.

    Args:
        joined: Whether `=` stands between the flag and its value, which may then start with a dash.
        texts: Whether it takes several texts; any of them may then start with a dash, see `WORD`.
    """

    flag: str
    values: list[str]
    joined: bool = False
    texts: bool = False

    @property
    def words(self) -> list[str]:
        """What the parser reads."""
        if not self.flag:
            return self.values
        if self.texts:
            marked = (MARK + text if text.startswith("-") else text for text in self.values)
            return [self.flag, *marked]
        if self.joined:
            return [f"{self.flag}={self.values[0]}", *self.values[1:]]
        return [self.flag, *self.values]


class WrongFlag(UserError):
    """A value that the parser refuses.

    Args:
        flag: Whose value it is; None where the parser does not say.
    """

    flag: str | None = None


def parse(
    kind: type[Config],
    argv: list[str],
    prog: str,
    default_of: Callable[[dict[str, list[str]]], Config | None] = lambda typed: None,
    check_value: Callable[[str, str], None] = lambda flag, value: None,
) -> Config:
    """Turn flags into a configuration.

    Args:
        prog: What was typed before the flags, for messages.
        default_of: Returns the defaults, from the flags and their values.
        check_value: Raises UserError for a value that no flag may have.

    Raises:
        UserError: Unknown or missing flags, or values that do not fit: all of them at once.
    """
    typed = _with_run(kind, split_flags(argv, earlier_names(kind)))
    for one in typed:
        _check_values(one, check_value)
    typed, wrong = _without_unfit(kind, typed, prog)
    typed = _together(kind, typed)
    default = default_of({one.flag: one.values for one in typed}) if not wrong else None
    config = _parse_what_fits(kind, typed, default, prog, wrong)
    if wrong or config is None:
        raise UserErrors.of(wrong)

    if isinstance(config, TrainConfig):
        names = {flag_name(name): name for name in _values(config)}
        flags = [one.flag for one in typed]
        positive = [flag.replace("--no-", "--", 1) if flag not in names else flag for flag in flags]
        refuse_unread_flags(config, {names[flag] for flag in positive if flag in names})
    return config


def asked_help(
    kind: type[Config],
    argv: list[str],
    prog: str,
    default_of: Callable[[dict[str, list[str]]], Config | None],
    as_started: Callable[[str], str],
) -> str | None:
    """Return the page of --help or --help-all, for this terminal; None if neither is typed."""
    if not (asked := HELP.intersection(argv)):
        return None
    typed = split_flags(argv, earlier_names(kind))
    default = default_of({one.flag: one.values for one in typed})
    defaults = _defaults(kind) if default is None else _values(default)
    columns = shutil.get_terminal_size().columns
    everything = "--help-all" in asked
    return help_page(kind, GUIDES[kind], prog, defaults, columns, everything, as_started)


def split_flags(argv: list[str], earlier: dict[str, str]) -> list[Typed]:
    """Return each flag with its values, by today's names; the first entry has words before any."""
    typed = [Typed("", [])]
    for arg in argv:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            flag = name.replace("_", "-")
            values = [value] if equals else []
            typed.append(Typed(earlier.get(flag, flag), values, joined=bool(equals)))
        else:
            typed[-1].values.append(arg)
    return typed


def _with_run(kind: type, typed: list[Typed]) -> list[Typed]:
    """Understand RUN alone where `--run RUN` is usual."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    takes_words = any(map(is_positional, fields.values()))
    words = typed[0].values
    if takes_words or "run" not in fields or len(words) != 1 or words[0].startswith("-"):
        return typed
    if any(one.flag == "--run" for one in typed):
        return typed
    return [Typed("", []), Typed("--run", words), *typed[1:]]


# -- what is wrong with a flag -------------------------------------------------------------------


def _without_unfit(
    kind: type, typed: list[Typed], prog: str
) -> tuple[list[Typed], list[UserError]]:
    """Return the flags that are known and have no value too many, and an error for each other."""
    types = {flag_name(field.name): field.type for field in dataclasses.fields(kind)}
    switches = {f"--no-{flag[2:]}": flag for flag, of in types.items() if is_switch(of)}
    # words after a flag may be arguments without one
    takes_words = any(is_positional(field) for field in dataclasses.fields(kind))

    fits, wrong = [], []
    for one in typed:
        flag = switches.get(one.flag, one.flag)
        if flag and flag not in types:
            near = did_you_mean(flag, [*types, *switches, *HELP], f"see {prog} --help-all")
            wrong.append(UserError(f"unknown flag {flag}", f"a flag of {prog}", near))
            continue
        error = _dashed(one) if flag and _takes_texts(types[flag]) else None
        if flag and not takes_words:
            error = error or _too_many(one, types[flag], prog)
        if error:
            wrong.append(error)
        else:
            fits.append(one)
    return fits, wrong


def _together(kind: type, typed: list[Typed]) -> list[Typed]:
    """Return each flag of several texts once, with all values: as of `--prompt a --prompt=-b`."""
    several = {flag_name(f.name) for f in dataclasses.fields(kind) if _takes_texts(f.type)}
    found: dict[str, Typed] = {}
    together = []
    for one in typed:
        if one.flag in found:
            found[one.flag].values.extend(one.values)
            continue
        if one.flag in several:
            one = found[one.flag] = Typed(one.flag, [*one.values], texts=True)
        together.append(one)
    return together


def _takes_texts(kind: Any) -> bool:
    return tuple[str, ...] in (kind, *get_args(kind))


def _dashed(one: Typed) -> UserError | None:
    """Return the error of a text that starts like a flag, unless `=` joins it to its flag."""
    for value in one.values[one.joined :]:
        if re.match("-[A-Za-z-]", value):
            given = f"{one.flag} {' '.join(one.values)}"
            expected = f"values without a dash, or a flag for {value}"
            do = f"type two dashes, or as a value {one.flag}={shlex.quote(value)}"
            return UserError(given, expected, do)
    return None


def _too_many(one: Typed, kind: Any, prog: str) -> UserError | None:
    """Return the error of a flag that has a value too many, if it has."""
    values = " ".join(one.values)
    if is_switch(kind):
        given, other = f"{one.flag} {values}", "--no-" + one.flag[2:]
        do = f"pass {one.flag} or {other}" if not one.flag.startswith("--no-") else "drop it"
        return UserError(given, "no value", do) if values else None
    if len(one.values) < 2 or "tuple" in str(kind):
        return None
    if any(re.match("-[a-zA-Z]", value) for value in one.values):
        return None  # the parser calls it by its name, an option that is not known
    expected = _describe(kind)
    do = f"change {one.flag}, or see {prog} --help"
    return _unquoted(one) or UserError(f"{one.flag} {values}", expected, do)


def _check_values(one: Typed, check_value: Callable[[str, str], None]) -> None:
    """Refuse empty values; captions may be empty, and are no paths."""
    if one.flag in MAY_BE_EMPTY:
        return
    for value in one.values:
        if not value.strip():
            raise UserError(
                f"{one.flag or 'an argument'} is empty",
                "a value",
                "check the variable of the shell that it came from",
            )
        check_value(one.flag, value)


def _parse_what_fits(
    kind: type[Config],
    typed: list[Typed],
    default: Config | None,
    prog: str,
    wrong: list[UserError],
) -> Config | None:
    """Parse again without each flag whose value the parser refuses; add what it refused."""
    while True:
        try:
            return _parse_once(kind, typed, default, prog)
        except WrongFlag as error:
            # without a name: a flag that was left out may be missed, or a word belong to it
            if error.flag is not None or not wrong:
                wrong.append(error)
            if error.flag is None:
                return None
            typed = [one for one in typed if one.flag != error.flag]
        except UserErrors as errors:
            wrong += errors.mistakes
            return None
        except UserError as error:
            # two flags at odds: it may go with the one that was left out
            if not wrong:
                wrong.append(error)
            return None


def _parse_once(kind: type[Config], typed: list[Typed], default: Any, prog: str) -> Config:
    flags = _for_tyro(kind, {one.flag for one in typed})
    # tyro breaks lines for ever where no word fits
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    errors = io.StringIO()  # tyro prints its errors in a box and exits
    try:
        with redirect_stderr(errors):
            given = tyro.cli(
                flags,
                prog=prog,
                args=[word for one in typed for word in one.words],
                default=default and flags(**_values(default)),
                config=(tyro.conf.DisallowNone,),
                add_help=False,
            )
    except SystemExit:
        raise _wrong_flag(kind, typed, _unframe(errors.getvalue()), prog) from None
    # the class itself, not the subclass for tyro
    return kind(**_values(given))


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _defaults(kind: type) -> dict[str, Any]:
    values = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if value is not dataclasses.MISSING}


def _for_tyro(kind: type, typed: set[str]) -> Any:
    """Return a subclass whose fields have the names of their flags."""
    fields = []
    for f in dataclasses.fields(kind):
        # without a help text tyro would look for one in the source
        name = tyro.conf.arg(name=flag_name(f.name)[2:], help=f.name)
        # `--run RUN` is understood where RUN alone is usual
        plain = is_positional(f) and flag_name(f.name) in typed
        of = get_args(f.type)[0] if plain else f.type
        if _takes_texts(of):
            texts = tuple[Annotated[str, WORD], ...]  # type: ignore[valid-type]
            of = texts | None if NoneType in get_args(of) else texts
        fields.append((f.name, Annotated[of, name], dataclasses.field(default=f.default)))
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True
    )


# -- errors of the parser --------------------------------------------------------------------------


def _wrong_flag(kind: type, typed: list[Typed], message: str, prog: str) -> WrongFlag:
    """Return an error of tyro's parser in the form of ours."""
    if message.startswith("Missing from"):
        given = f"arguments of {prog} are missing"
        return WrongFlag(given, usage(kind, prog), f"see {prog} --help")

    # not any flag in it: a word that was typed may contain one, as `foo--lr` does
    named = re.search(r"(?:^|')(--[a-z0-9-]+)[:']", message)
    values = {one.flag: one.values for one in typed}
    types = {flag_name(field.name): field.type for field in dataclasses.fields(kind)}
    if named and named[1] in types and named[1] in values:
        flag = named[1]
        value = " ".join(values[flag])
        do = did_you_mean(value, _choices(types[flag]), f"change {flag}, or see {prog} --help")
        error = WrongFlag(f"{flag} {value or 'without a value'}", _describe(types[flag]), do)
        error.flag = flag
        return error

    expected = f"flags and values as {prog} --help lists them"
    return WrongFlag(message, expected, "correct the command line")


def _unquoted(one: Typed) -> UserError | None:
    """Return the error of a pattern that the shell has replaced, or of a path with spaces."""
    values = one.values
    joined = " ".join(values)
    if Path(joined).expanduser().exists():
        do = f"put it in quotes: {one.flag} {shlex.quote(joined)}"
        return UserError(f"{one.flag} with {len(values)} values, {joined}", "one", do)
    if not all(Path(value).exists() for value in values):
        return None
    pattern = Path(values[0]).with_name("*" + Path(values[0]).suffix)
    return UserError(
        f"{one.flag} with {len(values)} values, {values[0]} to {values[-1]}",
        "one",
        f"put a pattern in quotes, such as {one.flag} '{pattern}'",
    )


def _describe(kind: Any) -> str:
    """Return what a flag of this type takes, in words."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    if int in parts and any(get_origin(part) is tuple for part in parts):
        return "one number, or two: height and width"
    if get_origin(kind) is tuple:
        word = TYPES.get(parts[0], "value")
        return f"one {word} or more" if Ellipsis in parts else f"two {word}s"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(parts)}"
    if not parts:
        return f"a {TYPES.get(kind, 'value')}"
    # a word in the place of a number, as `auto`
    words = _choices(kind) if parts[0] in TYPES else ()
    return " or ".join([_describe(parts[0]), *words])


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the words that a flag of this type takes, if it does not take any."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in _choices(part))


def _unframe(box: str) -> str:
    """Return the message of tyro's error, without its frame, title and advice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # the title is in the frame, or without UTF-8 on a line of its own with a rule below
    title_lines = 1 if text.startswith("╭") else 2
    body = " ".join(text.splitlines()[title_lines:])
    message = re.split(r"[─-]{3,}", body)[0]
    words = message.replace("│", " ").split()
    return " ".join(words).removeprefix("Error parsing ").rstrip(".")
