"""Recipes side by side on small real images: Fréchet distance against seconds of training.

    python -m benchmarks.time_to_quality [--sets mnist-5k emoji-64] [--recipes 2022 flow ours]
        [--minutes 10] [--seeds 0 1] [--levers] [--record]

Each recipe trains alone for the same seconds, from the same latents, and is scored at tenths of the
budget by the same evaluator: the features of a small classifier of the set, which are never called
FID. Every step is a command that a user could type. An interrupted benchmark goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import image_sets, small_features
from benchmarks.arguments import new_parser, typed_command
from benchmarks.experiments import claim, done, perform
from benchmarks.record import record
from dit.runs.checkpoint_files import checkpoint_name
from dit.runs.logs import read_metrics

SETS = {"mnist-5k": 32, "emoji-64": 64}
"""Image sizes in pixels: digits of 28 px are enlarged to what the autoencoder halves twice."""
FIRST_STAGE = "--steps 1200 --channels 32 64 64 --latent-channels 4"
EXTRACTOR = "benchmarks.small_features:SmallFeatures"
COMMON = "--model DiT-Ti/2 --latent-norm data --sample-every 0 --keep 1"

RELEASE = (
    "--process linear --objective eps --learn-sigma --time-sampling uniform --lr 1e-4 "
    "--beta2 0.999 --warmup 0 --cooldown 0 --clip 0 --ema 0.9999 --global-batch-size 256"
)
FLOW = "--lr 2e-3 --global-batch-size 64"
LEVERS = {
    "modern": "--block modern",
    "tokens": "--conditioning tokens",
    "muon": "--optimizer muon",
    "route": "--route 0.5",
    "cosine": "--cosine 1",
    "shift": "--time-shift auto",
}
OURS = ("modern", "muon")  # a first guess: no lever is measured yet
RECIPES = ["2022", "flow", "ours"]
SAMPLING = {"2022": "--sampler ddpm --steps 250", "": "--sampler dpmpp_2m --steps 25"}
SCALES = (1.0, 1.25, 1.5, 2.0)
MARKS = (1, 2, 5, 10)  # tenths of the budget that are scored
CALIBRATION = 40  # steps


@dataclass(frozen=True)
class Bench:
    """One set of images, with a budget."""

    name: str
    root: Path
    minutes: float
    samples: int

    @property
    def folder(self) -> Path:
        """Everything of this set."""
        return self.root / self.name

    def prepare(self) -> None:
        """Make images, features, first stage and latents, each once."""
        images = image_sets.make(self.name)
        if not images.with_suffix(".safetensors").exists():
            small_features.learn(images)
        size = f"--image-size {SETS[self.name]}"
        vae, latents = self.folder / "vae", self.folder / "latents"
        if not (vae / "config.json").exists():
            perform(f"dit train-vae --data {images} {size} {FIRST_STAGE} --out {vae}")
        if not (latents / "index.json").exists():
            flips = "--flip" if self.name == "emoji-64" else "--no-flip"
            perform(f"dit encode --data {images} --vae {vae} {size} {flips} --out {latents}")

    def train(self, recipe: str, seed: int) -> Path:
        """Return the run of a recipe that trained for the budget."""
        run = self.folder / f"{recipe}-{seed}"
        flags = (
            f"--data {self.folder / 'latents'} --vae {self.folder / 'vae'} "
            f"--image-size {SETS[self.name]} {COMMON} {recipe_flags(recipe)}"
        )
        steps = self.steps_in_budget(recipe, flags)
        typed = f"dit train {flags} --seed {seed} --steps {steps}"
        if not (claim(run / ".command", typed) and done(run, steps)):
            every = max(1, steps // 10)
            marks = f"--ckpt-every {every} --keep-every {every} --log-every {every}"
            perform(f"{typed} {marks} --resume auto --out {run}")
        return run

    def steps_in_budget(self, recipe: str, flags: str) -> int:
        """Return the steps that a recipe does in the budget, by the speed of a short training."""
        run = self.folder / "speed" / recipe
        note = run / "speed.json"
        warm = f"--steps {CALIBRATION} --log-every {CALIBRATION // 2} --ckpt-every 0"
        typed = f"dit train {flags} {warm}"
        # the speed of other flags would be another budget
        if not (claim(run / ".command", typed) and note.exists()):
            perform(f"{typed} --resume auto --out {run}")
            # the second half: the first has warmed up
            seconds = training_seconds(run)[-1] / (CALIBRATION / 2)
            note.write_text(json.dumps({"seconds_per_step": seconds}))
        seconds = json.loads(note.read_text())["seconds_per_step"]
        return max(10, int(60 * self.minutes / seconds) // 10 * 10)

    def score(self, recipe: str, run: Path) -> list[dict[str, Any]]:
        """Return what a run reached at each mark, without guidance and at its best scale."""
        steps = read_metrics(run / "metrics.jsonl")[-1]["step"]
        sampling = SAMPLING.get(recipe, SAMPLING[""])
        scales = ",".join(f"{scale:g}" for scale in SCALES)
        rows = []
        for mark in MARKS:
            step = steps * mark // 10
            out = run / "scores" / str(step)
            checkpoint = run / "checkpoints" / checkpoint_name(step)
            if not (out / "sweep.json").exists():
                perform(
                    f"dit sweep --run {checkpoint} --cfg-scale {scales} {sampling} "
                    f"--reference data/{self.name} --crop --num-samples {self.samples} "
                    f"--extractor {EXTRACTOR} --weights data/{self.name}.safetensors "
                    f"--bootstrap 0 --out {out}"
                )
            rows.append(self.row(run, step, json.loads((out / "sweep.json").read_text())))
        return rows

    def row(self, run: Path, step: int, sweep: dict[str, Any]) -> dict[str, Any]:
        """Return the result of one mark."""
        lines = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= step]
        distances = {}
        for point in sweep["points"]:
            name = next(name for name in point["scores"] if name.startswith("FD("))
            distances[point["cfg_scale"]] = point["scores"][name]
        known = {scale: value for scale, value in distances.items() if value is not None}
        best = min(known, key=known.__getitem__, default=None)
        return {
            "step": step,
            "seconds": sum(seconds for seconds in training_seconds(run)[: len(lines)]),
            "distance": distances[1.0],
            "guided": None if best is None else known[best],
            "scale": best,
        }


def recipe_flags(recipe: str) -> str:
    """Return the flags of a recipe: 2022, flow, ours; flow+LEVER; ours-LEVER."""
    if recipe == "2022":
        return RELEASE
    levers: tuple[str, ...] = ()
    if recipe.startswith("ours"):
        levers = tuple(lever for lever in OURS if f"ours-{lever}" != recipe)
    elif recipe.startswith("flow+"):
        levers = (recipe.removeprefix("flow+"),)
    return " ".join([FLOW, *(LEVERS[lever] for lever in levers)])


def recipes_with_levers() -> Iterator[str]:
    """Yield a recipe for each lever alone on top of flow, and for each left out of ours."""
    for lever in LEVERS:
        yield f"flow+{lever}"
    for lever in OURS:
        yield f"ours-{lever}"


def training_seconds(run: Path) -> list[float]:
    """Return the seconds of training behind each line of a log."""
    seconds = []
    before = 0
    batch = json.loads((run / "config.json").read_text())["config"]["global_batch_size"]
    for line in read_metrics(run / "metrics.jsonl"):
        if "img_per_s" in line:
            seconds.append((line["step"] - before) * batch / line["img_per_s"])
            before = line["step"]
    return seconds


def draw(results: dict[str, dict[str, list[dict[str, Any]]]]) -> Image.Image:
    """Return the curves of all recipes: best distance against seconds, a panel a set."""
    from dit.report.figures import new_axis, new_figure, to_image

    figure = new_figure(5.0 * len(results), 3.6)
    for position, (name, curves) in enumerate(results.items(), start=1):
        axis = new_axis(figure, "seconds of training", (1, len(results), position))
        for recipe, rows in curves.items():
            seconds = [row["seconds"] for row in rows]
            axis.plot(seconds, [row["guided"] for row in rows], marker="o", label=recipe)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(name)
        axis.set_ylabel("Fréchet distance at the best scale")
        axis.legend(frameon=False, fontsize=8)
    return to_image(figure)


def main() -> None:
    """Train and score every recipe, print, draw."""
    parser = new_parser(__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/time-to-quality"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    known = [*RECIPES, *recipes_with_levers()]
    parser.add_argument("--recipes", nargs="+", choices=known, default=RECIPES)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--num-samples", type=int, default=1000, help="behind each score")
    parser.add_argument("--levers", action="store_true", help="also each alone and each left out")
    args = parser.parse_args()

    recipes = [*args.recipes, *(recipes_with_levers() if args.levers else ())]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in args.sets:
        bench = Bench(name, args.out, args.minutes, args.num_samples)
        bench.prepare()
        results[name] = {}
        for recipe in recipes:
            for seed in args.seeds:
                rows = bench.score(recipe, bench.train(recipe, seed))
                results[name][f"{recipe}, seed {seed}"] = rows
                for row in rows:
                    print(f"{name:<10}{recipe:<14}{seed:>3}", json.dumps(row))
    picture = draw(results)
    picture.save(args.out / "time-to-quality.png")
    print(args.out / "time-to-quality.png")
    if args.record:
        picture.save("docs/images/time-to-quality.png")
        print(record("time-to-quality", typed_command(), results))


if __name__ == "__main__":
    main()
