"""Grids, strips, films and curves."""

import pytest
import torch
from PIL import Image

from dit.utils import pictures


def colours(n, size=8):
    """n plain images, image i in the colour (10 i, 0, 255 - 10 i)."""
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    for i in range(n):
        images[i, 0], images[i, 2] = 10 * i, 255 - 10 * i
    return images


def found(picture):
    """The colours of `colours` that a picture shows, with the mean position of each."""
    pixels = torch.tensor(list(picture.convert("RGB").getdata())).view(
        picture.height, picture.width, 3
    )
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
        assert {i: place[0] for i, place in found(labelled).items()} == dict.fromkeys(
            range(6), 1024
        )


def test_grid_refuses_labels_that_fit_nothing():
    with pytest.raises(AssertionError, match="one label"):
        pictures.grid(colours(6), ["a", "b", "c", "d"], 3)


def test_grid_of_rectangles_names_its_columns_and_parts_its_groups():
    wide = colours(8)[..., :4, :]
    assert wide.shape[-2:] == (4, 8)
    rows = list("abcd")
    plain, headed, parted = (
        pictures.grid(wide, rows, 2, 4, **options)
        for options in (
            {},
            dict(headings=["t = 1", "t = 0\nα 1.00"]),
            dict(headings=["t = 1", "t = 0\nα 1.00"], together=2),
        )
    )
    for picture in (plain, headed, parted):
        assert {i: place[0] for i, place in found(picture).items()} == dict.fromkeys(
            range(8), 16 * 32
        )
    top, gaps = {}, {}
    for name, picture in (("plain", plain), ("headed", headed), ("parted", parted)):
        places = found(picture)
        top[name], gaps[name] = places[0][1], [places[i + 2][1] - places[i][1] for i in (0, 2, 4)]
    assert top["plain"] < top["headed"] == top["parted"]
    assert gaps["plain"] == gaps["headed"] == [16 + pictures.GAP] * 3
    assert gaps["parted"] == [20, 20 + pictures.BREAK, 20]
    assert headed.width == plain.width


def test_a_long_name_does_not_push_the_images_away():
    short, long = (
        pictures.grid(colours(2), [name, "b"], 1, 8) for name in ("a", "a caption " * 30)
    )
    assert long.width < short.width + pictures.WIDEST_NAME


@pytest.mark.parametrize(
    "labels",
    [
        [
            f"a photo of a {kind} heron in the reeds at {time}"
            for time in ("dawn", "noon")
            for kind in ("gray", "white")
        ],
        [
            f"a photo of a heron, and of {'many ' * 30}{what}"
            for what in ("ducks", "geese", "swans", "cranes")
        ],
        [f"{start}{'unbroken' * 20}" for start in "abcd"],
    ],
)
def test_captions_that_differ_look_different(labels):
    """Below images, and left of rows: the middle goes, not the end."""
    for copies in (1, 2):
        cells = [
            pictures.grid(colours(2)[:copies], [label] * copies, copies, 8) for label in labels
        ]
        assert len({cell.tobytes() for cell in cells}) == 4
        assert found(cells[0])[0][0] == 64 * 64


def test_text_fits_its_lines():
    font = pictures._font(12)
    for text in ("", "short", "a heron in the reeds " * 9, "unbroken" * 30, "é" * 300):
        for most in (1, 2, 3):
            lines = pictures._fit(text, 90, most * pictures._line_height(font), font).splitlines()
            assert len(lines) <= most
            assert "".join(lines).startswith(text[:3])
            assert all(font.getlength(line) <= 90 for line in lines)
    assert pictures._fit("a heron in the reeds", 90, 50, font) == "a heron in the\nreeds"
    assert pictures._fit("unbroken", 5, 0, font) == "…"


@pytest.mark.parametrize("letter", "éßαЖ")
def test_names_in_other_scripts_are_no_boxes(letter):
    assert (
        pictures._font(20).getmask(letter).getbbox()
        != pictures._font(20).getmask("\U0010ffff").getbbox()
    )


def test_heat_is_bright_where_the_weights_are_large():
    weights = torch.tensor(
        [[[0.0, 0.1, 0.2], [0.3, 0.5, 1.0]], [[0.0, 0.01, 0.02], [0.03, 0.05, 0.1]]]
    )
    found = pictures.heat(torch.zeros(2, 3, 4, 12, dtype=torch.uint8), weights)
    assert found.shape == (2, 3, 4, 12)
    assert torch.equal(found[0], found[1]), "each image by its own largest"
    cells = found[0].unflatten(-1, (3, 4)).unflatten(-3, (2, 2))  # [3, 2, 2, 3, 4]
    assert torch.equal(cells, cells[:, :, :1, :, :1].expand_as(cells))
    assert (cells[..., 0, :, 0].float().sum(0).flatten().diff() > 0).all()
    coarse = [
        pictures.heat(torch.zeros(2, 3, 4, 12, dtype=torch.uint8), w)
        for w in (weights.bfloat16(), weights.bfloat16().float())
    ]
    assert torch.equal(*coarse)
    below = pictures.heat(torch.full((1, 3, 4, 12), 255, dtype=torch.uint8), weights[:1])
    assert (below.int() - found[:1].int() - round(255 * (1 - pictures.HEAT))).abs().max() <= 1
    pale = pictures.heat(torch.zeros(2, 3, 4, 12, dtype=torch.uint8), 5 + weights / 10)
    assert (pale.int() - found.int()).abs().max() <= 1, "small differences fill the whole range"
    assert (
        pictures.heat(
            torch.zeros(1, 3, 4, 12, dtype=torch.uint8), torch.full((1, 2, 3), 0.1)
        ).amax()
        < 20
    )


@pytest.mark.parametrize(
    ("cells", "cell", "framed"), [((2, 3), (1, 2), 8 * 8 - 4 * 4), ((16, 24), (0, 23), 1)]
)
def test_outline_frames_one_cell(cells, cell, framed):
    images = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    found = pictures.outline(images, cell, cells)
    marked = (found == torch.tensor(pictures.MARK).view(3, 1, 1)).all(1)
    assert marked.sum((1, 2)).tolist() == [framed] * 2
    y, x = marked[0].nonzero().amin(0).tolist()
    assert (y, x) == (cell[0] * 16 // cells[0], cell[1] * 24 // cells[1])
    assert (found == 0).all(1).sum() == 2 * (16 * 24 - framed)


def test_strip_puts_grids_side_by_side():
    grids = [pictures.grid(colours(3)[i : i + 1], None, 1, 4) for i in range(3)]
    places = found(
        pictures.strip(grids, ["step 1", "step 2", "a caption much too long for its grid"])
    )
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


def test_a_loss_curve_of_one_point_is_seen(tmp_path):
    for name, lines in (("one.png", [{"step": 1, "loss": 1.0, "lr": 1e-3}]), ("none.png", [])):
        pictures.loss_curve(lines, tmp_path / name)
    one, none = (
        {
            colour
            for _, colour in Image.open(tmp_path / name)
            .convert("RGB")
            .crop((200, 100, 760, 380))
            .getcolors(2**24)
        }
        for name in ("one.png", "none.png")
    )
    assert (31, 78, 140) in one - none


def test_smoothing_has_no_bias_and_follows():
    assert pictures.smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    assert 0 < pictures.smooth([0.0] * 300 + [1.0] * 5)[-1] < 0.5


@pytest.mark.parametrize(("size", "scale"), [(32, 2), (64, 1), (256, 1), (8, 8)])
def test_fitting_scale(size, scale):
    assert pictures.fitting_scale(size) == scale
