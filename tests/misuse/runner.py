"""Runs cases, each in a forked process and a fresh copy of the fixtures."""

import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from helpers import forked

from misuse import fixtures
from misuse.case import Case
from misuse.table import CASES
from misuse.verdict import Verdict, hashes, judge, lost

ROOT = Path(__file__).parents[2]
SECONDS = 60  # for one case on a busy machine; alone it takes 1 or 2
MEMORY = 6 * 2**30  # bytes a case can take, so that none drives the machine out of memory
MOST_OUTPUT = 2**20  # bytes that a pipe holds; a process that writes more waits for ever
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "200",
}
FRESH = (
    "import sys; from dit.models.sizes import SIZES; from misuse.fixtures import SMALL; "
    "SIZES['Ti'] = dict(SMALL); from dit.cli import main; sys.exit(main())"
)


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
        pipes = [_open_pipe(home / name) for name in ("stdout", "stderr")]
        code = _run(case, home, made.parent / "cache")
        out, err = map(_read_pipe, pipes)
        return judge(case, code, out, err, lost(case, before, hashes(work)), work)


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
    from dit.models.sizes import SIZES

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
    # Python's own streams remember whether what they were opened on can seek
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )


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
