"""Curves show their points, mark the best, and stay legible."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from dit.evaluation.metrics.bootstrap import Extrapolation
from dit.report import figures

SERIES = {
    f"interval {i}": [(x, (x - 2) ** 2 + i, None, None) for x in (4, 1, 2, 3)] for i in range(3)
}


def pixels_of(picture, colour, tolerance=12):
    """[n, 2] rows and columns of a colour."""
    wanted = np.array(ImageColor.getrgb(colour))
    return np.argwhere((np.abs(np.asarray(picture).astype(int) - wanted) <= tolerance).all(-1))


class Spy:
    """Keeps the figure that a drawing function makes."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(figures, "to_image", self)

    def __call__(self, figure):
        figure.canvas.draw()
        self.axes, self.legends = figure.axes, figure.legends
        return Image.new("RGB", (1, 1))


def lines(series, xlabel, log_x=False, best=None):
    """One panel of curves, as a sweep draws them."""
    figure = figures.new_figure(7.2, 4.0)
    axis = figures.new_axis(figure, xlabel)
    for i, (label, points) in enumerate(series.items()):
        figures.draw_line(axis, i, label, points)
    if log_x:
        axis.set_xscale("log")
        figures.plain_ticks(
            axis, sorted({point[0] for points in series.values() for point in points})
        )
    if best:
        figures.mark(axis, best, f"best: {best[1]:g}")
    figure.legend()
    return figures.to_image(figure)


def texts(axis):
    return [text.get_text() for text in axis.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_xticklabels()]


def test_every_series_has_its_colour():
    picture = lines(SERIES, "CFG scale")
    assert picture.mode == "RGB"
    assert all(len(pixels_of(picture, colour)) > 100 for colour in figures.COLOURS[:3])
    assert len(pixels_of(picture, figures.COLOURS[3])) == 0


def test_lines_are_sorted_and_named(monkeypatch):
    spy = Spy(monkeypatch)
    lines({"a": SERIES["interval 0"], "b" * 50: [(1, 2, 1, 3)]}, "CFG scale")
    drawn = spy.axes[0].lines[0]
    assert list(drawn.get_xdata()) == [1, 2, 3, 4]
    assert list(drawn.get_ydata()) == [1, 0, 1, 4]
    assert [text.get_text() for text in spy.legends[0].get_texts()] == ["a", "b" * 23 + "…"]
    assert spy.axes[0].get_xlabel() == "CFG scale"


def test_intervals_are_bands(monkeypatch):
    spy = Spy(monkeypatch)
    lines(
        {"a": [(1, 5, 4, 7), (2, 6, 5, 9)], "none": [(1, 1, None, None), (2, 1, None, None)]}, "x"
    )
    band, empty = (collection.get_paths() for collection in spy.axes[0].collections)
    assert {4, 7, 5, 9} <= set(band[0].vertices[:, 1])
    assert not empty or not np.isfinite(empty[0].vertices).any()


def test_seven_series_differ_in_colour_and_in_marker(monkeypatch):
    spy = Spy(monkeypatch)
    lines({str(i): [(1, i, None, None), (2, i, None, None)] for i in range(7)}, "x")
    assert len({line.get_color() for line in spy.axes[0].lines}) == 7
    assert len({line.get_marker() for line in spy.axes[0].lines}) == 7


def test_best_is_in_a_ring(monkeypatch):
    plain, marked = (lines(SERIES, "x", best=best) for best in (None, (2, 0)))
    assert len(pixels_of(marked, figures.INK)) > len(pixels_of(plain, figures.INK)) + 50
    spy = Spy(monkeypatch)
    lines(SERIES, "x", best=(2, 0.0125))
    assert texts(spy.axes[0]) == ["best: 0.0125"]


def test_logarithmic_axes_name_the_given_values(monkeypatch):
    spy = Spy(monkeypatch)
    lines({"a": [(x, 1, None, None) for x in (8, 16, 32, 33, 250)]}, "NFE", log_x=True)
    assert spy.axes[0].get_xscale() == "log"
    assert ticks(spy.axes[0]) == ["8", "16", "32", "250"]  # 33 would touch 32


def test_missing_values_break_the_line():
    picture = lines(
        {"a": [(1, 1, None, None), (2, float("nan"), None, None), (3, 2, None, None)]}, "x"
    )
    assert len(pixels_of(picture, figures.COLOURS[0])) > 20


def test_limits_lie_on_the_line_through_the_points(monkeypatch):
    spy = Spy(monkeypatch)
    sizes = [100, 200, 400]
    straight = Extrapolation(sizes, [3 + 500 / n for n in sizes], 3.0, 0.1)
    none = Extrapolation([], [], reason="too few")
    figures.distance_by_size({"FID": straight, "KID": none, "FD(x)": straight})
    assert len(spy.axes) == 2
    line, points = spy.axes[0].lines[:2]
    assert list(line.get_xdata()) == [0, 0.01]
    assert line.get_ydata() == pytest.approx([3, 8])
    assert points.get_ydata() == pytest.approx([8, 5.5, 4.25])
    assert ticks(spy.axes[0]) == ["∞", "400", "200", "100"]
    assert "3.000" in texts(spy.axes[0])


def test_nothing_to_extrapolate_is_refused():
    with pytest.raises(AssertionError, match="no distance"):
        figures.distance_by_size({"FID": Extrapolation([], [], reason="too few")})


LOG = [
    {"step": 10, "loss": 1.0},
    {"step": 20, "loss": 1.0, "FD(digits-cnn)": 3.0, "recall(digits-cnn)": 0.5},
    {"step": 30, "FD(digits-cnn)": 2.0, "recall(digits-cnn)": 0.25, "lr": 1.0},
    {"step": 40, "FD(digits-cnn)": 2.5, "recall(digits-cnn)": None},
]


def test_scores_of_training_mark_their_best(monkeypatch, tmp_path):
    spy = Spy(monkeypatch)
    figures.training_scores(LOG, tmp_path / "scores.png")
    assert [axis.get_title(loc="left") for axis in spy.axes] == [
        "FD(digits-cnn) ↓",
        "recall(digits-cnn) ↑",
    ]
    assert list(spy.axes[0].lines[0].get_xdata()) == [20, 30, 40]
    assert [texts(axis) for axis in spy.axes] == [["2.000 at 30"], ["0.5000 at 20"]]


@pytest.mark.parametrize(
    ("name", "is_score"),
    [
        ("FD(digits-cnn)", True),
        ("FID", True),
        ("sFID", True),
        ("sFD(a)", True),
        ("IS(a.b:C) (torch-fidelity)", True),
        ("IS (torch-fidelity)", True),
        ("coverage", True),
        ("loss", False),
        ("step", False),
        ("images/s", False),
        ("precisions", False),
        ("FIDs", False),
    ],
)
def test_scores_are_recognised_by_name(name, is_score):
    assert figures.score_names([{"step": 1, name: 2.0}]) == [name] * is_score
