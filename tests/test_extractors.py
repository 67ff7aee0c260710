"""Feature networks: what is bundled works, what is missing or unsafe is refused."""

import pickle
import subprocess
import sys

import pytest
import torch

from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation import extractors, inception
from dit.evaluation.digits_cnn import accuracy, held_out, to_gray
from dit.evaluation.extractors import load_extractor
from dit.evaluation.inception import INCEPTION_FILE, check_inception
from dit.files import sha256

CPU = torch.device("cpu")


def test_torch_fidelity_has_what_we_import():
    """These are importable, not documented: a new version may move them."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
    from torch_fidelity.utils import create_feature_extractor

    functions = (fid_features_to_statistics, fid_statistics_to_metric, isc_features_to_metric, kid_features_to_metric,
                 prc_features_to_metric, register_feature_extractor, create_feature_extractor)
    keys = (KEY_METRIC_FID, KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD,
            KEY_METRIC_PRECISION, KEY_METRIC_RECALL)
    assert all(callable(f) for f in functions)
    assert all(isinstance(key, str) for key in keys)
    assert issubclass(FeatureExtractorInceptionV3, FeatureExtractorBase)
    assert URL_INCEPTION_V3.endswith(INCEPTION_FILE)
    assert "inception-v3-compat" in FEATURE_EXTRACTORS_REGISTRY
    assert torch_fidelity.__version__.startswith("0.4.")


def test_import_does_not_import_torch_fidelity():
    modules = "dit.evaluation.extractors, dit.evaluation.features, dit.evaluation.metrics, dit.evaluation.report"
    code = f"import sys, {modules}; sys.exit('torch_fidelity' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_digits_cnn_recognises_digits_it_has_not_seen():
    extractor = load_extractor("digits-cnn", None, CPU)
    digits = Digits(32)
    unseen = torch.from_numpy(held_out(digits.labels))
    labels = torch.from_numpy(digits.labels)[unseen]
    assert len(labels) > 350
    assert accuracy(extractor.network.network, digits.images[unseen], labels) >= 0.985


def test_digits_cnn_file_is_small_and_its_checksum_recorded():
    path = extractors.digits_cnn_weights()
    assert path.stat().st_size < 1e6
    assert load_extractor("digits-cnn", None, CPU).checksum == sha256(path)


def test_features_of_digits_have_unit_variance_on_average():
    features, logits = load_extractor("digits-cnn", None, CPU)(Digits(32).images)
    assert features.shape == (1797, 64)
    assert logits.shape == (1797, 10)
    assert features.var(0).mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("size", [8, 48])
def test_digits_cnn_takes_any_size(size):
    digits = Digits(size)
    assert to_gray(digits.images[:2]).shape == (2, 1, 32, 32)
    extractor = load_extractor("digits-cnn", None, CPU)
    labels = torch.from_numpy(digits.labels)[:200]
    assert accuracy(extractor.network.network, digits.images[:200], labels) > 0.9


def test_registering_twice_is_harmless():
    for _ in range(2):
        extractors.register_digits_cnn()


def test_weights_with_digits_cnn_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--weights .* with the extractor digits-cnn"):
        load_extractor("digits-cnn", tmp_path / "w.pth", CPU)


# -- Inception ---------------------------------------------------------------------------------------------------


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


def test_offline_names_file_place_and_flag(home):
    with pytest.raises(UserError) as error:
        load_extractor("inception", None, CPU)
    place = home / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert str(place) in error.value.expected
    assert "--weights" in error.value.do
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
        path.write_bytes(pickle.dumps({"fc.weight": Bomb(mark)}))
    with pytest.raises(UserError, match="no plain file of tensors"):
        load_extractor("inception", path, CPU)
    assert not mark.exists()


def test_unsafe_file_in_the_cache_is_refused_too(home):
    path = inception.inception_cache()
    path.parent.mkdir(parents=True)
    torch.save({"fc.weight": Bomb(home / "ran")}, path)
    with pytest.raises(UserError, match="no plain file of tensors"):
        load_extractor("inception", None, CPU)
    assert not (home / "ran").exists()


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check_inception(tmp_path / "none.pth")
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    with pytest.raises(UserError, match=r"not Inception's: tensor .* is missing"):
        check_inception(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="no plain file of tensors"):
        check_inception(path)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A file with Inception's names and shapes, and random values."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in inception._inception_shapes().items():
        spread = 1 / max(1, torch.Size(shape[1:]).numel()) ** 0.5 if len(shape) > 1 else 0.0
        state[name] = torch.randn(shape, generator=generator) * spread + (0.0 if len(shape) > 1 else 1.0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(state, path)
    return path


def test_inception_loads_from_a_local_file(random_weights):
    extractor = load_extractor("inception", random_weights, CPU)
    assert (extractor.width, extractor.classes) == (2048, 1008)
    assert extractor.checksum == sha256(random_weights)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    features, logits = extractor(images)
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)
    assert features.isfinite().all()


def test_wrong_shape_is_named(random_weights, tmp_path):
    state = torch.load(random_weights, weights_only=True)
    state["fc.weight"] = torch.zeros(1000, 2048)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"fc.weight is \(1000, 2048\); expected \(1008, 2048\)"):
        check_inception(tmp_path / "weights.pth")
