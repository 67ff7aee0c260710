"""Feature networks by name: the bundled one, the user's own, torch-fidelity's; what does not fit is refused."""

import io
import pickle
import re
import subprocess
import sys
import zipfile

import pytest
import torch

from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation.extractors import load as extractors
from dit.evaluation.extractors.digits_cnn import DigitsCNN, accuracy, held_out, to_gray
from dit.evaluation.extractors.inception import INCEPTION_FILE
from dit.evaluation.extractors.load import load_extractors
from dit.utils.files import sha256

CPU = torch.device("cpu")


def load(name, weights=()):
    (extractor,) = load_extractors([name], weights, CPU)
    return extractor


def refused(name, *weights):
    with pytest.raises(UserError) as error:
        load_extractors(name.split(), weights, CPU)
    return str(error.value)


def test_torch_fidelity_has_what_we_import():
    """These are importable, not documented: a new version may move them."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )
    from torch_fidelity.metric_isc import (
        KEY_METRIC_ISC_MEAN,
        KEY_METRIC_ISC_STD,
        isc_features_to_metric,
    )
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
    from torch_fidelity.utils import create_feature_extractor

    functions = (
        isc_features_to_metric,
        kid_features_to_metric,
        register_feature_extractor,
        create_feature_extractor,
    )
    keys = (KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD)
    assert all(callable(f) for f in functions)
    assert all(isinstance(key, str) for key in keys)
    assert issubclass(FeatureExtractorInceptionV3, FeatureExtractorBase)
    assert URL_INCEPTION_V3.endswith(INCEPTION_FILE)
    assert "inception-v3-compat" in FEATURE_EXTRACTORS_REGISTRY
    assert torch_fidelity.__version__.startswith("0.4.")


def test_import_is_light():
    heavy = {"torch_fidelity", "timm", "sklearn", "huggingface_hub"}
    code = f"import sys, dit.evaluation.extractors.load; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -- digits ------------------------------------------------------------------------------------------------------


def bundled():
    from safetensors.torch import load_file

    network = DigitsCNN().eval()
    network.load_state_dict(load_file(extractors.digits_cnn_weights()))
    return network


def test_digits_cnn_recognises_digits_it_has_not_seen():
    digits = Digits(32)
    unseen = torch.from_numpy(held_out(digits.labels))
    labels = torch.from_numpy(digits.labels)[unseen]
    assert len(labels) > 350
    assert accuracy(bundled(), digits.images[unseen], labels) >= 0.985


def test_digits_cnn_file_is_small_and_recorded():
    path = extractors.digits_cnn_weights()
    extractor = load("digits-cnn")
    assert path.stat().st_size < 1e6
    assert (extractor.name, extractor.checksum) == ("digits-cnn", sha256(path))
    assert (extractor.widths, extractor.class_names) == ((64, 10, 0), tuple("0123456789"))


def test_features_of_digits_have_unit_variance_on_average():
    outputs = load("digits-cnn")(Digits(32).images)
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


# -- names and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "likely"),
    [
        ("inceptoin", "inception"),
        ("dino", "dinov2"),
        ("vgg-16", "vgg16"),
        ("clip-vit-b32", "clip-vit-b-32"),
    ],
)
def test_unknown_names_get_the_nearest(name, likely):
    message = refused(name)
    assert message.startswith(
        f"--extractor {name}; expected inception, dinov2, digits-cnn, MODULE:CLASS"
    )
    assert "did you mean" in message
    assert likely in message.split("did you mean")[1]


@pytest.mark.parametrize(
    "names", ["digits-cnn digits-cnn", "inception inception-v3-compat", "dinov2 dinov2-vitl14"]
)
def test_a_network_twice_is_refused(names):
    assert f"{names.split()[0]} twice" in refused(names)


@pytest.mark.parametrize(
    "name", ["inception", "dinov2", "vgg16", "dit.evaluation.extractors.digits_cnn:DigitsCNN"]
)
def test_missing_file_is_named_for_each_kind(name, tmp_path):
    for file in (tmp_path / "no.pth", tmp_path):
        for given in (str(file), f"{name}={file}"):
            assert f"no file {file} for --weights; expected a file of {name}'s weights" in refused(
                name, given
            )


def test_weights_find_their_network(tmp_path, own):
    """FILE where one network takes a file, NAME=FILE where several do; a file's name may have an = in it."""
    file = tmp_path / "seed=3.pt"
    torch.save(torch.full((4, 3), 7.0), file)
    one, bundled = load_extractors(["own:Weighted", "digits-cnn"], [str(file)], CPU)
    two = load_extractors(["own:Plain", "own:Weighted"], [f"own:Weighted={file}"], CPU)[1]
    assert (one.weights, two.weights, bundled.weights) == (
        "seed=3.pt",
        "seed=3.pt",
        "digits-cnn.safetensors",
    )
    assert one.checksum == two.checksum
    assert "NAME=FILE of one of them" in refused("own:Plain own:Weighted", str(file))
    assert "NAME=FILE of one of them" in refused("own:Weighted", f"inception={file}")
    assert "second file for own:Weighted" in refused(
        "own:Weighted", str(file), f"own:Weighted={file}"
    )


# -- the user's own ----------------------------------------------------------------------------------------------

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
    logits = "logits"

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        self.file = feature_extractor_weights_path

    def forward(self, images):
        layers = {"features": mean(images), "logits": mean(images)[:, :2]}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "logits", "other", "features"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "features", "isc": "logits"}[metric]


class NoLogits(Layers):
    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "features"}[metric]


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
number, made = 3, nn.Identity()
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
    """In eval mode, without gradients, on its device; the same weights every time it is made."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    extractor = load("own:Plain")
    assert torch.equal(torch.get_rng_state(), before)
    outputs = extractor(images)
    own_weights = extractor.checksum
    assert (extractor.name, extractor.widths, extractor.weights) == (
        "own:Plain",
        (5, 0, 0),
        "own:Plain's own",
    )
    assert (outputs.logits, outputs.spatial) == (None, None)
    assert outputs.values.shape == (4, 5)
    assert not outputs.values.requires_grad
    torch.manual_seed(6)
    again = load("own:Plain")
    assert torch.equal(again(images).values, outputs.values)
    assert again.checksum == own_weights


def test_checksum_tells_weights_and_source_apart(own):
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


def test_classes_of_torch_fidelity_s_kind(own, images):
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
    assert (extractor.name, extractor.widths, extractor.weights) == (
        "my-layers",
        (3, 2, 0),
        "my-layers's own",
    )
    assert torch.equal(extractor(images).logits, images.float().mean(dim=(2, 3))[:, :2])
    assert extractor.checksum == direct.checksum


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "owm:Plain",
            "no module owm here or installed; expected MODULE:CLASS .*; did you mean own",
        ),
        ("own.py:Plain", "no module own.py here or installed"),
        (":Plain", "importing the module fails .ValueError: Empty module name"),
        (
            "own:Plane",
            r"own\.py has no class 'Plane'; expected a subclass of torch\.nn\.Module; did you mean Plain",
        ),
        ("own:", "own.py has no class ''; expected"),
        ("own:number", "has a 'number' that is no such class"),
        ("own:made", "has a 'made' that is no such class"),
        ("own:mean", "has a 'mean' that is no such class"),
        ("own:Unmade", r"own:Unmade can not be made \(FloatingPointError: of its own\)"),
        (
            "own:Weighted",
            r"own:Weighted can not be made \(TypeError: .*'path'\).*--weights own:Weighted=FILE",
        ),
        (
            "own:Fails",
            r"own:Fails fails on images \[2, 3, 64, 64\] \(RuntimeError: .*; expected features of uint8 images",
        ),
        ("own:Maps", r"gives \(\[2, 3, 64, 64\]\) for 2 images; expected features \[2, D\]"),
        ("own:One", r"gives \(\[1, 3\]\) for 2 images; expected features \[2, D\]"),
        ("own:Flat", r"gives \(\[2\]\) for 2 images"),
        (
            "own:FlatLogits",
            r"gives \(\[2, 3\], \[2\]\) for 2 images; .* or \(features, logits \[2, K\]\)",
        ),
        ("own:Three", r"gives \(\[2, 3\], \[2, 3\], \[2, 3\]\) for 2 images"),
        ("own:Listed", r"gives \(dict\) for 2 images"),
        (
            "own:Pixels",
            r"widths \(12288, 0\) for images of 64 pixels but \(27648, 0\) for images of 96 pixels",
        ),
    ],
)
def test_what_is_no_feature_network_is_refused(own, name, message):
    assert re.search(message, refused(name)), refused(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import no_such_thing",
            "importing the module fails (ModuleNotFoundError: No module named 'no_such_thing')",
        ),
        ("1 / 0", "importing the module fails (ZeroDivisionError: division by zero)"),
        ("raise SystemExit(3)", "importing the module fails (SystemExit: 3)"),
        ("def (", "importing the module fails (SyntaxError: "),
        ("x = 1", "has no class 'Net'; expected a subclass of torch.nn.Module; write one there"),
    ],
)
def test_modules_that_fail_are_refused(own, source, message):
    (own / "broken.py").write_text(source)
    sys.modules.pop("broken", None)
    assert message in refused("broken:Net")


def test_constructor_that_fails_names_the_weights(own):
    (own / "w.pt").write_bytes(b"no weights")
    for name in ("own:Weighted", "own:Plain"):
        assert f"{name} can not be made from --weights {own / 'w.pt'} (" in refused(
            name, str(own / "w.pt")
        )


# -- torch-fidelity's own ----------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_an_archive_behind_it_is_no_torchscript(tmp_path):
    """Python's zipfile finds archives at the end of anything; torch.load would run the pickle at its beginning."""
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
    torch.save({"features.0.weight": Bomb(tmp_path / "ran")}, tmp_path / "w.pth")
    assert f"weights {tmp_path / 'w.pth'} are no plain file of tensors" in refused(
        "vgg16", str(tmp_path / "w.pth")
    )
    assert not (tmp_path / "ran").exists()
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with torch.device("meta"):  # a large network, which is not to be filled
        message = refused("vgg16", str(tmp_path / "w.pth"))
    assert (
        f"vgg16 can not be made from --weights {tmp_path / 'w.pth'} (RuntimeError: Error(s) in loading"
        in message
    )
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "w.pt"))
    assert f"can not be made from --weights {tmp_path / 'w.pt'}" in refused(
        "clip-vit-b-32", str(tmp_path / "w.pt")
    )


def test_registered_networks_that_can_not_be_downloaded_are_refused(monkeypatch, tmp_path):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_clip.load_state_dict_from_url", offline)
    message = refused("clip-vit-b-32")
    assert "clip-vit-b-32 can not be made (URLError: <urlopen error no network>)" in message
    assert "--weights clip-vit-b-32=FILE" in message
