"""Peak memory of real training steps, and what --dry-run predicts of them.

    python -m benchmarks.memory [--only TEXT] [--record]

Every configuration runs in a process of its own (two for two ranks). It takes three steps of the
trainer on random latents of 4x32x32 with 1,000 classes. On a CPU the peak is of the process's
resident memory, above what it was before the network was created. Freed blocks go back to the
system at once (`MALLOC_MMAP_THRESHOLD_`), so resident memory is memory in use. On CUDA the peak is
`torch.cuda.max_memory_allocated`.
"""

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.arguments import new_parser, typed_command
from benchmarks.record import record
from dit.build import build_network
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks, ranks
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.latents.on_the_fly import MemoryLatents
from dit.runs.card import ModelCard, NetworkSpec
from dit.training import build_networks as networks
from dit.training.batches import Batches
from dit.training.build_card import build_card
from dit.training.cost.ddp_or_fsdp import memory
from dit.training.cost.memory import Memory
from dit.training.inputs import RunInputs
from dit.training.prepare import prepare
from dit.training.resolve import resolve
from dit.training.session import TrainingSession
from dit.training.trainer import take_step

STEPS = 3  # AdamW allocates its moments in the first, DDP its last buckets in the second
BOUND = 0.15
SMALLEST = {"D": "Ti/8", "C": "Ti/8", "U": "S"}
FREE_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def grid(**settings: Any) -> list[dict[str, Any]]:
    """Return all combinations of settings; those given as a list vary, the last one fastest."""
    values = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, chosen, strict=True)) for chosen in itertools.product(*values)]


PRECISIONS = ["fp32", "bf16"]
RECOMPUTE = ["none", "selective", "full"]
BOTH = dict(precision=PRECISIONS, recompute=RECOMPUTE)
CPU = [
    *grid(model="DiT-S/4", batch=32, **BOTH),
    *grid(model="DiT-S/2", batch=8, **BOTH),
    *grid(model="DiT-B/4", batch=16, **BOTH),
    dict(model="DiT-L/4", batch=8, precision="bf16", recompute="full"),
    dict(model="DiT-S/8", batch=4, precision="fp32"),
    *grid(model="DiT-S/4", batch=64, precision=PRECISIONS, compile=True),
    dict(model="DiT-S/4", batch=32, precision="bf16", grad_accum=4),
    dict(model="DiT-S/4", batch=32, precision="fp32", grad_accum=4, recompute="full"),
    *grid(
        model="DiT-S/4",
        batch=32,
        precision="bf16",
        conditioning=["adaln", "cross-attention", "in-context"],
    ),
    dict(model="Classifier-S/4", batch=32, precision="bf16", label_dropout=0.0),
    *grid(model="UNet-S", batch=8, precision=PRECISIONS, recompute=["none", "full"]),
    *grid(model="DiT-S/4", batch=16, precision=PRECISIONS, ranks=2, parallel=["ddp", "fsdp"]),
    dict(model="DiT-B/4", batch=8, precision="bf16", ranks=2, parallel="fsdp"),
    dict(model="DiT-B/4", batch=8, precision="bf16", ranks=2, parallel="fsdp", recompute="full"),
    dict(model="DiT-S/4", batch=16, precision="bf16", ranks=2, parallel="fsdp", grad_accum=2),
]
CUDA = [
    *grid(model=["DiT-S/2", "DiT-B/2"], batch=64, precision="bf16", recompute=RECOMPUTE),
    *grid(model=["DiT-L/2", "DiT-XL/2"], batch=32, precision="bf16", recompute=RECOMPUTE),
    dict(model="DiT-B/4", batch=64, precision="fp32"),
    dict(model="DiT-XL/2", batch=32, precision="bf16", grad_accum=4),
    *grid(model="DiT-XL/2", batch=32, precision="bf16", compile=True, recompute=["none", "full"]),
    dict(model="UNet-B", batch=32, precision="bf16"),
]
"""`batch` is the number of images that a rank computes at once."""


# -- one configuration, in its own process -------------------------------------------------------


def session_of(
    settings: dict[str, Any], joined: Ranks, folder: str, side: int = 32
) -> TrainingSession:
    """Return a training session on random latents of 4 x side x side.

    32 x 32 are those of Stable Diffusion's autoencoder at 256 px. The first weights are drawn on
    the device, which is quicker there.
    """
    card, source, autoencoder = run_of(settings, joined, folder, side)
    with patch.object(networks, "build_network", partial(on_device, joined.device)):
        inputs = RunInputs(card, source, autoencoder)
        return prepare(inputs, resolve(inputs, joined), joined)


def run_of(
    settings: dict[str, Any], joined: Ranks, folder: str, side: int = 32
) -> tuple[ModelCard, MemoryLatents, Autoencoder]:
    """Return the model card, latents and autoencoder of a run with these settings."""
    flags = {name: value for name, value in settings.items() if name not in ("batch", "ranks")}
    defaults: dict[str, Any] = dict(compile=False)
    if not settings["model"].startswith("Classifier"):
        defaults |= dict(
            process="linear", objective="eps", time_sampling="uniform", learn_sigma=True
        )
    config = TrainConfig(
        **{**defaults, **flags},
        vae="identity",
        out=Path(folder) / "run",
        global_batch_size=settings["batch"] * settings.get("grad_accum", 1) * joined.world,
    )

    source = MemoryLatents(
        torch.randn(256, 1, 8, side, side), np.arange(256), [str(i) for i in range(1000)]
    )
    zeros = torch.zeros(4, 1, 1, device=joined.device)
    autoencoder = replace(load_autoencoder("identity"), channels=4, shift=zeros, scale=zeros + 1)
    return build_card(config, source), source, autoencoder


def on_device(device: torch.device, spec: NetworkSpec) -> nn.Module:
    """Return an untrained network, created on the device."""
    with device:
        return build_network(spec)


def stepper(session: TrainingSession) -> Callable[[], None]:
    """Return a function that takes the trainer's next step; batches are read ahead."""
    numbered = enumerate(Batches(session.stream, range(session.steps)), start=1)

    def step() -> None:
        number, batch = next(numbered)
        take_step(session, batch.result(), number)

    return step


def take_steps(settings: dict[str, Any], joined: Ranks) -> Memory:
    """Take a few steps; return the memory that --dry-run predicts of them."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(settings, joined, folder)
        step = stepper(session)
        for _ in range(STEPS):
            step()
        return memory(session.card, joined, session.plan.parallel.parallel, 0)


def reset_peak(device: torch.device) -> int:
    """Start a new peak; return the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # 5 resets VmHWM, the peak of resident memory (man 5 proc_pid_clear_refs)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def peak(device: torch.device) -> int:
    """Return the most bytes in use since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident_bytes("VmHWM")


def resident_bytes(field: str) -> int:
    """Return a field of this process's /proc status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(settings: dict[str, Any], joined: Ranks) -> dict[str, Any]:
    """Return the measured peak and the prediction, of the rank that needs most."""
    torch.manual_seed(0)
    # a small model first: libraries and threads take memory on first use
    family = settings["model"].split("-")[0]
    take_steps({**settings, "model": f"{family}-{SMALLEST[family[0]]}", "batch": 2}, joined)

    before = reset_peak(joined.device)
    predicted = take_steps(settings, joined)
    needed = torch.tensor(float(peak(joined.device) - before), device=joined.device)
    most = joined.max(needed).item()

    parts = {name: round(size / 2**20, 1) for name, size in asdict(predicted).items()}
    return {
        **settings,
        "measured_mib": round(most / 2**20, 1),
        "predicted_mib": round(predicted.total / 2**20, 1),
        "error": round(predicted.total / most - 1, 4),
        "parts_mib": parts,
    }


# -- all configurations --------------------------------------------------------------------------


def measure_in_subprocess(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of `measure`, run under torchrun."""
    world = settings.get("ranks", 1)
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node {world}"
    script = ["-m", "benchmarks.memory", "--one", json.dumps(settings)]
    done = subprocess.run(
        [sys.executable, *launcher.split(), *script],
        env={"OMP_NUM_THREADS": "1", **os.environ, **FREE_AT_ONCE},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and record."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--only", default="", help="configurations that contain this text, such as 'parallel fsdp'"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with ranks() as joined:
            row = measure(json.loads(args.one), joined)
            if joined.main:
                print(json.dumps(row))
        return

    rows = []
    for settings in CUDA if torch.cuda.is_available() else CPU:
        title = " ".join(f"{name} {value}" for name, value in settings.items())
        if args.only in title:
            row = measure_in_subprocess(settings)
            rows.append(row)
            print(
                f"{title:<76}{row['measured_mib']:>10} MiB{row['predicted_mib']:>10} predicted"
                f"{row['error']:>9.1%}",
                flush=True,
            )

    errors = [abs(row["error"]) for row in rows]
    within = sum(error <= BOUND for error in errors)
    print(f"largest error {max(errors):.1%}; {within} of {len(errors)} within {BOUND:.0%}")
    if args.record:
        print(record("memory", typed_command(), rows))


if __name__ == "__main__":
    main()
