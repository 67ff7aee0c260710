"""Recipes side by side on small real images: Fréchet distance against seconds of training.

    python -m benchmarks.time_to_quality [--sets mnist-5k emoji-64] [--recipes 2022 flow ours]
        [--minutes 10] [--seeds 0 1] [--levers] [--record]

Which lever pays, by a row for each after as many steps, scored once:

    python -m benchmarks.time_to_quality --sets mnist-5k --recipes flow ours --levers --steps 246
        --marks 10 --scales 1 1.5 --record

Each recipe trains alone for the same seconds or steps, from the same latents, and is scored at
tenths of the budget by the same evaluator: the features of a small classifier of the set, which are
never called FID. `flow-third` has a third of the budget, `ours-fiftieth` a fiftieth. Every step is
a command that a user could type. An interrupted benchmark goes on where it was. Seconds are CPU
time on one core, so that other work on the machine counts only by what it shares, such as caches.
Speeds are therefore measured first, in turn.

What the comparison is not: the rate of `flow` was tuned on mnist-5k, while `2022` keeps the flags
of its release, made for trainings of weeks. Marks before the last are of one schedule: `flow` and
`ours` are scored there before their learning rate falls.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks import image_sets, small_features
from benchmarks.arguments import new_parser, typed_command
from benchmarks.experiments import claim, done, perform
from benchmarks.record import record
from dit.config import SamplerConfig
from dit.runs.checkpoint_files import checkpoint_name, find_weights
from dit.runs.logs import read_metrics
from dit.runs.weights import read_header
from dit.sampling.generate import generate
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.training.cost.flops import flops_per_image
from dit.utils import pictures

SETS = {"mnist-5k": 32, "emoji-64": 64}
"""Image sizes in pixels: digits of 28 px are enlarged to what the autoencoder halves twice."""
FIRST_STAGE = "--steps 600 --channels 16 32 64 --latent-channels 4"
EXTRACTOR = "benchmarks.small_features:SmallFeatures"
COMMON = "--preset digits --model DiT-Ti/2 --latent-norm data --sample-every 0 --keep 1"

RELEASE = (
    "--process linear --objective eps --learn-sigma --time-sampling uniform --lr 1e-4 "
    "--beta2 0.999 --warmup 0 --cooldown 0 --clip 0 --ema 0.9999 --batch-size 256"
)
FLOW = "--lr 4e-3 --batch-size 64"  # of 2e-3, 4e-3 and 8e-3 the best in 120 steps of mnist-5k
BLOCK_PARTS = ("rmsnorm", "rope", "qknorm", "swiglu")
LEVERS = {
    "modern": "--block modern",
    **{part: f"--block plain+{part}" for part in BLOCK_PARTS},
    "batch": "--batch-size 32",
    "tokens": "--conditioning tokens",
    "single": "--conditioning adaln-single",
    "muon": "--optimizer muon",
    "route": "--route 0.5",
    "x0": "--objective x0 --loss velocity",
    "cosine": "--cosine 1",
    "shift": "--time-shift auto",
    "align": "--align self",
    "inner": "--inner-head",
    "compile": "--compile",
    "micro": "--model DiT-Mi/2",
    "patch4": "--model DiT-Ti/4",
}
OURS = ("micro", "modern", "compile")
PARTS = {"-third": 3, "-fiftieth": 50}
"""Ends of the names of recipes that train for a part of the budget."""
RECIPES = ["2022", "flow", "flow-third", "ours", "ours-third", "ours-fiftieth"]
# few steps, to save time: the release samples in 250
SAMPLER = {"2022": "ddim"}
OTHER_SAMPLER, SAMPLING_STEPS = "dpmpp_2m", 10
SCALES = (1.0, 1.5, 2.0)
MARKS = (1, 2, 5, 10)  # tenths of the budget that are scored
LEAST_STEPS = 10  # of a training, which has ten marks
SHORT, LONG = 2, 32  # steps of two trainings that tell the speed
TURNS = 3  # that all recipes take when their speeds are measured
SHOWN = 18  # samples of each recipe that are drawn


Distances = dict[float, float | None]
"""Fréchet distances by the scale of guidance; None of a run that diverged."""


@dataclass(frozen=True)
class Bench:
    """One set of images, with a budget."""

    name: str
    root: Path
    minutes: float
    samples: int
    marks: Sequence[int] = MARKS
    scales: Sequence[float] = SCALES
    steps: int | None = None  # the budget, instead of minutes

    @property
    def folder(self) -> Path:
        """Everything of this set."""
        return self.root / self.name

    @property
    def budget(self) -> str:
        """The name of the budget."""
        return f"{self.minutes:g}-minutes" if self.steps is None else f"{self.steps}-steps"

    def prepare(self) -> None:
        """Make images, features, first stage and latents, each once."""
        images = image_sets.make(self.name)
        if not images.with_suffix(".safetensors").exists():
            small_features.learn(images)
        size = f"--image-size {SETS[self.name]}"
        vae, latents = self.folder / "vae", self.folder / "latents"
        if not (vae / "config.json").exists():
            perform(f"dit train-vae --data {images} {size} {FIRST_STAGE} --out {vae} --resume auto")
        if not (latents / "index.json").exists():
            flips = "--flip" if self.name == "emoji-64" else "--no-flip"
            perform(f"dit encode --data {images} --vae {vae} {size} {flips} --out {latents}")

    def flags(self, recipe: str) -> str:
        """Return the flags of a training."""
        return (
            f"--data {self.folder / 'latents'} --vae {self.folder / 'vae'} "
            f"--image-size {SETS[self.name]} {COMMON} {recipe_flags(recipe)}"
        )

    def run(self, recipe: str, seed: int) -> Path:
        """Return the folder of a training."""
        return self.folder / self.budget / f"{recipe}-{seed}"

    def train(self, recipe: str, seed: int) -> Path:
        """Return the run of a recipe that trained for the budget."""
        run = self.run(recipe, seed)
        flags = self.flags(recipe)
        steps = self.steps_in_budget(recipe)
        typed = f"dit train {flags} --seed {seed} --steps {steps}"
        if not (claim(run / ".command", typed) and done(run, steps)):
            every = steps // 10
            marks = f"--ckpt-every {every} --keep-every {every} --log-every {every}"
            perform(f"{typed} {marks} --resume auto --out {run}")
        return run

    def steps_in_budget(self, recipe: str) -> int:
        """Return the steps that a recipe does in the budget."""
        recipe, part = split_part(recipe)
        steps = self.steps
        if steps is None:
            steps = int(60 * self.minutes / self.seconds_per_step(recipe))
        return max(LEAST_STEPS, steps // part)

    def seconds_per_step(self, recipe: str) -> float:
        """Return the CPU seconds of a step, without start-up: what more steps take more."""
        self.measure_speeds([recipe])
        note = self.folder / "speed" / recipe / "speed.json"
        return float(json.loads(note.read_text())["seconds_per_step"])

    def measure_speeds(self, recipes: Sequence[str]) -> None:
        """Note the CPU seconds of a step of each recipe, unless they are noted.

        They take turns, so that what slows the machine for a while slows all of them. Those that
        will be compared belong into one call: notes are kept.
        """
        folders = {recipe: self.folder / "speed" / recipe for recipe in recipes}
        for recipe, folder in folders.items():
            # the speed of other flags would be another budget
            claim(folder / ".command", f"dit train {self.flags(recipe)}")
        new = [name for name, folder in folders.items() if not (folder / "speed.json").exists()]

        for recipe in new:
            self.cpu_seconds(recipe, SHORT)  # imports and compiles
        seconds: dict[str, list[float]] = {recipe: [] for recipe in new}
        for _ in range(TURNS):
            for recipe in new:
                more = self.cpu_seconds(recipe, LONG) - self.cpu_seconds(recipe, SHORT)
                seconds[recipe].append(more / (LONG - SHORT))

        for recipe in new:
            note = {"seconds_per_step": median(seconds[recipe]), "turns": seconds[recipe]}
            (folders[recipe] / "speed.json").write_text(json.dumps(note))

    def cpu_seconds(self, recipe: str, steps: int) -> float:
        """Return the CPU seconds of a training from its start."""
        run = self.folder / "speed" / recipe / str(steps)
        shutil.rmtree(run, ignore_errors=True)
        before = time.process_time()
        perform(f"dit train {self.flags(recipe)} --steps {steps} --ckpt-every 0 --out {run}")
        return time.process_time() - before

    def score(self, recipe: str, run: Path) -> list[dict[str, Any]]:
        """Return what a run reached at each mark, without guidance and at its best scale."""
        steps = read_metrics(run / "metrics.jsonl")[-1]["step"]
        rows = []
        for mark in self.marks[-1:] if split_part(recipe)[1] > 1 else self.marks:
            step = steps if mark == MARKS[-1] else steps // 10 * mark
            checkpoint = run / "checkpoints" / checkpoint_name(step)
            sampler, guide = sampler_of(recipe), guide_of(recipe)
            scored = distances(
                checkpoint, self.name, self.scales, self.samples, sampler, guide=guide
            )
            rows.append(self.row(recipe, run, step, *scored))
        return rows

    def row(
        self, recipe: str, run: Path, step: int, distances: Distances, floor: float
    ) -> dict[str, Any]:
        """Return the result of one mark."""
        card, _ = read_header(find_weights(run))
        images = step * card.config.global_batch_size
        known = {scale: value for scale, value in distances.items() if value is not None}
        best = min(known, key=known.__getitem__, default=None)
        return {
            "step": step,
            "seconds": step * self.seconds_per_step(split_part(recipe)[0]),
            "images": images,
            "flops": images * flops_per_image(card, step),
            "distance": distances.get(1.0),
            "guided": None if best is None else known[best],
            "scale": best,
            "floor": floor,
        }


def distances(
    checkpoint: Path,
    images: str,
    scales: Sequence[float],
    samples: int,
    sampler: str,
    steps: int = SAMPLING_STEPS,
    guide: str | None = None,
) -> tuple[Distances, float]:
    """Return the distance of samples of a checkpoint from a set, by scale, and that of real images.

    They are kept beside the checkpoint's run.
    """
    listed = ",".join(f"{scale:g}" for scale in scales)
    name = "-".join([checkpoint.name, sampler, str(steps), listed, *([guide] if guide else [])])
    out = checkpoint.parents[1] / "scores" / name
    if not (out / "sweep.json").exists():
        perform(
            f"dit sweep --run {checkpoint} --cfg-scale {listed} "
            f"--sampler {sampler} --steps {steps} "
            f"--reference data/{images} --crop --num-samples {samples} "
            f"--extractor {EXTRACTOR} --weights data/{images}.safetensors "
            f"--bootstrap 0 --out {out}" + (f" --guide {guide}" if guide else "")
        )
    sweep = json.loads((out / "sweep.json").read_text())
    score = next(name for name in sweep["floor"] if name.startswith("FD("))
    found = {point["cfg_scale"]: point["scores"][score] for point in sweep["points"]}
    return found, sweep["floor"][score]["mean"]


def split_part(recipe: str) -> tuple[str, int]:
    """Return a recipe of the whole budget, and the number of parts of which it has one."""
    for end, part in PARTS.items():
        if recipe.endswith(end):
            return recipe.removesuffix(end), part
    return recipe, 1


def sampler_of(recipe: str) -> str:
    """Return the sampler of a recipe, whatever part of the budget it has."""
    return SAMPLER.get(split_part(recipe)[0], OTHER_SAMPLER)


def guide_of(recipe: str) -> str | None:
    """Return what guides samples of a recipe; None: its null class."""
    return "internal" if "--inner-head" in recipe_flags(recipe) else None


def recipe_flags(recipe: str) -> str:
    """Return the flags of a recipe: 2022, flow, ours; with +LEVER; ours-LEVER; a part of any."""
    recipe, _ = split_part(recipe)
    if recipe == "2022":
        return RELEASE
    kind, _, more = recipe.partition("+")
    levers = [lever for lever in OURS if kind != "flow" and kind != f"ours-{lever}"]
    if more:
        levers.append(more)
    return " ".join([FLOW, *(LEVERS[lever] for lever in levers)])


def recipes_with_levers() -> Iterator[str]:
    """Yield a recipe for each lever alone on top of flow, and for each left out of ours."""
    yield from (f"flow+{lever}" for lever in LEVERS)
    yield from (f"ours-{lever}" for lever in OURS)


def known_recipes() -> list[str]:
    """Return all names of recipes that have the whole budget."""
    # these name a network or blocks, as ours does
    own = (*OURS, *BLOCK_PARTS, "patch4")
    more = [f"ours+{lever}" for lever in LEVERS if lever not in own]
    return ["2022", "flow", "ours", *recipes_with_levers(), *more]


def draw(results: dict[str, dict[str, list[dict[str, Any]]]]) -> Image.Image:
    """Return the curves of all recipes: best distance against seconds, a panel a set."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    from dit.report.figures import new_axis, new_figure, to_image

    figure = new_figure(5.0 * len(results), 3.6)
    for position, (name, curves) in enumerate(results.items(), start=1):
        axis = new_axis(figure, "seconds of training", (1, len(results), position))
        for run, rows in curves.items():
            recipe = run.partition(",")[0]
            color = f"C{sorted({other.partition(',')[0] for other in curves}).index(recipe)}"
            label = recipe if run.endswith(" 0") else None
            seconds = [row["seconds"] for row in rows]
            distances = [row["guided"] for row in rows]
            axis.plot(seconds, distances, color=color, marker="o", label=label)
        axis.axhline(rows[0]["floor"], color="gray", linestyle=":", label="real images")
        axis.set_xscale("log")
        axis.set_yscale("log")
        # plain numbers: those of the marks, and three each power of ten
        axis.xaxis.set(major_locator=FixedLocator([round(row["seconds"], -1) for row in rows]))
        axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)))
        for one in (axis.xaxis, axis.yaxis):
            one.set(major_formatter="{x:g}", minor_locator=NullLocator())
        axis.set_title(name)
        axis.set_ylabel("Fréchet distance at the best scale")
        axis.legend(frameon=False, fontsize=8)
    return to_image(figure)


def draw_samples(bench: Bench, recipes: Sequence[str], seed: int) -> Image.Image:
    """Return samples of each recipe at the end of its budget, a row each, with the same noise."""
    images = []
    for recipe in recipes:
        run = load_run(bench.run(recipe, seed), torch.device("cpu"))
        sampling = SamplerConfig(
            sampler=sampler_of(recipe),  # type: ignore[arg-type]
            steps=SAMPLING_STEPS,
            cfg_scale=bench.scales[-1],
            precision="fp32",
        )
        pipeline = build_pipeline(run, sampling)
        labels = torch.tensor(pipeline.classes).repeat(SHOWN)[:SHOWN]
        images.append(generate(pipeline, labels, torch.arange(SHOWN)))
    return pictures.grid(torch.cat(images), list(recipes), SHOWN)


def main() -> None:
    """Train and score every recipe, print, draw."""
    parser = new_parser(__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/time-to-quality"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    known = [recipe + part for recipe in known_recipes() for part in ("", *PARTS)]
    parser.add_argument(
        "--recipes", nargs="+", metavar="RECIPE", choices=known, default=RECIPES, help="such as"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=10.0, help="of training, each recipe")
    budget.add_argument("--steps", type=int, help="of training, the same for each recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--num-samples", type=int, default=500, help="behind each score")
    parser.add_argument(
        "--marks", nargs="+", type=int, default=MARKS, help="tenths of the budget that are scored"
    )
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES, help="of the guidance")
    parser.add_argument("--levers", action="store_true", help="also each alone and each left out")
    args = parser.parse_args()
    if args.steps is not None and args.steps < LEAST_STEPS:
        parser.error(f"--steps {args.steps}; expected {LEAST_STEPS} or more")

    torch.set_num_threads(1)
    recipes = [*args.recipes, *(recipes_with_levers() if args.levers else ())]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    drawn: dict[str, Image.Image] = {}
    for name in args.sets:
        bench = Bench(
            name, args.out, args.minutes, args.num_samples, args.marks, args.scales, args.steps
        )
        bench.prepare()
        bench.measure_speeds([split_part(recipe)[0] for recipe in recipes])
        results[name] = {}
        for recipe in recipes:
            for seed in args.seeds:
                rows = bench.score(recipe, bench.train(recipe, seed))
                results[name][f"{recipe}, seed {seed}"] = rows
                for row in rows:
                    print(f"{name:<10}{recipe:<14}{seed:>3}", json.dumps(row))
        if not args.levers:
            drawn[f"samples-{name}.png"] = draw_samples(bench, recipes, args.seeds[0])
    title = f"time-to-quality-{bench.budget}"
    if len(args.marks) > 1:
        title = "time-to-quality"
        drawn["time-to-quality.png"] = draw(results)
    for file, image in drawn.items():
        image.save(args.out / file)
        print(args.out / file)
        if args.record:
            image.save(Path("docs/images") / file)
    if args.record:
        print(record(title, typed_command(), results))


if __name__ == "__main__":
    main()
