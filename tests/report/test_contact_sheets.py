"""Pictures of samples: which image is in which cell."""

import numpy as np
import pytest
import torch

from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics.memorisation import Likeness, Memorisation
from dit.report.contact_sheets import by_class, draw_beside, draw_closest, draw_grid, draw_nearest


def images(values, labels=None, size=8):
    """Images of one colour each."""
    pixels = np.array(values, dtype=np.uint8)[:, None, None, None]
    return from_array(np.broadcast_to(pixels, (len(values), size, size, 3)).copy(), "x", labels)


def cells(picture, rows, columns, cell=64, gap=4):
    """The value in the middle of each cell of a grid that ends at the right and lower edges."""
    array = np.asarray(picture)[:, :, 0]
    left = array.shape[1] - columns * (cell + gap)
    step, middle = cell + gap, cell // 2
    return [
        [int(array[gap + r * step + middle, left + c * step + middle]) for c in range(columns)]
        for r in range(rows)
    ]


def test_classes_are_in_the_order_of_numbers_with_equal_rows():
    labels = [["10", "2", "9"][i % 3] for i in range(8)]  # 10 and 2 three times, 9 twice
    names, rows = by_class(images(range(8), labels))
    assert names == ["2", "9", "10"]
    assert rows == [[1, 4], [2, 5], [0, 3]]


def test_many_classes_are_spread_over_all():
    names, rows = by_class(images(range(200), [str(i % 100) for i in range(200)]))
    assert names == [str(i) for i in range(0, 100, 10)]
    assert rows == [[i, 100 + i] for i in range(0, 100, 10)]


def test_without_labels_rows_are_full():
    assert by_class(images(range(7))) == ([], [[0, 1, 2, 3, 4, 5, 6]])
    names, rows = by_class(images(range(250)))
    assert (names, len(rows), {len(row) for row in rows}, rows[-1][-1]) == ([], 10, {10}, 99)


def test_grid_shows_each_class_in_its_row():
    samples = images([10, 20, 30, 40], ["b", "a", "b", "a"])
    assert cells(draw_grid(samples), 2, 2) == [[20, 40], [10, 30]]


def test_real_images_of_the_same_class_stand_beside_samples():
    samples = images([10, 20, 30], ["b", "a", "b"])
    real = images([100, 200, 110, 90], ["a", "b", "a", "owl"])
    picture = draw_beside(samples, real)
    assert cells(picture, 2, 2) == [[100, 110], [200, 255]]  # white where there is no other
    assert picture.width > draw_grid(samples).width + 2 * 68


def test_without_labels_any_real_images_stand_beside_samples():
    assert cells(draw_beside(images([10, 20]), images([100, 110])), 1, 2) == [[100, 110]]
    labelled = images([10, 20], ["a", "b"])
    assert sorted(map(tuple, cells(draw_beside(labelled, images([100, 110])), 2, 1))) == [
        (100,),
        (110,),
    ]


def test_large_images_are_shrunk_if_asked():
    samples = images([10, 20], ["a", "b"], size=256)
    full, small = draw_grid(samples), draw_grid(samples, 128)
    assert (full.height, small.height) == (4 + 2 * 260, 4 + 2 * 132)
    assert cells(small, 2, 1, 128) == [[10], [20]]
    assert draw_grid(images([10, 20]), 128).height == 4 + 68  # small images are enlarged anyway


@pytest.fixture
def four():
    """Four samples and five training images.

    The nearest one of sample i is i + 1 by pixels and 0 by features; sample 2 is nearest of all.
    """
    samples = images([10, 20, 30, 40], ["a", "a", "b", "b"])
    pixels = Likeness("pixels", torch.arange(4) + 1, torch.tensor([5.0, 4.0, 1.0, 6.0]), 1.0)
    nearest = torch.zeros(4, dtype=torch.long)
    features = Likeness("net", nearest, torch.tensor([3.0, 9.0, 9.0, 9.0]), 2.0)
    training = images([100, 110, 120, 130, 140])
    return samples, Memorisation(torch.arange(4), training, [pixels, features])


def test_nearest_training_images_are_below_their_samples(four):
    assert cells(draw_nearest(*four), 6, 2) == [
        [10, 20],
        [110, 120],
        [100, 100],
        [30, 40],
        [130, 140],
        [100, 100],
    ]


def test_closest_samples_come_first_by_any_measure(four):
    assert cells(draw_closest(*four), 2, 4) == [[30, 10, 20, 40], [130, 110, 120, 140]]


def test_large_images_are_shrunk_beside_their_neighbours():
    samples, training = images([10, 20], ["a", "b"], 256), images([100, 110, 120], size=256)
    likeness = Likeness("pixels", torch.tensor([1, 2]), torch.ones(2), 1.0)
    picture = draw_nearest(samples, Memorisation(torch.arange(2), training, [likeness]))
    assert picture.height < 4 * 80
    assert cells(picture, 4, 1) == [[10], [110], [20], [120]]
