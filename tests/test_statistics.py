"""Statistics of a reference: the layouts that are read, what is refused."""

import numpy as np
import pytest

from dit.errors import UserError
from dit.evaluation.statistics import read_statistics


def test_statistics_are_read_as_float64(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.ones(3, np.float32), sigma=np.eye(3, dtype=np.float32), arr_0=0)
    found = read_statistics(tmp_path / "stats.npz")
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert np.array_equal(found.covariance, np.eye(3))
    np.savez(tmp_path / "images.npz", arr_0=0)
    assert read_statistics(tmp_path / "images.npz") is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.ones(3)}, "holds mu; expected an array sigma"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, r"mu [3] and sigma [4, 4]"),
        ({"mu": np.ones((3, 1)), "sigma": np.eye(3)}, r"mu [3, 1] and sigma"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "not finite"),
    ],
)
def test_statistics_that_are_none(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError) as error:
        read_statistics(tmp_path / "stats.npz")
    assert message in str(error.value)
