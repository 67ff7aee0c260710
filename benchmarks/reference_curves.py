"""Reference curves of a preset: its unchanged training, once for each seed.

    python -m benchmarks.reference_curves [--preset digits] [--seeds 0 1] [--steps N]
        [--out runs/reference] [--record]

Runs the commands that a user would type. Finished runs are not repeated; a stopped one continues.
Writes PRESET.json and reference-PRESET.png into --out; with --record also into
dit/report/reference/ and docs/images/.
"""

import shutil
from datetime import date
from pathlib import Path

import torch

from benchmarks.arguments import new_parser, typed_command
from benchmarks.experiments import Lab
from benchmarks.record import processor
from dit.config.presets import PRESETS
from dit.distributed.device import library_versions
from dit.report.reference_curves import FOLDER, Reference, essence, settings_that_matter
from dit.report.run_curves import draw_reference
from dit.runs.card import ModelCard
from dit.runs.logs import read_metrics
from dit.utils.files import write_json

PICTURES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Train, write and draw."""
    parser = new_parser(__doc__)
    parser.add_argument("--preset", default="digits", choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, help="train for fewer steps; not with --record")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reference"), help="folder of the runs"
    )
    args = parser.parse_args()
    if args.record and args.steps:
        parser.error("--steps with --record: a reference needs the full preset; drop one of them")

    lab = Lab(args.out, args.steps or PRESETS[args.preset]().steps, samples=0)
    runs = {}
    for seed in args.seeds:
        flags = f"--preset {args.preset} --seed {seed} --sample-every 0"
        runs[seed] = lab.trained(f"{args.preset}-seed-{seed}", flags)
    for file in write(gather(args.preset, runs, typed_command()), args.out, args.record):
        print(file)


def gather(preset: str, runs: dict[int, Path], command: str) -> Reference:
    """Return the curves of runs, by seed."""
    configs = [ModelCard.read(run).config for run in runs.values()]
    settings, *others = map(settings_that_matter, configs)
    assert all(other == settings for other in others), "they differ in their seed alone"

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    origin = {
        "command": command,
        "date": date.today().isoformat(),
        "device": device,
        "versions": library_versions("dit", "torch"),
    }
    lines = {str(seed): essence(read_metrics(run / "metrics.jsonl")) for seed, run in runs.items()}
    return Reference(preset, settings, lines, origin)


def write(reference: Reference, out: Path, record: bool) -> list[Path]:
    """Write the curves and their picture into `out` and, with `record`, into docs."""
    curves = out / f"{reference.preset}.json"
    write_json(curves, reference.to_json())
    picture = out / f"reference-{reference.preset}.png"
    draw_reference(reference).save(picture, optimize=True)
    files = [curves, picture]

    if record:
        for file, folder in ((curves, FOLDER), (picture, PICTURES)):
            folder.mkdir(exist_ok=True)
            files.append(Path(shutil.copy(file, folder / file.name)))
    return files


if __name__ == "__main__":
    main()
