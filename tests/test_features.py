"""Features: the same for any batch and number of ranks, and finite."""

import numpy as np
import pytest
import torch

from dit.errors import UserError
from dit.evaluation.extractors import Extractor
from dit.evaluation.features import extract
from dit.evaluation.images import from_array
from dit.hardware import Ranks


def pixels(n=4, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def fake_extractor(bad=()):
    """Features: mean red and green. Logits: mean blue; NaN for images whose first pixel is in `bad`."""

    def network(images):
        means = images.float().mean((2, 3))
        means[[int(image[0, 0, 0]) in bad for image in images], 0] = torch.nan
        return means[:, :2], means[:, 2:]

    return Extractor(network, "fake", 2, 1, "none", "", torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_features_do_not_depend_on_the_batch(batch_size):
    array = pixels(7)
    found = extract(from_array(array, "memory"), fake_extractor(), batch_size, Ranks(), "features")
    means = array.mean((1, 2)).astype(np.float32)
    assert np.allclose(found.values, means[:, :2])
    assert np.allclose(found.logits, means[:, 2:])
    whole = extract(from_array(array, "memory"), fake_extractor(), 7, Ranks(), "features")
    assert found.digest == whole.digest


def test_digest_is_of_the_pixels_in_order():
    def digest(array):
        return extract(from_array(array, "x"), fake_extractor(), 4, Ranks(), "features").digest

    changed = pixels()
    changed[3, 7, 7, 2] ^= 1
    assert len({digest(pixels()), digest(changed), digest(pixels()[::-1].copy())}) == 3


def test_nan_in_features_names_the_image():
    array = pixels(7)
    array[:, 0, 0, 0] = 1
    array[5, 0, 0, 0] = 9
    with pytest.raises(UserError, match="NaN in features of image 5 of memory"):
        extract(from_array(array, "memory"), fake_extractor(bad={9}), 3, Ranks(), "features")


class OneOfTwo(Ranks):
    """A rank whose sums over ranks are its own part alone."""

    def total(self, values):
        return values


def test_ranks_share_the_images_between_them():
    array = pixels(7)
    images = from_array(array, "memory")
    parts = [extract(images, fake_extractor(), 2, OneOfTwo(rank, 2), "features").values for rank in (0, 1)]
    whole = extract(images, fake_extractor(), 2, Ranks(), "features").values
    assert torch.equal(parts[0] + parts[1], whole)
    assert (parts[0] * parts[1]).count_nonzero() == 0
    assert [int((part != 0).any(1).sum()) for part in parts] == [4, 3]
