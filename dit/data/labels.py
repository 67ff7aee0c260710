"""Classes from the labels that a data set stores: numbers, names or captions."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from dit.data.counts import count_of
from dit.errors import UserError
from dit.utils.files import name_to_bytes, shell_quote

NAMED = 5  # classes, in a note
MAX_CLASSES = 10**7
MAX_DIGITS = 100  # more are no id, and Python converts no more than 4,300
Label = int | str
Classes = Literal["ask", "usual", "none"]


@dataclass(frozen=True)
class Columns:
    """Which parts of a sample are its image and its label; None: those of the usual names.

    Args:
        captions: whether labels are captions.
        classes: ask: refuse data without labels of usual names that has something else which may
            be labels; usual: such data has no classes; none: ignore all labels.
    """

    captions: bool = False
    image: str | None = None
    label: str | None = None
    classes: Classes = "ask"


# The fingerprint of a stream contains the repr of this class: a new name or field changes it, and
# `dit encode` would refuse to continue.
@dataclass(frozen=True)
class Labels:
    """The meaning of a data set's labels.

    Args:
        captions: they are captions; else numbers or names of classes.
        names: of the classes 0, 1, …, where the data set has them.
    """

    captions: bool
    names: list[str] | None = None

    @cached_property
    def _unique_names(self) -> set[str]:
        # ImageNet has two classes called crane: such a name does not say which
        return {name for name, count in Counter(self.names).items() if count == 1}

    def check(self, label: Any, where: str) -> Label:
        """Return the label of one sample, stripped; refuse what is none.

        Args:
            where: the sample, for the error message.
        """
        text = label.strip() if isinstance(label, str) else ""
        if text and (self.captions or self.names is None or text in self._unique_names):
            return text
        if self.captions:
            raise UserError(
                f"caption {label!r} of {where}",
                "a text that is not empty",
                "correct it, or remove the sample",
            )

        # texts such as "3" in JSON, and whole floats, which tables with gaps have
        number = int(text) if is_number(text) else label
        is_whole = isinstance(number, Integral) or (isinstance(number, Real) and number % 1 == 0)
        limit = MAX_CLASSES if self.names is None else len(self.names)
        if is_whole and 0 <= number < limit:
            return int(number)
        expected = f"a number from 0 to {limit - 1}, or a name"
        if isinstance(label, list | tuple | dict):
            expected += ": one class for each image"
        raise UserError(
            f"class {label!r} of {where}",
            expected,
            "correct it, pass --num-classes 0 for no classes, or choose another --label-column if "
            "the data has columns",
        )

    def classes(self, labels: Iterable[Label]) -> list[str]:
        """Return the classes: known names, numbers up to the highest, sorted names, or captions."""
        if self.names is not None:
            return self.names
        distinct = set(labels)
        if self.captions:
            return sort_captions(distinct)  # type: ignore[arg-type]

        examples = {type(label): label for label in distinct}
        if len(examples) > 1:
            raise UserError(
                f"classes are both numbers and names: {examples[int]!r}, {examples[str]!r}",
                "one or the other",
                "correct them, or choose another --label-column if the data has columns",
            )
        if str in examples:
            return sort_names(distinct)  # type: ignore[arg-type]
        # also classes below the highest without images
        return [str(number) for number in range(max(distinct) + 1)]  # type: ignore[operator]

    def to_ids(self, labels: Iterable[Label], classes: list[str]) -> np.ndarray:
        """Return the class of each label, int64 [n]."""
        ids = {name: i for i, name in enumerate(classes)}
        numbers = (ids[label] if isinstance(label, str) else label for label in labels)
        return np.fromiter(numbers, np.int64)


def ask_for_labels(given: str, candidates: Sequence[str], has_texts: bool) -> UserError:
    """Return the error of data without labels of usual names, with what else may be labels."""
    column = shell_quote(candidates[0])
    captions = ", --captions for texts" if has_texts else ""
    return UserError(
        f"{given}, but {', '.join(candidates)}",
        "the one that holds the classes, or to know that there are none",
        f"pass --label-column {column}{captions}, or --num-classes 0 for no classes",
    )


def note_empty(classes: Sequence[str], labels: np.ndarray) -> list[str]:
    """Say which classes have no images, such as class 0 of labels that begin at 1."""
    used = set(np.unique(labels).tolist())
    empty = [name for label, name in enumerate(classes) if label not in used]
    if not empty:
        return []
    names = ", ".join(empty[:NAMED]) + (", …" if len(empty) > NAMED else "")
    return [f"{count_of(len(empty), 'class')} without images: {names}"]


def sort_names(names: Iterable[str]) -> list[str]:
    """Return names of classes in their order: whole numbers by value (2 before 10), others as text.

    Text order would give the class called 10 the id 2, and another class the id 10.
    """
    names = list(names)
    if all(map(is_number, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_number(text: str) -> bool:
    """Return whether a text is a whole number, 0 or more, of at most `MAX_DIGITS` digits."""
    return text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS


def sort_captions(captions: Iterable[str]) -> list[str]:
    """Return distinct captions by their SHA-256: the first of them are a fair sample of all."""
    return sorted(set(captions), key=text_sha256)


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(name_to_bytes(text)).hexdigest()
