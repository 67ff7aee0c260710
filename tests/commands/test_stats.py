"""`dit stats`: what it writes is what the features say, for every kind of data."""

import numpy as np
import pytest
import torch
from PIL import Image

from dit.commands import stats as module
from dit.config import StatsConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_data
from dit.evaluation.inputs.statistics import Moments, read_statistics
from dit.utils.files import sha256

INCEPTION = "inception-v3-compat"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fake_inception(monkeypatch):
    """Means of the channels; of each row's blue as the spatial layer."""

    def network(images):
        return Outputs(images.float().mean((2, 3)), None, images[:, 2].float().mean(2))

    fake = Extractor(
        network, INCEPTION, "fake.pth", "f" * 64, "none", torch.device("cpu"), (3, 0, 8)
    )
    monkeypatch.setattr(module, "choose_extractors", lambda names, weights, digits, ranks: [fake])
    return fake


def pixels(n=6, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def run(data, out, **settings):
    return module.stats(StatsConfig(data=str(data), out=out, **settings), Ranks())


def test_digits_round_trip(tmp_path, capsys):
    out = run("digits", tmp_path / "stats.npz", batch_size=256)
    found = read_statistics(out)
    (extractor,) = load_extractors(["digits-cnn"], [], torch.device("cpu"))
    features = extract(
        from_data(Digits(32), "digits"), [extractor], 256, Ranks(), "features"
    ).networks["digits-cnn"]
    values = features.values
    mean, covariance = found.of(extractor).features
    assert np.abs(mean.numpy() - values.double().numpy().mean(0)).max() < 1e-12
    assert np.abs(covariance.numpy() - np.cov(values.double().numpy(), rowvar=False)).max() < 1e-12
    assert found.count == found.record["count"] == 1797
    assert found.record["networks"]["digits-cnn"]["checksum"] == extractor.checksum
    assert found.record["size"] == "32x32"
    said = capsys.readouterr().out
    for piece in (
        "digits-cnn",
        "1,797",
        extractor.checksum[:8],
        found.record["pixels_sha256"],
        sha256(out),
    ):
        assert piece in said
    with np.load(out, allow_pickle=False) as plain:
        assert all(plain[key].dtype.kind in "fiU" for key in plain.files)
        assert "mu" not in plain.files


def test_inception_is_there_for_other_evaluators_too(tmp_path, fake_inception):
    out = run(save(tmp_path / "images", pixels()), tmp_path / "stats.npz")
    rows = pixels()[..., 2].mean(2)
    with np.load(out, allow_pickle=False) as plain:
        for prefix in ("", f"{INCEPTION}/"):
            assert np.abs(plain[f"{prefix}mu"] - pixels().mean((0, 1, 2))).max() < 1e-4
            assert (
                np.abs(plain[f"{prefix}sigma"] - np.cov(pixels().mean((1, 2)), rowvar=False)).max()
                < 1e-3
            )
            assert np.abs(plain[f"{prefix}mu_s"] - rows.mean(0)).max() < 1e-4
            assert np.abs(plain[f"{prefix}sigma_s"] - np.cov(rows, rowvar=False)).max() < 1e-2
    assert isinstance(read_statistics(out).of(fake_inception), Moments)


def test_every_kind_of_data_gives_the_same(tmp_path, fake_inception):
    save(tmp_path / "flat", pixels())
    save(tmp_path / "classes" / "a", pixels()[:3])
    save(tmp_path / "classes" / "b", pixels()[3:])
    np.savez(tmp_path / "images.npz", pixels())
    found = [
        read_statistics(run(tmp_path / name, tmp_path / "out" / f"{i}.npz"))
        for i, name in enumerate(("flat", "classes", "images.npz"))
    ]
    assert len({one.record["pixels_sha256"] for one in found}) == 1
    for one in found:
        assert torch.equal(
            one.of(fake_inception).features[1], found[0].of(fake_inception).features[1]
        )


def test_crop(tmp_path, fake_inception):
    save(tmp_path / "set" / "a", pixels(3, 20, 30))
    save(tmp_path / "set" / "b", pixels(3, 9, 9))
    with pytest.raises(UserError, match=r"different sizes.*--image-size in dit stats"):
        run(tmp_path / "set", tmp_path / "stats.npz")
    found = read_statistics(run(tmp_path / "set", tmp_path / "stats.npz", image_size=8))
    assert (found.record["size"], found.record["crop"]) == ("8x8", 8)


def test_second_call_takes_features_from_the_cache(tmp_path, capsys, fake_inception):
    data = save(tmp_path / "images", pixels())
    run(data, tmp_path / "a.npz")
    run(data, tmp_path / "b.npz")
    assert f"features of {data} ({INCEPTION}): from the cache" in capsys.readouterr().err
    first, second = (read_statistics(tmp_path / f"{name}.npz") for name in "ab")
    assert torch.equal(first.of(fake_inception).features[0], second.of(fake_inception).features[0])


@pytest.mark.parametrize(
    ("data", "out", "message"),
    [
        ("one", "stats.npz", "1 image in"),
        ("none", "stats.npz", "is not a folder or an .npz file"),
        ("empty", "stats.npz", "has no images"),
        ("moments.npz", "stats.npz", "holds mu, sigma; expected an array arr_0"),
        ("one", "stats.npy", "stats.npz"),
        ("one", "empty", "empty/stats.npz"),
    ],
)
def test_mistakes_are_named_before_any_network_is_loaded(tmp_path, monkeypatch, data, out, message):
    monkeypatch.setattr(module, "choose_extractors", lambda *given: pytest.fail("too late"))
    save(tmp_path / "one", pixels(1))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "moments.npz", mu=np.ones(3), sigma=np.eye(3))
    with pytest.raises(UserError) as error:
        run(tmp_path / data, tmp_path / out)
    assert message in str(error.value)


def test_large_sets_go_part_by_part_to_the_same_moments(tmp_path, fake_inception, monkeypatch):
    images = pixels(17)
    whole = read_statistics(
        run(save(tmp_path / "images", images), tmp_path / "whole.npz")
    ).networks[INCEPTION]
    monkeypatch.setattr(module, "MOST", 5)
    found = read_statistics(run(tmp_path / "images", tmp_path / "parts.npz"))
    assert found.count == 17
    for one, other in zip(whole, found.networks[INCEPTION], strict=True):
        assert (one[0] - other[0]).abs().max() < 1e-12
        assert (one[1] - other[1]).abs().max() < 1e-10 * one[1].abs().max()


def test_other_files_are_never_replaced(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=pixels())
    before = (tmp_path / "images.npz").read_bytes()
    with pytest.raises(UserError, match="dit stats did not write it"):
        run(tmp_path / "images.npz", tmp_path / "images.npz", extractor=("digits-cnn",))
    assert (tmp_path / "images.npz").read_bytes() == before
    own = run(tmp_path / "images.npz", tmp_path / "stats.npz", extractor=("digits-cnn",))
    assert run(tmp_path / "images.npz", own, extractor=("digits-cnn",)) == own  # its own it may


def test_statistics_are_known_by_the_pixels_they_were_made_of(tmp_path):
    save(tmp_path / "images", pixels())
    one, other = (
        read_statistics(run(tmp_path / "images", tmp_path / name, extractor=("digits-cnn",)))
        for name in ("one.npz", "other.npz")
    )
    assert one.digest == other.digest == one.record["pixels_sha256"]
