"""How few network calls are enough: quality and speed of sampling on digits, against 250 steps of the same model.

    python -m benchmarks.sampling_speed [--out runs/sampling-speed] [--train-steps 560] [--num-samples 2000] [--record]

Two models that differ in their process alone, a DDPM and flow matching, are trained as quickstart does. Each row is
`dit sample` and `dit evaluate` as a user would type them, from the same seeds; seconds are for all images, loading the
run included. With block cache 2 or 3 the middle blocks of the network compute in one of so many calls.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.experiments import Lab
from benchmarks.record import record

RUNS = {"ddpm": "--process linear --objective eps", "flow": ""}
SETTINGS = {
    "ddpm": [
        "--sampler ddpm --steps 250",
        "--sampler ddpm --steps 100",
        "--sampler ddim --steps 50",
        "--sampler dpmpp_2m --steps 25",
        "--sampler dpmpp_2m --steps 16 --spacing cosine",
        "--sampler dpmpp_2m --steps 16 --spacing cosine --block-cache 2",
    ],
    "flow": [
        "--sampler euler --steps 250",
        "--sampler dpmpp_2m --steps 50",
        "--sampler dpmpp_2m --steps 25",
        "--sampler dpmpp_2m --steps 25 --block-cache 2",
        "--sampler dpmpp_2m --steps 16",
        "--sampler dpmpp_2m --steps 16 --spacing cosine",
        "--sampler dpmpp_2m --steps 16 --spacing cosine --block-cache 2",
        "--sampler dpmpp_2m --steps 16 --spacing cosine --block-cache 3",
        "--sampler dpmpp_2m --steps 12 --spacing cosine",
        "--sampler dpmpp_2m --steps 12 --spacing cosine --block-cache 2",
        "--sampler dpmpp_2m --steps 8 --spacing cosine",
        "--sampler heun --steps 6 --spacing cosine",
    ],
}
"""The first of each is what the others are compared with."""
DISTANCE = "FD(digits-cnn)"


def rows_of(lab: Lab) -> list[dict[str, Any]]:
    """Every setting of every run, scored."""
    rows = []
    for name, flags in RUNS.items():
        run = lab.trained(name, f"{flags} --sample-every 0".strip())
        found = [
            lab.scored(f"{name}-{i}", run, setting) for i, setting in enumerate(SETTINGS[name])
        ]
        for setting, one in zip(SETTINGS[name], found, strict=True):
            score = one["report"]["scores"][DISTANCE]
            rows.append(
                {
                    "run": name,
                    "setting": setting,
                    "calls": one["calls"],
                    "seconds": one["seconds"],
                    "faster": found[0]["seconds"] / one["seconds"],
                    "distance": score["value"],
                    "interval": score["interval"],
                    "change": score["value"] / found[0]["report"]["scores"][DISTANCE]["value"] - 1,
                }
            )
    return rows


def tell(row: dict[str, Any]) -> str:
    """As a line of a Markdown table."""
    low, high = row["interval"]
    return (
        f"| {row['run']} | `{row['setting']}` | {row['calls']} | {row['seconds']:.1f} | {row['faster']:.1f} | "
        f"{row['distance']:.2f} ({low:.2f} – {high:.2f}) | {row['change']:+.1%} |"
    )


def main() -> None:
    """Train, sample, score, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sampling-speed"), help="folder of all experiments"
    )
    parser.add_argument(
        "--train-steps", type=int, default=560, help="optimizer steps of each model"
    )
    parser.add_argument("--num-samples", type=int, default=2000, help="samples behind each score")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    rows = rows_of(Lab(args.out, args.train_steps, args.num_samples))
    print(
        "| process | sampling | network calls | seconds | times faster | FD (95%) | change |",
        "|---|---|---|---|---|---|---|",
        *map(tell, rows),
        sep="\n",
    )
    if args.record:
        print(
            record(
                "sampling-speed",
                shlex.join(["python", "-m", "benchmarks.sampling_speed", *sys.argv[1:]]),
                rows,
            )
        )


if __name__ == "__main__":
    main()
