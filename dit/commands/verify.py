"""Whether the files of a run, or of latents, are as they were written."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dit.config import VerifyConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.latents.shards import AGAIN, holds_latents
from dit.latents.store import damaged_shards, read_index
from dit.runs import checkpoints as runs
from dit.runs.card import CONFIG
from dit.runs.checkpoints import checkpoints
from dit.runs.posthoc_ema import FOLDER, recorded_snapshots
from dit.training.run_directory import require_settings
from dit.utils.files import shell_quote


def verify(config: VerifyConfig, ranks: Ranks) -> None:
    """Print what is damaged in a run or in a folder of latents, or that nothing is.

    Raises:
        UserError: not such a folder; or something in it is damaged.
    """
    if home := runs.run_containing(config.path):
        raise UserError(
            f"{config.path} is a checkpoint of the run {home}",
            "a run, or a folder of latents",
            f"pass the run: dit verify {shell_quote(home)}",
        )
    check = verify_run if (config.path / "checkpoints").is_dir() else verify_latents
    ranks.on_main(lambda: check(config.path))


def verify_run(run: Path) -> None:
    """`verify` of a run: its checkpoints and its snapshots of averages by their checksums, its config.json by them."""
    checks: dict[Path, Callable[[], object]] = {
        path: partial(runs.verify_checkpoint, path) for path in checkpoints(run)
    }
    checks |= {path: partial(_refuse_unsealed, path) for path in runs.incomplete_checkpoints(run)}
    for name, listed in recorded_snapshots(run).items():
        file = run / FOLDER / name
        checks[file] = partial(runs.require_intact, file, listed, f"remove {file}")
    checks[run / CONFIG] = partial(_check_settings, run)
    damaged = []
    for path, check in tqdm(checks.items(), desc="verify", unit="file"):
        try:
            check()
            tqdm.write(f"intact   {path}")
        except UserError as error:
            damaged.append(path.name)
            tqdm.write(f"damaged  {path}: {error.given}; {error.do}")
    if damaged:
        raise UserError(
            f"damaged in {run}: {', '.join(damaged)}",
            "what was written",
            "do what the line of each says: a run goes on from its newest checkpoint, "
            "and `dit ema` goes by the snapshots that are left",
        )


def _refuse_unsealed(checkpoint: Path) -> None:
    raise UserError(
        f"{checkpoint.name} has no meta.json and is not counted",
        "all files of a checkpoint",
        "copy it again, or remove it",
    )


def _check_settings(run: Path) -> None:
    """Refuse a config.json that is damaged, or not that of the newest checkpoint that can be read."""
    runs.ModelCard.read(run)
    for checkpoint in reversed(checkpoints(run)):
        with suppress(UserError):
            runs.checkpoint_card(checkpoint)
            break
    else:
        return
    for change in require_settings(run, checkpoint):
        tqdm.write(
            f"changed  {run / CONFIG}: {change}, since {checkpoint.name}, when it went on or by hand"
        )


def verify_latents(root: Path) -> None:
    """`verify` of a folder of latents."""
    if not holds_latents(root):
        raise UserError(
            f"{root} is not a folder of latents",
            "a run with checkpoints, or what `dit encode` wrote",
            "check the path",
        )
    index, damaged = read_index(root), damaged_shards(root)
    for damage in damaged:
        print(f"damaged  {root / damage.file}  {damage.images:,} images  {damage.reason}")
    if damaged:
        names = ", ".join(damage.file for damage in damaged[:5]) + (
            ", …" if len(damaged) > 5 else ""
        )
        raise UserError(
            f"{len(damaged)} files of {root} are damaged: {names}",
            "what was written",
            f"{AGAIN}; or train without them: train.py --skip-damaged",
        )
    labels = (
        ", and their labels" if "labels_sha256" in index else ""
    )  # earlier versions did not note it
    print(
        f"intact   {root}: {len(index['shards']):,} shards with {index['count']:,} images{labels}"
    )
