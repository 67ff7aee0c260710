"""What a checkpoint costs training: steps while one is written beside those while none is.

    python -m benchmarks.checkpoints [--model DiT-B/4] [--batch 32] [--rounds 3] [--folder DIR] [--record]

The trainer's own steps on random latents of 4x32x32 with 1,000 classes. In each round some steps are taken in peace,
then a checkpoint is saved as the loop saves it and steps go on until it is in its place. `in all` is everything of
these steps, the copy that training waits for included; `worst` is the step which that copy delays. Ratios are to the
median of steps in peace of the same round, so that a noisy machine disturbs both alike.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.memory import session_of
from benchmarks.record import record
from dit.distributed.ranks import Ranks
from dit.runs.checkpoints import latest_checkpoint
from dit.training.batches import read_batch
from dit.training.checkpointing import Saver
from dit.training.session import TrainingSession
from dit.training.trainer import take_step

PEACE = 6  # steps before each checkpoint


def measure(session: TrainingSession, rounds: int) -> list[dict[str, Any]]:
    """The figures of each round; the first step of all is not counted."""
    saver, steps = Saver(session.run, session.card, session.ranks), count(1)

    def step() -> float:
        number = next(steps)
        begin = time.perf_counter()
        take_step(session, read_batch(session.stream, number - 1), number)
        return time.perf_counter() - begin

    step()
    found = []
    for number in range(1, rounds + 1):
        peace = [step() for _ in range(PEACE)]
        begin = time.perf_counter()
        saver.save(number, session.state, session.ranks)
        copied = time.perf_counter() - begin
        during = [copied + step()]
        while saver.writing:
            during.append(step())
        saver.finish()
        normal = statistics.median(peace)
        found.append(
            {
                "step_s": normal,
                "copy_s": copied,
                "written_s": sum(during),
                "steps_meanwhile": len(during),
                "in_all": statistics.mean(during) / normal,
                "worst": max(during) / normal,
                "spread_in_peace": (max(peace) - min(peace)) / normal,
            }
        )
    return found


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="DiT-B/4")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where checkpoints are written meanwhile; unless given, where temporary files lie",
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        session = session_of(
            dict(model=args.model, batch=args.batch, precision="auto"), Ranks(), folder
        )
        session.run.mkdir()
        rounds = measure(session, args.rounds)
        written = latest_checkpoint(session.run)
        size = (
            sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
            if written
            else 0
        )
    print(f"{args.model}, {args.batch} images a step; a checkpoint has {size / 1e9:.2f} GB")
    for row in rounds:
        print(
            f"step {row['step_s']:.2f} s; copied in {row['copy_s']:.2f} s, in its place after "
            f"{row['written_s']:.1f} s and {row['steps_meanwhile']} steps, which took {row['in_all'] - 1:+.1%} "
            f"of one in peace (worst {row['worst'] - 1:+.1%}; spread in peace {row['spread_in_peace']:.1%})"
        )
    if args.record:
        command = shlex.join(["python", "-m", "benchmarks.checkpoints", *sys.argv[1:]])
        print(
            record(
                "checkpoints",
                command,
                {"model": args.model, "batch": args.batch, "bytes": size, "rounds": rounds},
            )
        )


if __name__ == "__main__":
    main()
