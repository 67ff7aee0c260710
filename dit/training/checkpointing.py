"""Checkpoints: written while training continues, then renamed; with checksums, without pickles.

`state/` is torch.distributed.checkpoint in safetensors; sampling reads `ema-DECAY.safetensors`.
"""

import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from dit.config import TrainConfig
from dit.distributed.parallel import gather_state_dict
from dit.distributed.ranks import Ranks
from dit.errors import UserError, one_line
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import (
    BEST,
    Distance,
    checkpoint_name,
    checkpoint_step,
    checkpoints,
    checksum_entry,
    find_best,
    latest_checkpoint,
    verify_checkpoint,
)
from dit.runs.weights import require_usable, write_weights
from dit.training.state import State
from dit.utils.files import shell_quote, write_atomically, write_json
from dit.utils.system import sync_to_disk

# DCP parses what it reads without checking it
READ_ERRORS = (CheckpointException, SafetensorError, OSError, ValueError, KeyError, TypeError)
OPTIONAL = ("guard.", "window")  # tensors that start fresh where a checkpoint has none that fit


class Saver:
    """Writes checkpoints of a run while training continues, one at a time.

    Training waits for a copy of the state in main memory. A thread then writes files and checksums,
    renames the folder, and removes old checkpoints; its ranks communicate in a group of their own.
    """

    def __init__(self, run: Path, card: ModelCard, ranks: Ranks):
        self.run = run
        self.card = card
        self.ranks = ranks.on_cpu()
        self._cuda = ranks.device.type == "cuda"
        self._stager = self._new_stager()
        self._background = ThreadPoolExecutor(1, initializer=_lower_priority)
        self._foreground = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(
        self, step: int, state: State, ranks: Ranks, distance: Distance | None, last: bool
    ) -> None:
        """Begin checkpoints/step-N on all ranks, with the EMA's distance where it was measured.

        The last one is waited for: on a busy machine, low priority would take many times as long.
        """
        self.finish()
        # Each rank has sums of its own, and a checkpoint one entry for them.
        state.means.average_over_ranks(ranks)
        staged = self._stage(state.tensors())
        weights = gather_state_dict(state.ema.network, ranks)
        name = f"ema-{state.ema.decay:g}.safetensors"
        thread = self._foreground if last else self._background
        self._writing = thread.submit(self._write, step, staged, name, weights, distance)

    def _stage(self, tensors: dict[str, Tensor]) -> Any:
        """Return copies in main memory, which the next checkpoint reuses."""
        try:
            return self._stager.stage(tensors)
        except KeyError:
            # PyTorch 2.11's stager closes itself after its first use (pytorch/pytorch#183413).
            self._stager = self._new_stager()
            return self._stager.stage(tensors)

    def _new_stager(self) -> DefaultStager:
        options = StagingOptions(
            self._cuda,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=self._cuda,
        )
        return DefaultStager(options)

    def check(self) -> None:
        """Raise the error of a checkpoint that failed, if one did."""
        if self._writing and self._writing.done():
            self.finish()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._writing is not None and not self._writing.done()

    def finish(self) -> None:
        """Wait until the checkpoint under way is complete; raise its error, if it failed."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _write(
        self,
        step: int,
        staged: Any,
        name: str,
        weights: dict[str, Tensor],
        distance: Distance | None,
    ) -> None:
        """Write a checkpoint; the thread of each rank runs this."""
        final = self.run / "checkpoints" / checkpoint_name(step)
        hidden = _hidden(final)
        alone = self.ranks.world == 1

        def complete() -> None:
            # A folder counts as a checkpoint once it has meta.json and its final name.
            with _write_errors(final):
                write_weights(hidden / name, weights, self.card, step)
                _write_meta(hidden, step, distance)
                shutil.rmtree(final, ignore_errors=True)
                hidden.rename(final)
                sync_to_disk(final.parent)
                tidy(self.run, self.card.config)

        def begin() -> None:
            _require_finite(final, weights)
            _make_folder(final)

        self.ranks.on_main(begin)
        writer = dcp.HuggingFaceStorageWriter(str(hidden / "state"), save_distributed=not alone)
        with _write_errors(final), _no_process_group_warning():
            dcp.save(staged, storage_writer=writer, process_group=self.ranks.group, no_dist=alone)
        self.ranks.on_main(complete)


def _lower_priority() -> None:
    """Let the calling thread run only where training leaves a core free.

    Linux gives threads priorities of their own.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _hidden(checkpoint: Path) -> Path:
    """Return the name of a checkpoint that is being written or removed, which is not listed."""
    return checkpoint.with_name(f".{checkpoint.name}")


def _require_finite(final: Path, weights: dict[str, Tensor]) -> None:
    """Refuse to write weights that are not finite: the last good checkpoint stays."""
    good = latest_checkpoint(final.parent.parent)
    kept = f"continue from {good}, which is intact," if good else "start again"
    require_usable(final, weights, f"it was not written: {kept} with a lower --lr")


def _make_folder(final: Path) -> None:
    """Create the folder to write to; remove incomplete ones."""
    run = final.parent.parent
    if not run.is_dir():
        raise UserError(
            f"{run} is gone",
            "the run directory, where it was when training started",
            "put it back and continue with --resume",
        )
    with _write_errors(final):
        for partial in final.parent.glob(".step-*"):
            shutil.rmtree(partial, ignore_errors=True)
        _hidden(final).mkdir(parents=True)


def tidy(run: Path, config: TrainConfig) -> None:
    """Link RUN/best, and remove checkpoints that neither --keep nor --keep-every keeps; on rank 0.

    The best one stays. After a kill the next call completes it.
    """
    best = find_best(run)
    kept = checkpoints(run)[-config.keep :]
    if best:
        kept.append(best.checkpoint)
    if config.keep_every:
        kept += [path for path in checkpoints(run) if not checkpoint_step(path) % config.keep_every]

    _link_best(run / BEST, best.checkpoint if best else None)
    for checkpoint in checkpoints(run):
        if checkpoint not in kept:
            # Renamed first, so that a checkpoint which is listed is complete. Removal fails where
            # somebody reads it on NFS; the next checkpoint tries again.
            hidden = _hidden(checkpoint)
            checkpoint.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _link_best(link: Path, best: Path | None) -> None:
    if best is None:
        if link.is_symlink():  # to a checkpoint that was removed by hand
            link.unlink()
        return
    try:
        with write_atomically(link) as temporary:
            temporary.unlink()
            temporary.symlink_to(best.relative_to(link.parent))
    except OSError as error:  # a file system without links, or a folder of that name
        print(f"warning: no link {link} to the best checkpoint, {best} ({error})", file=sys.stderr)


def _write_meta(folder: Path, step: int, distance: Distance | None) -> None:
    """Write meta.json with the distance and each file's size and hash; flush all to the disk."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    meta: dict[str, Any] = {"step": step, "torch": torch.__version__}
    if distance:
        meta["distance"] = asdict(distance)
    meta["files"] = {}
    for file in files:
        name = str(file.relative_to(folder))
        meta["files"][name] = checksum_entry(file)
    write_json(folder / "meta.json", meta)
    for path in (*files, folder / "meta.json", folder / "state", folder):
        sync_to_disk(path)


@contextmanager
def _write_errors(checkpoint: Path) -> Iterator[None]:
    """Turn errors of writing into a `UserError` that names the checkpoint to continue from."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(_hidden(checkpoint), ignore_errors=True)
        run = checkpoint.parent.parent
        retry = f"start again with --out {shell_quote(run)} (there is no earlier checkpoint)"
        if before := latest_checkpoint(run):
            retry = f"continue with `--resume {shell_quote(run)}` ({before} is intact)"

        raise UserError(
            f"{checkpoint} could not be written ({_cause(error)})",
            "a writable disk with free space",
            f"make room and {retry}",
        ) from error


def load(checkpoint: Path, state: State, ranks: Ranks) -> int:
    """Restore `state` in place from a verified checkpoint; return the number of steps done."""
    meta = ranks.on_main(lambda: verify_checkpoint(checkpoint))
    if not (checkpoint / "state").is_dir():
        raise UserError(
            f"{checkpoint} has no state/",
            "a checkpoint written by train.py",
            "resume from another one",
        )
    with _read_errors(checkpoint):
        reader = dcp.HuggingFaceStorageReader(str(checkpoint / "state"))
        stored = reader.read_metadata().state_dict_metadata

    # Earlier versions wrote some of the optional tensors not at all, or in other shapes.
    tensors = state.tensors()
    for name, tensor in [*tensors.items()]:
        fits = name in stored and getattr(stored[name], "size", None) == tensor.shape
        if name.startswith(OPTIONAL) and not fits:
            del tensors[name]
    with _read_errors(checkpoint), _no_process_group_warning():
        dcp.load(tensors, storage_reader=reader, no_dist=ranks.world == 1)
    return meta["step"]


@contextmanager
def _read_errors(checkpoint: Path) -> Iterator[None]:
    """Turn errors of reading state/ into a `UserError`: its checksums fit, its content does not."""
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(
            f"{checkpoint / 'state'} cannot be read ({_cause(error)})",
            "the state that train.py wrote",
            f"remove {checkpoint} to continue from another",
        ) from error


def _cause(error: BaseException) -> str:
    """Return the text of an error; DCP collects those of all ranks, and the first one is it."""
    first: object = error
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))[0]
    return one_line(first)


@contextmanager
def _no_process_group_warning() -> Iterator[None]:
    """Silence DCP's warning that one process has no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
