"""The reader of JSON: types, ranges and names are checked, and each error says what is wrong."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from dit.errors import UserError
from dit.utils.typed_json import WrongJson, from_json, parse_json, read_json


class Entry(TypedDict):
    bytes: int


@dataclass(frozen=True)
class Inner:
    size: int | tuple[int, int]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise UserError(f"scale {self.scale}", "a number above 0", "")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: list[str]
    kind: Literal["lower", "higher"] = field(metadata={"json": "better"})
    out: Path | None = None
    flag: bool = False
    sides: tuple[int, ...] = ()
    files: dict[str, Entry] = field(default_factory=dict)
    other: Any = None


GOOD: dict[str, Any] = {"inner": {"size": 8}, "names": ["a"], "better": "lower"}


def test_plain_values_become_typed_ones():
    values = {
        **GOOD,
        "inner": {"size": [8, 16], "scale": 2},
        "out": "runs/a",
        "sides": [4, 8],
        "files": {"x": {"bytes": 3, "of a later version": None}},
    }
    read = parse_json(json.dumps(values).encode(), Outer)
    assert read.inner == Inner((8, 16), 2)
    assert (read.kind, read.out, read.sides) == ("lower", Path("runs/a"), (4, 8))
    assert read.files["x"] == {"bytes": 3, "of a later version": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "a"}, 'names is "a", not a list'),
        ({"names": ["a", 1]}, "names[1] is 1, not a text"),
        ({"inner": []}, "inner is [], not an object"),
        ({"inner": {}}, "it lacks inner.size"),
        ({"inner": {"size": "ten"}}, 'inner.size is "ten", not a whole number or a list of 2'),
        ({"inner": {"size": True}}, "inner.size is true, not a whole number or a list of 2"),
        ({"inner": {"size": 8.0}}, "inner.size is 8.0, not a whole number or a list of 2"),
        ({"inner": {"size": [8, "8"]}}, 'inner.size[1] is "8", not a whole number'),
        ({"inner": {"size": 2**63}}, f"inner.size is {2**63}, not a whole number or a list of 2"),
        ({"inner": {"size": 8, "scale": False}}, "inner.scale is false, not a number"),
        ({"inner": {"size": 8, "scale": -1}}, "scale -1 in inner, not a number above 0"),
        ({"inner": {"size": 8, "scal": 1}}, "inner.scal is unknown to this version: did you mean"),
        ({"better": "down"}, 'better is "down", not "lower" or "higher"'),
        ({"out": 3}, "out is 3, not a path or null"),
        ({"out": "a\0b"}, 'out is "a\\u0000b", not a path or null'),
        ({"flag": 1}, "flag is 1, not true or false"),
        ({"files": {"x": 3}}, "files.x is 3, not an object"),
        ({"files": {"x": {"bytes": "3"}}}, 'files.x.bytes is "3", not a whole number'),
        ({"files": {"x": {}}}, "it lacks files.x.bytes"),
        ({"names": "\udcff" * 200}, "names is"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(WrongJson) as error:
        from_json(Outer, {**GOOD, **change})
    assert str(error.value).startswith(message)
    assert len(str(error.value).encode()) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "no JSON: Expecting property name"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[]", "it is [], not an object"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b'{"a": 1e999}', "1e999 is too large for a number"),
        (b'{"a": NaN}', "it has NaN, which is no number of JSON"),
        (b'{"a": -Infinity}', "it has -Infinity, which is no number of JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it has a number of thousands of digits"),
        (b'{"a": 1, "a": 2}', 'it has "a" twice'),
    ],
    ids=range(12),
)
def test_what_is_no_json_is_named(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_bytes(text)
    with pytest.raises(UserError) as error:
        read_json(file, dict[str, Any], "a record", "copy it again")
    given = f"{file} is missing or damaged ({message}"
    assert str(error.value).startswith(given)
    assert str(error.value).endswith("); expected a record; copy it again")


def test_a_byte_order_mark_is_no_damage():
    assert parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}', dict[str, str]) == {"a": "é"}


def test_a_log_may_have_numbers_that_are_not_finite():
    line = parse_json('{"step": 1, "loss": NaN}', dict[str, float], nan=True)
    assert line["loss"] != line["loss"]


@pytest.mark.parametrize(("name", "reason"), [("no", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, reason):
    with pytest.raises(UserError, match=rf"{tmp_path / name} is missing or damaged \({reason}"):
        read_json(tmp_path / name, dict, "a record", "copy it again")
