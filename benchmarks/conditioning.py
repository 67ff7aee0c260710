"""The four conditioning methods of 2212.09748 on digits: curves of loss and Fréchet distance.

    python -m benchmarks.conditioning [--out runs/story] [--train-steps 400] [--record]

All have the same budget. An interrupted run continues where it stopped. Writes
OUT/conditioning.png, with --record also docs/images/conditioning.png.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.arguments import experiment_parser, typed_command
from benchmarks.experiments import Lab
from benchmarks.record import record
from dit.models.registry import count_parameters, create_model, multiply_adds
from dit.runs.logs import read_metrics

VARIANTS = ("in-context", "cross-attention", "adaln", "adaln-zero")
SHAPE = dict(input_size=8, in_channels=4, num_classes=10)
DISTANCE = "FD(digits-cnn)"
EVALUATIONS = 4  # during each training
CURVES = {"loss": "training loss", "distance": DISTANCE}
TICKS = {"loss": (0.5, 0.7, 1, 1.5), "distance": (1, 2, 5, 10, 20)}
PICTURE = Path("docs/images/conditioning.png")


def ablate(lab: Lab) -> dict[str, dict[str, Any]]:
    """Train all four; return parameters, multiply-adds and both curves of each."""
    every = max(1, lab.steps // EVALUATIONS)
    flags = f"--eval-every {every} --eval-samples {lab.samples} --sample-every 0"
    results = {}
    for name in VARIANTS:
        run = lab.trained(name, f"--conditioning {name} {flags}")
        lines = read_metrics(run / "metrics.jsonl")
        results[name] = {
            "parameters": count_parameters(create_model("DiT-Ti/2", conditioning=name, **SHAPE)),
            "multiply_adds": multiply_adds("DiT-Ti/2", conditioning=name, **SHAPE),
            "loss": [(line["step"], line["loss"]) for line in lines if "loss" in line],
            "distance": [(line["step"], line[DISTANCE]) for line in lines if DISTANCE in line],
        }
    return results


def draw(results: dict[str, dict[str, Any]]) -> Image.Image:
    """Return both curves of all four, side by side."""
    from dit.report.figures import new_axis, new_figure, to_image

    figure = new_figure(9.0, 3.4)
    for position, (curve, label) in enumerate(CURVES.items(), start=1):
        axis = new_axis(figure, "step", (1, 2, position))
        for name, values in results.items():
            steps, heights = zip(*values[curve], strict=True)
            marker = "o" if curve == "distance" else None
            axis.plot(steps, heights, label=name, marker=marker, markersize=3, linewidth=1.2)

        axis.set_yscale("log")
        axis.set_yticks(TICKS[curve], [f"{tick:g}" for tick in TICKS[curve]])
        axis.minorticks_off()
        axis.set_ylabel(label)

    axis.legend(frameon=False, fontsize=8)
    return to_image(figure)


def main() -> None:
    """Train, draw and print."""
    out = Path("runs/story")
    args = experiment_parser(__doc__, out=out, train_steps=400, num_samples=500).parse_args()
    results = ablate(Lab(args.out, args.train_steps, args.num_samples))
    picture = draw(results)
    picture.save(args.out / "conditioning.png")

    heads = f"{'parameters':>12}{'M mult-adds':>14}{'last loss':>12}{DISTANCE:>16}"
    print(f"\n{'conditioning':<18}{heads}")
    for name, values in results.items():
        print(
            f"{name:<18}{values['parameters']:>12,}{values['multiply_adds'] / 1e6:>14.1f}"
            f"{values['loss'][-1][1]:>12.4f}{values['distance'][-1][1]:>16.3f}"
        )
    print(args.out / "conditioning.png")

    if args.record:
        picture.save(PICTURE)
        print(record("conditioning", typed_command(), results))


if __name__ == "__main__":
    main()
