"""Peak memory of real training steps beside what --dry-run predicts of them.

    python -m benchmarks.memory [--only TEXT] [--record]

Every configuration is a process of its own (two for two ranks), which takes three steps of the trainer on random
latents of 4x32x32 with 1,000 classes. On a CPU the peak is that of the process's resident memory, above what it was
before the network was made; freed blocks go back to the system at once (`MALLOC_MMAP_THRESHOLD_`), so that what is
resident is what is in use. On CUDA it is `torch.cuda.max_memory_allocated`.
"""

import argparse
import gc
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

from benchmarks.record import record
from dit.build import build_network
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks, ranks
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.latents.online import MemoryLatents
from dit.runs.card import ModelCard, NetworkSpec
from dit.training import networks
from dit.training.batches import Batches
from dit.training.card import build_card
from dit.training.cost.ddp_or_fsdp import memory
from dit.training.cost.memory import Memory
from dit.training.inputs import RunInputs
from dit.training.prepare import prepare
from dit.training.resolve import resolve
from dit.training.session import TrainingSession
from dit.training.trainer import take_step

STEPS = 3  # AdamW makes its moments in the first, DDP its last buckets in the second
BOUND = 0.15
SMALLEST = {"D": "Ti/8", "C": "Ti/8", "U": "S"}
STEPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}

CPU = [
    *(
        dict(model="DiT-S/4", batch=32, precision=p, recompute=r)
        for p in ("fp32", "bf16")
        for r in ("none", "selective", "full")
    ),
    *(
        dict(model="DiT-S/2", batch=8, precision=p, recompute=r)
        for p in ("fp32", "bf16")
        for r in ("none", "selective", "full")
    ),
    *(
        dict(model="DiT-B/4", batch=16, precision=p, recompute=r)
        for p in ("fp32", "bf16")
        for r in ("none", "selective", "full")
    ),
    dict(model="DiT-L/4", batch=8, precision="bf16", recompute="full"),
    dict(model="DiT-S/8", batch=4, precision="fp32"),
    *(dict(model="DiT-S/4", batch=64, precision=p, compile=True) for p in ("fp32", "bf16")),
    dict(model="DiT-S/4", batch=32, precision="bf16", grad_accum=4),
    dict(model="DiT-S/4", batch=32, precision="fp32", grad_accum=4, recompute="full"),
    *(
        dict(model="DiT-S/4", batch=32, precision="bf16", conditioning=c)
        for c in ("adaln", "cross-attention", "in-context")
    ),
    dict(model="Classifier-S/4", batch=32, precision="bf16", label_dropout=0.0),
    *(
        dict(model="UNet-S", batch=8, precision=p, recompute=r)
        for p in ("fp32", "bf16")
        for r in ("none", "full")
    ),
    *(
        dict(model="DiT-S/4", batch=16, precision=p, ranks=2, parallel=way)
        for p in ("fp32", "bf16")
        for way in ("ddp", "fsdp")
    ),
    dict(model="DiT-B/4", batch=8, precision="bf16", ranks=2, parallel="fsdp"),
    dict(model="DiT-B/4", batch=8, precision="bf16", ranks=2, parallel="fsdp", recompute="full"),
    dict(model="DiT-S/4", batch=16, precision="bf16", ranks=2, parallel="fsdp", grad_accum=2),
]
CUDA = [
    *(
        dict(model=m, batch=b, precision="bf16", recompute=r)
        for m, b in (("DiT-S/2", 64), ("DiT-B/2", 64), ("DiT-L/2", 32), ("DiT-XL/2", 32))
        for r in ("none", "selective", "full")
    ),
    dict(model="DiT-B/4", batch=64, precision="fp32"),
    dict(model="DiT-XL/2", batch=32, precision="bf16", grad_accum=4),
    *(
        dict(model="DiT-XL/2", batch=32, precision="bf16", compile=True, recompute=r)
        for r in ("none", "full")
    ),
    dict(model="UNet-B", batch=32, precision="bf16"),
]
"""`batch` is what a rank has in work at once."""


# -- in a process of its own -----------------------------------------------------------------------------------------


def session_of(
    settings: dict[str, Any], joined: Ranks, folder: str, side: int = 32
) -> TrainingSession:
    """A run of the trainer, on random latents as of Stable Diffusion's autoencoder, at 256 px unless given another
    side of the latents; the first weights are drawn on the device, which is quicker there."""
    card, source, autoencoder = run_of(settings, joined, folder, side)
    with patch.object(networks, "build_network", partial(on_device, joined.device)):
        inputs = RunInputs(card, source, autoencoder)
        return prepare(inputs, resolve(inputs, joined), joined)


def run_of(
    settings: dict[str, Any], joined: Ranks, folder: str, side: int = 32
) -> tuple[ModelCard, MemoryLatents, Autoencoder]:
    """What a run trains on."""
    micro, accum = settings["batch"], settings.get("grad_accum", 1)
    flags = {name: value for name, value in settings.items() if name not in ("batch", "ranks")}
    classifies = settings["model"].startswith("Classifier")
    diffusion = (
        {}
        if classifies
        else dict(process="linear", objective="eps", time_sampling="uniform", learn_sigma=True)
    )
    config = TrainConfig(
        **{"compile": False, **diffusion, **flags},
        vae="identity",
        out=Path(folder) / "run",
        global_batch_size=micro * accum * joined.world,
    )
    source = MemoryLatents(
        torch.randn(256, 1, 8, side, side), np.arange(256), [str(i) for i in range(1000)]
    )
    zeros = torch.zeros(4, 1, 1, device=joined.device)
    autoencoder = replace(load_autoencoder("identity"), channels=4, shift=zeros, scale=zeros + 1)
    return build_card(config, source), source, autoencoder


def on_device(device: torch.device, spec: NetworkSpec) -> nn.Module:
    """A fresh network, made there."""
    with device:
        return build_network(spec)


def stepper(session: TrainingSession) -> Callable[[], None]:
    """The trainer's step: each call takes the next, whose batch is read while the one before computes."""
    numbered = enumerate(Batches(session.stream, range(session.steps)), start=1)

    def step() -> None:
        number, batch = next(numbered)
        take_step(session, batch, number)

    return step


def steps(settings: dict[str, Any], joined: Ranks) -> Memory:
    """Take some; the memory that --dry-run predicts of them."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(settings, joined, folder)
        step = stepper(session)
        for _ in range(STEPS):
            step()
        return memory(session.card, joined, session.parallel.parallel, 0)


def in_use(device: torch.device) -> int:
    """Bytes in use now; the peak is counted from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: torch.device) -> int:
    """Most bytes in use since then."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def resident(kind: str) -> int:
    """Bytes of main memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


def measure(settings: dict[str, Any], joined: Ranks) -> dict[str, Any]:
    """The peak of some steps and the prediction, of the rank that needs most."""
    torch.manual_seed(0)
    steps(
        {
            **settings,
            "model": f"{settings['model'].split('-')[0]}-{SMALLEST[settings['model'][0]]}",
            "batch": 2,
        },
        joined,
    )  # libraries and threads of the first time
    before = in_use(joined.device)
    predicted = steps(settings, joined)
    most = joined.maximum(
        torch.tensor(float(peak(joined.device) - before), device=joined.device)
    ).item()
    parts = {name: round(size / 2**20, 1) for name, size in asdict(predicted).items()}
    return {
        **settings,
        "measured_mib": round(most / 2**20, 1),
        "predicted_mib": round(predicted.total / 2**20, 1),
        "error": round(predicted.total / most - 1, 4),
        "parts_mib": parts,
    }


# -- all of them -----------------------------------------------------------------------------------------------------


def apart(settings: dict[str, Any]) -> dict[str, Any]:
    """`measure`, in processes of its own."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(settings.get("ranks", 1)),
    ]
    command = [sys.executable, *launcher, "-m", "benchmarks.memory", "--one", json.dumps(settings)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **STEPPED}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="configurations that contain this text, such as 'parallel fsdp'"
    )
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with ranks() as joined:
            found = measure(json.loads(args.one), joined)
            if joined.main:
                print(json.dumps(found))
        return
    rows = []
    for settings in CUDA if torch.cuda.is_available() else CPU:
        told = " ".join(f"{name} {value}" for name, value in settings.items())
        if args.only in told:
            rows.append(apart(settings))
            print(
                f"{told:<76}{rows[-1]['measured_mib']:>10} MiB{rows[-1]['predicted_mib']:>10} predicted"
                f"{rows[-1]['error']:>9.1%}",
                flush=True,
            )
    errors = [abs(row["error"]) for row in rows]
    print(
        f"largest error {max(errors):.1%}; {sum(e <= BOUND for e in errors)} of {len(errors)} within {BOUND:.0%}"
    )
    if args.record:
        print(record("memory", "python -m benchmarks.memory --record", rows))


if __name__ == "__main__":
    main()
