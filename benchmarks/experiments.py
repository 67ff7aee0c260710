"""Experiments on digits as a user would type them, each done once: what is there already is read, not made again."""

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
from dit.runs.checkpoints import checkpoint_step, latest_checkpoint
from dit.sampling.load import load_run
from dit.utils.files import write_json


@dataclass(frozen=True)
class Lab:
    """A folder of experiments with one budget: optimizer steps of each training, samples behind each score."""

    root: Path
    steps: int
    samples: int

    def trained(
        self, name: str, flags: str, command: str = "train", steps: int | None = None
    ) -> Path:
        """The run ROOT/NAME, trained by `dit COMMAND` with these flags and the budget's steps unless given."""
        run, budget = self.root / name, steps or self.steps
        asked = f"dit {command} {flags.format(root=self.root)} --steps {budget}"
        if claim(run / ".command", asked) and done(run, budget):
            return run
        perform(f"{asked} --ckpt-every 0 --resume auto --out {run}")
        if not done(run, budget):
            sys.exit(f"{run} was stopped; type the same again to go on")
        return run

    def scored(self, name: str, run: Path, flags: str) -> dict[str, Any]:
        """Scores of samples of a run drawn with these flags, with seconds and network calls, in ROOT/scores/NAME."""
        out, samples = self.root / "scores" / name, self.root / "samples" / name
        sampling = f"dit sample --run {run} {flags.format(root=self.root)} --num-samples {self.samples} --out {samples}"
        if not (claim(out / ".command", sampling) and (out / "row.json").exists()):
            shutil.rmtree(samples, ignore_errors=True)  # so that the seconds are those of all
            began = time.perf_counter()
            perform(sampling)
            seconds = time.perf_counter() - began
            perform(f"dit evaluate --samples {samples} --reference digits --out {out}")
            write_json(
                out / "row.json",
                {"command": sampling, "seconds": seconds, "calls": calls(run, samples)},
            )
        row, report = (json.loads((out / f"{file}.json").read_text()) for file in ("row", "report"))
        return {**row, "report": report}


def claim(file: Path, command: str) -> bool:
    """Whether this command was begun here before, which is noted for the next time; the end if another one was."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(command + "\n")
        return False
    if (before := file.read_text().strip()) != command:
        sys.exit(
            f"{file.parent} was made by another command: choose another --out\n  then {before}\n  now  {command}"
        )
    return True


def done(run: Path, steps: int) -> bool:
    """Whether a run has done all of its steps."""
    last = latest_checkpoint(run)
    return last is not None and checkpoint_step(last) >= steps


def perform(command: str) -> None:
    """Run `dit ...` as if it were typed; the end if it fails."""
    print(f"\n== {command}", flush=True)
    code = main(shlex.split(command)[1:])
    if code:
        sys.exit(code)


def calls(run: Path, samples: Path) -> int:
    """Network calls behind one of the samples in a folder, by their settings."""
    made = json.loads((samples / "samples.json").read_text())
    loaded = load_run(run, Ranks().device)
    setting = SamplerConfig(
        sampler=made["sampler"],
        steps=made["steps"],
        cfg_scale=made["cfg_scale"],
        cfg_interval=tuple(made["cfg_interval"]),
        precision="fp32",
    )
    return count_evaluations(loaded, setting)
