"""From DDPM to DiT on handwritten digits, one step at a time.

    python -m benchmarks.story [--out runs/story] [--train-steps 400] [--num-samples 500] [--record]

Every step has the same data, budget, seeds and evaluator, and is the command that a user would
type. Finished steps are not repeated. It prints the tables of docs/story.md and draws
OUT/story.png; with --record both go into docs/ and the figures into benchmarks/results/.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from benchmarks import conditioning
from benchmarks.arguments import experiment_parser, typed_command
from benchmarks.experiments import Lab, claim, perform
from benchmarks.record import record
from dit.evaluation.inputs.images import read_images
from dit.utils import pictures

QUICK = "--sampler dpmpp_2m --steps 16"
GUIDED = f"{QUICK} --cfg-scale 1.5"
DOCS = Path("docs")
SHOWN = 20  # images of each step in the picture


class Step(NamedTuple):
    """A row of a table: a trained run, and how it is sampled."""

    title: str
    run: str
    flags: str


RUNS = {
    "unet": "--model UNet-S --process linear --objective eps",
    "ddpm": "--process linear --objective eps",
    "iddpm": "--process cosine --objective eps --learn-sigma",
    "seed-1": "--seed 1",
    "pixels": "--vae identity --model DiT-Ti/8",
    "vq": "--vae {root}/vae-vq",
    "text": "--conditioning text",
}
"""Flags of `dit train` for each run besides those of the ablation; the rest are defaults."""

CHAPTERS: dict[str, dict[str, Step]] = {
    "samplers": {
        "ddpm-1000": Step("DDPM, 1000 steps", "ddpm", "--sampler ddpm --steps 1000"),
        "ddim-50": Step("DDIM, 50 steps", "ddpm", "--sampler ddim --steps 50"),
        "dpmpp-15": Step("DPM-Solver++(2M), 15 steps", "ddpm", "--sampler dpmpp_2m --steps 15"),
        "iddpm-50": Step(
            "Improved DDPM, strided to 50 steps", "iddpm", "--sampler ddpm --steps 50"
        ),
        "flow-heun": Step(
            "Flow matching, Heun, 12 steps", "adaln-zero", "--sampler heun --steps 12"
        ),
        "flow": Step("Flow matching, DPM-Solver++(2M), 16 steps", "adaln-zero", QUICK),
    },
    "networks": {
        "unet": Step("U-Net, DDIM, 50 steps", "unet", "--sampler ddim --steps 50"),
        "ddim-50": Step("DiT, DDIM, 50 steps", "ddpm", "--sampler ddim --steps 50"),
    },
    "conditioning": {
        "in-context": Step("in-context", "in-context", QUICK),
        "cross-attention": Step("cross-attention", "cross-attention", QUICK),
        "adaln": Step("adaLN", "adaln", QUICK),
        "flow": Step("adaLN-Zero", "adaln-zero", QUICK),
        "seed-1": Step("adaLN-Zero, another training seed", "seed-1", QUICK),
        "text": Step("captions, by cross-attention", "text", QUICK),
    },
    "guidance": {
        "flow": Step("none", "adaln-zero", QUICK),
        "classifier": Step(
            "classifier, scale 2",
            "adaln-zero",
            QUICK + " --classifier {root}/classifier --classifier-scale 2",
        ),
        "cfg": Step("classifier-free, scale 1.5", "adaln-zero", GUIDED),
        "interval": Step(
            "classifier-free, scale 1.5, times 0.1 – 0.8",
            "adaln-zero",
            GUIDED + " --cfg-interval 0.1 0.8",
        ),
        "autoguidance": Step(
            "autoguidance, scale 1.5", "adaln-zero", GUIDED + " --guide {root}/guide"
        ),
    },
    "latents": {
        "pixels": Step("pixels, 3 x 32 x 32", "pixels", GUIDED),
        "cfg": Step("KL latents, 4 x 8 x 8", "adaln-zero", GUIDED),
        "vq": Step("VQ latents, 4 x 8 x 8", "vq", GUIDED),
    },
}


def run_all(lab: Lab, vae_steps: int) -> dict[str, Any]:
    """Do every step.

    Returns `steps`, the scores of each by its name; `trade`, the sweep over classifier scales;
    `bits`, the likelihood.
    """
    conditioning.ablate(lab)
    train_vae(lab.root, vae_steps)
    for name, flags in RUNS.items():
        lab.trained(name, f"{flags} --sample-every 0")
    lab.trained("guide", "--sample-every 0", steps=max(1, lab.steps // 4))
    lab.trained("classifier", f"--run {lab.root}/adaln-zero", command="train-classifier")

    steps = {key: step for chapter in CHAPTERS.values() for key, step in chapter.items()}
    scores = {key: lab.scored(key, lab.root / step.run, step.flags) for key, step in steps.items()}

    trade = lab.root / "trade"
    perform(
        f"dit sweep --run {lab.root}/adaln-zero --classifier {lab.root}/classifier "
        f"--classifier-scale 0,1,2,4,8 --cfg-scale 1 {QUICK} "
        f"--num-samples {lab.samples} --out {trade}"
    )
    points = json.loads((trade / "sweep.json").read_text())["points"]

    bits = lab.root / "nll.json"
    if not bits.exists():
        perform(f"dit nll --run {lab.root}/pixels --num-images 100 --out {bits}")
    return {"steps": scores, "trade": points, "bits": json.loads(bits.read_text())}


def train_vae(root: Path, steps: int) -> None:
    """Train the VQ autoencoder, or go on where that was stopped."""
    out = root / "vae-vq"
    command = f"dit train-vae --kind vq --data digits --steps {steps}"
    if not (claim(root / "vae-vq.txt", command) and (out / "config.json").exists()):
        perform(f"{command} --out {out} --resume auto")


# -- tables ------------------------------------------------------------------------------------


def steps_table(chapter: dict[str, Step], results: dict[str, dict[str, Any]]) -> str:
    """Return Markdown with a line for each step."""
    lines = [
        "| | FD | 95% | precision | recall | recognised | network calls | sampling, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, step in chapter.items():
        row = results[key]
        scores = row["report"]["scores"]
        distance = scores["FD(digits-cnn)"]
        low, high = distance["interval"]
        # share of samples in which an SVM sees the digit that was asked for
        recognised = row["report"]["digits_recognised"]["found"]["accuracy"]
        lines.append(
            f"| {step.title} | {distance['value']:.2f} | {low:.2f} – {high:.2f} "
            f"| {scores['precision(digits-cnn)']['value']:.2f} "
            f"| {scores['recall(digits-cnn)']['value']:.2f} "
            f"| {recognised:.1%} | {row['calls']} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def real_vs_real(results: dict[str, dict[str, Any]]) -> str:
    """Return a sentence with the distance of real digits from real digits."""
    score = next(iter(results.values()))["report"]["scores"]["FD(digits-cnn)"]
    real = score["floor"]
    return (
        f"FD of {score['samples']} real digits from the others: "
        f"{real['low']:.2f} – {real['high']:.2f} ({real['splits']} splits)."
    )


def trade_table(points: list[dict[str, Any]]) -> str:
    """Return Markdown with a line for each scale of the classifier's gradient."""
    names = ["FD", "precision", "recall", "IS"]
    lines = [f"| classifier scale | {' | '.join(names)} |", "|---|---|---|---|---|"]
    for point in sorted(points, key=lambda point: point["classifier_scale"]):
        values = [f"{point['scores'][f'{name}(digits-cnn)']:.2f}" for name in names]
        lines.append(f"| {point['classifier_scale']:g} | {' | '.join(values)} |")
    return "\n".join(lines)


def bits_line(bits: dict[str, Any]) -> str:
    """Return a sentence with the likelihood."""
    mean = bits["bits_per_dim"]
    error = bits["standard_error"]
    return (
        f"The pixel model needs {mean:.2f} ± {error:.2f} bits a value for 100 of its training "
        "images, by the probability-flow ODE (`dit nll`)."
    )


def write_tables(tables: dict[str, str], file: Path) -> None:
    """Replace each table between its markers in a Markdown file."""
    text = file.read_text()
    for name, lines in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(text), f"no marker of the table {name} in {file}"
        text = pattern.sub(lambda match, lines=lines: f"{match[1]}{lines}\n{match[2]}", text)
    file.write_text(text)


def draw(lab: Lab) -> Image.Image:
    """Return the first samples of every step, a row each: the same seeds and classes."""
    steps = list(dict.fromkeys(key for chapter in CHAPTERS.values() for key in chapter))
    rows = [read_images(lab.root / "samples" / key).stack(range(SHOWN)) for key in steps]
    return pictures.grid(torch.cat(rows), steps, SHOWN)


def main() -> None:
    """Do every step, then print and draw the results."""
    out = Path("runs/story")
    parser = experiment_parser(__doc__, out=out, train_steps=400, num_samples=500)
    parser.add_argument(
        "--vae-steps", type=int, default=1200, help="optimizer steps of the VQ first stage"
    )
    args = parser.parse_args()

    lab = Lab(args.out, args.train_steps, args.num_samples)
    results = run_all(lab, args.vae_steps)
    tables = {
        "floor": real_vs_real(results["steps"]),
        "trade": trade_table(results["trade"]),
        "bits": bits_line(results["bits"]),
    }
    for name, chapter in CHAPTERS.items():
        tables[name] = steps_table(chapter, results["steps"])
    picture = draw(lab)
    picture.save(args.out / "story.png")

    print("\n\n".join(f"{name}\n{lines}" for name, lines in tables.items()))
    print(args.out / "story.png")

    if args.record:
        images = DOCS / "images"
        write_tables(tables, DOCS / "story.md")
        picture.save(images / "story.png")
        conditioning.draw(conditioning.ablate(lab)).save(conditioning.PICTURE)
        scales = args.out / "trade" / "fd-against-classifier.png"
        shutil.copy(scales, images / "classifier-scales.png")
        print(record("story", typed_command(), results))


if __name__ == "__main__":
    main()
