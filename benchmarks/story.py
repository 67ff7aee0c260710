"""The road from DDPM to DiT on handwritten digits: every step with the same data, budget, seeds and evaluator.

    python -m benchmarks.story [--out runs/story] [--train-steps 400] [--num-samples 500] [--record]

Each step is the command a user would type; what is done already is not done again. It prints the tables of
docs/story.md and draws OUT/story.png; with --record both go into docs/ and the figures into benchmarks/results/.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from benchmarks import conditioning
from benchmarks.experiments import Lab, claim, perform
from benchmarks.record import record
from dit.evaluation.inputs.images import read_images
from dit.utils import pictures

QUICK = "--sampler dpmpp_2m --steps 16"
DOCS = Path("docs")
SHOWN = 20  # images of each step in the picture


class Step(NamedTuple):
    """One row: a trained run, and how it is sampled."""

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
"""Flags of `dit train` for each run, besides those of the ablation; all others stay at their defaults."""

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
        "cfg": Step("classifier-free, scale 1.5", "adaln-zero", QUICK + " --cfg-scale 1.5"),
        "interval": Step(
            "classifier-free, scale 1.5, times 0.1 – 0.8",
            "adaln-zero",
            QUICK + " --cfg-scale 1.5 --cfg-interval 0.1 0.8",
        ),
        "autoguidance": Step(
            "autoguidance, scale 1.5", "adaln-zero", QUICK + " --cfg-scale 1.5 --guide {root}/guide"
        ),
    },
    "latents": {
        "pixels": Step("pixels, 3 x 32 x 32", "pixels", QUICK + " --cfg-scale 1.5"),
        "cfg": Step("KL latents, 4 x 8 x 8", "adaln-zero", QUICK + " --cfg-scale 1.5"),
        "vq": Step("VQ latents, 4 x 8 x 8", "vq", QUICK + " --cfg-scale 1.5"),
    },
}


def tell(lab: Lab, vae_steps: int) -> dict[str, Any]:
    """Do every step: `steps`, the scores of each by its name; `trade`, the sweep over classifier scales; `bits`."""
    conditioning.ablate(lab)
    stage = lab.root / "vae-vq"
    command = f"dit train-vae --kind vq --data digits --steps {vae_steps}"
    if not (claim(lab.root / "vae-vq.txt", command) and (stage / "config.json").exists()):
        perform(f"{command} --out {stage}")
    for name, flags in RUNS.items():
        lab.trained(name, f"{flags} --sample-every 0")
    lab.trained("guide", "--sample-every 0", steps=max(1, lab.steps // 4))
    lab.trained("classifier", f"--run {lab.root}/adaln-zero", command="train-classifier")
    steps = {key: step for chapter in CHAPTERS.values() for key, step in chapter.items()}
    found = {key: lab.scored(key, lab.root / step.run, step.flags) for key, step in steps.items()}
    trade = lab.root / "trade"
    perform(
        f"dit sweep --run {lab.root}/adaln-zero --classifier {lab.root}/classifier --classifier-scale 0,1,2,4,8 "
        f"--cfg-scale 1 {QUICK} --num-samples {lab.samples} --out {trade}"
    )
    bits = lab.root / "nll.json"
    if not bits.exists():
        perform(f"dit nll --run {lab.root}/pixels --num-images 100 --out {bits}")
    points = json.loads((trade / "sweep.json").read_text())["points"]
    return {"steps": found, "trade": points, "bits": json.loads(bits.read_text())}


# -- tables ------------------------------------------------------------------------------------------------------


def table(chapter: dict[str, Step], found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each step."""
    lines = [
        "| | FD | 95% | precision | recall | recognised | network calls | sampling, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, step in chapter.items():
        row = found[key]
        scores = row["report"]["scores"]
        low, high = scores["FD(digits-cnn)"]["interval"]
        numbers = [
            f"{scores['FD(digits-cnn)']['value']:.2f}",
            f"{low:.2f} – {high:.2f}",
            *(f"{scores[f'{name}(digits-cnn)']['value']:.2f}" for name in ("precision", "recall")),
            f"{100 * recognised(row):.1f}%",
            str(row["calls"]),
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {step.title} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def recognised(row: dict[str, Any]) -> float:
    """Share of samples in which an SVM sees the digit that was asked for."""
    return row["report"]["digits_recognised"]["found"]["accuracy"]


def floor(found: dict[str, dict[str, Any]]) -> str:
    """Real against real, in words."""
    score = next(iter(found.values()))["report"]["scores"]["FD(digits-cnn)"]
    low, high, splits = (score["floor"][key] for key in ("low", "high", "splits"))
    return f"FD of {score['samples']} real digits from the others: {low:.2f} – {high:.2f} ({splits} splits)."


def trade_table(points: list[dict[str, Any]]) -> str:
    """Markdown: a line for each scale of the classifier's gradient."""
    names = ["FD", "precision", "recall", "IS"]
    lines = [f"| classifier scale | {' | '.join(names)} |", "|---|---|---|---|---|"]
    for point in sorted(points, key=lambda point: point["classifier_scale"]):
        values = [f"{point['scores'][f'{name}(digits-cnn)']:.2f}" for name in names]
        lines.append(f"| {point['classifier_scale']:g} | {' | '.join(values)} |")
    return "\n".join(lines)


def bits_line(bits: dict[str, Any]) -> str:
    """The likelihood in a sentence."""
    mean, error = bits["bits_per_dim"], bits["standard_error"]
    return (
        f"The pixel model needs {mean:.2f} ± {error:.2f} bits a value for 100 of its training images, "
        "by the probability-flow ODE (`dit nll`)."
    )


def write_tables(tables: dict[str, str], file: Path) -> None:
    """Put each table between its marks in a Markdown file."""
    text = file.read_text()
    for name, lines in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(text), f"no place for the table {name} in {file}"
        text = pattern.sub(lambda match, lines=lines: f"{match[1]}{lines}\n{match[2]}", text)
    file.write_text(text)


def draw(lab: Lab) -> Image.Image:
    """The first samples of every step, a row each, by its short name: the same seeds and classes."""
    steps = list(dict.fromkeys(key for chapter in CHAPTERS.values() for key in chapter))
    rows = [read_images(lab.root / "samples" / key).stack(range(SHOWN)) for key in steps]
    return pictures.grid(torch.cat(rows), steps, SHOWN)


def main() -> None:
    """Tell the story."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/story"), help="folder of all experiments"
    )
    parser.add_argument(
        "--train-steps", type=int, default=400, help="optimizer steps of each training"
    )
    parser.add_argument(
        "--vae-steps", type=int, default=1200, help="optimizer steps of the VQ first stage"
    )
    parser.add_argument("--num-samples", type=int, default=500, help="samples behind each score")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write tables, pictures and figures into the repository",
    )
    args = parser.parse_args()
    lab = Lab(args.out, args.train_steps, args.num_samples)
    told = tell(lab, args.vae_steps)
    tables = {
        "floor": floor(told["steps"]),
        "trade": trade_table(told["trade"]),
        "bits": bits_line(told["bits"]),
        **{name: table(chapter, told["steps"]) for name, chapter in CHAPTERS.items()},
    }
    picture = draw(lab)
    picture.save(args.out / "story.png")
    print("\n\n".join(f"{name}\n{lines}" for name, lines in tables.items()))
    print(args.out / "story.png")
    if args.record:
        write_tables(tables, DOCS / "story.md")
        picture.save(DOCS / "images" / "story.png")
        conditioning.draw(conditioning.ablate(lab)).save(conditioning.PICTURE)
        shutil.copy(
            args.out / "trade" / "fd-against-classifier.png",
            DOCS / "images" / "classifier-scales.png",
        )
        print(
            record("story", shlex.join(["python", "-m", "benchmarks.story", *sys.argv[1:]]), told)
        )


if __name__ == "__main__":
    main()
