"""Experiments on digits, as the commands that a user would type.

Each experiment runs once. Its results are read from its folder afterwards.
"""

import json
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.cli import main
from dit.commands.sweep.evaluations import count_evaluations
from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.runs.checkpoint_files import checkpoint_step, latest_checkpoint
from dit.sampling.load import load_run
from dit.utils.files import write_json


@dataclass(frozen=True)
class Lab:
    """A folder of experiments with one budget.

    All trainings have as many optimizer steps, and all scores as many samples.
    """

    root: Path
    steps: int
    samples: int

    def trained(
        self, name: str, flags: str, command: str = "train", steps: int | None = None
    ) -> Path:
        """Return the run ROOT/NAME, after training it with `dit COMMAND FLAGS` if necessary."""
        run = self.root / name
        budget = steps or self.steps
        typed = f"dit {command} {flags.format(root=self.root)} --steps {budget}"
        if claim(run / ".command", typed) and done(run, budget):
            return run

        perform(f"{typed} --ckpt-every 0 --resume auto --out {run}")
        if not done(run, budget):
            sys.exit(f"{run} was stopped; type the same command again to continue")
        return run

    def scored(self, name: str, run: Path, flags: str) -> dict[str, Any]:
        """Return the report, seconds and network calls of a run's samples with these flags.

        Samples are in ROOT/samples/NAME, the rest in ROOT/scores/NAME.
        """
        out = self.root / "scores" / name
        samples = self.root / "samples" / name
        sampling = (
            f"dit sample --run {run} {flags.format(root=self.root)} "
            f"--num-samples {self.samples} --out {samples}"
        )
        if not (claim(out / ".command", sampling) and (out / "row.json").exists()):
            # sampling would continue a partial folder, and the seconds must cover all images
            shutil.rmtree(samples, ignore_errors=True)
            began = time.perf_counter()
            perform(sampling)
            seconds = time.perf_counter() - began

            perform(f"dit evaluate --samples {samples} --reference digits --out {out}")
            row = {"command": sampling, "seconds": seconds, "calls": calls(run, samples)}
            write_json(out / "row.json", row)

        row = json.loads((out / "row.json").read_text())
        return {**row, "report": json.loads((out / "report.json").read_text())}


def claim(file: Path, command: str) -> bool:
    """Return whether this command started in this folder before, and note it in `file`.

    Exit if another command did.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(command + "\n")
        return False

    before = file.read_text().strip()
    if before != command:
        sys.exit(
            f"{file.parent} belongs to another command: choose another --out\n"
            f"  then {before}\n  now  {command}"
        )
    return True


def done(run: Path, steps: int) -> bool:
    last = latest_checkpoint(run)
    return last is not None and checkpoint_step(last) >= steps


def perform(command: str) -> None:
    """Run `dit …` as if typed; exit if it fails."""
    print(f"\n== {command}", flush=True)
    code = main(shlex.split(command)[1:])
    if code:
        sys.exit(code)


def calls(run: Path, samples: Path) -> int:
    """Return the network calls per sample, by the settings in the folder of samples."""
    settings = json.loads((samples / "samples.json").read_text())
    loaded = load_run(run, Ranks().device)
    setting = SamplerConfig(
        sampler=settings["sampler"],
        steps=settings["steps"],
        cfg_scale=settings["cfg_scale"],
        cfg_interval=tuple(settings["cfg_interval"]),
        precision="fp32",
    )
    return count_evaluations(loaded, setting)
