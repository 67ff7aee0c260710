"""What a machine lacks: memory, threads, a compiler, a package. It ends a command in one line.

Nothing here needs torch, so that errors before its import are read too.
"""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit.config import ClassifierConfig, TrainConfig, VaeConfig
from dit.distributed.launcher import read_launch
from dit.errors import UserError
from dit.utils.package import DISTRIBUTION

PACKAGE = Path(__file__).parents[1]
GIB = 2**30
PREFIXES = " KMGTPE"  # of bytes, each 1024 times the one before

NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|bad_alloc|Unable to allocate|ALLOC_FAILED"
    r"|Cannot allocate memory|calculation overflowed|multiplication overflow"
    r"|array is too big|Maximum allowed dimension"
)
"""What torch, NumPy, CUDA and the system say where memory does not suffice."""
ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?(?:([KMGTPE])iB)?", re.IGNORECASE)
NO_COMPILER = re.compile(
    r"C\+\+ compile|C compiler|Compiler: .* is not found|[Tt]riton.*(?:not |install)"
)
NO_THREADS = "can't start new thread"
EXTRAS = {
    "datasets": ("datasets", "data"),
    "gradio": ("gradio", "play"),
    "sklearn": ("scikit-learn", "digits"),
    "transformers": ("transformers", "text"),
    "webdataset": ("webdataset", "data"),
}
"""Modules that only some commands need: their package, and the extra of ours that has it."""


@contextmanager
def shortages_as_user_errors(config: Any) -> Iterator[None]:
    """Raise a UserError, with flags of this configuration that help, where the machine is short."""
    try:
        yield
    except Exception as error:
        if shortage := find_shortage(error, config):
            raise shortage from error
        raise


def find_shortage(error: Exception, config: Any) -> UserError | None:
    """Return the error as one for the user; None if the machine lacked nothing."""
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    # not of any ValueError: these are the kinds that allocators raise
    if isinstance(error, UserError) or not isinstance(
        error, (MemoryError, RuntimeError, OSError, ValueError)
    ):
        return None
    text = str(error)
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        return _out_of_memory(error, config)
    compiling = type(error).__module__.startswith(("torch._inductor", "torch._dynamo", "triton"))
    if compiling and NO_COMPILER.search(text):
        return UserError(
            f"torch.compile found no working compiler ({_compiler_line(text)})",
            "g++ or clang++ on the PATH, and on a GPU Triton",
            "pass --no-compile, or install one",
        )
    if NO_THREADS in text:
        return UserError(
            "no more threads can be started", "a few dozen of them", "raise `ulimit -u` or memory"
        )
    return None


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """Return the error for an optional package that is not installed; None for other modules."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    package, extra = EXTRAS[module]
    return UserError(
        f"{package} is not installed",
        "it, for what this command does",
        f"pip install {package}, or '{DISTRIBUTION}[{extra}]'",
    )


def _out_of_memory(error: Exception, config: Any) -> UserError:
    text, world = str(error), read_launch().world
    asked = ""
    if match := ASKED.search(text):
        unit = 1024 ** PREFIXES.index((match[2] or " ").upper())
        asked = f": {float(match[1]) * unit / GIB:,.2f} GiB more were asked for"
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    own = [file for file in frames if PACKAGE in file.parents]
    # after the exception memory is free again, so all of the device's is named
    where = f" in {own[-1].relative_to(PACKAGE.parent)}" if own else ""
    return UserError(
        f"out of memory{asked}{where}",
        f"less than {_memory_here(text)}",
        less_memory(config, world),
    )


def _memory_here(text: str) -> str:
    from dit.distributed.device import main_memory

    if total := re.search(r"total capacity of ([\d.]+ [KMGT]iB)", text):
        return f"the {total[1]} of this GPU"
    if "CUDA" in text:
        return "this GPU has"
    return f"the {main_memory() / GIB:.1f} GiB of this machine"


def less_memory(config: Any, world: int = 1) -> str:
    """Return the flags of a command that make it need less memory."""
    ways = []
    if isinstance(config, TrainConfig) and not config.model.startswith("Classifier-"):
        if accum := next_grad_accum(config, world):
            ways.append(f"--grad-accum {accum}")
        if config.recompute != "full":
            ways.append("--recompute full")
        ways.append("a smaller --model")
    elif isinstance(config, (TrainConfig, ClassifierConfig, VaeConfig)):
        name = "batch_size" if isinstance(config, VaeConfig) else "global_batch_size"
        if (batch := getattr(config, name)) > 1:
            ways.append(f"--batch-size {batch // 2}")
        ways.append("a smaller network")
    elif getattr(config, "batch_size", 1) > 1:
        ways.append(f"--batch-size {config.batch_size // 2}")
    if getattr(config, "image_size", None) and not isinstance(config, TrainConfig):
        ways.append("a smaller --image-size")
    if getattr(config, "num_samples", None):
        ways.append("fewer --num-samples")
    if not ways:
        return "use a machine with more memory"
    return f"pass {' or '.join(ways)}"


def require_batch_fits(images: int, image_bytes: int, device: Any) -> None:
    """Refuse a batch that surely does not fit, before the system ends the process for it.

    Args:
        images: At once.
        image_bytes: What an image takes at least.
        device: Where.
    """
    from dit.distributed.device import describe_free, free_memory

    free = free_memory(device)
    if images * image_bytes > free:
        raise UserError(
            f"{images:,} images at once need more than {images * image_bytes / GIB:,.2f} GiB",
            f"at most the {free / GIB:,.2f} GiB {describe_free(device)}",
            # there is more than what is surely needed
            f"pass --batch-size {max(1, free // (4 * image_bytes))}",
        )


def next_grad_accum(config: TrainConfig, world: int = 1, at_least: int = 2) -> int | None:
    """Return the next larger --grad-accum that divides the batch; None if there is none."""
    share = config.global_batch_size // world
    for accum in range(max(at_least, config.grad_accum + 1), share + 1):
        if share % accum == 0:
            return accum
    return None


def _compiler_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if NO_COMPILER.search(line)), lines[0])[:200]
