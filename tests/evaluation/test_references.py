"""What samples are compared with: each network with its own, and statistics of a file before those of images."""

import numpy as np
import pytest
import torch

from dit.commands import evaluate as command
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs import cache
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array
from dit.evaluation.inputs.statistics import Moments, Statistics
from dit.evaluation.metrics.frechet import fit, frechet, from_moments
from dit.evaluation.references import Reference, prepare, score

CPU = torch.device("cpu")
COUNTED = 5000  # images that the file's statistics say they are of


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))


class Network:
    """Some of the pixels as features, and two more as the spatial layer; counts the images that it sees."""

    def __init__(self, first, width, scale):
        self.first, self.width, self.scale, self.seen = first, width, scale, 0

    def __call__(self, images):
        self.seen += len(images)
        rows = images.float().flatten(1) * self.scale
        return Outputs(rows[:, self.first :][:, : self.width], None, rows[:, -2:])


def narrow(device=CPU):
    return Extractor(Network(0, 3, 0.01), "narrow", "n.pth", "a" * 64, "none", device, (3, 0, 2))


def wide():
    return Extractor(Network(20, 5, 0.1), "wide", "w.pth", "b" * 64, "none", CPU, (5, 0, 2))


def images(count, seed):
    array = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return from_array(array, f"images {seed}")


def moments(width, seed):
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(3 * width, width)))
    return rows.mean(0), rows.T.cov()


@pytest.fixture
def statistics(tmp_path):
    """Of the narrow network alone."""
    return Statistics(
        tmp_path / "s.npz", {"narrow": Moments(moments(3, 7), moments(2, 8))}, COUNTED
    )


def prepared(reference, *networks, count=10, scoring=None, ranks=None):
    names = [network.name for network in networks] if scoring is None else scoring
    return prepare(reference, networks, names, count, 4, ranks or Ranks(), False)


def of_images(count=50):
    return Reference("images", images(count, 1), None)


def features(found, *networks):
    return extract(found, networks, 4, Ranks(), "features")


def covariance(gaussian):
    return gaussian.factor.T @ gaussian.factor


# -- targets ---------------------------------------------------------------------------------------


def test_images_give_each_network_its_own_features_and_gaussians():
    targets = prepared(of_images(), narrow(), wide()).targets
    found = features(images(50, 1), narrow(), wide()).networks
    assert list(targets) == ["narrow", "wide"]
    for name, target in targets.items():
        assert torch.equal(target.values, found[name].values)
        assert target.count == 50
        for gaussian, layer in (
            (target.gaussian, found[name].values),
            (target.spatial, found[name].spatial),
        ):
            assert (gaussian.mean - layer.double().mean(0)).abs().max() < 1e-9
            assert (covariance(gaussian) - layer.double().T.cov()).abs().max() < 1e-9


@pytest.mark.parametrize("beside", [None, images(30, 1)])
def test_gaussians_are_the_files_whether_or_not_images_lie_beside_them(statistics, beside):
    target = prepared(Reference("both", beside, statistics), narrow()).targets["narrow"]
    for gaussian, (mean, spread) in (
        (target.gaussian, moments(3, 7)),
        (target.spatial, moments(2, 8)),
    ):
        assert torch.equal(gaussian.mean, mean)
        assert (covariance(gaussian) - spread).abs().max() < 1e-12
    assert target.count == COUNTED
    if beside is None:
        assert target.values is None
        assert target.missing == "the reference has statistics only, no images"
    else:
        assert torch.equal(
            target.values, features(images(30, 1), narrow()).networks["narrow"].values
        )


def test_scores_take_distances_from_the_file_and_the_rest_from_the_images(statistics):
    samples, network = features(images(30, 2), narrow()), narrow()
    both, file, pictures = (
        score(samples, prepared(Reference("x", beside, given), network), ["narrow"], CPU)
        for beside, given in (
            (images(40, 1), statistics),
            (None, statistics),
            (images(40, 1), None),
        )
    )
    for name, layer, pair in (
        ("FD(narrow)", "values", moments(3, 7)),
        ("sFD(narrow)", "spatial", moments(2, 8)),
    ):
        expected = frechet(
            fit(getattr(samples.networks["narrow"], layer)), from_moments(*pair, "x")
        )
        assert both[name].value == file[name].value == pytest.approx(expected, rel=1e-9)
        assert both[name].reference == COUNTED
        assert pictures[name].value != pytest.approx(expected, rel=0.1)
    for name in ("KID(narrow)", "precision(narrow)", "coverage(narrow)"):
        assert both[name] == pictures[name]
        assert both[name].value is not None
        assert file[name].value is None


def test_a_network_that_the_file_does_not_know_keeps_the_images(statistics):
    target = prepared(Reference("both", images(30, 1), statistics), narrow(), wide()).targets[
        "wide"
    ]
    assert target.gaussian is None is target.spatial
    assert target.values.shape == (30, 5)
    assert target.missing == f"{statistics.path} has statistics of narrow, not of wide"


def test_a_file_without_spatial_statistics_says_so(tmp_path):
    plain = Statistics(tmp_path / "s.npz", {"narrow": Moments(moments(3, 7))})
    target = prepared(Reference("both", images(30, 1), plain), narrow()).targets["narrow"]
    assert target.gaussian is not None
    assert target.spatial is None
    assert target.missing == f"{plain.path} has no spatial statistics"


# -- floor -----------------------------------------------------------------------------------------


def test_each_network_has_the_floor_of_its_own_features():
    both = prepared(of_images(), narrow(), wide()).real_vs_real
    alone = [prepared(of_images(), network).real_vs_real for network in (narrow(), wide())]
    assert both == alone[0] | alone[1]
    assert (
        both["FD(wide)"].low > 10 * both["FD(narrow)"].high
    )  # for its features are ten times as large


def test_floor_is_between_parts_of_the_reference():
    floor = prepared(of_images(6), narrow(), count=3).real_vs_real["FD(narrow)"]
    values = features(images(6, 1), narrow()).networks["narrow"].values
    halves = torch.combinations(torch.arange(6), 3)
    rest = [torch.tensor([i for i in range(6) if i not in half]) for half in halves.tolist()]
    possible = torch.tensor(
        [frechet(fit(values[a]), fit(values[b])) for a, b in zip(halves, rest, strict=True)]
    )
    for end in (floor.low, floor.high):
        assert (possible / end - 1).abs().min() < 1e-6
    assert (floor.samples, floor.reference) == (3, 3)


def test_floor_is_for_the_networks_that_score_and_for_a_number_of_samples():
    scored = prepared(of_images(), narrow(), wide(), scoring=["wide"])
    assert list(scored.targets) == ["narrow", "wide"]
    assert {name.partition("(")[2].partition(")")[0] for name in scored.real_vs_real} == {"wide"}
    assert {part.samples for part in scored.real_vs_real.values()} == {10}
    assert prepared(of_images(), narrow(), count=None).real_vs_real == {}


def test_floor_of_images_is_none_of_distances_to_statistics(statistics):
    both = prepared(Reference("both", images(50, 1), statistics), narrow()).real_vs_real
    pictures = prepared(of_images(), narrow()).real_vs_real
    assert set(pictures) - set(both) == {"FD(narrow)", "sFD(narrow)"}
    assert both == {name: part for name, part in pictures.items() if name in both}
    assert (
        "KID(narrow)"
        in prepared(Reference("both", images(50, 1), statistics), narrow(), count=25).real_vs_real
    )


def test_statistics_alone_have_no_floor(statistics):
    assert prepared(Reference("s", None, statistics), narrow()).real_vs_real == {}


# -- digest ----------------------------------------------------------------------------------------


def test_digest_is_of_all_that_the_reference_is_made_of(statistics, tmp_path):
    other = Statistics(
        tmp_path / "s.npz", {"narrow": Moments(moments(3, 9), moments(2, 8))}, COUNTED
    )
    kinds = [(images(9, seed), given) for seed in (1, 2) for given in (None, statistics, other)]
    kinds += [(None, statistics), (None, other)]
    digests = [prepared(Reference("x", *kind), narrow()).digest for kind in kinds]
    assert len(set(digests)) == len(kinds)
    assert all(len(digest) == 64 for digest in digests)
    assert digests[0] == features(images(9, 1), narrow()).digest
    assert digests[-2:] == [statistics.digest, other.digest]


# -- mistakes --------------------------------------------------------------------------------------


def test_a_reference_that_says_nothing_to_the_scoring_networks_is_refused(statistics):
    alone = Reference("s.npz", None, statistics)
    with pytest.raises(
        UserError, match=r"s\.npz can not be compared with: .* statistics of narrow, not of wide"
    ):
        prepared(alone, narrow(), wide(), scoring=["wide"])
    assert (
        prepared(alone, narrow(), wide()).targets["wide"].gaussian is None
    )  # the other one may serve


def test_statistics_that_are_no_covariance_are_refused_and_named(tmp_path):
    mean, spread = moments(3, 7)
    wrong = Statistics(
        tmp_path / "s.npz", {"narrow": Moments((mean, spread - 2 * torch.eye(3) * spread.trace()))}
    )
    with pytest.raises(UserError, match=r"the covariance of .*s\.npz has the eigenvalue -"):
        prepared(Reference("s", images(9, 1), wrong), narrow())


def test_an_image_without_features_is_named():
    broken = Extractor(
        lambda pixels: Outputs(pixels.float().mean((2, 3)) * torch.nan),
        "x",
        "",
        "",
        "",
        CPU,
        (3, 0, 0),
    )
    with pytest.raises(UserError, match=r"NaN in features \(x\) of image 0 of images 1"):
        prepared(of_images(9), broken)


class OneOfTwo(Ranks):
    """One of two ranks; what rank 0 shares is kept, and comes back on the other one."""

    box = None

    def barrier(self):
        pass

    def share(self, value):
        if self.main:
            OneOfTwo.box = value
        return OneOfTwo.box


def test_all_ranks_hear_of_a_mistake_that_rank_0_finds(statistics):
    for rank in (0, 1):
        with pytest.raises(UserError, match="can not be compared with"):
            prepared(Reference("s.npz", None, statistics), wide(), ranks=OneOfTwo(rank, 2))
    first, second = (
        prepared(Reference("s.npz", None, statistics), narrow(), ranks=OneOfTwo(r, 2))
        for r in (0, 1)
    )
    assert list(first.targets) == ["narrow"]
    assert second.targets == second.real_vs_real == {}


# -- how many samples ------------------------------------------------------------------------------


def test_as_many_samples_as_images_unless_statistics_tell_of_more(statistics):
    count = command._reference_count
    assert count(of_images(50)) == 50
    assert count(Reference("s", None, statistics)) == 50_000
    assert count(Reference("both", images(50, 1), statistics)) == 50_000


# -- cache -----------------------------------------------------------------------------------------


def test_features_of_another_kind_of_device_are_not_taken_from_the_cache(monkeypatch):
    kinds = {"cpu": "cpu"}
    monkeypatch.setattr(cache, "device_kind", lambda device: kinds[device.type])
    seen = []
    for kind in ("cpu", "cpu", "Some GPU"):
        kinds["cpu"], network = kind, narrow()
        prepare(of_images(9), [network], ["narrow"], None, 4, Ranks(), True)
        seen.append(network.network.seen)
    assert seen == [9, 0, 9]
