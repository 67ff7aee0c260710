"""Pictures of samples: who stands where."""

import numpy as np
import torch

from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics.memorisation import Likeness, Memorisation
from dit.report.contact_sheets import by_class, draw_closest, draw_grid, draw_nearest


def flat(values, size=8):
    """Images of one colour each."""
    array = np.zeros((len(values), size, size, 3), dtype=np.uint8)
    array[:] = np.array(values, dtype=np.uint8)[:, None, None, None]
    return array


def cells(picture, rows, columns, cell=64, gap=4):
    """The value in the middle of each cell of a grid whose cells end at the right and lower edges."""
    array = np.asarray(picture)[:, :, 0]
    left = array.shape[1] - columns * (cell + gap)
    step, middle = cell + gap, cell // 2
    return [
        [int(array[gap + r * step + middle, left + c * step + middle]) for c in range(columns)]
        for r in range(rows)
    ]


def test_classes_in_the_order_of_numbers_with_equal_rows():
    labels = [["10", "2", "9"][i % 3] for i in range(8)]  # 10 and 2 three times, 9 twice
    names, rows = by_class(from_array(flat(range(8)), "x", labels))
    assert names == ["2", "9", "10"]
    assert rows == [[1, 4], [2, 5], [0, 3]]


def test_many_classes_are_spread_over_all():
    names, rows = by_class(from_array(flat(range(200)), "x", [str(i % 100) for i in range(200)]))
    assert names == [str(i) for i in range(0, 100, 10)]
    assert rows == [[i, 100 + i] for i in range(0, 100, 10)]


def test_without_labels_rows_are_full():
    assert by_class(from_array(flat(range(7)), "x")) == ([], [[0, 1, 2, 3, 4, 5, 6]])
    names, rows = by_class(from_array(flat(range(250)), "x"))
    assert (names, len(rows), {len(row) for row in rows}, rows[-1][-1]) == ([], 10, {10}, 99)


def test_grid_shows_each_class_in_its_row():
    samples = from_array(flat([10, 20, 30, 40]), "x", ["b", "a", "b", "a"])
    assert cells(draw_grid(samples), 2, 2) == [[20, 40], [10, 30]]


def test_grid_is_brought_down_where_that_is_asked_for():
    samples = from_array(flat([10, 20], 256), "x", ["a", "b"])
    whole, small = draw_grid(samples), draw_grid(samples, 128)
    assert (whole.height, small.height) == (4 + 2 * 260, 4 + 2 * 132)
    assert cells(small, 2, 1, 128) == [[10], [20]]
    assert (
        draw_grid(from_array(flat([10, 20]), "x"), 128).height == 4 + 68
    )  # small ones are enlarged as ever


def found(samples, training):
    """By one measure the nearest training image of sample i is i + 1, by another 0; sample 2 is nearest of all."""
    count = len(samples)
    by_pixels = Likeness("pixels", torch.arange(count) + 1, torch.tensor([5.0, 4.0, 1.0, 6.0]), 1.0)
    by_features = Likeness(
        "net", torch.zeros(count, dtype=torch.long), torch.tensor([3.0, 9.0, 9.0, 9.0]), 2.0
    )
    return Memorisation(torch.arange(count), training, [by_pixels, by_features])


def test_nearest_training_images_stand_under_their_samples():
    samples = from_array(flat([10, 20, 30, 40]), "x", ["a", "a", "b", "b"])
    training = from_array(flat([100, 110, 120, 130, 140]), "t")
    picture = draw_nearest(samples, found(samples, training))
    assert cells(picture, 6, 2) == [
        [10, 20],
        [110, 120],
        [100, 100],
        [30, 40],
        [130, 140],
        [100, 100],
    ]


def test_closest_come_first_whatever_the_measure():
    samples = from_array(flat([10, 20, 30, 40]), "x", ["a", "a", "b", "b"])
    training = from_array(flat([100, 110, 120, 130, 140]), "t")
    assert cells(draw_closest(samples, found(samples, training)), 2, 4) == [
        [30, 10, 20, 40],
        [130, 110, 120, 140],
    ]


def test_large_images_are_brought_down_beside_their_neighbours():
    samples = from_array(flat([10, 20], 256), "x", ["a", "b"])
    training = from_array(flat([100, 110, 120], 256), "t")
    likeness = Likeness("pixels", torch.tensor([1, 2]), torch.ones(2), 1.0)
    picture = draw_nearest(samples, Memorisation(torch.arange(2), training, [likeness]))
    assert picture.height < 4 * 80
    assert cells(picture, 4, 1) == [[10], [110], [20], [120]]
