"""How a case ended, and whether that is right."""

import fnmatch
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from misuse.case import MISTAKE, Case

KINDS = ("clear", "works", "traceback", "hang", "wrong")
FAILURES = KINDS[2:]
UNSTABLE = ("*.lock", "OWNED")  # files that may come and go
TRACES = ("Traceback (most recent call last)", "Exception ignored in")


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Args:
        kind: One of `KINDS`.
        why: What is wrong, in a few words; else the last line of the output.
    """

    kind: str
    why: str

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES


def judge(
    case: Case, code: int | None, out: str, err: str, changed: list[str], work: Path
) -> Verdict:
    """Judge a command by its exit code (None: it had to be killed), its output and the files.

    Args:
        changed: Files that were changed or lost, and should not have been.
        work: The folder it worked in.
    """
    lines = (err if case.code else out + err).strip().splitlines() or [""]
    last = lines[-1]
    if code is None:
        return Verdict("hang", f"last line: {last[:200]}")
    if any(mark in out + err for mark in TRACES):
        return Verdict("traceback", (err.strip().splitlines() or [""])[-1][:300])
    if code < 0:
        return Verdict("traceback", f"killed by signal {-code}: {last[:200]}")
    if code != case.code:
        return Verdict("wrong", f"exit code {code} instead of {case.code}: {last[:300]}")
    if changed:
        return Verdict("wrong", f"files changed or lost: {', '.join(changed[:5])}; {last[:200]}")
    if (work / "OWNED").exists():
        return Verdict("wrong", "code in a file was run")
    if case.check and not case.check(work):
        return Verdict("wrong", f"the files are not right after it: {last[:300]}")

    if not case.code:
        if case.says not in out + err:
            return Verdict("wrong", f"nothing says {case.says!r}: {last[:300]}")
        return Verdict("works", last[:300])
    errors = [line for line in lines if line.startswith("error")]
    several = len(set(errors)) == len(errors) > 0
    if case.code == MISTAKE and not (several and errors == lines[-len(errors) :]):
        return Verdict("wrong", f"not a line for each mistake: {last[:300]}")
    ending = "\n".join(errors or [last])
    if case.says not in ending:
        return Verdict("wrong", f"{case.says!r} is not in: {ending[:400]}")
    return Verdict("clear", last[:300])


def hashes(root: Path) -> dict[str, str]:
    """Return a hash of each file, or what a link points to, by path."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = _hash(path)
    return found


def _hash(path: Path) -> str:
    if path.is_symlink():
        return os.readlink(path)
    if not path.is_file():
        return "no file"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lost(case: Case, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return files that the command has changed or removed, and must not."""
    allowed = (*case.changes, *UNSTABLE)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    return [name for name in changed if not any(fnmatch.fnmatch(name, one) for one in allowed)]
