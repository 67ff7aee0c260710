"""The encoder of --align: a vision transformer of timm, from a folder with safetensors."""

import json

import pytest
import timm
import torch
from helpers.encoders import ARGUMENTS, write_encoder
from helpers.training import TINY, a_session, do_step, run
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from dit.encoders.vision import load_vision_encoder
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import find_weights
from dit.training.alignment import EncoderTeacher

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def folder(tmp_path):
    return write_encoder(tmp_path / "encoder")


def test_features_are_those_of_timm(folder):
    encoder = load_vision_encoder(str(folder), (4, 4))
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **ARGUMENTS).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    expected = network.forward_features((images / 255 - mean) / deviation)[:, 2:]
    assert expected.shape == (3, 16, 24)
    torch.testing.assert_close(encoder.features(images), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_pools_by_the_mean_has_its_norm_after_the_pooling(tmp_path):
    folder = write_encoder(tmp_path / "pooled", global_pool="avg")
    stored = load_file(folder / "model.safetensors")
    assert "fc_norm.weight" in stored
    encoder = load_vision_encoder(str(folder), (4, 4))
    assert torch.equal(encoder.network.fc_norm.weight, stored["fc_norm.weight"])
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    assert encoder.features(images).shape == (3, 16, 24)


def test_there_is_a_patch_for_each_token(folder):
    encoder = load_vision_encoder(str(folder), (2, 3))
    images = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    assert encoder.size == (14, 21)
    found = encoder.features(images)
    assert found.shape == (2, 6, encoder.width)
    large = interpolate(images.float(), (14, 21), mode="bicubic", antialias=True)
    assert encoder.features(large).sub(found).abs().max() < 1e-4


def test_training_aligns_with_it(folder, tmp_path):
    session = a_session(tmp_path, TINY, align=str(folder), align_until=1.0)
    before = session.state.projector.conv.weight.clone()
    do_step(session)
    assert session.state.projector.conv.weight.shape == (24, 64, 3, 3)
    assert not torch.equal(session.state.projector.conv.weight, before)


def test_it_runs_in_the_precision_of_the_training(folder, tmp_path):
    session = a_session(tmp_path, TINY, align=str(folder))
    teacher = EncoderTeacher(session.vision, session.autoencoder)
    x0 = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = teacher(x0, None, None, None, None)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher(x0, None, None, None, None)
    assert not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
    assert next(session.vision.network.parameters()).dtype == torch.float32


def test_a_run_names_it_and_its_weights_do_not_have_it(folder, tmp_path):
    out = run(tmp_path / "run", align=str(folder), steps=2)
    card = ModelCard.read(out)
    assert card.align_sha256 == load_vision_encoder(str(folder), (2, 2)).checksum
    assert card.config.align == str(folder)
    assert not [name for name in load_file(find_weights(out)) if "projector" in name]
    moved = folder.rename(tmp_path / "moved")
    run(out, align=str(moved), steps=3, resume="auto")
    assert ModelCard.read(out).config.align == str(moved)
    folder = moved
    weights = load_file(folder / "model.safetensors")
    doubled = {name: 2 * tensor for name, tensor in weights.items()}
    save_file(doubled, folder / "model.safetensors")
    with pytest.raises(UserError, match="align_sha256"):
        run(out, align=str(folder), steps=4, resume="auto")


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut"), "model.safetensors does not fit"),
        (lambda f: rewrite(f, architecture="resnet18"), "is 'resnet18'"),
        (lambda f: rewrite(f, architecture="hf-hub:someone/else"), "is 'hf-hub:someone/else'"),
        (lambda f: rewrite(f, model_args={}), "does not fit vit_tiny_patch16_224"),
    ],
)
def test_what_does_not_fit_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_vision_encoder(str(folder), (4, 4))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--align \./nothing is not a folder"):
        load_vision_encoder("./nothing", (4, 4))
