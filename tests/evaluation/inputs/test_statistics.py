"""Statistics of a reference: the layouts that are read, what is written, what is refused."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.statistics import Moments, read_statistics, write_statistics

INCEPTION, DINO = "inception-v3-compat", "dinov2-vitl14"


def network(name, width=3, spatial=0, checksum="abc", preprocessing="none"):
    return Extractor(
        None, name, "weights", checksum, preprocessing, torch.device("cpu"), (width, 0, spatial)
    )


def pair(width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(width + 2, width))
    return rows.mean(0), np.cov(rows, rowvar=False).reshape(width, width)


def store(path, **arrays):
    np.savez(path, **arrays)
    return path


def refused(path):
    with pytest.raises(UserError) as error:
        read_statistics(path)
    return str(error.value)


def same(found, expected):
    return all(np.array_equal(a.numpy(), b) for a, b in zip(found, expected, strict=True))


# -- layouts -----------------------------------------------------------------------------------------------------


def test_adm(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = pair(3), pair(2, 1)
    path = store(
        tmp_path / "adm.npz",
        mu=mu,
        sigma=sigma,
        mu_s=mu_s,
        sigma_s=sigma_s,
        arr_0=np.zeros((2, 4, 4, 3)),
    )
    found = read_statistics(path).of(network(INCEPTION, 3, 2))
    assert same(found.features, (mu, sigma))
    assert same(found.spatial, (mu_s, sigma_s))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_mar_edm_and_torch_fidelity_are_read_as_float64(tmp_path, kind):
    mu, sigma = (array.astype(kind) for array in pair(3))
    found = read_statistics(store(tmp_path / "stats.npz", mu=mu, sigma=sigma)).of(
        network("digits-cnn")
    )
    assert found.features[0].dtype == found.features[1].dtype == torch.float64
    assert same(found.features, (mu, sigma))
    assert found.spatial is None


@pytest.mark.parametrize("separator", "/._")
def test_edm2(tmp_path, separator):
    names = {"fid": pair(3), "fd_dinov2": pair(4, 1)}
    arrays = {
        f"{m}{separator}{k}": v
        for m, p in names.items()
        for k, v in zip(("mu", "sigma"), p, strict=True)
    }
    found = read_statistics(store(tmp_path / "edm2.npz", **arrays, num_images=np.array(1281167)))
    assert same(found.of(network(INCEPTION)).features, names["fid"])
    assert same(found.of(network(DINO, 4)).features, names["fd_dinov2"])
    assert found.count == 1281167
    assert "statistics of inception-v3-compat, dinov2-vitl14, not of digits-cnn" in found.of(
        network("digits-cnn")
    )


def test_images_alone_are_no_statistics(tmp_path):
    assert read_statistics(store(tmp_path / "images.npz", arr_0=0)) is None


def test_edm2_pickle_is_not_loaded_and_the_command_named_converts_it(tmp_path):
    path = tmp_path / "edm2.pkl"
    mu, sigma = pair(3)
    path.write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}, "num_images": 7}))
    with pytest.raises(UserError, match="can run any code") as error:
        read_statistics(path)
    code = error.value.do.partition('-c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True)
    assert same(read_statistics(tmp_path / "edm2.npz").of(network(INCEPTION)).features, (mu, sigma))
    disguised = tmp_path / "disguised.npz"
    disguised.write_bytes(path.read_bytes())
    assert "is a pickle" in refused(disguised)


# -- whose they are ----------------------------------------------------------------------------------------------


def test_2048_values_without_a_name_are_inceptions(tmp_path):
    found = read_statistics(
        store(tmp_path / "stats.npz", mu=np.ones(2048), sigma=np.eye(2048, dtype=np.float32))
    )
    assert isinstance(found.of(network(INCEPTION, 2048)), Moments)
    assert "taken for Inception's" in found.of(network("resnet", 2048))
    assert found.of(network("digits-cnn", 64)).endswith(
        "statistics of 2048 values, digits-cnn gives 64"
    )


def test_spatial_statistics_of_another_width(tmp_path):
    arrays = dict(zip(("mu", "sigma", "mu_s", "sigma_s"), (*pair(3), *pair(2)), strict=True))
    found = read_statistics(store(tmp_path / "stats.npz", **arrays))
    with pytest.raises(UserError, match="mu_s of 2 values"):
        found.of(network(INCEPTION, 3, 5))
    assert isinstance(found.of(network(INCEPTION, 3, 0)), Moments)


def test_other_weights_or_preprocessing_than_recorded(tmp_path):
    made = {"checksum": "abc", "preprocessing": "none"}
    write_statistics(tmp_path / "s.npz", {"net": moments(3)}, 5, {"networks": {"net": made}})
    found = read_statistics(tmp_path / "s.npz")
    assert isinstance(found.of(network("net")), Moments)
    assert "other weights of net (SHA-256 abc, here def)" in found.of(
        network("net", checksum="def")
    )
    assert "another preprocessing for net (none; here resized)" in found.of(
        network("net", preprocessing="resized")
    )


# -- what is written ---------------------------------------------------------------------------------------------


def moments(width, spatial=None):
    tensors = [tuple(map(torch.from_numpy, pair(w))) if w else None for w in (width, spatial)]
    return Moments(*tensors)


def test_written_statistics_are_read_again(tmp_path):
    path = tmp_path / "deep" / "stats.npz"
    networks = {INCEPTION: moments(4, 2), "digits-cnn": moments(3)}
    write_statistics(path, networks, 9, {"data": "x"})
    found = read_statistics(path)
    assert found.count == 9
    assert found.record == {"data": "x"}
    assert same(found.of(network(INCEPTION, 4, 2)).spatial, networks[INCEPTION].spatial)
    assert same(found.of(network("digits-cnn")).features, networks["digits-cnn"].features)
    with np.load(path, allow_pickle=False) as plain:  # as other evaluators read it
        expected = [*networks[INCEPTION].features, *networks[INCEPTION].spatial]
        assert same(expected, [plain[key] for key in ("mu", "sigma", "mu_s", "sigma_s")])
        assert {key: plain[key].dtype.kind for key in plain.files}["record"] == "U"
    assert [p.name for p in path.parent.iterdir()] == ["stats.npz"]


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"mean": np.ones(3), "cov": np.eye(3)},
            "holds mean, cov; expected mu [D] and sigma [D, D] (ADM",
        ),
        ({"mu": np.ones(3)}, "holds mu; expected mu and sigma together"),
        ({"mu_s": np.ones(3), "sigma_s": np.eye(3)}, "holds mu_s, sigma_s alone"),
        (
            {"mu": np.ones(3), "sigma": np.eye(3), "mu_s": np.ones(3)},
            "expected mu_s and sigma_s together",
        ),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, r"mu [3] and sigma [4, 4]"),
        ({"mu": np.ones((3, 1)), "sigma": np.eye(3)}, r"mu [3, 1] and sigma"),
        ({"mu": np.ones(3), "sigma": np.ones((3, 4))}, r"sigma [3, 4]"),
        ({"mu": np.ones(0), "sigma": np.ones((0, 0))}, r"mu [0] and sigma [0, 0]"),
        ({"fid/mu": np.ones(3), "fid/sigma": np.eye(4)}, r"fid/mu [3] and fid/sigma [4, 4]"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu in"),
        ({"mu": np.ones(3), "sigma": np.diag([1, np.inf, 1])}, "is not finite"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu in"),
        ({"mu": np.ones(3), "sigma": np.eye(3) + 0j}, "complex"),
        ({"mu": np.ones(3), "sigma": np.eye(3, dtype=np.float16)}, "is float16"),
        ({"fid/mu": np.ones(3), "fid_mu": np.ones(3)}, "holds both fid/mu and fid_mu"),
        ({"mu": np.ones(3), "sigma": np.eye(3), "record": np.array("{")}, "record in"),
        (
            {"mu": np.array([{}], dtype=object), "sigma": np.eye(1)},
            "pickled objects are never loaded",
        ),
    ],
)
def test_statistics_that_are_none(tmp_path, arrays, message):
    assert message in refused(store(tmp_path / "stats.npz", **arrays))
