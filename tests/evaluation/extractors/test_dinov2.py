"""DINOv2: the released network and EDM2's preprocessing, each against a computation of its own."""

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from dit.errors import UserError
from dit.evaluation.extractors import dinov2
from dit.evaluation.extractors.dinov2 import (
    load_dinov2,
    make_network,
    preprocess,
    resample_positions,
)
from dit.evaluation.extractors.load import load_extractors
from dit.utils.files import sha256

CPU = torch.device("cpu")
SMALL = "vit_small_patch14_dinov2.lvd142m"


def random_state(model, seed=0):
    """Weights of timm's names and shapes, of a spread at which each of them matters."""
    import timm

    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in timm.create_model(model, num_classes=0).state_dict().items()
        }
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        around = (
            1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma")) else 0.0
        )
        spread = shape[1:].numel() ** -0.5 if name.endswith("weight") and len(shape) > 1 else 0.2
        state[name] = torch.randn(shape, generator=generator) * spread + around
    return state


@pytest.fixture(scope="module")
def state():
    return random_state(SMALL)


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def images():
    """Two pictures with edges at which bicubic interpolation goes beyond 0 and 255."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 2, (2, 3, 8, 8), generator=generator) * 255
    return blocks.repeat_interleave(8, 2).repeat_interleave(10, 3).to(torch.uint8)  # [2, 3, 64, 80]


# -- preprocessing -----------------------------------------------------------------------------------------------


@pytest.mark.portable
@pytest.mark.parametrize("size", [(64, 80), (32, 32), (256, 256), (512, 384), (224, 224)])
def test_preprocessing_is_antialiased_bicubic_in_float(images, size, monkeypatch):
    """Pillow resizes single float channels by the same cubic kernel, widened when it shrinks, without clamping."""
    given = F.interpolate(images.float(), size=size, mode="nearest").to(torch.uint8)
    expected = np.stack(
        [
            [
                np.asarray(
                    Image.fromarray(channel.astype(np.float32)).resize(
                        (224, 224), Image.Resampling.BICUBIC
                    )
                )
                for channel in image
            ]
            for image in given.numpy()
        ]
    )
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (expected / 255 - mean[:, None, None]) / deviation[:, None, None]
    found = preprocess(given)
    assert found.dtype == torch.float32
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        exact = preprocess(given).numpy()
    # float32 are mean and deviation, and what Pillow makes in each of two directions: four times half
    # an eps of at most 320 levels
    assert np.abs(exact - expected).max() < 4 * 2**-24 * 320 / 255 / deviation.min()
    # coordinates are rounded to half an eps of the side, twice in each direction, and an edge from 0 to
    # 255 rises by at most 1 / deviation from pixel to pixel
    assert np.abs(found.numpy() - exact).max() < max(size) * 2**-22 / deviation.min()
    if size in ((64, 80), (512, 384)):
        assert found[:, 0].max() > (1 - 0.485) / 0.229 + 0.05  # beyond white: not clamped


# -- position embedding ------------------------------------------------------------------------------------------


def cubic(distance):
    """Keys' kernel with a = -0.75, which PyTorch uses without antialiasing."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resampling_matrix(size=37, out=16, factor=16.1 / 37):
    """[out, size] float64: four neighbours around (i + 1/2) / factor - 1/2, edges repeated."""
    matrix = np.zeros((out, size))
    for i in range(out):
        place = (i + 0.5) / factor - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), size - 1)] += cubic(place - j)
    return matrix


@pytest.mark.portable
def test_positions_are_resampled_as_in_the_release(state):
    embedding = state["pos_embed"]
    matrix = resampling_matrix()
    grid = embedding[0, 1:].double().numpy().reshape(37, 37, -1)
    expected = np.einsum("ij,jkd,lk->ild", matrix, grid, matrix).reshape(256, -1)
    found = resample_positions(
        embedding.double()
    )  # in float32, coordinates of up to 37 would keep 5 digits
    assert found.shape == (1, 257, 384)
    assert torch.equal(found[:, 0], embedding[:, 0].double())
    assert np.abs(found[0, 1:].numpy() - expected).max() < 1e-12
    assert resample_positions(embedding).dtype == torch.float32


def test_timm_s_own_resampling_is_another(state, file, images):
    import timm

    theirs = timm.create_model(SMALL, num_classes=0)
    theirs.load_state_dict(state)
    theirs.set_input_size(img_size=(224, 224))
    ours = make_network(file, SMALL)
    assert (theirs.pos_embed - ours.pos_embed).abs().max() > 0.05
    x = preprocess(images[:1])
    with torch.no_grad():
        ours_says, theirs_says = ours(x), theirs.eval()(x)
    assert (
        theirs_says - ours_says
    ).abs().max() > 0.01  # a hundred times what the released network differs by, below
    theirs.pos_embed.data = ours.pos_embed.data  # and nothing else differs
    with torch.no_grad():
        assert torch.equal(theirs(x), ours_says)


# -- features ----------------------------------------------------------------------------------------------------


def released_network(state, x, heads=6):
    """The class token of DINOv2 (2304.07193), layer by layer from its weights."""
    norm = lambda x, name: F.layer_norm(
        x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6
    )  # noqa: E731
    linear = lambda x, name: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    x = (
        F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
        .flatten(2)
        .mT
    )
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + resample_positions(
        state["pos_embed"]
    )
    for block in (f"blocks.{i}" for i in range(12)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, 257, 64]
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        attended = linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + state[f"{block}.ls1.gamma"] * attended
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


@pytest.mark.portable
def test_features_are_those_of_the_released_network(state, file, images):
    extractor = load_dinov2(file, CPU, SMALL)
    found = extractor(images)
    assert found.values.shape == (2, 384)
    assert (found.logits, found.spatial) == (None, None)
    assert extractor.widths == (384, 0, 0)
    assert (extractor.name, extractor.checksum) == ("dinov2-vitl14", sha256(file))
    expected = released_network(state, preprocess(images))
    assert (found.values - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_the_release_s_file_gives_the_same(state, file, images, tmp_path):
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, path)
    assert torch.equal(
        load_dinov2(path, CPU, SMALL)(images).values, load_dinov2(file, CPU, SMALL)(images).values
    )


@pytest.mark.slow
def test_vit_large_has_1024_features(tmp_path, images):
    path = tmp_path / "model.safetensors"
    save_file(random_state(dinov2.MODEL), path)
    (extractor,) = load_extractors(["dinov2"], [f"dinov2={path}"], CPU)
    assert extractor.widths == (1024, 0, 0)
    values = extractor(images).values
    assert values.shape == (2, 1024)
    assert values.isfinite().all()


# -- weights -----------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_that_would_run_code_is_refused(state, tmp_path):
    torch.save({**state, "mask_token": Bomb(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth are no plain file of tensors"):
        load_extractors(["dinov2"], [str(tmp_path / "weights.pth")], CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pth"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"half a file")
    with pytest.raises(
        UserError,
        match=rf"{name} are no plain file of tensors; expected an intact model\.safetensors",
    ):
        load_extractors(["dinov2"], [str(tmp_path / name)], CPU)


def test_another_size_of_the_network_is_refused(file):
    with pytest.raises(
        UserError,
        match=r"cls_token is \(1, 1, 384\); expected \(1, 1, 1024\), as in timm/vit_large",
    ):
        load_extractors(["dinov2"], [str(file)], CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, r"tensor norm.bias is missing; expected \(384,\)"),
        (
            {"register_tokens": torch.zeros(1, 4, 384)},
            r"tensor register_tokens is \(1, 4, 384\); expected no such tensor",
        ),
        (
            {"pos_embed": torch.zeros(1, 257, 384)},
            r"tensor pos_embed is \(1, 257, 384\); expected \(1, 1370, 384\)",
        ),
    ],
)
def test_wrong_tensors_are_named(state, tmp_path, change, message):
    changed = {k: v for k, v in {**state, **change}.items() if v is not None}
    torch.save(changed, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        make_network(tmp_path / "weights.pth", SMALL)


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_the_file_its_source_and_the_flag_are_named_at_once(
    tmp_path, monkeypatch, offline
):
    """HF_HUB_OFFLINE=1, or a name that resolves to nothing (the client's own download would try for 23 seconds)."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://hub.invalid/{repo_id}/resolve/{revision}/{filename}",
    )
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        load_extractors(["dinov2"], [], CPU)
    assert time.monotonic() - start < 5
    assert (
        "model.safetensors of timm/vit_large_patch14_dinov2.lvd142m are not here"
        in error.value.given
    )
    assert (
        "https://huggingface.co/timm/vit_large_patch14_dinov2.lvd142m, or dinov2_vitl14"
        in error.value.expected
    )
    assert "--weights dinov2=FILE" in error.value.do
    assert ("OfflineModeIsEnabled" in error.value.given) == offline


def test_cached_weights_need_no_network(file, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(file))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)  # would fail
    assert dinov2.find_dinov2(SMALL) == file
