"""Whether the files of a run, or of latents, are as they were written."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dit import runs
from dit.config import VerifyConfig
from dit.errors import UserError
from dit.hardware import Ranks
from dit.latents.shards import AGAIN, holds_latents
from dit.latents.store import damaged_shards, read_index
from dit.posthoc import FOLDER, recorded
from dit.runs import checkpoints


def verify(config: VerifyConfig, ranks: Ranks) -> None:
    """Print what is damaged in a run or in a folder of latents, or that nothing is.

    Raises:
        UserError: not such a folder; or something in it is damaged.
    """
    check = verify_run if checkpoints(config.path) else verify_latents
    ranks.on_main(lambda: check(config.path))


def verify_run(run: Path) -> None:
    """`verify` of all checkpoints of a run, and of its snapshots of averages, by their checksums."""
    checks: dict[Path, Callable[[], object]] = {path: partial(runs.verify, path) for path in checkpoints(run)}
    for name, listed in recorded(run).items():
        file = run / FOLDER / name
        checks[file] = partial(runs.require_intact, file, listed, f"remove {file}")
    damaged = []
    for path, check in tqdm(checks.items(), desc="verify", unit="file"):
        try:
            check()
            tqdm.write(f"intact   {path}")
        except UserError as error:
            damaged.append(path.name)
            tqdm.write(f"damaged  {path}: {error.given}")
    if damaged:
        raise UserError(f"damaged in {run}: {', '.join(damaged)}",
                        "what was written", "remove them: a run goes on from its newest checkpoint, and `dit ema` goes "
                        "by the snapshots that are left")


def verify_latents(root: Path) -> None:
    """`verify` of a folder of latents."""
    if not holds_latents(root):
        raise UserError(f"{root} is not a folder of latents", "a run with checkpoints, or what `dit encode` wrote",
                        "check the path")
    index, damaged = read_index(root), damaged_shards(root)
    for damage in damaged:
        print(f"damaged  {root / damage.file}  {damage.images:,} images  {damage.reason}")
    if damaged:
        names = ", ".join(damage.file for damage in damaged[:5]) + (", …" if len(damaged) > 5 else "")
        raise UserError(f"{len(damaged)} files of {root} are damaged: {names}", "what was written",
                        f"{AGAIN}; or train without them: train.py --skip-damaged")
    labels = ", and their labels" if "labels_sha256" in index else ""  # earlier versions did not note it
    print(f"intact   {root}: {len(index['shards']):,} shards with {index['count']:,} images{labels}")
