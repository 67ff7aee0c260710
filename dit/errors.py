"""Mistakes the user can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Shown as one line, without a traceback; the command ends with exit code 2.

    Args:
        given: what was found, with its value.
        expected: what would have been right.
        do: the next thing to try.
    """

    def __init__(self, given: str, expected: str, do: str):
        self.given, self.expected, self.do = given, expected, do
        super().__init__(given, expected, do)  # so that it can go from rank to rank

    def __str__(self) -> str:
        return f"{self.given}; expected {self.expected}; {self.do}"


class PeerLost(Exception):
    """Another rank has ended, so that this one can not go on; shown as one line, and torchrun may start all again."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """For an error's last part: "did you mean A or B?", of the known names that hold `name` or are much like it.

    Args:
        otherwise: what to say where there are none; a list of all names unless given.
    """
    known = list(known)
    holding = [one for one in known if name and name.lower() in one.lower()]
    close = holding or difflib.get_close_matches(name, known, cutoff=0.65)
    return (
        f"did you mean {' or '.join(close[:3])}?"
        if close
        else otherwise or f"choose one of {', '.join(known)}"
    )


class NotFinite(UserError):
    """An image came out as NaN or infinite.

    Args:
        image: its index in the set; `label`: its class.
    """

    def __init__(self, image: int, label: int):
        super().__init__(
            f"image {image} (class {label}) came out as NaN or infinite",
            "finite latents from the sampler",
            "try --precision fp32, a lower --cfg-scale or an earlier checkpoint",
        )
        self.image, self.args = image, (image, label)  # what it is made from again on another rank
