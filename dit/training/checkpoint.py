"""Checkpoints: written beside and renamed, checksummed, and free of pickles.

`state/` is torch.distributed.checkpoint in safetensors; `ema-DECAY.safetensors` is what sampling reads.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from dit.diffusion.importance import LossAware
from dit.errors import UserError
from dit.files import flush, replacing, sha256, write_json
from dit.hardware import Ranks
from dit.runs import BEST, Card, Distance, checkpoint_name, checkpoints, find_best, latest, verify, write_weights
from dit.training.ema import EMA
from dit.training.metrics_log import Window


@dataclass(frozen=True)
class State:
    """All that changes in training. Its tensors are a checkpoint; everything else derives from the step number."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    window: Window
    times: LossAware | None = None  # of --time-sampling loss-aware

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, in place: loading into them restores the state."""
        if not self.optimizer.state:
            _create_moments(self.optimizer)
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.network.named_parameters()}
        moments = {
            f"optimizer.{names[parameter]}.{key}": value
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
        }
        networks = {"network": self.network, "ema": self.ema.network}
        weights = {f"{k}.{name}": v for k, net in networks.items() for name, v in net.state_dict().items()}
        drawn = {"times.history": self.times.history, "times.counts": self.times.counts} if self.times else {}
        return {**weights, **moments, **drawn, "window": self.window.sums}


def _create_moments(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer makes its state in its first step: take one, before the checkpoint is loaded over it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def save(run: Path, step: int, state: State, card: Card, keep: int, ranks: Ranks, distance: Distance | None = None
         ) -> Path:
    """Write checkpoints/step-N on all ranks, with the EMA's distance where it was measured, and tidy up.

    Raises:
        UserError: the disk is full or read-only; earlier checkpoints are as they were.
    """
    state.window.share(ranks)
    final = run / "checkpoints" / checkpoint_name(step)
    beside = final.with_name(f".{final.name}")
    with _clear_errors(final):
        if ranks.main:
            for left in final.parent.glob(".step-*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
            beside.mkdir(parents=True)
        ranks.barrier()
        writer = dcp.HuggingFaceStorageWriter(str(beside / "state"), save_distributed=ranks.world > 1)
        with _one_process_is_meant():
            dcp.save(state.tensors(), storage_writer=writer, no_dist=ranks.world == 1)
        if ranks.main:
            ema = f"ema-{state.ema.decay:g}.safetensors"
            write_weights(beside / ema, state.ema.network.state_dict(), card, step)
            _seal(beside, step, distance)
            shutil.rmtree(final, ignore_errors=True)
            beside.rename(final)
            flush(final.parent)
    if ranks.main:
        tidy(run, keep)
    ranks.barrier()
    return final


def tidy(run: Path, keep: int) -> None:
    """Link RUN/best to the best checkpoint and remove all but that and the newest `keep`; on rank 0.

    It can be done again at any time, as after a kill in its midst.
    """
    best = find_best(run)
    kept = [*([best.checkpoint] if best else []), *checkpoints(run)[-keep:]]
    _link(run / BEST, best.checkpoint if best else None)
    for checkpoint in checkpoints(run):
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def _link(link: Path, best: Path | None) -> None:
    """Point RUN/best to a checkpoint, or remove it."""
    if best is None:
        if link.is_symlink():  # to a checkpoint that was removed by hand
            link.unlink()
        return
    try:
        with replacing(link) as beside:
            beside.symlink_to(best.relative_to(link.parent))
    except OSError as error:  # no links on this file system, or a folder of that name
        print(f"warning: no link {link} to the best checkpoint, {best} ({error})", file=sys.stderr)


def _seal(folder: Path, step: int, distance: Distance | None) -> None:
    """Write meta.json, with the distance and with size and hash of every file, and bring all to the disk."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    listed = {str(f.relative_to(folder)): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}
    scored = {"distance": distance._asdict()} if distance else {}
    write_json(folder / "meta.json", {"step": step, "torch": torch.__version__, **scored, "files": listed})
    for path in (*files, folder / "meta.json", folder / "state", folder):
        flush(path)


@contextmanager
def _clear_errors(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(checkpoint.with_name(f".{checkpoint.name}"), ignore_errors=True)
        before = latest(checkpoint.parent.parent)
        kept = f"{before} is intact" if before else "there is no earlier checkpoint"
        first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        cause = " ".join(str(first).split())
        do = f"make room and continue with --resume {checkpoint.parent.parent} ({kept})"
        given = f"{checkpoint} could not be written ({cause})"
        raise UserError(given, "a writable disk with free space", do) from error


def load(checkpoint: Path, state: State, ranks: Ranks) -> int:
    """Restore `state` in place from a verified checkpoint; the number of steps done.

    Raises:
        UserError: a file of the checkpoint is missing, truncated or changed.
    """
    meta = ranks.on_main(lambda: verify(checkpoint))
    if not (checkpoint / "state").is_dir():
        raise UserError(f"{checkpoint} has no state/", "a checkpoint written by train.py", "resume from another one")
    reader = dcp.HuggingFaceStorageReader(str(checkpoint / "state"))
    with _one_process_is_meant():
        dcp.load(state.tensors(), storage_reader=reader, no_dist=ranks.world == 1)
    return meta["step"]


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Silence the warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
