"""The command `dit COMMAND`, and train.py, sample.py, evaluate.py.

Flags come from the dataclasses of `dit.config`. torch is imported only once the flags are right, so that `--help`
and mistakes answer at once.
"""

import ast
import dataclasses
import errno
import importlib
import inspect
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import pairwise, takewhile
from pathlib import Path
from types import FrameType, NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro

from dit.config import (
    ClassifierConfig,
    CompareConfig,
    ConvertConfig,
    EmaConfig,
    EncodeConfig,
    EvalConfig,
    InfoConfig,
    NllConfig,
    ReportConfig,
    SampleConfig,
    ShowConfig,
    StatsConfig,
    SweepConfig,
    TrainConfig,
    VaeConfig,
    require_typed,
)
from dit.errors import PeerLost, UserError, did_you_mean

MISTAKE, LOST, INTERRUPTED = 2, 5, 130  # exit codes; 4 is the watchdog's
PATIENCE = 5.0  # seconds in which torchrun ends the other ranks, if rank 0 failed as they did
ROOM = "a writable place with free space", "free some space or choose another path"
KIND = (
    "a folder where a file is, or a file where a folder is",
    "move what lies there away or choose another path",
)
NAME = "a name that the file system takes", "choose a shorter path"
DISK = {
    errno.ENAMETOOLONG: NAME,
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), KIND),
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG), ROOM
    ),
}
"""What was expected, and what to do, where the file system refuses."""
KINDS = {int: "whole number", float: "number", Path: "path"}  # of values, in words
CAPTIONS = {
    "--prompt",
    "--negative-prompt",
}  # whose values may be empty, or are refused with words of their own

Config = TypeVar("Config")


# -- commands --------------------------------------------------------------------------------------------------


COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainConfig, "dit.commands.train:train"),
    "train-classifier": (ClassifierConfig, "dit.commands.train_classifier:train_classifier"),
    "sample": (SampleConfig, "dit.commands.sample:sample"),
    "evaluate": (EvalConfig, "dit.commands.evaluate:evaluate"),
    "show": (ShowConfig, "dit.commands.show:show"),
    "sweep": (SweepConfig, "dit.commands.sweep.sweep:sweep"),
    "compare": (CompareConfig, "dit.commands.compare:compare"),
    "stats": (StatsConfig, "dit.commands.stats:stats"),
    "nll": (NllConfig, "dit.commands.nll:nll"),
    "encode": (EncodeConfig, "dit.commands.encode:encode"),
    "train-vae": (VaeConfig, "dit.commands.train_vae.train:train_vae"),
    "ema": (EmaConfig, "dit.commands.ema:ema"),
    "convert": (ConvertConfig, "dit.commands.convert:convert"),
    "report": (ReportConfig, "dit.commands.report:report"),
    "info": (InfoConfig, "dit.commands.info:show"),
}
"""Flags of each command, and the function (config, ranks) that does the work."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `dit`; its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS, "see dit --help")
        return _report(UserError(f"unknown command {name!r}", " | ".join(COMMANDS), near))
    return _run(name, rest, f"dit {name}")


def train(argv: Sequence[str] | None = None) -> int:
    """train.py; its exit code."""
    return _run("train", argv, "train.py")


def sample(argv: Sequence[str] | None = None) -> int:
    """sample.py; its exit code."""
    return _run("sample", argv, "sample.py")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """evaluate.py; its exit code."""
    return _run("evaluate", argv, "evaluate.py")


def _overview() -> str:
    lines = [f"  {name:<16} {_first_line(config)}" for name, (config, _) in COMMANDS.items()]
    return "\n".join(
        ["usage: dit COMMAND [FLAGS]", "", *lines, "", "`dit COMMAND --help` lists the flags."]
    )


def _first_line(config: type) -> str:
    return (config.__doc__ or "").split("\n")[0]


def _run(name: str, argv: Sequence[str] | None, prog: str) -> int:
    """Parse flags, run the command, turn what went wrong into one line and an exit code."""
    kind, target = COMMANDS[name]
    try:
        config: Any = parse(kind, sys.argv[1:] if argv is None else list(argv), prog)
        with _interrupts():
            _work(config, target)
    except UserError as error:
        return _report(error)
    except PeerLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return LOST
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        return _report(UserError(str(error), *DISK[error.errno]))
    return 0


class Interrupt:
    """Python's own handler of Ctrl-C, which remembers it: where a library drops the exception, as in a `__del__` while
    training starts, training still finds that it was asked to stop."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[None]:
    """An `Interrupt` in the block, unless Ctrl-C is ignored or has another handler, or this is not the main thread."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, Interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _work(config: Any, target: str) -> None:
    from dit.distributed.ranks import ranks

    module, function = target.split(":")
    with ranks() as joined:
        getattr(importlib.import_module(module), function)(config, joined)


def _report(error: UserError) -> int:
    """Print a mistake once, however many ranks made it."""
    rank = int(os.environ.get("RANK", 0))
    if rank:
        time.sleep(PATIENCE)  # here afterwards: rank 0 made no mistake
    where = f" (rank {rank})" if rank else ""
    print(f"error{where}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return MISTAKE


# -- flags -----------------------------------------------------------------------------------------------------


def parse(kind: type[Config], argv: list[str], prog: str) -> Config:
    """Flags as a configuration; exits with code 0 after `--help`.

    Raises:
        UserError: an unknown flag, a missing one, or a value that does not fit.
    """
    _check_flags(kind, argv, prog)
    default = _train_default(argv) if kind is TrainConfig else None
    flags = _flags(kind)
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            given = tyro.cli(
                flags,
                prog=prog,
                args=argv,
                default=default and flags(**_values(default)),
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise _mistake(kind, argv, _one_line(complaint.getvalue()), prog) from None
    config = kind(**_values(given))
    if isinstance(config, TrainConfig):
        require_typed(
            config, {flag.removeprefix("--").replace("-", "_") for flag, _ in _typed(argv)}
        )
    return config


def _typed(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Flags and the values after each, as `--flag value` or `--flag=value`; under "" those before the first."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for arg in argv:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            found.append((name.replace("_", "-"), [value] if equals else []))
        else:
            found[-1][1].append(arg)
    return found


def _mistake(kind: type, argv: list[str], said: str, prog: str) -> UserError:
    """What tyro complains of; of the values of a flag, and of what is missing, in words of our own."""
    if said.startswith("Missing from"):
        return _missing(kind, argv, said.count("(required)"), prog)
    if found := re.match(r"(?:Missing value for argument ')?(--[a-z0-9-]+)[:']", said):
        flag, types = found[1], {field.name: field.type for field in dataclasses.fields(kind)}
        values = " ".join(dict(_typed(argv))[flag])
        wanted = _wanted(types[flag.removeprefix("--").replace("-", "_")])
        return UserError(
            f"{flag} {values or 'without a value'}", wanted, f"change {flag}, or see {prog} --help"
        )
    return UserError(
        said, f"flags and values as {prog} --help lists them", "correct the command line"
    )


def _missing(kind: type, argv: list[str], count: int, prog: str) -> UserError:
    """So many required values are not there: flags that were not typed, and the last of those that have no flag."""
    required = {
        f.name: f.type for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
    }
    places = {
        name.upper(): type
        for name, type in required.items()
        if tyro.conf.Positional in get_args(type)
    }
    flags = {
        "--" + name.replace("_", "-"): type
        for name, type in required.items()
        if name.upper() not in places
    }
    untyped = [flag for flag in flags if flag not in dict(_typed(argv))]
    names = [*list(places)[len(places) + len(untyped) - count :], *untyped]
    wanted = [f"{_wanted((places | flags)[name])} for {name}" for name in names]
    return UserError(f"{prog} without {', '.join(names)}", ", ".join(wanted), f"see {prog} --help")


def _wanted(kind: Any) -> str:
    """What a flag of this type takes, in words."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    if int in parts and any(get_origin(part) is tuple for part in parts):
        return "one number, or two: height and width"
    if get_origin(kind) is tuple:
        word = KINDS.get(parts[0], "value")
        return f"one {word} or more" if Ellipsis in parts else f"two {word}s"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(parts)}"
    return _wanted(parts[0]) if parts else f"a {KINDS.get(kind, 'value')}"


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _flags(kind: type) -> Any:
    """`kind`, with help texts as they are, and without "(default: None)" for the absence of a value."""
    texts = _help_texts(kind)
    flags = [
        (
            f.name,
            Annotated[f.type, tyro.conf.arg(help=texts[f.name], help_behavior_hint=_hint)],
            dataclasses.field(default=f.default),
        )
        for f in dataclasses.fields(kind)
    ]
    return dataclasses.make_dataclass(
        kind.__name__,
        flags,
        bases=(kind,),
        namespace={"__doc__": kind.__doc__},
        frozen=True,
        kw_only=True,
    )


def _hint(default: str) -> str:
    return {"None": "", "(required)": "(required)"}.get(default, f"(default: {default})")


def _help_texts(kind: type) -> dict[str, str]:
    """The string under each field, as one line: tyro would break where the source does."""
    texts = {}
    for base in kind.__mro__[-2::-1]:
        (tree,) = ast.parse(inspect.getsource(base)).body
        for field, text in pairwise(getattr(tree, "body", ())):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return texts


def _check_flags(kind: type, argv: list[str], prog: str) -> None:
    """Refuse unknown flags, with the nearest known ones, which tyro does only for some; and empty values."""
    known = ["--help"]
    for field in dataclasses.fields(kind):
        flag = field.name.replace("_", "-")
        known += [f"--{flag}", *([f"--no-{flag}"] if "bool" in str(field.type) else [])]
    for flag, values in _typed(argv):
        if flag and flag not in known:
            raise UserError(
                f"unknown flag {flag}",
                f"a flag of {prog}",
                did_you_mean(flag, known, f"see {prog} --help"),
            )
        if flag not in CAPTIONS and not all(map(str.strip, values)):
            raise UserError(
                f"{flag or 'an argument'} is empty",
                "a value",
                "check the variable of the shell that it came from",
            )


def _one_line(box: str) -> str:
    """What a boxed complaint of tyro says, without its frame, title and advice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    if not text.startswith(
        "╭"
    ):  # where the output is no UTF-8 there is no frame, but a title and a rule
        lines = lines[2:]
    said = takewhile(lambda line: not _is_rule(line), lines)
    short = " ".join(" ".join(said).split()).removeprefix("Error parsing ").rstrip(".")
    return short or " ".join(text.split())


def _is_rule(line: str) -> bool:
    return line != "" and not line.strip("─-")


def _train_default(argv: list[str]) -> TrainConfig | None:
    """What flags not given stand for: the settings of the run to --resume, or of the --preset."""
    resume, preset = _value(argv, "--resume"), _value(argv, "--preset")
    if resume not in (None, "auto"):
        if preset is not None:
            raise UserError(
                f"--preset {preset} with --resume {resume}",
                "one of the two",
                "drop --preset: a run goes on with its own settings",
            )
        return _settings_of(Path(resume))  # type: ignore[arg-type]
    return None if preset is None else _preset(preset)


def _value(argv: list[str], flag: str) -> str | None:
    """The last value given for `flag`."""
    return next(iter(dict(_typed(argv)).get(flag, [])), None)


def _preset(name: str) -> TrainConfig:
    from dit.config.presets import PRESETS

    if name not in PRESETS:
        raise UserError(
            f"unknown preset {name!r}", f"one of {', '.join(PRESETS)}", did_you_mean(name, PRESETS)
        )
    return dataclasses.replace(PRESETS[name](), preset=name)


def _settings_of(run: Path) -> TrainConfig:
    from dit.runs.checkpoints import (
        incomplete_checkpoints,
        latest_checkpoint,
        read_card,
        run_containing,
    )
    from dit.utils.files import shell_quote

    if home := run_containing(run):
        raise UserError(
            f"--resume {run}, a checkpoint of the run {home}",
            "the run, which goes on from its newest one",
            f"pass --resume {shell_quote(home)}; for an older one, first move those after it away",
        )
    if latest_checkpoint(run) is None:
        left = (
            f" with a meta.json (there is {incomplete_checkpoints(run)[-1].name} without)"
            if incomplete_checkpoints(run)
            else ""
        )
        raise UserError(
            f"--resume {run}: no checkpoint there{left}",
            "a run directory with checkpoints/",
            "check the path, or start a run with --out RUN --resume auto",
        )
    return dataclasses.replace(read_card(run).config, resume=str(run), out=run)


if __name__ == "__main__":
    sys.exit(main())
