"""Errors that are shown as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct; the command ends with exit code 2.

    Args:
        given: What was found, with its value.
        expected: What would have been right.
        do: What to try next; empty where `expected` says it all.
    """

    def __init__(self, given: str, expected: str, do: str):
        self.given, self.expected, self.do = given, expected, do
        super().__init__(given, expected, do)  # what pickle makes it from on another rank

    def __str__(self) -> str:
        advice = f"; {self.do}" if self.do else ""
        return f"{self.given}; expected {self.expected}{advice}"


class UserErrors(UserError):
    """Several mistakes of one command line, a line each."""

    def __init__(self, mistakes: list[UserError]):
        first = mistakes[0]
        super().__init__(first.given, first.expected, first.do)
        self.mistakes, self.args = mistakes, (mistakes,)

    @classmethod
    def of(cls, mistakes: list[UserError]) -> UserError:
        """Return the only mistake itself, or all in one."""
        return mistakes[0] if len(mistakes) == 1 else cls(mistakes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


def one_line(error: object, most: int = 300) -> str:
    """Return what an error of a library says in one line, cut between words if it is long."""
    text = " ".join((str(error) or repr(error)).split())
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} …"


class NotFinite(UserError):
    """An image with NaN or infinity.

    Args:
        image: Index of the image.
        label: Its class id.
    """

    def __init__(self, image: int, label: int):
        super().__init__(
            f"image {image} (class {label}) came out as NaN or infinite",
            "finite latents from the sampler",
            "try --precision fp32, a lower --cfg-scale or an earlier checkpoint",
        )
        self.image, self.args = image, (image, label)


class PeerLost(Exception):
    """The end of another rank, without which this one cannot go on; torchrun may restart all."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the last part of an error, "did you mean A or B?", with the known names like `name`.

    Args:
        name: What was given.
        known: All names.
        otherwise: The text if none is like it; empty where the error lists all names already.
    """
    known = list(known)
    close = [one for one in known if name and name.lower() in one.lower()]
    close = close or difflib.get_close_matches(name, known, cutoff=0.65)
    if close:
        return f"did you mean {' or '.join(close[:3])}?"
    return otherwise
