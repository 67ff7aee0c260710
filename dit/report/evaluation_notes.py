"""What to know of feature networks before reading a score."""

from dit.data.first_look import FOR_COLOURS, is_coloured
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.inception import INCEPTION, INCEPTION_SHA256
from dit.evaluation.extractors.load import COLOUR_CNN, DIGITS_CNN
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics.memorisation import evenly


def note_colours(extractors: list[Extractor], images: ImageSet | None) -> list[str]:
    """Return a note if digits-cnn is to see colour images, of which some are looked at."""
    if images is None or all(extractor.name != DIGITS_CNN for extractor in extractors):
        return []
    if not is_coloured(images.stack(evenly(len(images), FOR_COLOURS).tolist())):
        return []
    return [
        f"{DIGITS_CNN} was made for gray digits and sees no colours: wrong colours cost nothing in "
        f"its scores. For colour images pass --extractor {COLOUR_CNN}, or inception"
    ]


def notes_on_weights(extractors: list[Extractor]) -> list[str]:
    inceptions = [extractor for extractor in extractors if extractor.name == INCEPTION]
    return [
        f"The weights of {INCEPTION} are not the published ones (SHA-256 {one.checksum[:8]}): "
        "do not compare with published FIDs."
        for one in inceptions
        if not one.checksum.startswith(INCEPTION_SHA256)
    ]
