"""Copies of training images are found, and real images are not called copies."""

import pytest
import torch
from helpers.evaluation import CPU

from dit.data.images import Digits
from dit.evaluation.inputs.images import from_data
from dit.evaluation.metrics import memorisation
from dit.evaluation.metrics.memorisation import (
    NEAR_COPY_SHARE,
    TrainingImages,
    evenly,
    find_near_copies,
    likeness,
    pixel_extractor,
)


def points(n, seed, width=6):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_copies_are_found_with_their_originals():
    training, fresh = points(400, 0), points(90, 1)
    copies = training[[7, 11, 399]] + 1e-3
    found = likeness(torch.cat([fresh, copies, copies[:1]]), training, "features", CPU)
    assert found.indices[-4:].tolist() == [7, 11, 399, 7]
    brute = torch.cdist(fresh, training).min(dim=1)
    assert torch.equal(found.indices[:90], brute.indices)
    assert torch.allclose(found.distances[:90], brute.values)
    close = int((brute.values < found.threshold).sum())
    assert found.near_copies == pytest.approx((4 + close) / 94)
    assert found.near_copies > 3 * NEAR_COPY_SHARE


def test_threshold_is_the_nearest_hundredth_of_real_images_without_themselves():
    training = points(400, 0)
    apart = torch.cdist(training, training).fill_diagonal_(torch.inf).min(dim=1).values
    threshold = likeness(points(5, 1), training, "features", CPU).threshold
    assert threshold == pytest.approx(float(apart.quantile(NEAR_COPY_SHARE)))


def test_real_images_are_rarely_near_copies():
    shares = [
        likeness(points(1000, 2 * seed), points(1000, 2 * seed + 1), "x", CPU).near_copies
        for seed in range(5)
    ]
    assert sum(shares) / 5 == pytest.approx(NEAR_COPY_SHARE, abs=0.01)


def test_an_exact_copy_is_a_near_copy_even_among_duplicates():
    training = points(50, 0).repeat(2, 1)  # every image twice, so that real distances are 0
    assert likeness(training[:3], training, "x", CPU).near_copies == 1


def test_samples_in_pictures_are_always_checked(monkeypatch):
    monkeypatch.setattr(memorisation, "MOST_SAMPLES", 10)
    training = TrainingImages(from_data(Digits(8), "digits"), {"x": points(1797, 0)})
    found = find_near_copies({"x": points(100, 1), "y": points(100, 2)}, [1, 2, 55], training, CPU)
    assert {1, 2, 55, 0, 99} <= set(found.samples.tolist())
    assert len(found.samples) == len(found.likenesses[0].indices) <= 13
    assert [likeness.by for likeness in found.likenesses] == ["x"]


def test_pixels_are_compared_at_sixteen_by_sixteen():
    extractor = pixel_extractor(CPU)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8, generator=generator)
    values = extractor(images).values.reshape(2, 3, 16, 16)
    assert extractor.widths == (768, 0, 0)
    assert values[1, 2, 3, 5] == pytest.approx(images[1, 2, 12:16, 10:12].float().mean().item())


def test_evenly_spaced():
    assert evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly(100, 3).tolist() == [0, 49, 99]
