"""The equations of docs/scaling.md against 1, 2 and 4 processes on this machine's CPU (gloo).

    python -m benchmarks.scaling [--model DiT-S/4] [--batch 8] [--rounds 5] [--record]

Each process computes on one core with one thread; four on two cores take turns, two on each. First every process
trains for itself, side by side with the others, then all of them time a collective of the sizes that training has,
then train together with DDP and with FSDP2. The prediction of a step is
`dit.training.cost.step_time.seconds` with the compute and update of one process alone,
divided among the cores, and with the measured bandwidth; a core that computes does not
communicate, so nothing overlaps. Bytes are counted at the collectives, and on the wire (`lo`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import session_of, stepper
from benchmarks.record import record
from dit.distributed.ranks import Ranks, ranks
from dit.models.registry import multiply_adds
from dit.report.figures import new_axis, new_figure, to_image
from dit.training.cost.cluster import Cluster
from dit.training.cost.step_time import BUCKET, FLOAT, Work, seconds, traffic
from dit.training.session import TrainingSession

WAYS = ("ddp", "fsdp")
PICTURE = Path("docs/images/ranks.png")


class Sent(TorchDispatchMode):
    """Bytes that this rank sends in collectives, by rings; those of a few numbers aside."""

    FEW = 1024

    def __init__(self, world: int):
        super().__init__()
        self.world, self.bytes = world, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops, share = torch.ops.c10d, (self.world - 1) / self.world
        if func is ops.allreduce_.default:
            self._add(2 * share, *args[0])
        elif func is ops._allgather_base_.default:
            self._add(share, args[0])
        elif func is ops._reduce_scatter_base_.default:
            self._add(share, args[1])
        return func(*args, **(kwargs or {}))

    def _add(self, share: float, *tensors: torch.Tensor) -> None:
        self.bytes += sum(share * t.nbytes for t in tensors if t.nbytes > self.FEW)


# -- in each process -------------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any], rounds: int, joined: Ranks) -> float:
    """Median of the seconds that the slowest rank takes."""
    took = []
    for _ in range(rounds + 1):  # the first warms up
        joined.barrier()
        begin = time.perf_counter()
        work()
        took.append(
            joined.max(torch.tensor(time.perf_counter() - begin, dtype=torch.float64)).item()
        )
    return statistics.median(took[1:])


def update(session: TrainingSession) -> None:
    """Clipping, optimizer and EMA alone."""
    state = session.state
    for parameter in state.network.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    state.ema.update(state.network, 1)


def wire() -> int:
    """Bytes that went through the loopback device."""
    line = next(
        line
        for line in Path("/proc/net/dev").read_text().splitlines()
        if line.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[0])


def bandwidths(session: TrainingSession, rounds: int, joined: Ranks) -> dict[str, float]:
    """Bytes a second of rings: of DDP's buckets, and of FSDP's blocks (two gathers and a reduce-scatter)."""
    block = sum(p.numel() for p in session.state.network.blocks[0].parameters())  # type: ignore[union-attr, index]
    block -= block % joined.world
    bucket, whole, share = (
        torch.zeros(BUCKET // 4),
        torch.zeros(block),
        torch.zeros(block // joined.world),
    )

    def exchange() -> None:
        for _ in range(2):
            dist.all_gather_into_tensor(whole, share)
        dist.reduce_scatter_tensor(share, whole)

    part = (joined.world - 1) / joined.world
    return {
        "ddp": 2 * part * BUCKET / timed(lambda: dist.all_reduce(bucket), rounds, joined),
        "fsdp": 3 * part * 4 * block / timed(exchange, rounds, joined),
    }


def together(
    settings: dict[str, Any], parallel: str, rounds: int, joined: Ranks
) -> dict[str, float]:
    """A step of all ranks: seconds, bytes that a rank sends, bytes on the wire for each rank."""
    with tempfile.TemporaryDirectory() as folder:
        step = stepper(session_of({**settings, "parallel": parallel}, joined, folder))
        took = timed(step, rounds, joined)
        joined.barrier()
        before = wire()
        with Sent(joined.world) as sent:
            step()
        joined.barrier()
        return {"seconds": took, "sent": sent.bytes, "wire": (wire() - before) / joined.world}


def measure(settings: dict[str, Any], rounds: int, joined: Ranks) -> dict[str, Any]:
    """Everything that so many processes can tell."""
    os.sched_setaffinity(
        0, {sorted(os.sched_getaffinity(0))[joined.rank % len(os.sched_getaffinity(0))]}
    )
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(settings, Ranks(), folder)
        found: dict[str, Any] = {
            "step": timed(stepper(session), rounds, joined),
            "update": timed(lambda: update(session), rounds, joined),
        }
        if joined.world > 1:
            found["bandwidth"] = bandwidths(session, rounds, joined)
    if joined.world > 1:
        found |= {way: together(settings, way, rounds, joined) for way in WAYS}
    return found


# -- and what they should have told ----------------------------------------------------------------------------------


def run(world: int, threads: int, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """`measure` in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    one = json.dumps({"settings": settings, "rounds": rounds, "threads": threads})
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.scaling", "--one", one],
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def in_process(asked: dict[str, Any]) -> None:
    """Measure as one of the processes, and print it as one of them."""
    if asked["threads"] > 1:
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps(
                    {
                        "step": timed(
                            stepper(session_of(asked["settings"], Ranks(), folder)),
                            asked["rounds"],
                            Ranks(),
                        )
                    }
                )
            )
        return
    with ranks() as joined:
        found = measure(asked["settings"], asked["rounds"], joined)
        if joined.main:
            print(json.dumps(found))


def predict(
    alone: dict[str, float],
    bandwidth: float,
    world: int,
    cores: int,
    work: Work,
    batch: int,
    way: str,
) -> dict[str, float]:
    """Seconds and bytes of a step of so many processes, from one process alone."""
    turns = max(1.0, world / cores)  # how many share a core
    speed = 3 * batch * work.flops / (alone["step"] - alone["update"]) / turns
    memory = work.updated / alone["update"] / turns
    cluster = Cluster(
        world, speed, 0, memory, bandwidth, bandwidth, per_node=world, efficiency=1.0, overlap=False
    )
    return {
        **asdict(seconds(work, cluster, way, batch, 1)),
        "sent": traffic(work, world, way, 1),
        "seconds": seconds(work, cluster, way, batch, 1).step,
    }


def main() -> None:
    """Measure, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="DiT-S/4")
    parser.add_argument("--batch", type=int, default=8, help="images of a process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        in_process(json.loads(args.one))
        return
    results = compare(args.model, args.batch, args.rounds)
    if args.record:
        draw(results).save(PICTURE)
        print(
            record(
                "scaling",
                f"python -m benchmarks.scaling --model {args.model} --batch {args.batch} "
                f"--rounds {args.rounds} --record",
                results,
            )
        )


def compare(model: str, batch: int, rounds: int) -> dict[str, Any]:
    """All processes' figures beside the predictions; prints them."""
    settings, cores = dict(model=model, batch=batch, precision="fp32"), len(os.sched_getaffinity(0))
    found = {world: run(world, 1, rounds, settings) for world in (1, 2, 4)}
    threads = run(1, cores, rounds, {**settings, "batch": batch * cores})
    work = work_of(model)
    rows = []
    for world, way in ((world, way) for world in (2, 4) for way in WAYS):
        measured, bandwidth = found[world][way], found[world]["bandwidth"][way]
        predicted = predict(found[1], bandwidth, world, cores, work, batch, way)
        side = predict(
            found[world], bandwidth, world, world, work, batch, way
        )  # its own figures are of shared cores
        rows.append(
            {
                "processes": world,
                "parallel": way,
                "measured": measured,
                "predicted": predicted,
                "predicted_side_by_side": side,
                "bandwidth": bandwidth,
                "error": predicted["seconds"] / measured["seconds"] - 1,
                "error_side_by_side": side["seconds"] / measured["seconds"] - 1,
                "error_of_bytes": predicted["sent"] / measured["sent"] - 1,
            }
        )
        print(tell(rows[-1]), flush=True)
    ddp = found[2]["ddp"]["seconds"]
    efficiency = {
        "2 processes with DDP, to one with half the images": found[1]["step"] / ddp,
        "2 processes without communication, to one": found[1]["step"] / found[2]["step"],
        "2 processes with DDP, to one of all threads with as many images": threads["step"] / ddp,
    }
    print("\n".join(f"{name}: {value:.1%}" for name, value in efficiency.items()))
    return {
        "model": model,
        "batch": batch,
        "cores": cores,
        "found": found,
        "one_process_of_all_threads": threads,
        "rows": rows,
        "efficiency": efficiency,
    }


def draw(results: dict[str, Any]) -> Image.Image:
    """Images a second by processes, and what they would be if each had a core and none had to talk."""
    batch, found = results["batch"], {int(world): one for world, one in results["found"].items()}
    alone = batch / found[1]["step"]
    figure = new_figure(4.8, 3.2)
    axis = new_axis(figure, "processes, of one thread each")
    worlds = sorted(found)
    cores = results["cores"]
    ideal = [alone * min(world, cores) for world in worlds]
    axis.plot(worlds, ideal, linestyle=":", label=f"{cores} cores, no communication")
    for way in WAYS:
        speeds = [alone] + [batch * world / found[world][way]["seconds"] for world in worlds[1:]]
        axis.plot(worlds, speeds, marker="o", markersize=4, label=way)
    axis.set_xticks(worlds)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("images a second")
    axis.legend(frameon=False)
    return to_image(figure)


def work_of(model: str) -> Work:
    """The network of `session_of`, for the equations; FSDP gathers float32."""
    from dit.models.registry import create_model

    shape = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
    with torch.device("meta"):
        network: Any = create_model(model, **shape)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Work(trained, len(network.blocks), 2 * multiply_adds(model, **shape), width=FLOAT)


def tell(row: dict[str, Any]) -> str:
    """A row in words."""
    measured, predicted = row["measured"], row["predicted"]
    return (
        f"{row['processes']} processes, {row['parallel']:<5} step {measured['seconds']:.3f} s, predicted "
        f"{predicted['seconds']:.3f} ({row['error']:+.1%}; from processes side by side "
        f"{row['error_side_by_side']:+.1%}); communication {predicted['communication']:.3f} s at "
        f"{row['bandwidth'] / 1e9:.2f} GB/s; sent {measured['sent'] / 1e6:.1f} MB, predicted "
        f"{predicted['sent'] / 1e6:.1f} ({row['error_of_bytes']:+.2%}), on the wire {measured['wire'] / 1e6:.1f}"
    )


if __name__ == "__main__":
    main()
