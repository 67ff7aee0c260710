"""The sentence at the top of a page, by what scores are beside those of real images."""

import pytest

from dit.evaluation.metrics.compute import RealVsReal
from dit.report.text import plus_minus
from dit.report.verdict import Copies, verdict

NAMES = ("FD(x)", "precision(x)", "coverage(x)")


def of(distance, precision, coverage, **more):
    """The verdict beside real images that score 2, 0.9 and 0.95."""
    real = {
        name: RealVsReal(mean, mean, mean, 5, 500, 500)
        for name, mean in zip(NAMES, (2.0, 0.9, 0.95), strict=True)
    }
    values = dict(zip(NAMES, (distance, precision, coverage), strict=True))
    return verdict(values, real, **more)


@pytest.mark.parametrize(
    ("scores", "headline"),
    [
        ((2.2, 0.88, 0.94), "As good as real images by these scores"),
        ((5.0, 0.8, 0.8), "Close to real images, with room left"),
        ((20.0, 0.3, 0.2), "Far from real images"),
        ((6.0, 0.92, 0.4), "The samples lack variety"),
        ((6.0, 0.3, 0.9), "Many samples do not look real"),
        # a low distance does not hide that classes are missing
        ((2.0, 0.95, 0.3), "The samples lack variety"),
    ],
)
def test_the_first_words_name_what_is_worst(scores, headline):
    assert of(*scores).startswith(f"{headline}: FD(x) is ")


def test_numbers_stand_beside_those_of_real_images():
    assert of(5.0, 0.8, None) == (
        "Close to real images, with room left: FD(x) is 2.5 times that of real images, "
        "80% of the samples lie among real images (of other real images: 90%)."
    )


def test_recall_stands_in_for_coverage_and_other_networks_do_not():
    values = {"FID": 3.0, "recall": 0.5, "precision(x)": 0.1, "coverage(x)": 0.1}
    assert verdict(values, {}) == (
        "FID is 3.000, with nothing real to compare it with, "
        "50% of the real images lie among the samples."
    )


def test_copies_are_told_though_all_scores_are_good():
    copies = [Copies(0.02, 0.01), Copies(0.6, 0.01)]
    assert of(2.0, 0.9, 0.95, copies=copies).endswith(
        ", 60% of the samples are near-copies of training images."
    )
    assert "copies" not in of(2.0, 0.9, 0.95, copies=copies[:1])


def test_without_scores_there_is_no_verdict():
    assert verdict({"KID(x)": 1.0, "FD(x)": None}, {}) == ""


@pytest.mark.parametrize(
    ("value", "deviation", "texts"),
    [
        (8.5, 0.1, ("8.50", "± 0.10")),
        (215.837, 3.2, ("215.8", "± 3.2")),
        (-0.00021, 0.0003, ("-0.00021", "± 0.00030")),
        (4.0, 0.0, ("4.000", "± 0")),
        (1234.5, 150.0, ("1,234", "± 150")),
    ],
)
def test_a_value_has_the_digits_of_its_deviation(value, deviation, texts):
    assert plus_minus(value, deviation) == texts
