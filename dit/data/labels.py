"""From what a data set says of each image, a number, a name or a caption, to classes."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from dit.errors import UserError

MOST_CLASSES = 10**7
Value = int | str


@dataclass(frozen=True)
class Columns:
    """Which part of a sample is the image, and which its class or caption: by their usual names unless given."""

    captions: bool = False  # whether classes are captions
    image: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Labels:
    """What the values of a data set's samples stand for.

    Args:
        captions: they are captions; else numbers or names of classes.
        names: of the classes 0, 1, …, where the data set tells them.
    """

    captions: bool
    names: list[str] | None = None

    def check(self, value: Any, where: str) -> Value:
        """The value of one sample.

        Raises:
            UserError: it is none; `where` says whose it is.
        """
        if self.captions:
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    f"caption {value!r} of {where}",
                    "a text that is not empty",
                    "mend it, or leave it out",
                )
            return value.strip()
        if isinstance(value, str) and value.strip() and self.names is None:
            return value.strip()
        most = MOST_CLASSES if self.names is None else len(self.names)
        if isinstance(value, Integral) and 0 <= int(value) < most:
            return int(value)
        expected = f"a number from 0 to {most - 1}" + ("" if self.names else ", or a name")
        raise UserError(
            f"class {value!r} of {where}", expected, "mend it, or choose another --label-column"
        )

    def classes(self, values: Iterable[Value]) -> list[str]:
        """All classes: those named, numbers up to the highest found, names in alphabetical order, or captions.

        Raises:
            UserError: numbers and names are mixed.
        """
        if self.names is not None:
            return self.names
        found = set(values)
        if self.captions:
            return by_hash(found)  # type: ignore[arg-type]
        if len(kinds := {type(value) for value in found}) > 1:
            example = [next(value for value in found if type(value) is kind) for kind in kinds]
            raise UserError(
                f"classes are both numbers and names: {example[0]!r}, {example[1]!r}",
                "one or the other",
                "mend them, or choose another --label-column",
            )
        if str in kinds:
            return sorted(found)  # type: ignore[arg-type]
        return [str(number) for number in range(max(found) + 1)]  # type: ignore[operator]

    def number(self, values: Iterable[Value], classes: list[str]) -> np.ndarray:
        """int64 [n]: which of the classes each value is."""
        ids = {name: i for i, name in enumerate(classes)}
        return np.fromiter(
            (ids[value] if isinstance(value, str) else value for value in values), np.int64
        )


def by_hash(captions: Iterable[str]) -> list[str]:
    """Distinct captions in the order of their SHA-256, so that the first of them are a fair sample of all."""
    return sorted(set(captions), key=sha256)


def sha256(text: str) -> str:
    """Of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
