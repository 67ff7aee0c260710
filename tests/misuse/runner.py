"""Runs cases, each in a forked process and a fresh copy of the fixtures, and judges them."""

import contextlib
import ctypes
import fcntl
import fnmatch
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from helpers import forked

from misuse import fixtures
from misuse.case import MISTAKE, Case
from misuse.table import CASES

ROOT = Path(__file__).parents[2]
SECONDS = 60  # for one case on a busy machine; alone it takes 1 or 2
MEMORY = 6 * 2**30  # bytes a case can take, so that none drives the machine out of memory
MOST_OUTPUT = 2**20  # bytes that a pipe holds; a process that writes more waits for ever
KINDS = ("clear", "works", "traceback", "hang", "wrong")
FAILURES = KINDS[2:]
UNSTABLE = ("*.lock", "OWNED")  # files that may come and go
TRACES = ("Traceback (most recent call last)", "Exception ignored in")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "200",
}
FRESH = (
    "import sys; from dit.models.dit import SIZES; from misuse.fixtures import SMALL; "
    "SIZES['Ti'] = dict(SMALL); from dit.cli import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Args:
        kind: One of `KINDS`.
        why: What is wrong, in a few words; else the last line of the output.
        seconds: How long the command ran.
    """

    kind: str
    why: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES


def make_fixtures(root: Path) -> Path:
    """Write the fixtures below `root`; return their folder."""
    root.mkdir(exist_ok=True)
    folder = root / "fixtures"
    log = root / "fixtures.log"
    process = forked.CONTEXT.Process(target=_make, args=(str(folder), str(log)))
    process.start()
    process.join(240)
    assert process.exitcode == 0, log.read_text()[-3000:]
    return folder


def _make(folder: str, log: str) -> None:
    _redirect(log, log)
    _set_environment(OFFLINE | {"DIT_CACHE": f"{Path(folder).parent}/cache"})
    fixtures.make(folder)


# -- one case --------------------------------------------------------------------------------------


def run_case(case: Case, made: Path) -> Verdict:
    """Run a case in a copy of the fixtures `made`, and judge it."""
    with tempfile.TemporaryDirectory(prefix="misuse-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        work = home / "work"
        shutil.copytree(made, work, symlinks=True)
        for damage in case.after:
            damage.apply(work)

        before = hashes(work)
        start = time.monotonic()
        pipes = [_open_pipe(home / name) for name in ("stdout", "stderr")]
        code = _run(case, home, made.parent / "cache")
        seconds = time.monotonic() - start
        out, err = map(_read_pipe, pipes)
        kind, why = judge(case, code, out, err, lost(case, before, hashes(work)), work)
        return Verdict(kind, why, seconds)


def _run(case: Case, home: Path, cache: Path) -> int | None:
    """Run the command of a case; return its exit code, None if it had to be killed."""
    environment = OFFLINE | {"DIT_CACHE": str(cache), "HF_HOME": str(home / "hf")} | case.env
    if case.fresh:
        return _run_fresh(case, home, environment)
    number = CASES.index(case)
    process = forked.CONTEXT.Process(target=_child, args=(number, str(home), environment))
    process.start()
    process.join(SECONDS)
    if process.exitcode is not None:
        return process.exitcode
    # the case has a session of its own, with all that it started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    return None


def _run_fresh(case: Case, home: Path, environment: Mapping[str, str | None]) -> int | None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    merged = os.environ | {"PYTHONPATH": path} | environment
    open_out = _open_unread if case.unread else (home / "stdout").open
    with open_out("wb") as out, (home / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", FRESH, *case.argv],
            env={name: value for name, value in merged.items() if value is not None},
            cwd=home / "work",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def _open_unread(mode: str) -> IO[bytes]:
    """Return the end of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return os.fdopen(write_end, mode)


def _child(number: int, home: str, environment: Mapping[str, str | None]) -> None:
    """Run the command in this process, which was forked from one that has imported torch."""
    case = CASES[number]
    os.setsid()
    _redirect(f"{home}/stdout", f"{home}/stderr")
    _set_environment(environment)
    os.chdir(f"{home}/work")
    tempfile.tempdir = None

    import huggingface_hub.constants
    import torch

    from dit.cli import main
    from dit.models.dit import SIZES

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    torch.set_num_threads(1)
    SIZES["Ti"] = dict(fixtures.SMALL)
    for name, limit in ({"RLIMIT_DATA": MEMORY} | case.limits).items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    if case.unprivileged:
        give_up_privileges()
    if case.interrupt:
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, case.interrupt)
    sys.exit(main(list(case.argv)))


def _redirect(out: str, err: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def give_up_privileges() -> None:
    """Give up all capabilities: root then obeys the permissions of files like anybody."""
    version_3 = 0x20080522
    header = (ctypes.c_uint32 * 2)(version_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


# -- the verdict -----------------------------------------------------------------------------------


def judge(
    case: Case, code: int | None, out: str, err: str, changed: list[str], work: Path
) -> tuple[str, str]:
    """Return the kind of a case's end, and why it is wrong or its last line."""
    lines = (err if case.code else out + err).strip().splitlines() or [""]
    last = lines[-1]
    if code is None:
        return "hang", f"after {SECONDS} s; last line: {last[:200]}"
    if any(mark in out + err for mark in TRACES):
        return "traceback", (err.strip().splitlines() or [""])[-1][:300]
    if code < 0:
        return "traceback", f"killed by signal {-code}: {last[:200]}"
    if code != case.code:
        return "wrong", f"exit code {code} instead of {case.code}: {last[:300]}"
    if changed:
        return "wrong", f"files changed or lost: {', '.join(changed[:5])}; {last[:200]}"
    if (work / "OWNED").exists():
        return "wrong", "code in a file was run"
    if case.check and not case.check(work):
        return "wrong", f"the files are not right after it: {last[:300]}"

    if not case.code:
        if case.says not in out + err:
            return "wrong", f"nothing says {case.says!r}: {last[:300]}"
        return "works", last[:300]
    errors = [line for line in lines if line.startswith("error")]
    if case.code == MISTAKE and errors != [last]:
        return "wrong", f"not one line: {last[:300]}"
    if case.says not in last:
        return "wrong", f"{case.says!r} is not in: {last[:400]}"
    return "clear", last[:300]


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


def _open_pipe(path: Path) -> int:
    """Make a named pipe for output; a limit on the size of files does not concern it."""
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, MOST_OUTPUT)
    return pipe


def _read_pipe(pipe: int) -> str:
    """Return what is in a pipe, and close it."""
    os.set_blocking(pipe, False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, MOST_OUTPUT):
            parts.append(part)
    os.close(pipe)
    return b"".join(parts).decode(errors="backslashreplace")


def preload() -> Any:
    """Make the process that all others are forked from import what the commands need."""
    forked.CONTEXT.set_forkserver_preload([*forked.PRELOADED, "misuse.runner", *LATE])


LATE = [
    "diffusers",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.autoencoders.vq_model",
    "transformers",
    "datasets",
    "scipy.linalg",
    "pyarrow.parquet",
]
"""Libraries that commands import when they need them."""
