"""What the name of a score says: FD(digits-cnn) is a Fréchet distance in features of digits-cnn."""

import re
from typing import NamedTuple

from dit.evaluation.extractors.inception import INCEPTION

DISTANCES = ("FID", "FD", "sFID", "sFD", "KID")  # lower is better
SHARES = ("precision", "recall", "density", "coverage")  # of the manifolds of two sets of images
KINDS = (*DISTANCES, *SHARES, "IS")
MEANINGS = {
    "FID": "how far all samples are from all real images: quality and variety at once",
    "FD": "how far all samples are from all real images: quality and variety at once",
    "sFID": "the same, where things are in the image counts too",
    "sFD": "the same, where things are in the image counts too",
    "KID": "another such distance, fair to few images; 0 is equal",
    "precision": "quality: the share of samples that lie among real images",
    "recall": "variety: the share of real images that lie among samples",
    "density": "quality: how many real images are around a sample; above 1 is safe and common",
    "coverage": "variety: the share of real images that have a sample nearby",
    "IS": "how surely a classifier names the samples, and how many classes; sees no real image",
    "digits recognised": "the share of samples that are read as the digit asked for",
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
