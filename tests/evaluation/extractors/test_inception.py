"""Inception: bitwise torch-fidelity's, with sFID's features from the same pass; unsafe and wrong weights refused."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from dit.errors import UserError
from dit.evaluation.extractors import inception
from dit.evaluation.extractors.inception import (
    INCEPTION,
    INCEPTION_FILE,
    check_inception,
    find_inception,
)
from dit.evaluation.extractors.load import load_extractors
from dit.utils.files import sha256

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """torch.hub's folder, empty; a download fails as it does offline."""
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A file with Inception's names and shapes, and random values that neither grow nor vanish (2 for the ReLUs)."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in inception.inception_shapes().items():
        spread = (2 / max(1, torch.Size(shape[1:]).numel())) ** 0.5 if len(shape) > 1 else 0.0
        state[name] = torch.randn(shape, generator=generator) * spread + (
            0.0 if len(shape) > 1 else 1.0
        )
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def extractor(random_weights):
    return load_extractors(["inception"], [str(random_weights)], CPU)[0]


@pytest.fixture(scope="module")
def stock(random_weights):
    """torch-fidelity's own network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(random_weights)
    )


@pytest.fixture(scope="module")
def images():
    return torch.randint(
        0, 256, (3, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


# -- features ----------------------------------------------------------------------------------------------------


def test_shapes_and_record(extractor, random_weights, images):
    outputs = extractor(images)
    assert [layer.shape for layer in outputs] == [(3, 2048), (3, 1008), (3, 2023)]
    assert extractor.widths == (2048, 1008, 2023)
    assert all(layer.isfinite().all() for layer in outputs)
    assert (extractor.name, extractor.weights) == ("inception-v3-compat", "weights.pth")
    assert extractor.checksum == sha256(random_weights)


@pytest.mark.portable
def test_features_are_bitwise_those_of_torch_fidelity(extractor, stock, images):
    outputs, (features, logits) = extractor(images), stock(images)
    assert torch.equal(outputs.values, features)
    assert torch.equal(outputs.logits, logits)
    assert (features[0] - features[1]).abs().max() > 0.01  # they do depend on the image


@pytest.mark.portable
def test_spatial_features_are_those_of_a_walk_through_the_network(extractor, stock, images):
    """TensorFlow's `mixed_6/conv` is the seventh mixed block's first branch; its layers here by hand."""
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    with torch.no_grad():
        x = (resize(images.float(), size=(299, 299), align_corners=False) - 128) / 128
        for module in list(stock.children())[
            : [n for n, _ in stock.named_children()].index("Mixed_6d")
        ]:
            x = module(x)
        conv, bn = stock.Mixed_6d.branch1x1.conv, stock.Mixed_6d.branch1x1.bn
        x = F.conv2d(x, conv.weight)
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps).clamp(
            min=0
        )
    assert x.shape == (3, 192, 17, 17)
    expected = x.numpy()[:, :7].transpose(0, 2, 3, 1).reshape(3, -1)  # channels last, as TensorFlow
    found = extractor(images).spatial.numpy()
    assert abs(found - expected).max() <= 1e-6 * abs(expected).max()
    assert 0.05 < (found == 0).mean() < 0.95  # after the ReLU
    assert [n for n, _ in stock.named_children()][7:16] == [
        "Mixed_5b",
        "Mixed_5c",
        "Mixed_5d",
        "Mixed_6a",
        "Mixed_6b",
        "Mixed_6c",
        "Mixed_6d",
        "Mixed_6e",
        "Mixed_7a",
    ]  # TensorFlow's mixed, mixed_1, ... mixed_8: mixed_6 is the seventh


def test_spatial_features_go_with_their_images_in_any_thread(extractor, images):
    expected = [extractor(image[None]).spatial for image in images[:2]]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: extractor(images[i % 2][None]).spatial, range(4)))
    assert all(torch.equal(spatial, expected[i % 2]) for i, spatial in enumerate(found))
    assert not torch.equal(expected[0], expected[1])


def test_the_hook_is_the_network_s_own(extractor, stock):
    """Another network of the same class has none, nor has torch as a whole."""
    assert not stock.Mixed_6d.branch1x1._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks


# -- weights -----------------------------------------------------------------------------------------------------


def test_offline_names_file_place_and_flag(home):
    with pytest.raises(UserError) as error:
        load_extractors(["inception"], [], CPU)
    place = home / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert str(place) in error.value.expected
    assert "--weights inception=FILE" in error.value.do
    assert INCEPTION_FILE in error.value.given
    assert list(place.parent.iterdir()) == []


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_run_code_is_refused(tmp_path, zipped):
    mark, path = tmp_path / "ran", tmp_path / "weights.pth"
    if zipped:
        torch.save({"fc.weight": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"fc.weight": Bomb(mark)}, protocol=2))
    with pytest.raises(UserError, match=r"weights\.pth are no plain file of tensors"):
        load_extractors(["inception"], [str(path)], CPU)
    assert not mark.exists()


def test_unsafe_file_in_the_cache_is_refused_too(home):
    path = inception.inception_cache()
    path.parent.mkdir(parents=True)
    torch.save({"fc.weight": Bomb(home / "ran")}, path)
    with pytest.raises(UserError, match="no plain file of tensors"):
        find_inception()
    assert not (home / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"root:x:0:0:root:/root:/bin/bash\n" * 20, bytes(1000)])
def test_files_of_anything_else_are_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no plain file of tensors"):
        check_inception(path)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    with pytest.raises(UserError, match=r"not Inception's: tensor .* is missing"):
        check_inception(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="no plain file of tensors"):
        check_inception(path)
    with pytest.raises(
        UserError, match="safetensors format; expected the pickle weights-inception"
    ):
        check_inception(tmp_path / "weights.safetensors")


def test_wrong_shape_is_named(random_weights, tmp_path):
    state = torch.load(random_weights, weights_only=True)
    state["fc.weight"] = torch.zeros(1000, 2048)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"fc.weight is \(1000, 2048\); expected \(1008, 2048\)"):
        check_inception(tmp_path / "weights.pth")
