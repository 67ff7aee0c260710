"""The command `dit report`: one page of a run, at its end or at any time before."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from dit.commands.report.curves import draw_all
from dit.commands.report.reference import Line, Reference, differences, find_reference, verdict
from dit.config import ReportConfig, TrainConfig, to_json
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.report.evaluation_page import number, render
from dit.report.figures import score_names, scores_chart
from dit.runs.card import ModelCard
from dit.runs.checkpoints import (
    checkpoint_step,
    checkpoints,
    find_best,
    paths_by_step,
    read_distance,
)
from dit.runs.metrics import read_metrics, read_starts
from dit.utils import pictures
from dit.utils.files import write_atomically

PAGE = "report.html"
MOST_GRIDS = 6  # in the strip of samples
SETTINGS = {
    "network": ("model", "conditioning", "unet_attention", "text_encoder", "learn_sigma"),
    "data": ("data", "vae", "image_size", "num_classes", "flip", "latent_norm"),
    "diffusion": (
        "process",
        "objective",
        "loss",
        "time_sampling",
        "time_shift",
        "min_snr_gamma",
        "label_dropout",
    ),
    "optimisation": (
        "steps",
        "epochs",
        "global_batch_size",
        "grad_accum",
        "lr",
        "weight_decay",
        "beta2",
        "warmup",
        "cooldown",
        "clip",
        "ema",
        "precision",
        "compile",
        "seed",
    ),
}
"""Which settings stand together; the others are of the run."""


def report(config: ReportConfig, ranks: Ranks) -> None:
    """Write the page and say where it is."""
    if ranks.main:
        print(write_page(config.run))


def write_page(run: Path) -> Path:
    """RUN/report.html, from what lies in the run's directory.

    Raises:
        UserError: no run, or one that has logged nothing.
    """
    if not (run / "config.json").exists():
        raise UserError(
            f"no run at {run}",
            "a run directory with config.json",
            "pass the RUN that train.py printed",
        )
    card, log = ModelCard.read(run), read_metrics(run / "metrics.jsonl")
    lines = once([line for line in log if "event" not in line])
    if not lines:
        raise UserError(
            f"{run / 'metrics.jsonl'} has no line",
            "a run that has logged a step",
            "train on, with --log-every above 0",
        )
    with write_atomically(run / PAGE) as beside:
        beside.write_text(
            to_html(run, card, lines, [line for line in log if "event" in line]), encoding="utf-8"
        )
    return run / PAGE


def once(lines: Sequence[Line]) -> list[Line]:
    """Lines by step, of each step the last one: what was done again after a rollback replaces what was."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def to_html(run: Path, card: ModelCard, lines: Sequence[Line], events: Sequence[Line]) -> str:
    """The page, which needs nothing else."""
    reference = find_reference(card.config.preset)
    other = differences(card.config, reference) if reference else []
    alike = reference if reference and not other and any("loss" in line for line in lines) else None
    starts = read_starts(run)
    return render(
        "page.html.j2",
        Path(__file__).parent,
        title=run.resolve().name,
        made=made(starts),
        essentials=essentials(run, card, lines),
        curves=draw_all(lines, {e["step"]: e["event"] for e in events}, alike),
        verdict=told(lines, card.config.preset, reference, alike, other),
        events=list(map(event_cells, events)),
        samples=samples(run),
        scores=scores(lines),
        checkpoints=checkpoint_cells(run),
        protocol={**settings(card.config), **machine(starts)},
    )


# -- what the page says --------------------------------------------------------------------------------------------


def essentials(run: Path, card: ModelCard, lines: Sequence[Line]) -> dict[str, str]:
    """The run at a glance."""
    config, last = card.config, lines[-1]["step"]
    goal = f"{config.epochs:g} epochs" if config.epochs else f"{config.steps:,} steps"
    best, losses = find_best(run), [line["loss"] for line in lines if "loss" in line]
    speeds, shares = (
        [line[name] for line in lines if name in line] for name in ("img_per_s", "mfu")
    )
    speed = [f"{median(speeds):,.4g} img/s"] if speeds else []
    speed += [f"MFU {median(shares):.1%}"] if shares else []
    return {
        "model": card.network.model,
        "data": Path(config.data).name,
        "trained": f"{last:,} of {goal}, {last * config.global_batch_size:,} images",
        "best distance" if best else "last loss": (
            f"{best.distance.name} {number(best.distance.value)} at step {checkpoint_step(best.checkpoint):,}"
            if best
            else f"{losses[-1]:.4f}"
            if losses
            else ""
        ),
        "median speed": ", ".join(speed),
    }


def told(
    lines: Sequence[Line],
    preset: str,
    reference: Reference | None,
    alike: Reference | None,
    other: Sequence[str],
) -> str:
    """How the run compares with the reference of its preset, or why it does not."""
    if alike:
        return verdict(lines, alike)
    if reference is None:
        return f"Preset {preset} has no reference curve."
    return f"Not compared with preset {preset}, for the run has {', '.join(other) or 'logged no loss'}."


def event_cells(event: Line) -> tuple[str, str, str]:
    """Step, what happened, and all else that its line says."""
    rest = {key: value for key, value in event.items() if key not in ("step", "event")}
    shown = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in rest.items()
    )
    return f"{event['step']:,}", str(event["event"]), ", ".join(shown)


def checkpoint_cells(run: Path) -> list[tuple[str, str, str, str]]:
    """Step, MB, distance where it was measured, and which one is the best."""
    best = find_best(run)
    return [
        _checkpoint(path, best is not None and path == best.checkpoint) for path in checkpoints(run)
    ]


def _checkpoint(path: Path, leads: bool) -> tuple[str, str, str, str]:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    distance = read_distance(path)
    told = f"{distance.name} {number(distance.value)}" if distance else "–"
    return f"{checkpoint_step(path):,}", f"{size / 1e6:,.4g}", told, "best" if leads else ""


def settings(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Section -> flag -> value, of the flags that have one."""
    given = {name: value for name, value in to_json(config).items() if value is not None}
    sections = {
        title: {name: given.pop(name) for name in names if name in given}
        for title, names in SETTINGS.items()
    }
    return {**sections, "run": given}


def machine(starts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the run was trained on last, as sections of the page."""
    if not starts:
        return {}
    last = dict(starts[-1])
    software = last.pop("versions")
    billions = {
        "GFLOP to train on an image": last.pop("flops_per_image") / 1e9,
        "GFLOP/s of a rank at best": last.pop("peak_flops_per_rank") / 1e9,
    }
    steps = [one["step"] for one in starts]
    return {
        "hardware": {
            "started after step": steps,
            **{k: v for k, v in last.items() if k != "step"},
            **billions,
        },
        "software": software,
    }


def made(starts: Sequence[Mapping[str, Any]]) -> str:
    """When this page was, and by what the run."""
    when = (
        datetime.now(timezone.utc).isoformat(" ", timespec="minutes").removesuffix("+00:00")
        + " UTC"
    )
    return " · ".join([when, *(f"{one['ranks']} x {one['device']}" for one in starts[-1:])])


# -- pictures ------------------------------------------------------------------------------------------------------


def samples(run: Path) -> dict[str, Image.Image]:
    """Caption -> picture: the same seeds as training went on, or how well a classifier tells classes."""
    if grids := paths_by_step(run / "samples", ".png"):
        some = [*pictures.spread([*grids][::-1], MOST_GRIDS)][::-1]  # the last one among them
        strip = pictures.strip(
            [Image.open(grids[step]) for step in some], [f"step {step:,}" for step in some]
        )
        return {"The same seeds as training goes on, from the EMA": strip}
    accuracy = run / "accuracy.png"
    return (
        {"Classes told, by noise": Image.open(accuracy).convert("RGB")} if accuracy.exists() else {}
    )


def scores(lines: Sequence[Line]) -> dict[str, Image.Image]:
    """Caption -> chart of the scores that compare with the last ones."""
    evals = [line["eval"] for line in lines if "eval" in line]
    alike = [line for line in lines if evals and line.get("eval") == evals[-1]]
    return {"Scores of the EMA": scores_chart(alike)} if score_names(alike) else {}
