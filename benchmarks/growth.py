"""How costs grow: with tokens, with the batch, with the data set.

    python -m benchmarks.growth [--model DiT-S] [--rounds 5] [--tiny] [--record]

*Tokens*: steps of training on latents of 16x16 to 128x128 in patches of 2, with as many tokens in all. *Batch*: steps
on 32x32 in patches of 4, from one image on. *Data*: batches of 256 read in the trainer's order from stores of 10^3 to
10^7 latents, each so small (16 bytes) that order and index are what costs; the store is warm. A figure is the median
over rounds, in which all sizes take turns. Steps are eager, in bf16 where that is fast.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.ceilings import seconds
from benchmarks.memory import session_of, stepper
from benchmarks.record import record
from dit.data.order import batch_indices
from dit.distributed.ranks import Ranks
from dit.latents import shards
from dit.latents.shards import Encoding
from dit.latents.store import LatentStore
from dit.report.figures import new_axis, new_figure, to_image

PICTURE = Path("docs/images/growth.png")
VIEW = (1, 8, 1, 1)  # of an image in a store: float16
BATCH, SHARD = 256, 2**17
Work = Callable[[], object]


def timed(works: dict[int, Work], rounds: int, device: torch.device) -> dict[int, float]:
    """Median seconds of each, which take turns; the first round warms up."""
    took = [
        {size: seconds(work, device) for size, work in works.items()} for _ in range(rounds + 1)
    ][1:]
    return {size: statistics.median(turn[size] for turn in took) for size in works}


# -- steps -----------------------------------------------------------------------------------------------------------


def step_on(model: str, side: int, batch: int, device: torch.device, folder: str) -> Work:
    """The trainer's step on latents of this side."""
    return stepper(
        session_of(
            dict(model=model, batch=batch, precision="auto", steps=10**6),
            Ranks(device=device),
            folder,
            side,
        )
    )


def by_tokens(
    model: str, sides: tuple[int, ...], rounds: int, device: torch.device
) -> dict[int, float]:
    """Seconds a token of a step, by tokens of an image."""
    tokens = {side: (side // 2) ** 2 for side in sides}
    most = max(tokens.values())
    with tempfile.TemporaryDirectory() as folder:
        works = {
            tokens[side]: step_on(f"{model}/2", side, most // tokens[side], device, folder)
            for side in sides
        }
        return {count: took / most for count, took in timed(works, rounds, device).items()}


def by_batch(
    model: str, batches: tuple[int, ...], rounds: int, device: torch.device
) -> dict[int, float]:
    """Seconds an image of a step, by images of a step."""
    with tempfile.TemporaryDirectory() as folder:
        works = {batch: step_on(f"{model}/4", 32, batch, device, folder) for batch in batches}
        return {batch: took / batch for batch, took in timed(works, rounds, device).items()}


# -- data ------------------------------------------------------------------------------------------------------------


def make_store(root: Path, images: int) -> Path:
    """A store of so many tiny latents."""
    encoding = Encoding(
        vae="noise",
        checksum=None,
        image_size=8,
        flips=False,
        count=images,
        shard_size=SHARD,
        fingerprint="",
    )
    shards.claim(root, encoding)
    number = -(-images // SHARD)
    for shard in range(number):
        shards.write_shard(root, shard, [torch.randn(len(encoding.indices(shard)), *VIEW)], VIEW)
    shards.write_index(root, encoding, number, ["thing"], [np.zeros(images, np.int64)], (4, 1, 1))
    return root


def reader(store: LatentStore) -> Work:
    """Reads the next sixteen batches."""
    size, steps = len(store.labels), iter(range(10**6))

    def read() -> None:
        for _ in range(16):
            store.read(batch_indices(next(steps), size, BATCH, 0), np.zeros(BATCH, bool))

    return read


def by_data(sizes: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Seconds a latent, by latents of the store."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        works = {
            size: reader(LatentStore(make_store(Path(folder) / str(size), size))) for size in sizes
        }
        return {size: took / (16 * BATCH) for size, took in timed(works, 4 * rounds, cpu).items()}


# -- pictures --------------------------------------------------------------------------------------------------------


def draw(found: dict[str, dict[int, float]]) -> Image.Image:
    """Microseconds of one, by how many there are."""
    labels = {
        "tokens": ("tokens of an image", "µs a token of a step"),
        "batch": ("images a step", "µs an image"),
        "data": ("latents in the store", "µs a latent read"),
    }
    figure = new_figure(9.6, 3.2)
    for place, (what, (across, up)) in enumerate(labels.items(), start=1):
        axis = new_axis(figure, across, (1, 3, place))
        axis.plot(
            list(found[what]),
            [1e6 * took for took in found[what].values()],
            marker="o",
            markersize=4,
        )
        axis.set_xscale("log", base=10 if what == "data" else 2)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(up)
    return to_image(figure)


def main() -> None:
    """Measure, draw, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="DiT-S", help="without its patch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tiny", action="store_true", help="few and small sizes, to see that all works"
    )
    parser.add_argument(
        "--record", action="store_true", help="write benchmarks/results/ and docs/images/growth.png"
    )
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    many = device.type == "cuda"
    sides = (8, 16) if args.tiny else (16, 32, 64, 128)
    batches = (1, 2) if args.tiny else tuple(2**n for n in range(11 if many else 7))
    sizes = (1000, 10_000) if args.tiny else tuple(10**n for n in range(3, 8))
    measures: dict[str, Callable[[], dict[int, float]]] = {
        "tokens": partial(by_tokens, args.model, sides, args.rounds, device),
        "batch": partial(by_batch, args.model, batches, args.rounds, device),
        "data": partial(by_data, sizes, args.rounds),
    }
    found: dict[str, Any] = {}
    for what, measure in measures.items():
        found[what] = measure()
        print(
            "\n".join(
                f"{what} {size:>10,}: {1e6 * took:10.2f} µs" for size, took in found[what].items()
            ),
            flush=True,
        )
    if args.record:
        draw(found).save(PICTURE)
        print(
            record(
                "growth", shlex.join(["python", "-m", "benchmarks.growth", *sys.argv[1:]]), found
            )
        )


if __name__ == "__main__":
    main()
