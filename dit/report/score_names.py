"""What the name of a score says: FD(digits-cnn) is a Fréchet distance in features of digits-cnn."""

import re
from typing import NamedTuple

from dit.evaluation.extractors.inception import INCEPTION

DISTANCES = ("FID", "FD", "sFID", "sFD", "KID")  # lower is better
SHARES = ("precision", "recall", "density", "coverage")  # of the manifolds of two sets of images
KINDS = (*DISTANCES, *SHARES, "IS")
MEANINGS = {
    "FID": "distance of the samples to real images: quality and variety",
    "FD": "distance of the samples to real images: quality and variety",
    "sFID": "the same, with positions in the image",
    "sFD": "the same, with positions in the image",
    "KID": "another such distance, fair to few images; 0 is equal",
    "precision": "quality: samples that lie among real images",
    "recall": "variety: real images that lie among samples",
    "density": "quality: how many real images surround a sample",
    "coverage": "variety: real images with a sample nearby",
    "IS": "clear and many classes, to a classifier; sees no real image",
    "digits recognised": "samples that are read as the digit asked for",
}
"""What a score means, by its kind."""


class ScoreName(NamedTuple):
    """The parts of a name: kind, feature network, and convention where there are several."""

    kind: str
    network: str
    convention: str


def parse(score: str) -> ScoreName:
    """Return the parts of a name; scores of Inception do not name their network.

    A text that is no name of a score is returned as the kind.
    """
    match = re.fullmatch(r"([^\s(]+)(?:\((.+?)\))?(?: \((.+)\))?", score)
    if match is None:
        return ScoreName(score, INCEPTION, "")
    return ScoreName(match[1], match[2] or INCEPTION, match[3] or "")
