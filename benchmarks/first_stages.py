"""First stages at equal time, on small colour images: pixels, an own autoencoder, the bundled one.

    python -m benchmarks.first_stages [--minutes 4] [--roads tiny-4 own-4 …] [--record]

Each road has the same CPU seconds on one core, from the images to a trained network. An autoencoder
that is trained along takes a third of them; encoding counts too. The rest is the preset `photos`.
Scores are those of `benchmarks.time_to_quality`, on the same images, emoji-64.
"""

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import image_sets, small_features
from benchmarks.arguments import new_parser, typed_command
from benchmarks.experiments import perform
from benchmarks.record import record
from benchmarks.time_to_quality import OTHER_SAMPLER, distances
from dit.runs.checkpoint_files import find_weights

IMAGES = "emoji-64"
FIXED = f"--data data/{IMAGES} --image-size 64"
PIXELS = "--vae identity --objective x0 --loss velocity"  # 2511.13720
ROADS = {
    "pixels-8": f"{PIXELS} --model DiT-Ti/8",
    "pixels-4": f"{PIXELS} --model DiT-Ti/4",
    "own-4": "--vae {own} --model DiT-Ti/4",
    "own-2": "--vae {own} --model DiT-Ti/2",
    "tiny-4": "--vae tiny --model DiT-Ti/4",
    "tiny-2": "--vae tiny --model DiT-Ti/2",
}
"""Flags of each; the number is the side of a patch."""
OWN = "--channels 16 32 64 --latent-channels 4"
OWN_SHARE = 1 / 3  # of the time
# steps of two trainings that tell the speed; encoding at the start varies by seconds
SHORT, LONG = 2, 42
SCALE = 1.5


@dataclass(frozen=True)
class Lab:
    """A folder with all roads of one budget."""

    root: Path
    budget: float  # CPU seconds
    samples: int

    def take(self, road: str) -> dict[str, Any]:
        """Return what a road reached, and what it took."""
        note = self.root / f"{road}.json"
        if not note.exists():
            flags, spent = ROADS[road], 0.0
            if "{own}" in flags:
                own = self.root / "own"
                first = f"dit train-vae {FIXED} {OWN} --sample-every 0"
                spent = self.train("own", first, self.budget * OWN_SHARE)["seconds"]
                flags = flags.format(own=own)
            command = f"dit train {FIXED} --preset photos {flags} --sample-every 0"
            trained = self.train(road, command, self.budget - spent)
            seconds = {"first_stage": spent, "network": trained["seconds"]}
            note.write_text(json.dumps({"seconds": seconds, "steps": trained["steps"]}))

        weights = find_weights(self.root / road)
        found, floor = distances(weights.parent, IMAGES, [SCALE], self.samples, OTHER_SAMPLER)
        return {**json.loads(note.read_text()), "distance": found[SCALE], "floor": floor}

    def train(self, name: str, command: str, budget: float) -> dict[str, Any]:
        """Train for a budget, once; return the steps and the CPU seconds, with the start."""
        note = self.root / f"{name}-training.json"
        if not note.exists():
            # the first has the imports too
            _, short, long = (self.seconds(command, steps) for steps in (SHORT, SHORT, LONG))
            step = (long - short) / (LONG - SHORT)
            steps = SHORT + max(0, int((budget - short) / step))
            took = self.seconds(command, steps, name)
            note.write_text(json.dumps({"steps": steps, "seconds": took}))
        trained: dict[str, Any] = json.loads(note.read_text())
        return trained

    def seconds(self, command: str, steps: int, name: str = "speed") -> float:
        """Return the CPU seconds of a training with so many steps, those of its workers too."""
        out = self.root / name
        shutil.rmtree(out, ignore_errors=True)
        before = sum(os.times()[:4])
        perform(f"{command} --steps {steps} --ckpt-every 0 --out {out}")
        return sum(os.times()[:4]) - before


def main() -> None:
    """Take every road, print."""
    parser = new_parser(__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/first-stages"))
    parser.add_argument("--roads", nargs="+", choices=ROADS, default=list(ROADS))
    parser.add_argument("--minutes", type=float, default=4.0, help="of each road, in all")
    parser.add_argument("--num-samples", type=int, default=500, help="behind each score")
    args = parser.parse_args()

    torch.set_num_threads(1)
    images = image_sets.make(IMAGES)
    if not images.with_suffix(".safetensors").exists():
        small_features.learn(images)
    lab = Lab(args.out / f"{args.minutes:g}-minutes", 60 * args.minutes, args.num_samples)
    lab.root.mkdir(parents=True, exist_ok=True)
    results = {road: lab.take(road) for road in args.roads}
    for road, result in results.items():
        print(f"{road:<10}", json.dumps(result))
    if args.record:
        print(record("first-stages", typed_command(), results))


if __name__ == "__main__":
    main()
