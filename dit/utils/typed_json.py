"""JSON that is checked against types as it is read: dataclasses, TypedDicts and plain kinds.

`read_json(file, ModelCard, …)` returns a card, or raises an error of one line that names the file,
the entry, its value and the right type. What is checked:

- dataclasses: each field against its annotation; names that the class does not have are refused,
  as they are settings of another version; `__post_init__` checks ranges;
- TypedDicts: the keys that they list; others pass, so that records can grow;
- int, float, bool, str, Path, None, Literal, unions, and lists, tuples and dicts of them. A whole
  number is a float too; true is no number.
"""

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from dit.errors import UserError, did_you_mean

Kind = TypeVar("Kind")

LARGEST = 2**63  # of whole numbers: more is no count, and overflows a tensor or a float
MOST_SHOWN = 60  # characters of a value in a message
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: "null",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


class WrongJson(ValueError):
    """Text that is no JSON, or JSON of other types than expected."""


def read_json(file: Path, kind: type[Kind], expected: str, do: str, nan: bool = False) -> Kind:
    """Return the content of a JSON file as a `kind`.

    Args:
        expected, do: the end of the error where the file is missing or damaged.
        nan: whether numbers may be NaN and infinite, as in files of diffusers.
    """
    try:
        return parse_json(file.read_bytes(), kind, nan)
    except OSError as error:
        reason = error.strerror or str(error)
    except WrongJson as error:
        reason = str(error)
    raise UserError(f"{file} is missing or damaged ({reason})", expected, do)


def parse_json(text: str | bytes, kind: type[Kind], nan: bool = False) -> Kind:
    """Return JSON text as a `kind`.

    Args:
        nan: whether numbers may be NaN and infinite, as in logs.

    Raises:
        WrongJson: the text is not UTF-8, no strict JSON, or of other types.
    """
    try:
        # editors on Windows put a byte order mark before the text
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if not decoded.strip():
            raise WrongJson("it is empty")
        values = json.loads(
            decoded,
            object_pairs_hook=_unique_names,
            parse_constant=float if nan else _refuse_constant,
            parse_float=float if nan else _finite,
        )
        return from_json(kind, values)
    except UnicodeDecodeError as error:
        raise WrongJson(f"byte {error.start:,} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise WrongJson(f"no JSON: {error}") from None
    except RecursionError:
        raise WrongJson("it is nested too deeply") from None
    except WrongJson:
        raise
    except ValueError:
        # Python reads no whole number of more than 4,300 digits
        raise WrongJson("it has a number of thousands of digits") from None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise WrongJson(f"it has {_shown(twice)} twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise WrongJson(f"it has {name}, which is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise WrongJson(f"{text} is too large for a number")
    return value


# -- from plain values to types ------------------------------------------------------------------


def from_json(kind: type[Kind], values: Any, where: str = "") -> Kind:
    """Return plain JSON values as a `kind`.

    Args:
        where: the path of the values in their file, such as `config.steps`.

    Raises:
        WrongJson: their types, names or ranges are others.
    """
    convert: Any = _convert
    return convert(kind, values, where)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return a value as a `kind`: one branch for each sort of type."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _first_that_fits(kind, arguments, value, where)
    if origin is Literal:
        # not `in`: 1 == True
        if not any(value == one and type(value) is type(one) for one in arguments):
            raise _wrong(value, where, kind)
        return value
    if dataclasses.is_dataclass(origin):
        return _to_dataclass(origin, value, where)
    if is_typeddict(origin):
        return _to_typed_dict(origin, value, where)
    if origin is dict:
        _require(dict, value, where)
        inner = arguments[1] if arguments else Any
        return {name: _convert(inner, one, _below(where, name)) for name, one in value.items()}
    if origin in (list, tuple):
        return _to_sequence(kind, origin, arguments, value, where)
    return _to_plain(kind, value, where)


def _to_plain(kind: Any, value: Any, where: str) -> Any:
    """Return a text, number, truth value, path or None."""
    if kind is float and type(value) is int and abs(value) < LARGEST:
        return value
    is_right = type(value) is (str if kind is Path else kind)
    too_large = kind is int and is_right and abs(value) >= LARGEST
    # no path has a zero byte
    no_path = kind is Path and is_right and "\0" in value
    if not is_right or too_large or no_path:
        raise _wrong(value, where, kind)
    return Path(value) if kind is Path else value


def _first_that_fits(kind: Any, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    reasons = []
    for one in kinds:
        try:
            return _convert(one, value, where)
        except WrongJson as error:
            reasons.append(error)
    # a value of many parts: say which part of it is wrong
    if isinstance(value, dict | list) and (below := [e for e in reasons if _is_below(e, where)]):
        raise below[0]
    raise _wrong(value, where, kind)


def _is_below(error: WrongJson, where: str) -> bool:
    """Return whether an error is of a part of the value there, not of all of it."""
    return str(error).startswith((f"{where}.", f"{where}["))


def _to_sequence(kind: Any, origin: Any, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    # values that were not read from a file may have tuples already
    if not isinstance(value, list | tuple):
        raise _wrong(value, where, kind)
    if origin is list or kinds[-1] is Ellipsis:
        kinds = (kinds[0] if kinds else Any,) * len(value)
    if len(kinds) != len(value):
        raise _wrong(value, where, kind)
    pairs = enumerate(zip(kinds, value, strict=True))
    return origin(_convert(one, part, f"{where}[{i}]") for i, (one, part) in pairs)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _to_dataclass(kind: Any, value: Any, where: str) -> Any:
    _require(dict, value, where)
    # metadata={"json": NAME}: a field with another name in files
    fields = {field.metadata.get("json", field.name): field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            unknown = f"{_below(where, name)} is unknown to this version"
            raise WrongJson(f"{unknown}: {did_you_mean(name, fields, 'a newer one may know it')}")

    arguments = {}
    for name, field in fields.items():
        if name in value:
            inner = _hints(kind)[field.name]
            arguments[field.name] = _convert(inner, value[name], _below(where, name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise WrongJson(f"it lacks {_below(where, name)}")
    try:
        return kind(**arguments)
    except UserError as error:
        place = f" in {where}" if where else ""
        raise WrongJson(f"{error.given}{place}, not {error.expected}") from None


def _to_typed_dict(kind: Any, value: Any, where: str) -> Any:
    _require(dict, value, where)
    converted = dict(value)
    for name, inner in _hints(kind).items():
        if name in value:
            converted[name] = _convert(inner, value[name], _below(where, name))
        elif name in kind.__required_keys__:
            raise WrongJson(f"it lacks {_below(where, name)}")
    return converted


def _require(kind: Any, value: Any, where: str) -> None:
    if not isinstance(value, kind):
        raise _wrong(value, where, kind)


# -- words -----------------------------------------------------------------------------------------


def _below(where: str, name: str) -> str:
    """Return the path of an entry, such as config.steps."""
    return f"{where}.{_short(name)}" if where else _short(name)


def _wrong(value: Any, where: str, kind: Any) -> WrongJson:
    return WrongJson(f"{where or 'it'} is {_shown(value)}, not {_words(kind)}")


def _shown(value: Any) -> str:
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    # names of files that are not UTF-8 have characters that no terminal can print
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _words(kind: Any) -> str:
    """Return what a value of this kind is, such as `a list of 2 numbers or null`."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, arguments)))
    if origin is Literal:
        return " or ".join(_shown(one) for one in arguments)
    if origin is tuple and arguments and Ellipsis not in arguments:
        return f"a list of {len(arguments)}"
    return WORDS.get(origin, "an object")
