"""Quality and speed of sampling on digits in few network calls, relative to 250 steps.

    python -m benchmarks.sampling_speed [--out runs/sampling-speed] [--train-steps 560]
        [--num-samples 2000] [--record]

Two models that differ only in their process, a DDPM and flow matching, are trained as quickstart
does. Each row is `dit sample` and `dit evaluate` as a user would type them, from the same seeds.
Seconds are for all images, including loading the run. With block cache N, the middle blocks of the
network are computed in one of N calls.
"""

from pathlib import Path
from typing import Any

from benchmarks.arguments import experiment_parser, typed_command
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
"""Rows of each run; the first is the baseline of the others."""
DISTANCE = "FD(digits-cnn)"


def measure_rows(lab: Lab) -> list[dict[str, Any]]:
    """Return every setting of every run, scored."""
    rows = []
    for name, flags in RUNS.items():
        run = lab.trained(name, f"{flags} --sample-every 0".strip())
        baseline = None
        for i, setting in enumerate(SETTINGS[name]):
            result = lab.scored(f"{name}-{i}", run, setting)
            score = result["report"]["scores"][DISTANCE]
            row = {
                "run": name,
                "setting": setting,
                "calls": result["calls"],
                "seconds": result["seconds"],
                "distance": score["value"],
                "interval": score["interval"],
            }
            baseline = baseline or row
            row["faster"] = baseline["seconds"] / row["seconds"]
            row["change"] = row["distance"] / baseline["distance"] - 1
            rows.append(row)
    return rows


def format_row(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return (
        f"| {row['run']} | `{row['setting']}` | {row['calls']} | {row['seconds']:.1f} "
        f"| {row['faster']:.1f} | {row['distance']:.2f} ({low:.2f} – {high:.2f}) "
        f"| {row['change']:+.1%} |"
    )


def main() -> None:
    """Train, sample, score, print and record."""
    out = Path("runs/sampling-speed")
    args = experiment_parser(__doc__, out=out, train_steps=560, num_samples=2000).parse_args()
    rows = measure_rows(Lab(args.out, args.train_steps, args.num_samples))

    print("| process | sampling | network calls | seconds | times faster | FD (95%) | change |")
    print("|---|---|---|---|---|---|---|")
    print(*map(format_row, rows), sep="\n")

    if args.record:
        print(record("sampling-speed", typed_command(), rows))


if __name__ == "__main__":
    main()
