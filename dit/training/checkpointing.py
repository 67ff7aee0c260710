"""Checkpoints: written beside and renamed while training goes on, checksummed, and free of pickles.

`state/` is torch.distributed.checkpoint in safetensors; `ema-DECAY.safetensors` is what sampling reads.
"""

import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoints import (
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
from dit.runs.weights import write_weights
from dit.training.state import State
from dit.utils.files import flush, shell_quote, write_atomically, write_json

ANEW = (
    "guard.",
    "window",
)  # start anew where a checkpoint of an earlier version has them not, or otherwise


class Saver:
    """Writes checkpoints of a run while training goes on, one at a time.

    Saving copies the state, which training waits for, and leaves the rest to a thread: files, checksums, the new name,
    and the removal of what is no longer kept. Its ranks talk among themselves, past those of the loop.
    """

    def __init__(self, run: Path, card: ModelCard, ranks: Ranks):
        self.run, self.card, self.ranks = run, card, ranks.aside()
        self._cuda = ranks.device.type == "cuda"
        self._stager = self._new_stager()
        self._thread = ThreadPoolExecutor(1, initializer=_stand_back)
        self._writing: Future[None] | None = None

    def save(self, step: int, state: State, ranks: Ranks, distance: Distance | None = None) -> None:
        """Begin checkpoints/step-N on all ranks, with the EMA's distance where it was measured.

        Raises:
            UserError: the checkpoint before it could not be written.
        """
        self.finish()
        state.window.share(ranks)
        staged = self._stage(state.tensors())
        weights = gather_state_dict(state.ema.network, ranks)
        name = f"ema-{state.ema.decay:g}.safetensors"
        self._writing = self._thread.submit(self._write, step, staged, name, weights, distance)

    def _stage(self, tensors: dict[str, Tensor]) -> Any:
        """Copies in main memory, which the next ones reuse."""
        try:
            return self._stager.stage(tensors)
        except KeyError:  # it closes itself after its first in PyTorch 2.11: pytorch/pytorch#183413, mended by #183424
            self._stager = self._new_stager()
            return self._stager.stage(tensors)

    def _new_stager(self) -> DefaultStager:
        return DefaultStager(
            StagingOptions(
                self._cuda,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=self._cuda,
            )
        )

    def check(self) -> None:
        """Raise what has gone wrong, if anything has.

        Raises:
            UserError: the disk is full, read-only or gone; earlier checkpoints are as they were.
        """
        if self._writing and self._writing.done():
            self.finish()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._writing is not None and not self._writing.done()

    def finish(self) -> None:
        """Wait until the checkpoint under way is in its place; raises as `check`."""
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
        ranks, final = self.ranks, self.run / "checkpoints" / checkpoint_name(step)
        beside = final.with_name(f".{final.name}")

        def seal() -> None:
            with _clear_errors(final):
                write_weights(beside / name, weights, self.card, step)
                _seal(beside, step, distance)
                shutil.rmtree(final, ignore_errors=True)
                beside.rename(final)
                flush(final.parent)
                tidy(self.run, self.card.config)

        ranks.on_main(lambda: _make_place(beside, final))
        writer = dcp.HuggingFaceStorageWriter(
            str(beside / "state"), save_distributed=ranks.world > 1
        )
        with _clear_errors(final), _one_process_is_meant():
            dcp.save(
                staged, storage_writer=writer, process_group=ranks.group, no_dist=ranks.world == 1
            )
        ranks.on_main(seal)


def _stand_back() -> None:
    """Let the calling thread work only where training leaves a core free: on Linux, where threads have priorities."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _make_place(beside: Path, final: Path) -> None:
    """The folder to write to; what kills have left is removed."""
    if not final.parent.parent.is_dir():
        raise UserError(
            f"{final.parent.parent} is gone",
            "the run directory, where it was when training started",
            "put it back and continue with --resume",
        )
    with _clear_errors(final):
        for left in final.parent.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)
        beside.mkdir(parents=True)


def tidy(run: Path, config: TrainConfig) -> None:
    """Link RUN/best to the best checkpoint and remove all but that, the newest `keep`, and those of every `keep_every`
    steps; on rank 0.

    It can be done again at any time, as after a kill in its midst.
    """
    best, every = find_best(run), config.keep_every
    kept = [
        *([best.checkpoint] if best else []),
        *checkpoints(run)[-config.keep :],
        *(path for path in checkpoints(run) if every and checkpoint_step(path) % every == 0),
    ]
    _link(run / BEST, best.checkpoint if best else None)
    for checkpoint in checkpoints(run):
        if checkpoint not in kept:
            gone = checkpoint.with_name(
                f".{checkpoint.name}"
            )  # whole or not there, however far removal comes
            checkpoint.rename(gone)
            shutil.rmtree(
                gone, ignore_errors=True
            )  # as where somebody reads it on NFS; the next one tries again


def _link(link: Path, best: Path | None) -> None:
    """Point RUN/best to a checkpoint, or remove it."""
    if best is None:
        if link.is_symlink():  # to a checkpoint that was removed by hand
            link.unlink()
        return
    try:
        with write_atomically(link) as beside:
            beside.symlink_to(best.relative_to(link.parent))
    except OSError as error:  # no links on this file system, or a folder of that name
        print(f"warning: no link {link} to the best checkpoint, {best} ({error})", file=sys.stderr)


def _seal(folder: Path, step: int, distance: Distance | None) -> None:
    """Write meta.json, with the distance and with size and hash of every file, and bring all to the disk."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    listed = {str(f.relative_to(folder)): checksum_entry(f) for f in files}
    scored = {"distance": distance._asdict()} if distance else {}
    write_json(
        folder / "meta.json", {"step": step, "torch": torch.__version__, **scored, "files": listed}
    )
    for path in (*files, folder / "meta.json", folder / "state", folder):
        flush(path)


@contextmanager
def _clear_errors(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(checkpoint.with_name(f".{checkpoint.name}"), ignore_errors=True)
        run = checkpoint.parent.parent
        before = latest_checkpoint(run)
        again = (
            f"continue with --resume {shell_quote(run)} ({before} is intact)"
            if before
            else f"start again with --out {shell_quote(run)} (there is no earlier checkpoint)"
        )
        first = (
            next(iter(error.failures.values()))[0]
            if isinstance(error, CheckpointException)
            else error
        )
        cause = " ".join(str(first).split())
        given = f"{checkpoint} could not be written ({cause})"
        raise UserError(
            given, "a writable disk with free space", f"make room and {again}"
        ) from error


def load(checkpoint: Path, state: State, ranks: Ranks) -> int:
    """Restore `state` in place from a verified checkpoint; the number of steps done.

    Raises:
        UserError: a file of the checkpoint is missing, truncated or changed.
    """
    meta = ranks.on_main(lambda: verify_checkpoint(checkpoint))
    if not (checkpoint / "state").is_dir():
        raise UserError(
            f"{checkpoint} has no state/",
            "a checkpoint written by train.py",
            "resume from another one",
        )
    reader = dcp.HuggingFaceStorageReader(str(checkpoint / "state"))
    there = reader.read_metadata().state_dict_metadata
    tensors = {
        name: v
        for name, v in state.tensors().items()
        if not name.startswith(ANEW)
        or (name in there and getattr(there[name], "size", None) == v.shape)
    }
    with _one_process_is_meant():
        dcp.load(tensors, storage_reader=reader, no_dist=ranks.world == 1)
    return meta["step"]


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Silence the warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
