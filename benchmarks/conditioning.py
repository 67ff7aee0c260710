"""The four conditionings of 2212.09748 on digits, with one budget: curves of the loss and of the Fréchet distance.

    python -m benchmarks.conditioning [--out runs/story] [--train-steps 400] [--record]

Interrupted, it goes on where it was. It writes OUT/conditioning.png, with --record also docs/images/conditioning.png.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.experiments import Lab
from benchmarks.record import record
from dit.models.registry import create_model, multiply_adds, parameters
from dit.runs.metrics import read_metrics

VARIANTS = ("in-context", "cross-attention", "adaln", "adaln-zero")
SHAPE = dict(input_size=8, in_channels=4, num_classes=10)
DISTANCE = "FD(digits-cnn)"
SCORES = 4  # over the training
TICKS = {"loss": (0.5, 0.7, 1, 1.5), "distance": (1, 2, 5, 10, 20)}
PICTURE = Path("docs/images/conditioning.png")


def ablate(lab: Lab) -> dict[str, dict[str, Any]]:
    """Train all four; what each costs and logged."""
    flags = (
        f"--eval-every {max(1, lab.steps // SCORES)} --eval-samples {lab.samples} --sample-every 0"
    )
    found = {}
    for name in VARIANTS:
        run = lab.trained(name, f"--conditioning {name} {flags}")
        lines = read_metrics(run / "metrics.jsonl")
        found[name] = {
            "parameters": parameters(create_model("DiT-Ti/2", conditioning=name, **SHAPE)),
            "multiply_adds": multiply_adds("DiT-Ti/2", conditioning=name, **SHAPE),
            "loss": [(line["step"], line["loss"]) for line in lines if "loss" in line],
            "distance": [(line["step"], line[DISTANCE]) for line in lines if DISTANCE in line],
        }
    return found


def draw(found: dict[str, dict[str, Any]]) -> Image.Image:
    """Both curves of all four, side by side."""
    from dit.report.figures import new_axis, new_figure, to_image

    figure = new_figure(9.0, 3.4)
    for place, (what, label) in enumerate(
        {"loss": "training loss", "distance": DISTANCE}.items(), start=1
    ):
        axis = new_axis(figure, "step", (1, 2, place))
        for name, values in found.items():
            axis.plot(
                *zip(*values[what], strict=True),
                label=name,
                marker="o" if what == "distance" else None,
                markersize=3,
                linewidth=1.2,
            )
        axis.set_yscale("log")
        axis.set_yticks(TICKS[what], [f"{tick:g}" for tick in TICKS[what]])
        axis.minorticks_off()
        axis.set_ylabel(label)
    axis.legend(frameon=False, fontsize=8)
    return to_image(figure)


def main() -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/story"), help="folder of the runs")
    parser.add_argument("--train-steps", type=int, default=400, help="optimizer steps of each")
    parser.add_argument("--num-samples", type=int, default=500, help="samples behind each distance")
    parser.add_argument(
        "--record", action="store_true", help="write figures and picture into the repository"
    )
    args = parser.parse_args()
    found = ablate(Lab(args.out, args.train_steps, args.num_samples))
    picture = draw(found)
    picture.save(args.out / "conditioning.png")
    print(
        f"\n{'conditioning':<18}{'parameters':>12}{'M mult-adds':>14}{'last loss':>12}{DISTANCE:>16}"
    )
    for name, values in found.items():
        print(
            f"{name:<18}{values['parameters']:>12,}{values['multiply_adds'] / 1e6:>14.1f}"
            f"{values['loss'][-1][1]:>12.4f}{values['distance'][-1][1]:>16.3f}"
        )
    print(args.out / "conditioning.png")
    if args.record:
        picture.save(PICTURE)
        print(
            record(
                "conditioning",
                shlex.join(["python", "-m", "benchmarks.conditioning", *sys.argv[1:]]),
                found,
            )
        )


if __name__ == "__main__":
    main()
