"""Classes from the labels that a data set stores: numbers, names or captions."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from dit.errors import UserError
from dit.utils.files import name_to_bytes

MAX_CLASSES = 10**7
Label = int | str


@dataclass(frozen=True)
class Columns:
    """Which parts of a sample are its image and its label; None: those of the usual names."""

    captions: bool = False  # whether labels are captions
    image: str | None = None
    label: str | None = None


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

    def check(self, label: Any, where: str) -> Label:
        """Return the label of one sample, stripped; refuse what is none.

        Args:
            where: the sample, for the error message.
        """
        text = label.strip() if isinstance(label, str) else ""
        if text and (self.captions or self.names is None):
            return text
        if self.captions:
            raise UserError(
                f"caption {label!r} of {where}",
                "a text that is not empty",
                "correct it, or remove the sample",
            )
        limit = MAX_CLASSES if self.names is None else len(self.names)
        if isinstance(label, Integral) and 0 <= int(label) < limit:
            return int(label)
        expected = f"a number from 0 to {limit - 1}" + ("" if self.names else ", or a name")
        raise UserError(
            f"class {label!r} of {where}", expected, "correct it, or choose another --label-column"
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
                "correct them, or choose another --label-column",
            )
        if str in examples:
            return sorted(distinct)  # type: ignore[arg-type]
        # also classes below the highest without images
        return [str(number) for number in range(max(distinct) + 1)]  # type: ignore[operator]

    def to_ids(self, labels: Iterable[Label], classes: list[str]) -> np.ndarray:
        """Return the class of each label, int64 [n]."""
        ids = {name: i for i, name in enumerate(classes)}
        numbers = (ids[label] if isinstance(label, str) else label for label in labels)
        return np.fromiter(numbers, np.int64)


def sort_captions(captions: Iterable[str]) -> list[str]:
    """Return distinct captions by their SHA-256: the first of them are a fair sample of all."""
    return sorted(set(captions), key=text_sha256)


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(name_to_bytes(text)).hexdigest()
