"""Features: the same for any batch and number of ranks, and finite."""

import numpy as np
import pytest
import torch

from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array


def pixels(n=4, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def fake_extractor(bad=()):
    """Features: mean red and green. Logits: mean blue; NaN for images whose first pixel is in `bad`."""

    def network(images):
        means = images.float().mean((2, 3))
        means[[int(image[0, 0, 0]) in bad for image in images], 0] = torch.nan
        return Outputs(means[:, :2], means[:, 2:])

    return Extractor(network, "fake", "none", "", "none", torch.device("cpu"), (2, 1, 0))


def features(images, batch_size, ranks=None, bad=()):
    return extract(images, [fake_extractor(bad)], batch_size, ranks or Ranks(), "features")


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_features_do_not_depend_on_the_batch(batch_size):
    array = pixels(7)
    found = features(from_array(array, "memory"), batch_size)
    means = array.mean((1, 2)).astype(np.float32)
    assert np.allclose(found.networks["fake"].values, means[:, :2])
    assert np.allclose(found.networks["fake"].logits, means[:, 2:])
    whole = features(from_array(array, "memory"), 7)
    assert found.digest == whole.digest


def test_digest_is_of_the_pixels_in_order():
    def digest(array):
        return features(from_array(array, "x"), 4).digest

    changed = pixels()
    changed[3, 7, 7, 2] ^= 1
    assert len({digest(pixels()), digest(changed), digest(pixels()[::-1].copy())}) == 3


def test_nan_in_features_names_the_image():
    array = pixels(7)
    array[:, 0, 0, 0] = 1
    array[5, 0, 0, 0] = 9
    with pytest.raises(UserError, match=r"NaN in features \(fake\) of image 5 of memory"):
        features(from_array(array, "memory"), 3, bad={9})


class OneOfTwo(Ranks):
    """A rank whose sums over ranks are its own part alone."""

    def total(self, values):
        return values


def test_ranks_share_the_images_between_them():
    array = pixels(7)
    images = from_array(array, "memory")
    parts = [features(images, 2, OneOfTwo(rank, 2)).networks["fake"].values for rank in (0, 1)]
    whole = features(images, 2).networks["fake"].values
    assert torch.equal(parts[0] + parts[1], whole)
    assert (parts[0] * parts[1]).count_nonzero() == 0
    assert [int((part != 0).any(1).sum()) for part in parts] == [4, 3]


def test_several_networks_see_the_same_batches():
    seen = []

    def network(name):
        return lambda images: (
            seen.append((name, len(images))) or Outputs(images.float().mean((2, 3)))
        )

    makers = [
        Extractor(network(name), name, "", "", "", torch.device("cpu"), (3, 0, 0)) for name in "ab"
    ]
    found = extract(from_array(pixels(5), "memory"), makers, 3, Ranks(), "features").networks
    assert seen == [("a", 3), ("b", 3), ("a", 2), ("b", 2)]
    assert torch.equal(found["a"].values, found["b"].values)
    assert found["a"].logits is None is found["a"].spatial


def test_network_runs_in_plain_float32_whatever_surrounds_it():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def network(images):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.enabled
        assert torch.get_float32_matmul_precision() == "highest"
        return Outputs(images.float().mean((2, 3)) @ weight)

    maker = Extractor(network, "x", "", "", "", torch.device("cpu"), (4, 0, 0))
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            inside = maker(images).values
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(inside, maker(images).values)
    assert torch.backends.cudnn.allow_tf32
