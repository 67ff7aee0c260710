"""Inception: bitwise torch-fidelity's, with sFID's features from the same pass."""

import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.evaluation import CPU, Bomb

from dit.errors import UserError
from dit.evaluation.extractors import inception
from dit.evaluation.extractors.inception import INCEPTION, INCEPTION_FILE
from dit.evaluation.extractors.load import load_extractors
from dit.utils.files import sha256


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
    """Return a file with Inception's names and shapes, and values that neither grow nor vanish."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        network = Unloaded(INCEPTION, ["2048"], feature_extractor_weights_path=empty)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            spread = (2 / value[0].numel()) ** 0.5  # 2 for the ReLUs
            state[name] = torch.randn(value.shape, generator=generator) * spread
        elif value.ndim:
            state[name] = torch.ones(value.shape)
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


# -- features --------------------------------------------------------------------------------------


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
def test_spatial_features_are_those_of_the_layers_one_by_one(extractor, stock, images):
    """TensorFlow's `mixed_6/conv` is the first branch of the seventh mixed block."""
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    names = [name for name, _ in stock.named_children()]
    mixed = [name for name in names if name.startswith("Mixed")]
    assert mixed[6] == "Mixed_6d"  # TensorFlow's mixed, mixed_1, ... mixed_6
    with torch.no_grad():
        x = (resize(images.float(), size=(299, 299), align_corners=False) - 128) / 128
        for module in list(stock.children())[: names.index("Mixed_6d")]:
            x = module(x)
        conv, bn = stock.Mixed_6d.branch1x1.conv, stock.Mixed_6d.branch1x1.bn
        statistics = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        x = F.batch_norm(F.conv2d(x, conv.weight), *statistics, eps=bn.eps).clamp(min=0)
    assert x.shape == (3, 192, 17, 17)
    expected = x.numpy()[:, :7].transpose(0, 2, 3, 1).reshape(3, -1)  # channels last, as TensorFlow
    found = extractor(images).spatial.numpy()
    assert abs(found - expected).max() <= 1e-6 * abs(expected).max()
    assert 0.05 < (found == 0).mean() < 0.95  # after the ReLU


# -- weights ---------------------------------------------------------------------------------------


def test_offline_names_file_place_and_flag(home):
    with pytest.raises(UserError) as error:
        load_extractors(["inception"], [], CPU)
    place = home / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert str(place) in error.value.expected
    assert "--weights inception=FILE" in error.value.do
    assert INCEPTION_FILE in error.value.given
    assert list(place.parent.iterdir()) == []


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
        load_extractors(["inception"], [], CPU)
    assert not (home / "ran").exists()


def test_files_of_anything_else_are_refused(random_weights, tmp_path):
    path = tmp_path / "weights.pth"
    state = torch.load(random_weights, weights_only=True)

    def refused(path=path):
        with pytest.raises(UserError) as error:
            load_extractors(["inception"], [str(path)], CPU)
        return str(error.value)

    for content in (b"", b"root:x:0:0:root:/root:/bin/bash\n" * 20, bytes(1000)):
        path.write_bytes(content)
        assert "no plain file of tensors" in refused()
    path.write_bytes(random_weights.read_bytes()[:200])
    assert "no plain file of tensors" in refused()
    torch.save({"weight": torch.zeros(1000)}, path)
    assert "weights.pth are not Inception's (RuntimeError: Error(s) in loading" in refused()
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, path)
    assert "size mismatch for fc.weight" in refused()
