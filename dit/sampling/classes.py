"""What `--classes` says: the classes to sample, by name or id, or the names of all classes."""

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from dit.data.counts import count_of
from dit.data.labels import is_number
from dit.errors import UserError, did_you_mean
from dit.runs.card import ModelCard
from dit.utils.files import reraise_as_user_error


def class_ids(words: Sequence[str] | None, card: ModelCard) -> tuple[list[int], list[str]]:
    """Return the ids of classes, and notes for the user where a word is a name and another's id.

    Args:
        words: names or ids, such as `cat`, `0,1,2`, or a name with a comma; None: all classes of
            the data that have images.
    """
    if words is None:
        return card.ids, []
    typed = f"--classes {' '.join(words)}"
    if card.unconditional:
        raise UserError(
            f"{typed} for a run without classes",
            "a run that was trained with classes",
            "drop --classes",
        )
    named = _ids_by_name(card)
    ids: list[int] = []
    notes: list[str] = []
    last = _count(card) - 1
    expected = f"names of classes, or class ids from 0 to {last}, separated by commas"
    see = "see `dit info RUN --classes` for all of them"
    for word in words:
        for name in _split(_composed(word), named):
            label = _find(name, named, card, typed, expected, see)
            ids.append(label)
            if _is_id(name, card) and int(name) != label:
                other = card.class_name(int(name))
                notes.append(
                    f"--classes {name}: the class called {name}, id {label}, not "
                    f"id {int(name)}, which is called {other}"
                )
    if not ids:
        raise UserError("--classes without a value", "names or ids", "such as --classes 0,1,2")
    return ids, notes


def find_class(given: str | int, card: ModelCard, see: str = "see pipe.classes") -> int:
    """Return the id of one class, by its name or its id; a name wins over another's id.

    Args:
        see: where all classes are listed, for errors.
    """
    if card.unconditional:
        raise UserError(f"class {given!r} for a run without classes", "no class", "pass None")
    if isinstance(given, str):
        name, named = _composed(given).strip(), _ids_by_name(card)
        expected = f"names of classes, or ids from 0 to {_count(card) - 1}"
        return _find(name, named, card, f"class {given!r}", expected, see)
    # the id after the last would be that of the null class
    if not 0 <= given < _count(card):
        last = _count(card) - 1
        raise UserError(f"class {given}", f"ids from 0 to {last}, or names", see)
    return given


def given_names(words: Sequence[str], count: int) -> list[str]:
    """Return the names of so many classes, typed or in a text file with one a line."""
    typed = f"--classes {' '.join(words)}".strip()
    names = [part.strip() for word in words for part in word.split(",")]
    if len(words) == 1 and (file := Path(words[0]).expanduser()).is_file():
        with reraise_as_user_error(file, "a text file in UTF-8, one name a line", "correct it"):
            names = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    expected = f"{count}, one for each class"
    if len(names) != count:
        raise UserError(f"{typed} with {count_of(len(names), 'name')}", expected, "name them all")
    if "" in names:
        empty = names.index("")
        raise UserError(f"{typed} with an empty name of class {empty}", expected, "name them all")
    return names


def _ids_by_name(card: ModelCard) -> dict[str, list[int]]:
    """Return the ids of the classes of each name: ImageNet has two called crane."""
    named: dict[str, list[int]] = {}
    for label, name in enumerate(card.classes):
        named.setdefault(_composed(name), []).append(label)
    return named


def _composed(text: str) -> str:
    """Return a text in NFC: names of folders from macOS are decomposed, and look the same."""
    return unicodedata.normalize("NFC", text)


def _split(word: str, names: Collection[str]) -> list[str]:
    """Split a word at commas, but not within the name of a class."""
    parts = word.split(",")
    most = 1 + max((name.count(",") for name in names), default=0)  # parts of a name
    found = []
    start = 0
    while start < len(parts):
        joined = (",".join(parts[start : start + n]).strip() for n in range(most, 1, -1))
        # the longest name; else up to the next comma
        name = next((text for text in joined if text in names), parts[start].strip())
        found.append(name)
        start += 1 + name.count(",")
    return found


def _find(
    name: str, named: dict[str, list[int]], card: ModelCard, typed: str, expected: str, see: str
) -> int:
    same = named.get(name, [])
    if len(same) == 1:
        return same[0]
    if len(same) > 1:
        raise UserError(
            f"{typed}: {len(same)} classes are called {name}",
            "the id of one of them",
            f"pass one of the ids {', '.join(map(str, same))}",
        )
    if _is_id(name, card):
        return int(name)
    raise UserError(
        f"{typed}: no class {name}" if name else f"{typed}: an empty name",
        expected,
        see if is_number(name) else did_you_mean(name, card.classes, see),
    )


def _is_id(name: str, card: ModelCard) -> bool:
    return is_number(name) and int(name) < _count(card)


def _count(card: ModelCard) -> int:
    # a network without classes has those of the classifier that guides it
    return card.network.num_classes or len(card.classes)
