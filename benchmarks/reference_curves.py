"""Reference curves of a preset: its training as it is, once for each seed.

    python -m benchmarks.reference_curves [--preset digits] [--seeds 0 1] [--steps N] [--out runs/reference] [--record]

Runs the commands a user would type; those that are done are not done again, a stopped one goes on. Writes PRESET.json
and reference-PRESET.png into --out; with --record also into docs/reference/ and docs/images/.
"""

import argparse
import shlex
import shutil
import sys
from datetime import date
from pathlib import Path

import torch

from benchmarks.experiments import Lab
from benchmarks.record import processor
from dit.report.run_curves import draw_reference
from dit.report.reference_curves import FOLDER, Reference, essence, settings_that_matter
from dit.config.presets import PRESETS
from dit.distributed.device import library_versions
from dit.runs.card import ModelCard
from dit.runs.metrics import read_metrics
from dit.utils.files import write_json

PICTURES = FOLDER.parent / "images"


def main() -> None:
    """Train, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits", choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--steps", type=int, help="train for fewer steps than the preset; not with --record"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reference"), help="folder of the runs"
    )
    parser.add_argument(
        "--record", action="store_true", help="write docs/reference and docs/images too"
    )
    args = parser.parse_args()
    if args.record and args.steps:
        parser.error("--steps with --record: a reference is of the whole preset; drop one of them")
    lab = Lab(args.out, args.steps or PRESETS[args.preset]().steps, samples=0)
    runs = {
        seed: lab.trained(
            f"{args.preset}-seed-{seed}", f"--preset {args.preset} --seed {seed} --sample-every 0"
        )
        for seed in args.seeds
    }
    command = shlex.join(["python", "-m", "benchmarks.reference_curves", *sys.argv[1:]])
    for file in write(gather(args.preset, runs, command), args.out, args.record):
        print(file)


def gather(preset: str, runs: dict[int, Path], command: str) -> Reference:
    """The curves of runs, by seed."""
    (settings, *others) = [
        settings_that_matter(ModelCard.read(run).config) for run in runs.values()
    ]
    assert all(other == settings for other in others), "they differ in their seed alone"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    made = {
        "command": command,
        "date": date.today().isoformat(),
        "device": device,
        "versions": library_versions("dit", "torch"),
    }
    lines = {str(seed): essence(read_metrics(run / "metrics.jsonl")) for seed, run in runs.items()}
    return Reference(preset, settings, lines, made)


def write(reference: Reference, out: Path, record: bool) -> list[Path]:
    """The files, in `out` and, to be recorded, in docs."""
    files = [out / f"{reference.preset}.json", out / f"reference-{reference.preset}.png"]
    write_json(files[0], reference.to_json())
    draw_reference(reference).save(files[1], optimize=True)
    for file, folder in zip(tuple(files), (FOLDER, PICTURES), strict=True) if record else ():
        folder.mkdir(exist_ok=True)
        files.append(Path(shutil.copy(file, folder / file.name)))
    return files


if __name__ == "__main__":
    main()
