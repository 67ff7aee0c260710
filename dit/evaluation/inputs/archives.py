"""Opening .npz files, with every mistake named and no pickle loaded."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dit.errors import UserError


def open_npz(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("not a zip archive")
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can not be read ({error})", "an .npz file written by numpy.savez",
                        "check the path or write the file again") from error


def read_array(file: Any, path: Path, key: str) -> np.ndarray:
    if key not in file.files:
        raise UserError(f"{path} holds {', '.join(file.files) or 'nothing'}", f"an array {key}",
                        "images: arr_0 [N, H, W, 3]; statistics: mu [D] and sigma [D, D]")
    try:
        return file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{key} in {path} can not be read ({error})", "an intact array of plain numbers",
                        "write the file again; pickled objects are never loaded") from error
