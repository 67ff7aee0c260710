"""Features: the same for any batch and number of ranks, and finite."""

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU, random_pixels

from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array, from_batches, select


def fake_extractor(bad=()):
    """Features: means of red and green; logits: of blue; NaN if the first pixel is in `bad`."""

    def network(images):
        means = images.float().mean((2, 3))
        means[[int(image[0, 0, 0]) in bad for image in images], 0] = torch.nan
        return Outputs(means[:, :2], means[:, 2:])

    return Extractor(network, "fake", "none", "", "none", CPU, (2, 1, 0))


def features(array, batch_size, ranks=None, bad=()):
    images = from_array(array, "memory", None)
    return extract(images, [fake_extractor(bad)], batch_size, ranks or Ranks(), "features")


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_features_do_not_depend_on_the_batch(batch_size):
    array = random_pixels(7)
    found = features(array, batch_size)
    means = array.mean((1, 2)).astype(np.float32)
    assert np.allclose(found.networks["fake"].values, means[:, :2])
    assert np.allclose(found.networks["fake"].logits, means[:, 2:])
    assert found.digest == features(array, 7).digest


def test_digest_is_of_the_pixels_in_order():
    changed = random_pixels()
    changed[3, 7, 7, 2] ^= 1
    arrays = (random_pixels(), changed, random_pixels()[::-1].copy())
    assert len({features(array, 4).digest for array in arrays}) == 3


def test_nan_in_features_names_the_image():
    array = random_pixels(7)
    array[:, 0, 0, 0] = 1
    array[5, 0, 0, 0] = 9
    with pytest.raises(UserError, match=r"NaN in features \(fake\) of image 5 of memory"):
        features(array, 3, bad={9})


class OneOfTwo(Ranks):
    """A rank whose sums over ranks are its own part alone."""

    def sum(self, values):
        return values


def test_ranks_share_out_the_images():
    array = random_pixels(7)
    parts = [features(array, 2, OneOfTwo(rank, 2)).networks["fake"].values for rank in (0, 1)]
    assert torch.equal(parts[0] + parts[1], features(array, 2).networks["fake"].values)
    assert (parts[0] * parts[1]).count_nonzero() == 0
    assert [int((part != 0).any(1).sum()) for part in parts] == [4, 3]


def test_several_networks_get_the_same_batches():
    batches = []

    def network(name):
        def run(images):
            batches.append((name, len(images)))
            return Outputs(images.float().mean((2, 3)))

        return Extractor(run, name, "", "", "", CPU, (3, 0, 0))

    images = from_array(random_pixels(5), "memory", None)
    found = extract(images, [network("a"), network("b")], 3, Ranks(), "features").networks
    assert batches == [("a", 3), ("b", 3), ("a", 2), ("b", 2)]
    assert torch.equal(found["a"].values, found["b"].values)
    assert found["a"].logits is None is found["a"].spatial


def test_images_made_in_batches_have_the_features_of_the_same_images():
    pixels, asked = random_pixels(7), []

    def make(indices):
        asked.append([*indices])
        return torch.from_numpy(pixels[asked[-1]]).permute(0, 3, 1, 2)

    images = from_batches(make, 7, (8, 8), "made")
    found = extract(images, [fake_extractor()], 3, Ranks(), "features")
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert found.digest == features(pixels, 3).digest
    assert images.contents() == from_array(pixels, "memory", None).contents()
    some = extract(select(images, [5, 2]), [fake_extractor()], 3, Ranks(), "features")
    assert some.digest == features(pixels[[5, 2]], 3).digest


def test_networks_run_in_plain_float32(monkeypatch):
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def network(images):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        return Outputs(images.float().mean((2, 3)) @ weight)

    extractor = Extractor(network, "x", "", "", "", CPU, (4, 0, 0))
    images = torch.from_numpy(random_pixels()).permute(0, 3, 1, 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            inside = extractor(images).values
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(inside, extractor(images).values)
