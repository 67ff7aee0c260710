"""Feature networks by name: the bundled one, the user's own, torch-fidelity's."""

import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU, Bomb
from PIL import Image, ImageDraw
from torchvision.transforms.functional import adjust_hue, gaussian_blur

from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation.extractors import load as extractors
from dit.evaluation.extractors.digits_cnn import DigitsCNN, accuracy, held_out, to_gray
from dit.evaluation.extractors.inception import INCEPTION_FILE
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.metrics.frechet import fit, frechet
from dit.utils.files import sha256


def load(name, weights=()):
    (extractor,) = load_extractors([name], weights, CPU)
    return extractor


def refused(name, *weights):
    with pytest.raises(UserError) as error:
        load_extractors(name.split(), weights, CPU)
    return str(error.value)


def test_torch_fidelity_is_the_version_whose_private_parts_are_imported():
    """Undocumented imports and keys, which a new version may move."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import create_feature_extractor

    assert callable(create_feature_extractor)
    scores = isc_features_to_metric(torch.eye(4), splits=1, shuffle=False)
    assert scores[KEY_METRIC_ISC_MEAN] > 1
    assert issubclass(FeatureExtractorInceptionV3, FeatureExtractorBase)
    assert URL_INCEPTION_V3.endswith(INCEPTION_FILE)
    assert "inception-v3-compat" in FEATURE_EXTRACTORS_REGISTRY
    assert torch_fidelity.__version__.startswith("0.4.")


def test_import_is_light():
    heavy = {"torch_fidelity", "timm", "sklearn", "huggingface_hub"}
    code = f"import sys, dit.evaluation.extractors.load; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -- digits ----------------------------------------------------------------------------------------


def bundled():
    from safetensors.torch import load_file

    network = DigitsCNN().eval()
    network.load_state_dict(load_file(extractors.bundled_weights("digits-cnn")))
    return network


def test_digits_cnn_recognises_digits_it_has_not_seen():
    digits = Digits(32)
    unseen = torch.from_numpy(held_out(digits.labels))
    labels = torch.from_numpy(digits.labels)[unseen]
    assert len(labels) > 350
    assert accuracy(bundled(), digits.images[unseen], labels) >= 0.985


def test_digits_cnn_extractor():
    extractor = load("digits-cnn")
    path = extractors.bundled_weights("digits-cnn")
    assert (extractor.name, extractor.checksum) == ("digits-cnn", sha256(path))
    assert (extractor.widths, extractor.class_names) == ((64, 10, 0), tuple("0123456789"))
    outputs = extractor(Digits(32).images)
    assert outputs.values.shape == (1797, 64)
    assert outputs.logits.shape == (1797, 10)
    assert outputs.spatial is None
    assert outputs.values.var(0).mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("size", [8, 48])
def test_digits_cnn_takes_any_size(size):
    digits = Digits(size)
    assert to_gray(digits.images[:2]).shape == (2, 1, 32, 32)
    labels = torch.from_numpy(digits.labels)[:200]
    assert accuracy(bundled(), digits.images[:200], labels) > 0.9


def test_weights_with_digits_cnn_are_refused(tmp_path):
    (tmp_path / "w.pth").touch()
    assert "w.pth with the extractor digits-cnn" in refused("digits-cnn", str(tmp_path / "w.pth"))


# -- colour images ---------------------------------------------------------------------------------


def test_colour_cnn_takes_any_size_and_sees_colours():
    extractor = load("colour-cnn")
    assert extractor.widths == (128, 0, 0)
    images = torch.randint(0, 256, (2, 3, 40, 96), dtype=torch.uint8)
    values, logits, spatial = extractor(images)
    assert values.shape == (2, 128)
    assert logits is spatial is None
    assert (extractor(images.flip(1)).values - values).abs().max() > 0.1


@pytest.fixture(scope="module")
def drawings():
    """Images that the network was not trained on: a disc and stripes, uint8 [200, 3, 64, 64]."""
    random = np.random.default_rng(0)
    pages = []
    for _ in range(200):
        page = Image.new("RGB", (64, 64), (235, 225, 200))
        pen = ImageDraw.Draw(page)
        left, top, side, step = random.integers((4, 4, 16, 4), (20, 20, 40, 9)).tolist()
        pen.ellipse((left, top, left + side, top + side), fill=(220, 90, 40))
        for row in range(top, top + side, step):
            pen.line((left, row, left + side, row), fill=(40, 70, 150))
        pages.append(torch.from_numpy(np.array(page)))
    return torch.stack(pages).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "worse",
    [
        [lambda x: gaussian_blur(x, 9, 1.0), lambda x: gaussian_blur(x, 9, 2.0)],
        [lambda x: adjust_hue(x, 0.1), lambda x: adjust_hue(x, 0.4)],
        [lambda x: x // 64 * 64, lambda x: x // 128 * 128],
    ],
    ids=["blur", "hue", "few colours"],
)
def test_distances_in_features_of_colour_cnn_rise_with_damage(worse, drawings):
    extractor = load("colour-cnn")
    reference = fit(extractor(drawings[::2]).values)
    samples = [drawings[1::2], *(damage(drawings[1::2]) for damage in worse)]
    distances = [frechet(fit(extractor(images).values), reference) for images in samples]
    assert distances[0] * 1.3 < distances[1]
    assert distances[1] * 1.3 < distances[2]


# -- names and files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "likely"),
    [("inceptoin", "inception"), ("dino", "dinov2"), ("clip-vit-b32", "clip-vit-b-32")],
)
def test_unknown_names_get_the_nearest(name, likely):
    message = refused(name)
    expected = (
        f"--extractor {name}; expected inception, dinov2, digits-cnn, colour-cnn, MODULE:CLASS"
    )
    assert message.startswith(expected)
    assert likely in message.split("did you mean")[1]


@pytest.mark.parametrize(
    "names", ["digits-cnn digits-cnn", "inception inception-v3-compat", "dinov2 dinov2-vitl14"]
)
def test_a_network_twice_is_refused(names):
    assert f"{names.split()[0]} twice" in refused(names)


@pytest.mark.parametrize("name", ["inception", "vgg16", "some.module:Class"])
def test_missing_file_is_named_for_each_kind(name, tmp_path):
    for file in (tmp_path / "no.pth", tmp_path):
        for given in (str(file), f"{name}={file}"):
            message = f"no file {file} for --weights; expected a file of {name}'s weights"
            assert message in refused(name, given)


def test_weights_find_their_network(tmp_path, own):
    """FILE where one network takes a file, else NAME=FILE; a file's name may have an = in it."""
    file = tmp_path / "seed=3.pt"
    torch.save(torch.full((4, 3), 7.0), file)
    one, bundled = load_extractors(["own:Weighted", "digits-cnn"], [str(file)], CPU)
    two = load_extractors(["own:Plain", "own:Weighted"], [f"own:Weighted={file}"], CPU)[1]
    names = (one.weights, two.weights, bundled.weights)
    assert names == ("seed=3.pt", "seed=3.pt", "digits-cnn.safetensors")
    assert one.checksum == two.checksum
    assert "NAME=FILE of one of them" in refused("own:Plain own:Weighted", str(file))
    assert "NAME=FILE of one of them" in refused("own:Weighted", f"inception={file}")
    twice = refused("own:Weighted", str(file), f"own:Weighted={file}")
    assert "second file for own:Weighted" in twice


# -- the user's own --------------------------------------------------------------------------------

OWN = """
import torch
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase


def mean(images):
    return images.float().mean(dim=(2, 3))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.drop = nn.Dropout()
        self.register_buffer("scale", torch.tensor(2, dtype=torch.bfloat16))

    def forward(self, images):
        assert not torch.is_grad_enabled()
        return self.drop(self.linear(mean(images)))


class Classifier(Plain):
    def forward(self, images):
        return mean(images), super().forward(images)


class Weighted(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.weight = nn.Parameter(torch.load(path))

    def forward(self, images):
        return mean(images) @ self.weight.T


class Layers(FeatureExtractorBase):
    layers = {"fid": "features", "isc": "logits"}

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)

    def forward(self, images):
        layers = {"features": mean(images), "logits": mean(images)[:, :2]}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "logits", "other", "features"

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric):
        return cls.layers[metric]


class NoLogits(Layers):
    layers = {"fid": "features"}


def gives(forward):
    return type("Gives", (nn.Module,), {"forward": lambda self, images: forward(images)})


class Unmade(nn.Module):
    def __init__(self):
        raise FloatingPointError("of its\\n own")


Maps = gives(lambda x: x.float())
One = gives(lambda x: mean(x)[:1])
Flat = gives(lambda x: mean(x)[:, 0])
FlatLogits = gives(lambda x: (mean(x), mean(x)[:, 0]))
Three = gives(lambda x: (mean(x), mean(x), mean(x)))
Listed = gives(lambda x: {"features": mean(x)})
Pixels = gives(lambda x: x.flatten(1))
Fails = gives(lambda x: x @ x.new_zeros(7, 7))
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own` in the current directory, which Python does not search by itself."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own", None)


@pytest.fixture
def images():
    return torch.randint(
        0, 256, (4, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_plain_module(own, images):
    """In eval mode, without gradients; random weights are the same every time."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    extractor = load("own:Plain")
    assert torch.equal(torch.get_rng_state(), before)
    outputs = extractor(images)
    assert (extractor.name, extractor.widths) == ("own:Plain", (5, 0, 0))
    assert extractor.weights == "own:Plain's own"
    assert (outputs.logits, outputs.spatial) == (None, None)
    assert outputs.values.shape == (4, 5)
    assert not outputs.values.requires_grad
    torch.manual_seed(6)
    again = load("own:Plain")
    assert torch.equal(again(images).values, outputs.values)
    assert again.checksum == extractor.checksum


def test_checksum_depends_on_weights_and_source(own):
    first = load("own:Plain").checksum
    assert load("own:Classifier").checksum != first  # the same weights, another forward
    (own / "other.py").write_text(OWN.replace("nn.Linear(3, 5)", "nn.Linear(3, 5, bias=True)"))
    assert load("other:Plain").checksum != first
    for value in (1.0, 2.0):
        torch.save(torch.full((4, 3), value), own / f"{value}.pt")
    one, two = (load("own:Weighted", [str(own / f"{value}.pt")]) for value in (1.0, 2.0))
    assert one.checksum != two.checksum


def test_features_and_logits(own, images):
    outputs = load("own:Classifier")(images)
    assert torch.equal(outputs.values, images.float().mean(dim=(2, 3)))
    assert outputs.logits.shape == (4, 5)


def test_weights_are_the_only_argument(own, images):
    torch.save(torch.eye(3) * 2, own / "w.pt")
    extractor = load("own:Weighted", [f"own:Weighted={own / 'w.pt'}"])
    assert (extractor.weights, extractor.widths) == ("w.pt", (3, 0, 0))
    assert torch.equal(extractor(images).values, images.float().mean(dim=(2, 3)) * 2)


def test_classes_of_torch_fidelity(own, images):
    (own / "file").touch()
    mean = images.float().mean(dim=(2, 3))
    outputs = load("own:Layers", [str(own / "file")])(images)
    assert torch.equal(outputs.values, mean)
    assert torch.equal(outputs.logits, mean[:, :2])
    extractor = load("own:NoLogits")
    assert extractor.widths == (3, 0, 0)
    assert extractor(images).logits is None


def test_registered_network(own, images, monkeypatch):
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    direct = load("own:Layers")
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "my-layers", sys.modules["own"].Layers)
    extractor = load("my-layers")
    assert (extractor.name, extractor.widths) == ("my-layers", (3, 2, 0))
    assert extractor.weights == "my-layers's own"
    assert torch.equal(extractor(images).logits, images.float().mean(dim=(2, 3))[:, :2])
    assert extractor.checksum == direct.checksum


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owm:Plain", "importing owm fails (ModuleNotFoundError: No module named 'owm')"),
        (":Plain", "fails (ValueError: Empty module name)"),
        ("own:Plane", "own.py has no class 'Plane' of a network"),
        ("own:Plane", "expected a subclass of torch.nn.Module; did you mean Plain"),
        ("own:number", "has no class 'number' of a network"),
        ("own:mean", "has no class 'mean' of a network"),
        ("own:Unmade", "own:Unmade cannot be created (FloatingPointError: of its own)"),
        ("own:Weighted", "own:Weighted cannot be created (TypeError: "),
        ("own:Weighted", "pass its weights as --weights own:Weighted=FILE"),
        ("own:Fails", "own:Fails fails on images [2, 3, 64, 64] (RuntimeError: "),
        ("own:Maps", "gives [2, 3, 64, 64] for 2 images; expected features [2, D]"),
        ("own:One", "gives [1, 3] for 2 images"),
        ("own:Flat", "gives [2] for 2 images"),
        ("own:FlatLogits", "gives [2, 3], [2] for 2 images"),
        ("own:Three", "gives [2, 3], [2, 3], [2, 3] for 2 images"),
        ("own:Listed", "gives ['dict'] for 2 images"),
    ],
)
def test_classes_that_are_no_feature_network_are_refused(own, name, message):
    assert message in refused(name)


def test_features_that_depend_on_the_size_are_refused(own, images):
    with pytest.raises(UserError, match=r"gives \[4, 288\] for 4 images; .*\[4, 12288\]"):
        load("own:Pixels")(images)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_thing", "(ModuleNotFoundError: No module named 'no_such_thing')"),
        ("raise SystemExit(3)", "importing broken fails (SystemExit: 3)"),
        ("def (", "importing broken fails (SyntaxError: "),
        ("x = 1", "has no class 'Net' of a network"),
    ],
)
def test_modules_that_fail_are_refused(own, source, message):
    (own / "broken.py").write_text(source)
    sys.modules.pop("broken", None)
    assert message in refused("broken:Net")


def test_constructor_that_fails_names_the_weights(own):
    file = own / "w.pt"
    file.write_bytes(b"no weights")
    for name in ("own:Weighted", "own:Plain"):
        assert f"{name} cannot be created from --weights {file} (" in refused(name, str(file))


# -- torch-fidelity's own --------------------------------------------------------------------------


def test_a_pickle_with_an_archive_behind_it_is_no_torchscript(tmp_path):
    """Python's zipfile finds archives at the end; torch.load runs the pickle before it."""
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "ran"), file)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as inner:
            inner.writestr("a/constants.pkl", b"")
        file.write(archive.getvalue())
    assert "are no plain file of tensors" in refused("vgg16", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_unsafe_and_wrong_weights_of_registered_networks_are_refused(tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"features.0.weight": Bomb(tmp_path / "ran")}, file)
    assert f"weights {file} are no plain file of tensors" in refused("vgg16", str(file))
    assert not (tmp_path / "ran").exists()
    torch.save({"features.0.weight": torch.zeros(3)}, file)
    with torch.device("meta"):  # a large network, which is not to be filled
        message = refused("vgg16", str(file))
    assert f"vgg16 cannot be created from --weights {file} (RuntimeError: Error(s) in" in message
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "w.pt"))
    message = refused("clip-vit-b-32", str(tmp_path / "w.pt"))
    assert f"cannot be created from --weights {tmp_path / 'w.pt'}" in message


def test_registered_networks_that_can_not_be_downloaded_are_refused(monkeypatch, tmp_path):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_clip.load_state_dict_from_url", offline)
    message = refused("clip-vit-b-32")
    assert "clip-vit-b-32 cannot be created (URLError: <urlopen error no network>)" in message
    assert "--weights clip-vit-b-32=FILE" in message
