"""Statistics of a reference: the layouts that are read, what is written, what is refused."""

import pickle

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.statistics import Moments, read_statistics, write_statistics

INCEPTION, DINO = "inception-v3-compat", "dinov2-vitl14"


def network(name, width=3, spatial=0, checksum="abc", preprocessing="none"):
    return Extractor(None, name, "weights", checksum, preprocessing, CPU, (width, 0, spatial))


def pair(width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(width + 2, width))
    return rows.mean(0), np.cov(rows, rowvar=False).reshape(width, width)


def moments(width, spatial=None):
    tensors = [tuple(map(torch.from_numpy, pair(w))) if w else None for w in (width, spatial)]
    return Moments(*tensors)


def read(path, **arrays):
    np.savez(path, **arrays)
    return read_statistics(path)


def same(found, expected):
    return all(np.array_equal(a.numpy(), b) for a, b in zip(found, expected, strict=True))


# -- layouts ---------------------------------------------------------------------------------------


def test_adm(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = pair(3), pair(2, 1)
    arrays = dict(mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, arr_0=np.zeros((2, 4, 4, 3)))
    found = read(tmp_path / "adm.npz", **arrays).of(network(INCEPTION, 3, 2))
    assert same(found.features, (mu, sigma))
    assert same(found.spatial, (mu_s, sigma_s))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_mar_edm_and_torch_fidelity_are_read_as_float64(tmp_path, kind):
    mu, sigma = (array.astype(kind) for array in pair(3))
    found = read(tmp_path / "stats.npz", mu=mu, sigma=sigma).of(network("digits-cnn"))
    assert found.features[0].dtype == found.features[1].dtype == torch.float64
    assert same(found.features, (mu, sigma))
    assert found.spatial is None


@pytest.mark.parametrize("separator", "/._")
def test_edm2(tmp_path, separator):
    inception, dino = pair(3), pair(4, 1)
    arrays = {}
    for name, (mu, sigma) in (("fid", inception), ("fd_dinov2", dino)):
        arrays |= {f"{name}{separator}mu": mu, f"{name}{separator}sigma": sigma}
    found = read(tmp_path / "edm2.npz", **arrays, num_images=np.array(1281167))
    assert same(found.of(network(INCEPTION)).features, inception)
    assert same(found.of(network(DINO, 4)).features, dino)
    assert found.count == 1281167
    names = "statistics of inception-v3-compat, dinov2-vitl14, not of digits-cnn"
    assert names in found.of(network("digits-cnn"))


def test_images_alone_are_no_statistics(tmp_path):
    assert read(tmp_path / "images.npz", arr_0=0) is None


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_pickles_are_not_loaded(tmp_path, suffix):
    path = tmp_path / f"edm2.{suffix}"
    path.write_bytes(pickle.dumps({"fid": dict(zip(("mu", "sigma"), pair(3), strict=True))}))
    with pytest.raises(UserError, match=r"can run any code .* numpy\.savez"):
        read_statistics(path)


# -- which network they belong to ------------------------------------------------------------------


def test_2048_values_without_a_name_are_inceptions(tmp_path):
    sigma = np.eye(2048, dtype=np.float32)
    found = read(tmp_path / "stats.npz", mu=np.ones(2048), sigma=sigma)
    assert isinstance(found.of(network(INCEPTION, 2048)), Moments)
    assert "taken for Inception's" in found.of(network("resnet", 2048))
    reason = found.of(network("digits-cnn", 64))
    assert reason.endswith("statistics of 2048 values, digits-cnn gives 64")


def test_spatial_statistics_of_another_width(tmp_path):
    arrays = dict(zip(("mu", "sigma", "mu_s", "sigma_s"), (*pair(3), *pair(2)), strict=True))
    found = read(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError, match=r"mu_s of 2 values in .*expected the 5 of inception"):
        found.of(network(INCEPTION, 3, 5))
    assert isinstance(found.of(network(INCEPTION, 3, 0)), Moments)


def test_other_weights_or_preprocessing_than_recorded(tmp_path):
    recorded = {"checksum": "abc", "preprocessing": "none"}
    write_statistics(tmp_path / "s.npz", {"net": moments(3)}, 5, {"networks": {"net": recorded}})
    found = read_statistics(tmp_path / "s.npz")
    assert isinstance(found.of(network("net")), Moments)
    reason = found.of(network("net", checksum="def"))
    assert "other weights of net (SHA-256 abc; now def)" in reason
    reason = found.of(network("net", preprocessing="resized"))
    assert "other preprocessing for net (none; now resized)" in reason


# -- what is written -------------------------------------------------------------------------------


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
        assert plain["record"].dtype.kind == "U"
    assert [p.name for p in path.parent.iterdir()] == ["stats.npz"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.ones(3), "cov": np.eye(3)}, "holds mean, cov; expected mu [D] and sigma"),
        ({"mu": np.ones(3)}, "holds mu, not sigma; expected mu [D] and sigma [D, D] (ADM"),
        ({"mu_s": np.ones(3), "sigma_s": np.eye(3)}, "holds mu_s, sigma_s, not mu, sigma"),
        ({"mu": np.ones(3), "sigma": np.eye(3), "mu_s": np.ones(3)}, "mu_s, not sigma_s"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, "mu [3] and sigma [4, 4]"),
        ({"mu": np.ones((3, 1)), "sigma": np.eye(3)}, "mu [3, 1] and sigma"),
        ({"mu": np.ones(0), "sigma": np.ones((0, 0))}, "mu [0] and sigma [0, 0]"),
        ({"fid/mu": np.ones(3), "fid/sigma": np.eye(4)}, "fid/mu [3] and fid/sigma [4, 4]"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu in"),
        ({"mu": np.ones(3), "sigma": np.diag([1, np.inf, 1])}, "is not finite"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu in"),
        ({"mu": np.ones(3), "sigma": np.eye(3) + 0j}, "is complex128"),
        ({"mu": np.ones(3), "sigma": np.eye(3, dtype=np.float16)}, "is float16"),
        ({"fid/mu": np.ones(3), "fid_mu": np.ones(3)}, "holds both fid/mu and fid_mu"),
        ({"mu": np.ones(3), "sigma": np.eye(3), "record": np.array("{")}, "record in"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "objects are never loaded"),
    ],
)
def test_files_that_hold_no_statistics(tmp_path, arrays, message):
    with pytest.raises(UserError) as error:
        read(tmp_path / "stats.npz", **arrays)
    assert message in str(error.value)
