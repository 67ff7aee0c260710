"""Nearest neighbours in blocks: against definitions computed pair by pair, and torch-fidelity."""

import functools

import numpy as np
import pytest
import torch

from dit.evaluation.metrics import precision_recall as neighbours

CPU = torch.device("cpu")
manifold = functools.partial(neighbours.manifold, device=CPU)
nearest = functools.partial(neighbours.nearest, device=CPU)
NAMES = ("precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True, params=[16, 1024], ids=["many blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", request.param)


def normal(count, width=8, seed=0, shift=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def distances(x, y):
    """Pair by pair, without products."""
    return np.sqrt(np.square(x.double().numpy()[:, None] - y.double().numpy()[None]).sum(-1))


def balls(points, k):
    """How far the k-th nearest other point is from each."""
    apart = distances(points, points)
    np.fill_diagonal(apart, np.inf)
    return np.sort(apart, axis=1)[:, k - 1]


def by_definition(samples, real):
    """Kynkäänniemi et al., Eq. 1-2, and Naeem et al., Eq. 4-5, as they are written."""
    apart = distances(samples, real)
    inside = apart <= balls(real, 5)[None]
    return {
        "precision": (apart <= balls(real, 3)[None]).any(1).mean(),
        "recall": (apart <= balls(samples, 3)[:, None]).any(0).mean(),
        "density": inside.sum() / (5 * len(samples)),
        "coverage": inside.any(0).mean(),
    }


def assert_same(found, expected):
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize(("count", "shift"), [(70, 0.0), (70, 0.5), (33, 0.2), (6, 0.0)])
def test_manifold_is_the_definition(count, shift):
    samples, real = normal(count, seed=1, shift=shift), normal(50)
    expected = by_definition(samples, real)
    assert_same(manifold(samples, real), expected)
    assert count == 6 or 0 < expected["coverage"] < 1


@pytest.mark.portable
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_fidelity(dtype):
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, real = normal(300, 64, seed=1, shift=0.05).to(dtype), normal(200, 64).to(dtype)
    theirs = prc_features_to_metric(samples.double(), real.double(), verbose=False)
    ours = manifold(samples, real)
    assert ours.precision == pytest.approx(theirs["precision"], rel=1e-7)
    assert ours.recall == pytest.approx(theirs["recall"], rel=1e-7)
    assert 0.1 < ours.precision < 0.9


def test_a_set_compared_with_itself():
    """Every point lies in its own ball, and in those whose five nearest neighbours it is among."""
    points = normal(50)
    found = manifold(points, points.clone())
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx((5 + 1) / 5)


def test_copies_lie_in_the_balls_of_their_originals():
    """Also on the border of balls that just reach them."""
    real, chosen = normal(90, 64), torch.arange(0, 90, 2)
    assert_same(manifold(real[chosen], real), by_definition(real[chosen], real))


def test_far_sets_have_no_overlap():
    assert manifold(normal(50), normal(50, seed=1, shift=100)) == neighbours.Manifold(0, 0, 0, 0)


def test_duplicates_are_at_distance_zero():
    """Balls around duplicates have radius 0 and still contain them."""
    real = normal(10, 64).repeat_interleave(7, dim=0) * 3 + 1000
    samples = torch.cat([real[::7], real[::7] + 1e-2])
    expected = by_definition(samples, real)
    assert expected["precision"] == 0.5
    assert_same(manifold(samples, real), expected)
    assert nearest(samples, real)[0][:10].tolist() == [0] * 10


def test_one_image_over_and_over():
    same = torch.ones(40, 8)
    assert_same(manifold(same, same), dict(precision=1, recall=1, density=8, coverage=1))
    assert manifold(same, normal(40)).recall < 0.5


def test_features_far_from_zero_keep_their_digits():
    samples, real = normal(70, seed=1), normal(50)
    shifted = manifold(samples.double() + 1e5, real.double() + 1e5)
    assert_same(shifted, by_definition(samples, real))


def test_features_do_not_change():
    points = normal(50).double()
    before = points.clone()
    manifold(points, points)
    nearest(points, points)
    assert torch.equal(points, before)


@pytest.mark.portable
def test_nearest_is_the_nearest():
    queries, points = normal(40, seed=1), normal(70)
    found, index = nearest(queries, points)
    expected = distances(queries, points)
    assert np.array_equal(index.numpy(), expected.argmin(1))
    assert np.abs(found.numpy() - expected.min(1)).max() < 1e-12


def test_nearest_other_than_itself():
    points, chosen = normal(70), torch.tensor([3, 60, 17])
    found, index = nearest(points[chosen], points, skip=chosen)
    apart = distances(points, points)
    np.fill_diagonal(apart, np.inf)
    assert np.array_equal(index.numpy(), apart[chosen].argmin(1))
    assert np.abs(found.numpy() - apart[chosen].min(1)).max() < 1e-12
    assert nearest(points, points)[0].max() == 0
    twice = torch.cat([points[:20], points[:20]])
    found, index = nearest(twice, twice, skip=torch.arange(40))
    assert found.max() == 0
    assert index.tolist() == [*range(20, 40), *range(20)]


def test_the_only_point_has_no_other():
    found, _ = nearest(normal(1), normal(1), skip=torch.zeros(1, dtype=torch.int64))
    assert found.tolist() == [float("inf")]


def test_features_may_be_bytes():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 48), dtype=torch.uint8, generator=generator)
    found, index = nearest(images, images.flip(0))
    assert found.max() == 0
    assert index.tolist() == list(range(29, -1, -1))


def test_no_matrix_of_all_distances(monkeypatch):
    sizes = []
    original = neighbours._squared

    def recorded(x, y, slack=0.0):
        sizes.append((len(x.norms), len(y.norms)))
        return original(x, y, slack)

    monkeypatch.setattr(neighbours, "_squared", recorded)
    manifold(normal(100), normal(60))
    assert max(max(size) for size in sizes) == min(neighbours.BLOCK, 100)
