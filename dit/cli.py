"""The command `dit COMMAND`, and train.py, sample.py, evaluate.py.

Flags come from the dataclasses of dit.config. torch is imported only after they are parsed, so that
--help and mistakes answer at once.
"""

import atexit
import dataclasses
import errno
import importlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from dit.commands.train_vae import defaults as vae_defaults
from dit.config import (
    ClassifierConfig,
    CompareConfig,
    ConvertConfig,
    EditConfig,
    EmaConfig,
    EncodeConfig,
    EvalConfig,
    ExportConfig,
    InfoConfig,
    NllConfig,
    PlayConfig,
    ReportConfig,
    SampleConfig,
    ShowConfig,
    StatsConfig,
    SweepConfig,
    TrainConfig,
    VaeConfig,
)
from dit.config.flag_names import flag_name
from dit.config.parse import asked_help
from dit.config.parse import parse as parse_flags
from dit.distributed.launcher import rank_for_messages
from dit.distributed.shortage import shortages_as_user_errors
from dit.errors import PeerLost, UserError, UserErrors, did_you_mean
from dit.training.defaults import default_settings
from dit.utils.files import as_started, printable, require_file_or_folder
from dit.utils.hub import is_hub_name
from dit.utils.package import __version__, refuse_other_package

# where the other was installed later, dit/__init__.py is its own
refuse_other_package()

CLOSED, MISTAKE, LOST, INTERRUPTED = 1, 2, 5, 130  # exit codes; 4 is the watchdog's
PATIENCE = 5.0  # seconds in which torchrun ends the other ranks if rank 0 failed as they did

NETWORKS = ("run", "guide", "classifier", "init", "path", "file")
"""Settings that name a network: a path, or OWNER/NAME of the hub."""
DIRECTORIES_ONLY = (EmaConfig, ReportConfig)
"""Commands that read what a run directory alone has."""

SYSTEM_ERRORS = {
    (errno.ENOSPC, errno.EDQUOT): ("a disk with free space", "free some space"),
    (errno.EFBIG,): ("a file below the limit of the system", "see `ulimit -f`"),
    (errno.EACCES, errno.EPERM, errno.EROFS): ("a path with the right to it", "change its rights"),
    (errno.ENAMETOOLONG,): ("a shorter path", "rename it"),
    (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP): (
        *("a file where one belongs, and a folder where one belongs", "check the path"),
    ),
    (errno.ENOENT, errno.ESTALE): ("a file that stays while the command runs", "check the path"),
    (errno.EIO, errno.ENODEV, errno.ENXIO): ("an intact disk", "check the disk"),
}
"""What is expected, and what to do, where the system refuses to read or write a file."""

NO_TEMPORARY = UserError(
    "no folder for temporary files can be written",
    "free space in /tmp",
    "free some space, or set TMPDIR to a folder on another disk",
)

Config = TypeVar("Config")


# -- commands ------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainConfig, "dit.commands.train:train"),
    "train-classifier": (ClassifierConfig, "dit.commands.train_classifier:train_classifier"),
    "sample": (SampleConfig, "dit.commands.sample:sample"),
    "edit": (EditConfig, "dit.commands.edit:edit"),
    "evaluate": (EvalConfig, "dit.commands.evaluate:evaluate"),
    "show": (ShowConfig, "dit.commands.show:show"),
    "play": (PlayConfig, "dit.commands.play.command:play"),
    "sweep": (SweepConfig, "dit.commands.sweep.command:sweep"),
    "compare": (CompareConfig, "dit.commands.compare:compare"),
    "stats": (StatsConfig, "dit.commands.stats:stats"),
    "nll": (NllConfig, "dit.commands.nll:nll"),
    "encode": (EncodeConfig, "dit.commands.encode:encode"),
    "train-vae": (VaeConfig, "dit.commands.train_vae.command:train_vae"),
    "ema": (EmaConfig, "dit.commands.ema:ema"),
    "export": (ExportConfig, "dit.commands.export:export"),
    "convert": (ConvertConfig, "dit.commands.convert:convert"),
    "report": (ReportConfig, "dit.commands.report:report"),
    "info": (InfoConfig, "dit.commands.info:show"),
}
"""Flags of each command, and the function (config, ranks) that does the work."""

FIRST = (
    "dit train --data FOLDER --out RUN",
    "dit sample --run RUN",
    "dit evaluate --run RUN",
)
"""What a new user types."""

MOVED = {
    "plan": "dit plan is now train.py --dry-run --gpus N",
    "verify": "dit verify is now dit info",
}
"""What replaces a command of earlier versions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console command `dit`; return its exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    name, *rest = given or ["--help"]
    return _guard_output(lambda: _dispatch(name, rest))


def _dispatch(name: str, rest: Sequence[str]) -> int:
    if name == "help" and rest:
        name, rest = rest[0], ["--help", *rest[1:]]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        print(f"dit {__version__}")
        return 0
    if name not in COMMANDS:
        do = MOVED.get(name) or did_you_mean(name, COMMANDS, "see dit --help")
        return _report(UserError(f"unknown command {name!r}", " | ".join(COMMANDS), do))
    return _run(name, rest, f"dit {name}")


def train(argv: Sequence[str] | None = None) -> int:
    """Run train.py; return its exit code."""
    return _script("train", argv)


def sample(argv: Sequence[str] | None = None) -> int:
    """Run sample.py; return its exit code."""
    return _script("sample", argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run evaluate.py; return its exit code."""
    return _script("evaluate", argv)


def _script(name: str, argv: Sequence[str] | None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return _guard_output(lambda: _run(name, given, f"{name}.py"))


def _guard_output(work: Callable[[], int]) -> int:
    """Return the exit code of `work`; what it prints never ends in a traceback.

    Characters that the terminal's encoding lacks are escaped. A reader that stops early, as in
    `| head`, ends the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    threading.excepthook = _report_thread
    try:
        try:
            code = work()
        finally:
            # here, not when Python ends, where an error cannot be caught
            if sys.stdout:
                sys.stdout.flush()
        return _leave_ranks(code)
    except BrokenPipeError:
        _discard_output()
        return CLOSED
    except OSError as error:
        # files with a name are reported already: this is the output, as in `> /dev/full`
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        error.filename = "the output"
        _discard_output(1)
        return _report(_explain(error))


def _report_thread(failed: Any) -> None:
    """Print in one line why a thread of a library could not write; others as Python does."""
    if isinstance(failed.exc_value, OSError):
        print(f"warning: a thread stopped ({failed.exc_value})", file=sys.stderr, flush=True)
    else:
        threading.__excepthook__(failed)


def _leave_ranks(code: int) -> int:
    """Return the exit code; after an error among several ranks, end the process at once.

    Threads of gloo may still have tensors to release, for which they need the interpreter. Python
    ends such threads when it ends, which aborts the process.
    """
    distributed = sys.modules.get("torch.distributed")
    # a rank without an error has left the others in order
    if code and distributed and distributed.is_initialized():
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)
    return code


def _discard_output(*descriptors: int) -> None:
    """Let Python end without another error: it flushes its streams once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors or (1, 2):
        os.dup2(nowhere, descriptor)


def _overview() -> str:
    lines = ["usage: dit COMMAND [FLAGS]", "", "start with:"]
    lines += [f"  {example}" for example in FIRST]
    lines += ["", "commands:"]
    for name, (config, _) in COMMANDS.items():
        summary = (config.__doc__ or "").split("\n")[0]
        lines.append(f"  {name:<16} {summary}")
    return "\n".join([*lines, "", "`dit help COMMAND` shows examples and the flags."])


def _run(name: str, given: Sequence[str], prog: str) -> int:
    """Parse flags, run the command, and turn errors into one line and an exit code."""
    kind, target = COMMANDS[name]
    try:
        config: Any = _with_local_runs(parse(kind, list(given), prog))
        with _interrupts(), shortages_as_user_errors(config):
            _call(target, config)
    except UserError as error:
        return _report(error)
    except PeerLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return LOST
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if "temporary directory" in str(error):  # Python's own search for one, in libraries
            return _report(NO_TEMPORARY)
        if error.filename is None:
            raise
        return _report(_explain(error))
    except RuntimeError as error:
        if "Symlink loop" not in str(error):  # of pathlib, before Python 3.13
            raise
        return _report(UserError(str(error), "links that lead to a file or folder", "remove them"))
    return 0


def _with_local_runs(config: Config) -> Config:
    """Return the flags of a command with networks of the hub downloaded: OWNER/NAME as a path."""
    if isinstance(config, DIRECTORIES_ONLY):
        return config
    named = {name: getattr(config, name, None) for name in NETWORKS}
    on_hub = {name: path for name, path in named.items() if path and is_hub_name(str(path))}
    if not on_hub:
        return config
    # it knows the files of networks, and so torch, which takes seconds to import
    from dit.runs.locate import locate_run

    located = {name: locate_run(path, flag_name(name)) for name, path in on_hub.items()}
    return dataclasses.replace(config, **located)  # type: ignore[type-var]


def _explain(error: OSError) -> UserError:
    """Return an error of the system as a mistake; raise it again if it is of another kind."""
    for codes, (expected, do) in SYSTEM_ERRORS.items():
        if error.errno in codes:
            name = printable(os.fsdecode(error.filename))
            return UserError(f"{name}: {error.strerror}", expected, f"{do}, or choose another path")
    raise error


class Interrupt:
    """Python's handler of Ctrl-C, which also remembers it.

    A library may drop the exception, as in a `__del__`; training then still finds the request.
    """

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[None]:
    """Install an `Interrupt`, unless Ctrl-C is ignored or handled, or outside the main thread."""
    # a shell starts background work with Ctrl-C ignored, which must stay so
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, Interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _call(target: str, config: Any) -> None:
    from dit.distributed.ranks import ranks

    module, function = target.split(":")
    with ranks() as joined:
        getattr(importlib.import_module(module), function)(config, joined)


def _report(error: UserError) -> int:
    """Print mistakes, a line each, and once, however many ranks made them."""
    rank = rank_for_messages()
    if rank:
        # torchrun ends this rank meanwhile if rank 0 made the same mistake
        time.sleep(PATIENCE)
    where = f" (rank {rank})" if rank else ""
    for mistake in error.mistakes if isinstance(error, UserErrors) else [error]:
        # not what was given: that may be a file of this name
        shown = UserError(mistake.given, as_started(mistake.expected), as_started(mistake.do))
        line = " ".join(printable(str(shown)).split())
        print(f"error{where}: {line}", file=sys.stderr, flush=True)
    return MISTAKE


# -- flags ---------------------------------------------------------------------------------------


def parse(kind: type[Config], argv: list[str], prog: str) -> Config:
    """Turn flags into a configuration; exit with code 0 after `--help`.

    Raises:
        UserError: An unknown flag, a missing one, or a value that does not fit.
    """
    defaults: dict[type, Any] = {
        TrainConfig: default_settings,
        VaeConfig: vae_defaults.default_settings,
    }
    default = defaults.get(kind, lambda typed: None)
    if page := asked_help(kind, argv, prog, default, as_started):
        print(page)
        sys.exit(0)
    return parse_flags(kind, argv, prog, default, require_file_or_folder)


if __name__ == "__main__":
    sys.exit(main())
