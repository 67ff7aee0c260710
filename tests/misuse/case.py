"""A wrong or hostile use of a command, and what it must print."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MISTAKE = 2  # exit code of a user's mistake


@dataclass(frozen=True)
class Damage:
    """What is done to the files of a case before its command runs.

    Args:
        words: The description, part of the case's name.
        apply: Does it, in the case's folder.
    """

    words: str
    apply: Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command line, what is wrong around it, and what must come out.

    Args:
        argv: The words after `dit`. Paths are relative to a fresh copy of the fixtures.
        says: A fragment of the right message: of the last line on stderr if the use is refused,
            of all output if it works.
        kind: The file of the table that has the case.
        code: The right exit code.
        after: Damages to the files, in order.
        changes: Patterns of files that the command may change or remove.
        check: Must return true after the command, given the folder.
        env: Variables of the environment; None removes one.
        limits: Limits of the process by their name in `resource`, such as RLIMIT_NOFILE.
        fresh: Start Python anew, for what it reads at its start; slow.
        unprivileged: Run without the right of root to pass over permissions.
        unread: With `fresh`: nobody reads stdout, as after `| head -1`.
        interrupt: Seconds after which Ctrl-C is pressed.
    """

    argv: tuple[str, ...]
    says: str
    kind: str = ""
    code: int = MISTAKE
    after: tuple[Damage, ...] = ()
    changes: tuple[str, ...] = ()
    check: Callable[[Path], bool] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    fresh: bool = False
    unprivileged: bool = False
    unread: bool = False
    interrupt: float = 0.0

    def __post_init__(self) -> None:
        # a digit, or nothing, is found in messages about other things too
        assert len(self.says) >= 3 or self.unread, f"{self.name} may say anything"

    @property
    def name(self) -> str:
        """Return the command line, and what is unusual around it."""
        unusual = [damage.words for damage in self.after]
        unusual += [f"{name}={value}" for name, value in self.env.items()]
        unusual += [f"{name}={value}" for name, value in self.limits.items()]
        unusual += [name for name in ("unprivileged", "unread") if getattr(self, name)]
        if self.interrupt:
            unusual.append(f"Ctrl-C after {self.interrupt:g} s")
        line = shlex.join(self.argv)
        shown = line if len(line) < 300 else f"{line[:150]} … ({len(line)} characters)"
        around = f"  [{'; '.join(unusual)}]" if unusual else ""
        return f"{shown}{around}".encode(errors="backslashreplace").decode()


def refused(line: str | Iterable[str], says: str, *after: Damage, **more: object) -> Case:
    """Describe a use that must end with exit code 2 and one line that contains `says`."""
    argv = shlex.split(line) if isinstance(line, str) else line
    return Case(tuple(argv), says, after=after, **more)  # type: ignore[arg-type]


def works(line: str | Iterable[str], says: str, *after: Damage, **more: object) -> Case:
    """Describe an odd use that must succeed; its output contains `says`."""
    return refused(line, says, *after, code=0, **more)


def absent(path: str) -> Callable[[Path], bool]:
    """Return a check that nothing was left at a path, such as half a file."""
    return lambda root: not (root / path).exists()
