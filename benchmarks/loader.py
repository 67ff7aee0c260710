"""Latents a second that one process reads in random order, as training does, from a store of 2 GB.

    python -m benchmarks.loader [--gigabytes 2] [--batch 256] [--repeats 9] [--folder DIR] [--record]

The store holds random moments of Stable Diffusion's size, 8 x 32 x 32 float16 (16 KiB), of images and their mirror
images. `warm`: the store is in the system's page cache, as from the second pass on where memory suffices; `cold`: it
has been dropped from there before each repeat. `mapped` is the same reading through memory maps and to float32, in
turns with the other, so that a noisy machine disturbs both alike. A figure is the median over repeats; `CPU` counts the
seconds of this process alone.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from dit.data.order import batch_indices, generator
from dit.latents import shards
from dit.latents.shards import Encoding
from dit.latents.store import LatentStore

SHAPE, VIEW = (4, 32, 32), (2, 8, 32, 32)
VIEW_BYTES = 2 * 8 * 32 * 32
IMAGE_BYTES = 2 * VIEW_BYTES
SHARD = 4096  # images: 128 MiB
Read = Callable[[np.ndarray, np.ndarray], Tensor]


def make_store(root: Path, images: int) -> None:
    """A store of noise, written as `dit encode` writes."""
    encoding = Encoding(
        vae="noise",
        checksum=None,
        image_size=256,
        flips=True,
        count=images,
        shard_size=SHARD,
        fingerprint="",
    )
    shards.claim(root, encoding)
    number = -(-images // SHARD)
    for shard in range(number):
        random = torch.Generator().manual_seed(shard)
        batches = (
            torch.randn(len(part), *VIEW, generator=random)
            for part in np.array_split(encoding.indices(shard), 16)
            if len(part)
        )
        shards.write_shard(root, shard, batches, VIEW)
    labels = np.arange(images, dtype=np.int64) % 1000
    shards.write_index(root, encoding, number, [str(i) for i in range(1000)], [labels], SHAPE)


def mapped(root: Path) -> Read:
    """Plain memory maps, one fancy index a shard, float32."""
    maps = [np.load(file, mmap_mode="r") for file in sorted(root.glob("shard-*.npy"))]

    def read(indices: np.ndarray, flip: np.ndarray) -> Tensor:
        places, rows = np.divmod(indices, SHARD)
        moments = np.empty((len(rows), *VIEW[1:]), np.float16)
        for shard in np.unique(places):
            here = places == shard
            moments[here] = maps[shard][rows[here], flip[here].astype(np.int64)]
        return torch.from_numpy(moments).float()

    return read


def forget(root: Path) -> None:
    """Drop the store from the page cache, as far as the system complies."""
    os.sync()
    for file in root.glob("shard-*.npy"):
        opened = os.open(file, os.O_RDONLY)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(opened)


def from_disk() -> int:
    """Bytes that this process had to wait for the disk for, so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def rates(read: Read, size: int, batch: int, first: int, batches: int) -> tuple[float, float]:
    """Latents a second over some steps, indices and flips included: by the clock, and by the CPU's."""
    begin, busy = time.perf_counter(), time.process_time()
    for step in range(first, first + batches):
        flip = torch.rand(batch, generator=generator(0, step)) < 0.5
        moments = read(batch_indices(step, size, batch, 0), flip.numpy())
        assert len(moments) == batch
    return batch * batches / (time.perf_counter() - begin), batch * batches / (
        time.process_time() - busy
    )


def measure(
    ways: dict[str, Callable[[], Read]],
    size: int,
    args: argparse.Namespace,
    latents: int,
    before: Callable[[], None],
) -> dict[str, Any]:
    """Median and spread of each way to read, over repeats, each on other steps."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    fetched = dict.fromkeys(ways, 0)
    batches = latents // args.batch
    for repeat in range(args.repeats):
        for name, open_store in ways.items():
            before()
            start = from_disk()
            found[name].append(rates(open_store(), size, args.batch, repeat * batches, batches))
            fetched[name] += from_disk() - start
    asked = args.repeats * batches * args.batch * VIEW_BYTES
    return {name: summary(*zip(*found[name], strict=True), fetched[name] / asked) for name in ways}


def summary(clock: Sequence[float], cpu: Sequence[float], share: float) -> dict[str, float]:
    """What is recorded of one way to read."""
    median = statistics.median(clock)
    return {
        "latents_per_s": round(median),
        "mb_per_s": round(median * VIEW_BYTES / 1e6),
        "latents_per_cpu_s": round(statistics.median(cpu)),
        "spread": round((max(clock) - min(clock)) / median, 3),
        "share_from_disk": round(share, 2),
    }


def main() -> None:
    """Make the store, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gigabytes", type=float, default=2.0, help="size of the store, in 2^30 bytes"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--latents", type=int, default=100_000, help="read in each warm repeat")
    parser.add_argument("--cold-latents", type=int, default=10_000, help="read in each cold repeat")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the store lies meanwhile, on a disk; unless given, where temporary files lie",
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    size = int(args.gigabytes * 2**30) // IMAGE_BYTES
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        make_store(root, size)
        ways: dict[str, Callable[[], Read]] = {
            "store": lambda: LatentStore(root).read,
            "mapped": partial(mapped, root),
        }
        rates(
            LatentStore(root).read, size, args.batch, 0, 2 * size // args.batch
        )  # nearly all is in the cache then
        results = {
            "warm": measure(ways, size, args, args.latents, lambda: None),
            "cold": measure(ways, size, args, args.cold_latents, partial(forget, root)),
        }
    print(f"{size:,} images, {args.gigabytes:g} GB, batches of {args.batch}")
    print(
        f"{'':<14}{'latents/s':>11}{'MB/s':>8}{'spread':>8}{'latents/CPU s':>15}{'from disk':>11}"
    )
    for cache, rows in results.items():
        for name, row in rows.items():
            print(
                f"{cache + ', ' + name:<14}{row['latents_per_s']:>11,}{row['mb_per_s']:>8,}{row['spread']:>8.2f}"
                f"{row['latents_per_cpu_s']:>15,}{row['share_from_disk']:>11.0%}"
            )
    if args.record:
        command = shlex.join(["python", "-m", "benchmarks.loader", *sys.argv[1:]])
        print(record("loader", command, {"images": size, "gigabytes": args.gigabytes, **results}))


if __name__ == "__main__":
    main()
