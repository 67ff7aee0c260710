"""What some of the images show before work on all of them."""

import pytest
import torch
from PIL import Image

from dit.data.first_look import (
    FOR_SIZES,
    have_colours,
    is_coloured,
    question_sizes,
    spread_indices,
)
from dit.data.images import Digits, ImageFolder


def save(folder, sizes, mode="RGB"):
    folder.mkdir(exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        Image.new(mode, (width, height), "red" if mode == "RGB" else 90).save(
            folder / f"{number:04d}.png"
        )
    return folder


def test_small_images_are_counted_with_the_smallest(tmp_path):
    folder = save(tmp_path / "a", [(64, 64), (3, 5), (300, 31), (32, 32), (31, 64)])
    (text,) = question_sizes(ImageFolder(folder, 64), 64)
    assert text.startswith("3 of 5 images are less than half as high or wide as --image-size 64")
    assert "(the smallest has 3x5 pixels)" in text
    assert question_sizes(ImageFolder(folder, 64), 64, [1, 2, 4]) == []
    assert question_sizes(Digits(64), 64) == []


def test_of_many_images_some_are_looked_at(tmp_path, monkeypatch):
    folder = save(tmp_path / "a", [(3, 3)] * 9)
    monkeypatch.setattr("dit.data.first_look.FOR_SIZES", 4)
    (text,) = question_sizes(ImageFolder(folder, 64), 64)
    assert text.startswith("4 of 4 images looked at are")


@pytest.mark.parametrize(("count", "most"), [(7, 3), (3, 7), (1, 1), (FOR_SIZES + 1, FOR_SIZES)])
def test_indices_are_spread(count, most):
    indices = spread_indices(count, most)
    assert len(set(indices)) == len(indices) == min(count, most)
    assert indices[0] == 0
    assert indices[-1] == (count - 1 if len(indices) > 1 else 0)


def test_colours(tmp_path):
    gray = torch.full((2, 3, 4, 4), 90, dtype=torch.uint8)
    assert not is_coloured(gray)
    # as JPEGs have it
    gray[:, 0] += 7
    assert not is_coloured(gray)
    gray[1, 0, 2, 2] += 30
    assert is_coloured(gray)

    gray_files, coloured = save(tmp_path / "a", [(9, 9)] * 2, "L"), save(tmp_path / "b", [(9, 9)])
    assert not have_colours(ImageFolder(gray_files, 8))
    (coloured / "0.png").write_bytes(b"torn")
    assert have_colours(ImageFolder(coloured, 8))
