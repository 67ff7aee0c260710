"""What an earlier sweep left in a folder, before this one writes there."""

from pathlib import Path
from typing import TypedDict

from dit.errors import UserError
from dit.utils.outputs import is_record, require_own_folder
from dit.utils.typed_json import read_json

RECORD = "sweep.json"


class Asked(TypedDict):
    """What is read of the flags in sweep.json."""

    num_samples: int


class EarlierSweep(TypedDict):
    """What is read of a sweep.json."""

    asked: Asked


def check_folder(out: Path, num_samples: int) -> None:
    """Refuse a folder of other things, and to replace results of another number of images."""
    file = out / RECORD
    # an interrupted sweep leaves points or, before the first of them, samples
    is_own = (
        is_record(file, {"asked", "points", "protocol"})
        or any(is_record(point, {"key", "setting"}) for point in out.glob("points/*.json"))
        or any(out.glob("samples-*/samples.json"))
    )
    require_own_folder(out, RECORD, "dit sweep", is_own)
    if not file.exists():
        return
    do = "choose another --out"
    expected = "the results that dit sweep wrote"
    before = read_json(file, EarlierSweep, expected, f"remove it, or {do}")["asked"]["num_samples"]
    if before != num_samples:
        given = f"--num-samples {num_samples} for {out}"
        results = f"whose results are of {before} images a setting"
        expected = "the same number for all settings of a folder"
        raise UserError(f"{given}, {results}", expected, do)
