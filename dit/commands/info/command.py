"""What a path is, and whether its files are as they were written."""

import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dit.commands.info.classes import class_table
from dit.commands.info.file_kind import require_pickled_weights
from dit.commands.info.first_stage import first_stage_rows, is_first_stage
from dit.commands.info.latents import advice, latent_rows
from dit.commands.info.model import Rows, card_rows, foreign_rows
from dit.config import InfoConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.latents.shards import holds_latents
from dit.runs import checkpoint_files as runs
from dit.runs.card import CONFIG, ModelCard
from dit.runs.logs import read_metrics
from dit.runs.posthoc_ema import FOLDER, RECORD, recorded_snapshots, snapshot_steps
from dit.runs.weights import WEIGHTS, read_weights
from dit.training.resume import require_settings

WIDTH = 100  # columns of the table
MOST_DAMAGED = 5  # files that the error names


@dataclass
class Findings:
    """Rows of the table, and the names of damaged files."""

    rows: Rows
    damaged: list[str] = field(default_factory=list)

    def add_check(self, name: str, check: Callable[[], str], row: str = "") -> None:
        """Add a row with what the check of a file returns, or with the damage that it raises."""
        try:
            text = check()
        except UserError as error:
            self.damaged.append(name)
            text = f"DAMAGED: {error.given}; expected {error.expected}; {error.do}"
        if text:
            self.rows.append((row or name, text))


def show(config: InfoConfig, ranks: Ranks) -> None:
    """Print the table of a path.

    Raises:
        UserError: nothing that can be described, or a file in it is damaged.
    """
    if config.classes:
        print(ranks.on_main(partial(class_table, config.path)))
        return
    ranks.on_main(partial(_show, config.path))


def _show(path: Path) -> None:
    findings = inspect(path)
    print(table(findings.rows))
    if findings.damaged:
        more = ", …" if len(findings.damaged) > MOST_DAMAGED else ""
        names = ", ".join(findings.damaged[:MOST_DAMAGED]) + more
        do = "do as the line of each says; a run continues once its newest checkpoint is intact"
        if holds_latents(path):
            do = advice(findings.damaged)
        raise UserError(f"damaged in {path}: {names}", "what was written", do)


def info(path: Path) -> str:
    """Return the table of a path."""
    return table(inspect(path).rows)


def table(rows: Rows) -> str:
    """Return names on the left and values, wrapped, on the right."""
    left = max(len(name) for name, _ in rows) + 2
    wrapper = textwrap.TextWrapper(WIDTH - left, break_long_words=False, break_on_hyphens=False)
    lines = []
    for name, value in rows:
        first, *rest = wrapper.wrap(value) or [""]
        lines.append(f"{name:<{left}}{first}")
        lines += [" " * left + line for line in rest]
    return "\n".join(line.rstrip() for line in lines)


def inspect(path: Path) -> Findings:
    """Return what a run, checkpoint, weights file, folder of latents or first stage is."""
    if path.is_file():
        return _file(path)
    if (path / "meta.json").exists():
        return _checkpoint(path)
    if saved := runs.find_saved(path):
        where: Rows = [("folder", str(path)), ("weights", str(saved.relative_to(path)))]
        return Findings([*where, *_header_rows(saved)])
    if is_first_stage(path):
        return Findings(first_stage_rows(path))
    if (path / CONFIG).exists() or runs.paths_by_step(path / "checkpoints"):
        return _run(path)
    if holds_latents(path):
        return _latents(path)

    lacks = f"{path} has neither config.json, meta.json nor latents"
    raise UserError(
        lacks if path.is_dir() else f"nothing at {path}",
        "a run, a checkpoint, a file of weights (.safetensors, .pt), a folder of latents, or a "
        "first stage",
        "check the path",
    )


def _file(path: Path) -> Findings:
    if path.suffix == ".safetensors":
        return _weights_file(path)
    require_pickled_weights(path)
    return _foreign_file(path)


# -- runs and weights ------------------------------------------------------------------------------


def _run(run: Path) -> Findings:
    findings = Findings([("run", str(run))])
    if card := _readable_card(run):
        findings.rows += [*card_rows(card), *_progress_rows(run, card)]

    checks: dict[str, Callable[[], str]] = {}
    for path in runs.checkpoints(run):
        checks[path.name] = partial(_verify_checkpoint, path)
    for path in runs.incomplete_checkpoints(run):
        checks[path.name] = partial(_refuse_incomplete, path)
    checks[str(RECORD)] = partial(_verify_record, run)
    # a damaged record, the check above, lists no files
    with suppress(UserError):
        for name, recorded in recorded_snapshots(run).items():
            checks[name] = partial(_verify_snapshot, run / FOLDER / name, recorded)
    checks[CONFIG] = partial(_verify_settings, run)

    # a large run is read for minutes; a small one needs no bar
    for name, check in tqdm(checks.items(), "checksums", unit="file", delay=1, leave=False):
        findings.add_check(name, check)
    return findings


def _readable_card(run: Path) -> ModelCard | None:
    """Return the card in config.json, else of the newest checkpoint that can be read."""
    readers = [partial(ModelCard.read, run)]
    readers += [partial(runs.checkpoint_card, path) for path in reversed(runs.checkpoints(run))]
    for read in readers:
        # what is damaged has a row of its own
        with suppress(UserError):
            return read()
    return None


def _verify_checkpoint(checkpoint: Path) -> str:
    files = runs.verify_checkpoint(checkpoint)["files"]
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    return f"{_size(size)}, {len(files)} file{'s' * (len(files) != 1)}, checksums verified"


def _verify_file(file: Path) -> str:
    runs.verify_checkpoint(file.parent, file.name)
    return "checksum verified"


def _refuse_incomplete(checkpoint: Path) -> str:
    given = f"{checkpoint.name} has no meta.json and is not counted"
    raise UserError(given, "all files of a checkpoint", "copy it again, or remove it")


def _verify_record(run: Path) -> str:
    recorded_snapshots(run)
    return ""


def _verify_snapshot(file: Path, recorded: runs.Listed) -> str:
    runs.require_intact(file, recorded, f"remove {file}")
    return ""


def _verify_settings(run: Path) -> str:
    """Return how config.json differs from that of the newest checkpoint that can be read."""
    # it may differ: some settings can be changed when a run is resumed
    ModelCard.read(run)
    for checkpoint in reversed(runs.checkpoints(run)):
        try:
            runs.checkpoint_card(checkpoint)
        except UserError:
            # it is damaged, as its own row says
            continue
        changes = "; ".join(require_settings(run, checkpoint))
        since = f"since {checkpoint.name}, when the run was resumed or by hand"
        return f"changed: {changes}, {since}" if changes else ""
    return ""


def _progress_rows(run: Path, card: ModelCard) -> Rows:
    config = card.config
    goal = f"{config.epochs:g} epochs" if config.epochs else f"{config.steps:,} steps"
    lines = read_metrics(run / "metrics.jsonl")
    logged = f"{lines[-1]['step']:,} steps" if lines else "no step"
    rows = [("trained", f"{logged} logged, of {goal}")]
    losses = [line["loss"] for line in lines if "loss" in line]
    if losses:
        rows.append(("last loss", f"{losses[-1]:.4f}"))

    if best := runs.find_best(run):
        linked = (run / runs.BEST).resolve() == best.checkpoint.resolve()
        where = runs.BEST if linked else str(best.checkpoint.relative_to(run))
        score = f"{best.distance.name} {best.distance.value:.4g}"
        step = runs.checkpoint_step(best.checkpoint)
        rows.append(("best score", f"{score} at step {step:,} ({where})"))

    if config.ema_lengths:
        lengths = " ".join(f"{length:g}" for length in config.ema_lengths)
        steps = snapshot_steps(run)
        last = f"{len(steps)} snapshots, the last at step {max(steps):,}" if steps else ""
        rows.append(("averages", f"lengths {lengths}; {last or 'no snapshot yet'}"))
    return rows


def _checkpoint(checkpoint: Path) -> Findings:
    findings = Findings([("checkpoint", str(checkpoint))])
    findings.add_check(checkpoint.name, partial(_verify_checkpoint, checkpoint), row="files")
    try:
        findings.rows += _header_rows(next(checkpoint.glob(WEIGHTS), checkpoint / WEIGHTS))
    except UserError as error:
        findings.rows.append(("weights", error.given))
    return findings


def _weights_file(file: Path) -> Findings:
    findings = Findings([("weights", f"{file}, {_size(file.stat().st_size)}"), *_header_rows(file)])
    if (file.parent / "meta.json").exists():
        findings.add_check(file.name, partial(_verify_file, file), row="file")
    return findings


def _header_rows(file: Path) -> Rows:
    weights = read_weights(file)
    return [("step", f"{weights.step:,}"), *card_rows(weights.card)]


def _foreign_file(file: Path) -> Findings:
    first = ("weights", f"{file}, {_size(file.stat().st_size)}, of another program")
    return Findings([first, *foreign_rows(file)])


# -- latents ---------------------------------------------------------------------------------------


def _latents(root: Path) -> Findings:
    rows, damages = latent_rows(root)
    return Findings(rows, [damage.file for damage in damages])


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
