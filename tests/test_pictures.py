"""Grids, strips, films and curves."""


import pytest
import torch
from PIL import Image

from dit import pictures


def colours(n, size=8):
    """n plain images, image i in the colour (10 i, 0, 255 - 10 i)."""
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    for i in range(n):
        images[i, 0], images[i, 2] = 10 * i, 255 - 10 * i
    return images


def found(picture):
    """The colours of `colours` that a picture shows, with the mean position of each."""
    pixels = torch.tensor(list(picture.convert("RGB").getdata())).view(picture.height, picture.width, 3)
    places = {}
    for i in range(12):
        at = (pixels == torch.tensor([10 * i, 0, 255 - 10 * i])).all(-1).nonzero().float()
        if len(at):
            places[i] = (len(at), *at.mean(0).tolist())
    return places


def test_grid_shows_every_image_enlarged_in_reading_order():
    places = found(pictures.grid(colours(6), None, columns=3, scale=4))
    assert {i: place[0] for i, place in places.items()} == dict.fromkeys(range(6), 32 * 32)
    assert places[0][2] < places[1][2] < places[2][2]
    assert places[0][1] == places[2][1] < places[3][1]


def test_grid_labels_rows_or_images_with_ink():
    plain = pictures.grid(colours(6), None, 3, 4)
    by_row = pictures.grid(colours(6), ["first", "second"], 3, 4)
    by_image = pictures.grid(colours(6), list("abcdef"), 3, 4)
    assert by_row.width > plain.width
    assert by_row.height == plain.height
    assert by_image.height > plain.height
    assert by_image.width == plain.width
    for labelled in (by_row, by_image):
        assert pictures.INK in set(labelled.getdata())
        assert {i: place[0] for i, place in found(labelled).items()} == dict.fromkeys(range(6), 1024)


def test_grid_refuses_labels_that_fit_nothing():
    with pytest.raises(AssertionError, match="one label"):
        pictures.grid(colours(6), ["a", "b", "c", "d"], 3)


def test_strip_puts_grids_side_by_side():
    grids = [pictures.grid(colours(3)[i : i + 1], None, 1, 4) for i in range(3)]
    places = found(pictures.strip(grids, ["step 1", "step 2", "a caption much too long for its grid"]))
    assert [place[0] for place in places.values()] == [1024] * 3
    assert places[0][2] < places[1][2] < places[2][2]


def test_gif_has_all_frames_and_never_ends(tmp_path):
    frames = [pictures.grid(colours(4)[i : i + 1], None, 1, 4) for i in range(4)]
    pictures.gif(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4
        assert film.info["loop"] == 0


def test_loss_curve(tmp_path):
    lines = [{"step": s, "loss": 1 / (s + 1), "lr": 1e-3} for s in (0, 20, 40)]
    pictures.loss_curve(lines, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width == 960


def test_smoothing_has_no_bias_and_follows():
    assert pictures._smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    assert 0 < pictures._smooth([0.0] * 300 + [1.0] * 5)[-1] < 0.5


@pytest.mark.parametrize(("size", "scale"), [(32, 2), (64, 1), (256, 1), (8, 8)])
def test_fitting_scale(size, scale):
    assert pictures.fitting_scale(size) == scale
