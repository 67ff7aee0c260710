"""The page of a run, from the files in its directory."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from dit.config import TrainConfig, to_json
from dit.errors import UserError
from dit.report.page import Page, Section
from dit.report.reference_curves import (
    Line,
    Reference,
    differences,
    find_reference,
    verdict,
)
from dit.report.run_curves import draw_all
from dit.report.run_scores import (
    evaluations_section,
    newest_verdict,
    read_evaluations,
    training_section,
)
from dit.report.table import NOTHING, NUMBER, Cell, Row, Table
from dit.report.text import number
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import (
    checkpoint_step,
    checkpoints,
    find_best,
    paths_by_step,
    read_distance,
)
from dit.runs.logs import read_metrics, read_starts
from dit.utils import pictures
from dit.utils.files import write_text
from dit.utils.outputs import is_signed, require_own_file, signature

PAGE = "report.html"
UNSIGNED = b"metrics.jsonl, config.json, machine.json.</footer>"  # ends pages of earlier versions
MOST_GRIDS = 6  # in the strip of samples
SETTINGS = {
    "network": "model conditioning block inner_head unet_attention text_encoder learn_sigma",
    "data": "data image_column label_column vae image_size num_classes flip latent_norm",
    "diffusion": (
        "process objective loss cosine time_sampling time_shift min_snr_gamma label_dropout route "
        "align align_weight align_until "
        "meanflow_form meanflow_instant meanflow_scale meanflow_mix"
    ),
    "optimisation": (
        "steps epochs global_batch_size grad_accum optimizer lr weight_decay beta2 warmup cooldown "
        "clip ema precision compile seed"
    ),
}
"""Groups of settings; all others are of the group `run`."""
ABOUT_CURVES = (
    "Each point is the mean since the point before it. The update is that of a single step, "
    "the memory is the highest so far."
)


def write_page(run: Path) -> Path:
    """Write RUN/report.html from the files of a run's directory; return its path.

    Raises:
        UserError: no run, or one that has logged nothing.
    """
    if not (run / "config.json").exists():
        raise UserError(
            f"no run at {run}",
            "a run directory with config.json",
            "pass the RUN that train.py printed",
        )
    log = read_metrics(run / "metrics.jsonl")
    lines = last_of_each_step([line for line in log if "event" not in line])
    if not lines:
        raise UserError(
            f"{run / 'metrics.jsonl'} has no line",
            "a run that has logged a step",
            "train on, with --log-every above 0",
        )

    require_own_file(run / PAGE, "report", _is_own, flag="RUN")
    page = to_page(run, lines, [line for line in log if "event" in line])
    write_text(run / PAGE, page.to_html())
    return run / PAGE


def _is_own(page: Path) -> bool:
    # earlier versions did not sign their pages
    return is_signed(page, "report") or UNSIGNED in page.read_bytes()


def last_of_each_step(lines: Sequence[Line]) -> list[Line]:
    """Return lines by step; steps that were repeated after a rollback count once."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def to_page(run: Path, lines: Sequence[Line], events: Sequence[Line]) -> Page:
    card, starts = ModelCard.read(run), read_starts(run)
    comparison, reference = _compare(card.config, lines)
    curves = draw_all(lines, [event["step"] for event in events], reference)
    evaluations, unreadable = read_evaluations(run)
    sections = [
        evaluations_section(evaluations, unreadable),
        training_section(lines),
        _events(events),
        Section("Curves", None, [ABOUT_CURVES], curves, "curve"),
        Section("Samples", figures=_samples(run), figure_kind="picture"),
        _checkpoints(run),
        Section("Settings and machine", protocol={**settings(card.config), **machine(starts)}),
    ]
    return Page(
        f"{run.resolve().name}: training",
        _subtitle(starts),
        essentials(run, card, lines),
        sections,
        "The same numbers for programs: metrics.jsonl, config.json, machine.json.",
        verdict=newest_verdict(evaluations),
        lead=[comparison],
        generator=signature("report"),
    )


def _compare(config: TrainConfig, lines: Sequence[Line]) -> tuple[str, Reference | None]:
    """Return a sentence about the preset's reference, and the reference if the run compares."""
    reference = find_reference(config.preset)
    if reference is None:
        return f"Preset {config.preset} has no reference curve.", None
    if other := differences(config, reference):
        reason = f"the run has {', '.join(other)}"
    elif not any("loss" in line for line in lines):
        reason = "the run has logged no loss"
    else:
        return verdict(lines, reference), reference
    return f"Not compared with preset {config.preset}: {reason}.", None


# -- text ------------------------------------------------------------------------------------------


def essentials(run: Path, card: ModelCard, lines: Sequence[Line]) -> dict[str, str]:
    config, step, best = card.config, lines[-1]["step"], find_best(run)
    goal = f"{config.epochs:g} epochs" if config.epochs else f"{config.steps:,} steps"
    losses, speeds, shares = (
        [line[name] for line in lines if name in line] for name in ("loss", "img_per_s", "mfu")
    )
    speed = [f"{median(speeds):,.4g} img/s"] if speeds else []
    speed += [f"MFU {median(shares):.1%}"] if shares else []

    entries = {
        "model": card.network.model,
        "data": Path(config.data).name,
        "trained": f"{step:,} of {goal}, {step * config.global_batch_size:,} images",
    }
    if best:
        distance, best_step = best.distance, checkpoint_step(best.checkpoint)
        entries["best distance"] = f"{distance.name} {number(distance.value)} at step {best_step:,}"
    else:
        entries["last loss"] = f"{losses[-1]:.4f}" if losses else ""
    return {**entries, "median speed": ", ".join(speed)}


def settings(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return group -> setting -> value, of the settings that have one."""
    given = {name: value for name, value in to_json(config).items() if value is not None}
    # `pop`: what no group names is left for the group `run`
    groups = {
        title: {name: given.pop(name) for name in names.split() if name in given}
        for title, names in SETTINGS.items()
    }
    return {**groups, "run": given}


def machine(starts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return hardware and software of the run's last start."""
    if not starts:
        return {}
    last = dict(starts[-1])
    software = last.pop("versions")
    hardware = {
        "started after step": [start["step"] for start in starts],
        **{name: value for name, value in last.items() if name != "step"},
        "GFLOP to train on an image": last["flops_per_image"] / 1e9,
        "GFLOP/s of a rank at best": last["peak_flops_per_rank"] / 1e9,
    }
    del hardware["flops_per_image"], hardware["peak_flops_per_rank"]
    return {"hardware": hardware, "software": software}


def _subtitle(starts: Sequence[Mapping[str, Any]]) -> str:
    """Return the date of the page and the machine of the run."""
    date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return " · ".join([date, *(f"{start['ranks']} x {start['device']}" for start in starts[-1:])])


# -- tables and figures ----------------------------------------------------------------------------


def _events(events: Sequence[Line]) -> Section:
    rows = [Row(event_cells(event)) for event in events]
    table = Table(("step", "event", "more"), rows)
    return Section("Events", table, ["Marked in red in the curves."]) if rows else Section("Events")


def event_cells(event: Line) -> list[Cell]:
    """Return the step, what happened, and the rest of the line."""
    rest = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in event.items()
        if name not in ("step", "event")
    ]
    step, what = f"{event['step']:,}", str(event["event"])
    return [Cell(step, NUMBER), Cell(what), Cell(", ".join(rest), "remark")]


def _checkpoints(run: Path) -> Section:
    best = find_best(run)
    rows = []
    for path in checkpoints(run):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        # measured during training, so not every checkpoint has one
        distance, is_best = read_distance(path), best is not None and path == best.checkpoint
        score = f"{distance.name} {number(distance.value)}" if distance else NOTHING
        cells = [Cell(f"{checkpoint_step(path):,}", NUMBER), Cell(f"{size / 1e6:,.4g}", NUMBER)]
        rows.append(Row([*cells, Cell(score, small="best" if is_best else "")]))

    table = Table(("step", "MB", "distance of the EMA"), rows).without_empty_columns()
    title = "Checkpoints on disk"
    return Section(title, table) if rows else Section(title, paragraphs=["None yet."])


def _samples(run: Path) -> dict[str, Image.Image]:
    """Return a strip of samples as training went on, or the accuracy of a classifier."""
    if grids := paths_by_step(run / "samples", ".png"):
        # spread from the end, so that the last grid is among them
        steps = pictures.spread([*grids][::-1], MOST_GRIDS)[::-1]
        captions = [f"step {step:,}" for step in steps]
        strip = pictures.strip([Image.open(grids[step]) for step in steps], captions)
        return {"The same seeds as training continues, from the EMA": strip}

    accuracy = run / "accuracy.png"
    if not accuracy.exists():
        return {}
    return {"Accuracy by noise": Image.open(accuracy).convert("RGB")}
