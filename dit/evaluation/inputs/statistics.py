"""Mean and covariance of a reference's features, as files publish them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit.errors import UserError
from dit.evaluation.archives import open_npz, read_array
from dit.files import sha256


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of features, float64: all that some references publish."""

    mean: np.ndarray
    covariance: np.ndarray
    name: str
    digest: str


def read_statistics(path: Path) -> Statistics | None:
    """Reference statistics `mu` [D] and `sigma` [D, D] of an .npz file; None where it has neither.

    Raises:
        UserError: one without the other, or of shapes that do not fit or with values that are not finite.
    """
    with open_npz(path) as file:
        if not {"mu", "sigma"} & set(file.files):
            return None
        arrays = [read_array(file, path, key) for key in ("mu", "sigma")]
    mean, covariance = arrays
    expected = "mu [D] and sigma [D, D], finite numbers"
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"mu {list(mean.shape)} and sigma {list(covariance.shape)} in {path}", expected,
                        "pass the statistics file of your feature network")
    if not (_is_finite(mean) and _is_finite(covariance)):
        raise UserError(f"mu or sigma in {path} is not finite", expected, "compute the statistics again")
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64), str(path), sha256(path))


def _is_finite(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.number) and bool(np.isfinite(array).all())
