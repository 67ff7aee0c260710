"""Grids, strips, GIFs and curves."""

import pytest
import torch
from PIL import Image

from dit.utils import pictures


def colours(n, size=8):
    """Return n plain images, image i in the colour (10 i, 0, 255 - 10 i)."""
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    for i in range(n):
        images[i, 0], images[i, 2] = 10 * i, 255 - 10 * i
    return images


def positions(picture):
    """Return the number of pixels and the mean position (y, x) of each colour of `colours`."""
    pixels = torch.tensor(list(picture.convert("RGB").getdata()))
    pixels = pixels.view(picture.height, picture.width, 3)
    shown = {}
    for i in range(12):
        at = (pixels == torch.tensor([10 * i, 0, 255 - 10 * i])).all(-1).nonzero().float()
        if len(at):
            shown[i] = (len(at), *at.mean(0).tolist())
    return shown


def areas(picture):
    return {i: shown[0] for i, shown in positions(picture).items()}


def test_grid_shows_every_image_enlarged_in_reading_order():
    picture = pictures.grid(colours(6), None, columns=3, scale=4)
    places = positions(picture)
    assert areas(picture) == dict.fromkeys(range(6), 32 * 32)
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
        assert areas(labelled) == dict.fromkeys(range(6), 1024)


def test_grid_refuses_labels_that_fit_nothing():
    with pytest.raises(AssertionError, match="one label"):
        pictures.grid(colours(6), ["a", "b", "c", "d"], 3)


def test_grid_of_rectangles_has_headings_and_groups_of_rows():
    wide = colours(8)[..., :4, :]
    assert wide.shape[-2:] == (4, 8)
    rows = list("abcd")
    headings = dict(headings=["t = 1", "t = 0\nα 1.00"])
    sheets = [
        pictures.grid(wide, rows, 2, 4, **options)
        for options in ({}, headings, headings | dict(together=2))
    ]
    tops, gaps = [], []
    for sheet in sheets:
        assert areas(sheet) == dict.fromkeys(range(8), 16 * 32)
        ys = [positions(sheet)[i][1] for i in (0, 2, 4, 6)]
        tops.append(ys[0])
        gaps.append([below - above for above, below in zip(ys, ys[1:], strict=False)])
    assert tops[0] < tops[1] == tops[2]
    assert gaps[0] == gaps[1] == [16 + pictures.GAP] * 3
    assert gaps[2] == [20, 20 + pictures.BREAK, 20]
    assert sheets[0].width == sheets[1].width


def test_a_long_label_is_limited_in_width():
    short, long = (
        pictures.grid(colours(2), [name, "b"], 1, 8) for name in ("a", "a caption " * 30)
    )
    assert long.width < short.width + pictures.WIDEST_NAME


@pytest.mark.parametrize(
    "labels",
    [
        [f"a photo of a {kind} heron in the reeds" for kind in ("gray", "white", "red", "blue")],
        [
            f"a photo of a heron, and of {'many ' * 30}{bird}"
            for bird in ("duck", "goose", "tit", "emu")
        ],
        [f"{start}{'unbroken' * 20}" for start in "abcd"],
    ],
)
def test_shortened_captions_stay_different(labels):
    for copies in (1, 2):
        cells = [
            pictures.grid(colours(2)[:copies], [label] * copies, copies, 8) for label in labels
        ]
        assert len({cell.tobytes() for cell in cells}) == 4
        assert areas(cells[0])[0] == 64 * 64


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
def test_the_font_has_other_scripts(letter):
    font = pictures._font(20)
    assert font.getmask(letter).getbbox() != font.getmask("\U0010ffff").getbbox()


def heat_on(shade, weights):
    images = torch.full((len(weights), 3, 4, 12), shade, dtype=torch.uint8)
    return pictures.heat(images, weights)


def test_heat_is_bright_where_the_weights_are_large():
    weights = torch.tensor([[[0.0, 0.1, 0.2], [0.3, 0.5, 1.0]]])
    weights = torch.cat([weights, weights / 10])
    overlay = heat_on(0, weights)
    assert overlay.shape == (2, 3, 4, 12)
    assert torch.equal(overlay[0], overlay[1]), "scaled by each image's largest weight"

    cells = overlay[0].unflatten(-1, (3, 4)).unflatten(-3, (2, 2))  # [3, 2, 2, 3, 4]
    assert torch.equal(cells, cells[:, :, :1, :, :1].expand_as(cells))
    assert (cells[..., 0, :, 0].float().sum(0).flatten().diff() > 0).all()

    assert torch.equal(heat_on(0, weights.bfloat16()), heat_on(0, weights.bfloat16().float()))
    difference = heat_on(255, weights).int() - overlay.int()
    assert (difference - round(255 * (1 - pictures.HEAT))).abs().max() <= 1
    shifted = heat_on(0, 5 + weights / 10)
    assert (shifted.int() - overlay.int()).abs().max() <= 1, "small differences fill the full range"
    assert heat_on(0, torch.full((1, 2, 3), 0.1)).amax() < 20


@pytest.mark.parametrize(
    ("cells", "cell", "framed"), [((2, 3), (1, 2), 8 * 8 - 4 * 4), ((16, 24), (0, 23), 1)]
)
def test_outline_frames_one_cell(cells, cell, framed):
    images = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    outlined = pictures.outline(images, cell, cells)
    marked = (outlined == torch.tensor(pictures.MARK).view(3, 1, 1)).all(1)
    assert marked.sum((1, 2)).tolist() == [framed] * 2
    y, x = marked[0].nonzero().amin(0).tolist()
    assert (y, x) == (cell[0] * 16 // cells[0], cell[1] * 24 // cells[1])
    assert (outlined == 0).all(1).sum() == 2 * (16 * 24 - framed)


def test_strip_puts_grids_side_by_side():
    grids = [pictures.grid(colours(3)[i : i + 1], None, 1, 4) for i in range(3)]
    captions = ["step 1", "step 2", "a caption much too long for its grid"]
    places = positions(pictures.strip(grids, captions))
    assert [place[0] for place in places.values()] == [1024] * 3
    assert places[0][2] < places[1][2] < places[2][2]


def test_gif_has_all_frames_and_repeats(tmp_path):
    frames = [pictures.grid(colours(4)[i : i + 1], None, 1, 4) for i in range(4)]
    pictures.gif(frames, tmp_path / "gif.gif")
    with Image.open(tmp_path / "gif.gif") as gif:
        assert gif.n_frames == 4
        assert gif.info["loop"] == 0


def test_loss_curve(tmp_path):
    lines = [{"step": s, "loss": 1 / (s + 1), "lr": 1e-3} for s in (0, 20, 40)]
    pictures.loss_curve(lines, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width == 960


def test_a_loss_curve_of_one_point_has_a_marker(tmp_path):
    shown = []
    for lines in ([{"step": 1, "loss": 1.0, "lr": 1e-3}], []):
        pictures.loss_curve(lines, tmp_path / "loss.png")
        plot = Image.open(tmp_path / "loss.png").convert("RGB").crop((200, 100, 760, 380))
        shown.append({colour for _, colour in plot.getcolors(2**24)})
    assert (31, 78, 140) in shown[0] - shown[1]


def test_a_loss_curve_has_two_lines_that_differ_or_one(tmp_path):
    raw, mean = (157, 183, 213), (31, 78, 140)
    for count, is_smoothed in ((9, False), (28, True), (300, True)):
        lines = [{"step": i, "loss": float(i % 2), "lr": 1e-3} for i in range(count)]
        pictures.loss_curve(lines, tmp_path / "loss.png")
        # without the legend
        plot = Image.open(tmp_path / "loss.png").convert("RGB").crop((100, 150, 860, 380))
        shown = {colour for _, colour in plot.getcolors(2**24)}
        assert mean in shown
        assert (raw in shown) == is_smoothed


def test_smoothing_has_no_bias_and_follows():
    assert pictures.smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    assert 0 < pictures.smooth([0.0] * 300 + [1.0] * 5)[-1] < 0.5


@pytest.mark.parametrize(("size", "scale"), [(32, 2), (64, 1), (256, 1), (8, 8)])
def test_fitting_scale(size, scale):
    assert pictures.fitting_scale(size) == scale
