"""`dit stats`: it writes the moments of the features, for every kind of data."""

import re
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU, random_pixels, save_images

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

INCEPTION = "inception-v3-compat"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fake_inception(monkeypatch):
    """Means of the channels; of each row's blue as the spatial layer."""

    def network(images):
        return Outputs(images.float().mean((2, 3)), None, images[:, 2].float().mean(2))

    fake = Extractor(network, INCEPTION, "fake.pth", "f" * 64, "none", CPU, (3, 0, 8))
    monkeypatch.setattr(module, "choose_extractors", lambda *given: [fake])
    return fake


def run(data, out, **settings):
    return module.stats(StatsConfig(data=str(data), out=out, **settings), Ranks())


def test_digits(tmp_path, capsys):
    out = run("digits", tmp_path / "stats.npz", batch_size=256)
    found = read_statistics(out)
    (extractor,) = load_extractors(["digits-cnn"], [], CPU)
    features = extract(from_data(Digits(32), "digits"), [extractor], 256, Ranks(), "features")
    values = features.networks["digits-cnn"].values.double().numpy()
    mean, covariance = found.of(extractor).features
    assert np.abs(mean.numpy() - values.mean(0)).max() < 1e-12
    assert np.abs(covariance.numpy() - np.cov(values, rowvar=False)).max() < 1e-12
    assert found.count == found.record["count"] == 1797
    assert found.record["networks"]["digits-cnn"]["checksum"] == extractor.checksum
    assert found.record["size"] == "32x32"
    assert found.digest == found.record["pixels_sha256"] == features.digest
    printed = capsys.readouterr().out
    for part in ("digits-cnn", "1,797", extractor.checksum[:8], features.digest):
        assert part in printed
    with np.load(out, allow_pickle=False) as plain:
        assert "mu" not in plain.files


def test_inception_has_plain_names_for_other_evaluators_too(tmp_path, fake_inception):
    out = run(save_images(tmp_path / "images", random_pixels(6)), tmp_path / "stats.npz")
    means, rows = random_pixels(6).mean((1, 2)), random_pixels(6)[..., 2].mean(2)
    with np.load(out, allow_pickle=False) as plain:
        for prefix in ("", f"{INCEPTION}/"):
            for suffix, values in (("", means), ("_s", rows)):
                mean, covariance = plain[f"{prefix}mu{suffix}"], plain[f"{prefix}sigma{suffix}"]
                assert np.abs(mean - values.mean(0)).max() < 1e-4
                assert np.abs(covariance - np.cov(values, rowvar=False)).max() < 1e-2
    assert isinstance(read_statistics(out).of(fake_inception), Moments)


def test_every_kind_of_data_gives_the_same(tmp_path, fake_inception):
    save_images(tmp_path / "flat", random_pixels(6))
    save_images(tmp_path / "classes" / "a", random_pixels(6)[:3])
    save_images(tmp_path / "classes" / "b", random_pixels(6)[3:])
    np.savez(tmp_path / "images.npz", random_pixels(6))
    names = ("flat", "classes", "images.npz")
    found = [read_statistics(run(tmp_path / name, tmp_path / f"to-{name}.npz")) for name in names]
    assert len({one.digest for one in found}) == 1
    covariances = [one.of(fake_inception).features[1] for one in found]
    assert all(torch.equal(covariance, covariances[0]) for covariance in covariances)


def test_printed_checksums_do_not_depend_on_date_or_name(
    tmp_path, capsys, monkeypatch, fake_inception
):
    printed = []
    for name in ("one", "two"):
        run(save_images(tmp_path / name, random_pixels(6)), tmp_path / f"{name}.npz")
        printed.append(re.findall("SHA-256 ([0-9a-f]{64})", capsys.readouterr().out))
        later = SimpleNamespace(now=lambda zone: datetime(2030, 1, 1, tzinfo=zone))
        monkeypatch.setattr(module, "datetime", later)
    assert printed[0] == printed[1]
    assert len(printed[0]) == 2
    run(save_images(tmp_path / "other", random_pixels(6, seed=1)), tmp_path / "other.npz")
    other = re.findall("SHA-256 ([0-9a-f]{64})", capsys.readouterr().out)
    assert not {*other} & {*printed[0]}


def test_the_column_of_the_images_is_for_data_sets_that_have_columns(tmp_path, fake_inception):
    data = save_images(tmp_path / "images", random_pixels(6))
    with pytest.raises(UserError, match="--image-column photo with --data"):
        run(data, tmp_path / "stats.npz", image_column="photo")


def test_crop(tmp_path, fake_inception):
    save_images(tmp_path / "set" / "a", random_pixels(3, 20, 30))
    save_images(tmp_path / "set" / "b", random_pixels(3, 9, 9))
    with pytest.raises(UserError, match=r"different sizes.*`dit stats --image-size` statistics"):
        run(tmp_path / "set", tmp_path / "stats.npz")
    found = read_statistics(run(tmp_path / "set", tmp_path / "stats.npz", image_size=8))
    assert (found.record["size"], found.record["crop"]) == ("8x8", 8)


def test_second_call_takes_features_from_the_cache(tmp_path, capsys, fake_inception):
    data = save_images(tmp_path / "images", random_pixels(6))
    first, second = (read_statistics(run(data, tmp_path / name)) for name in ("a.npz", "b.npz"))
    assert f"features of {data} ({INCEPTION}): from the cache" in capsys.readouterr().err
    assert torch.equal(first.of(fake_inception).features[0], second.of(fake_inception).features[0])


@pytest.mark.parametrize(
    ("data", "out", "message"),
    [
        ("one", "stats.npz", "1 image in"),
        ("empty", "stats.npz", "has no images"),
        ("moments.npz", "stats.npz", "holds mu, sigma; expected an array arr_0"),
        ("one", "stats.npy", "stats.npz"),
        ("one", "empty", "empty/stats.npz"),
    ],
)
def test_mistakes_are_named_before_any_network_is_loaded(tmp_path, monkeypatch, data, out, message):
    monkeypatch.setattr(module, "choose_extractors", lambda *given: pytest.fail("too late"))
    save_images(tmp_path / "one", random_pixels(1))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "moments.npz", mu=np.ones(3), sigma=np.eye(3))
    with pytest.raises(UserError) as error:
        run(tmp_path / data, tmp_path / out)
    assert message in str(error.value)


def test_large_sets_are_processed_in_parts(tmp_path, fake_inception, monkeypatch):
    data = save_images(tmp_path / "images", random_pixels(17))
    expected = read_statistics(run(data, tmp_path / "expected.npz")).networks[INCEPTION]
    monkeypatch.setattr(module, "MOST", 5)
    found = read_statistics(run(data, tmp_path / "parts.npz"))
    assert found.count == 17
    for one, other in zip(expected, found.networks[INCEPTION], strict=True):
        assert (one[0] - other[0]).abs().max() < 1e-12
        assert (one[1] - other[1]).abs().max() < 1e-10 * one[1].abs().max()


def test_only_its_own_files_are_replaced(tmp_path):
    images, own = tmp_path / "images.npz", tmp_path / "stats.npz"
    np.savez(images, arr_0=random_pixels())
    before = images.read_bytes()
    with pytest.raises(UserError, match="dit stats did not write it"):
        run(images, images, extractor=("digits-cnn",))
    assert images.read_bytes() == before
    for _ in range(2):
        assert run(images, own, extractor=("digits-cnn",)) == own


def test_statistics_of_other_data_are_not_replaced(tmp_path):
    one, other, out = tmp_path / "one.npz", tmp_path / "other.npz", tmp_path / "stats.npz"
    for file in (one, other):
        np.savez(file, arr_0=random_pixels())
    run(one, out, extractor=("digits-cnn",))
    before = out.read_bytes()
    message = f"{out} has the statistics of {one}, not of {other}; .*pass another --out"
    with pytest.raises(UserError, match=message):
        run(other, out, extractor=("digits-cnn",))
    assert out.read_bytes() == before
