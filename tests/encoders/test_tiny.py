"""The bundled autoencoder `tiny`: small colour images of any kind."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import BUNDLED, WEIGHTS, load_autoencoder
from dit.latents.load import build_source
from dit.latents.shards import read_encoding
from dit.training.build_card import with_absolute_paths
from dit.utils.hub import absolute_if_local


@pytest.fixture(scope="module")
def tiny():
    return load_autoencoder("tiny")


def as_tensor(pictures):
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


def icons():
    """Return 12 plain shapes on plain colours, uint8 [12, 3, 64, 64]."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(12):
        back, front, small = (tuple(rng.integers(0, 256, 3).tolist()) for _ in range(3))
        large = Image.new("RGB", (256, 256), back)
        pen = ImageDraw.Draw(large)
        pen.ellipse((30, 40, 220, 230), fill=front)
        pen.polygon([(128, 60), (60, 190), (200, 170)], fill=small)
        pictures.append(large.resize((64, 64), Image.Resampling.LANCZOS))
    return as_tensor(pictures)


def photos():
    """Return 12 crops of two photos, neither of which was trained on, uint8 [12, 3, 64, 64]."""
    pictures = []
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(load_sample_image(name))
        for number in range(6):
            left, top, side = 60 * number, 20 * number, 120 + 30 * number
            crop = photo.crop((left, top, left + side, top + side))
            pictures.append(crop.resize((64, 64), Image.Resampling.LANCZOS))
    return as_tensor(pictures)


def psnr(a, b):
    return -10 * ((a.float() - b.float()) / 255).square().mean().log10()


@pytest.mark.parametrize(("images", "least"), [(icons, 27), (photos, 24)])
def test_reconstructs_colours(tiny, images, least):
    real = images()
    moments = tiny.encode(real)
    assert moments.shape == (12, 8, 16, 16)
    latents = tiny.draw(moments, torch.zeros(12, 4, 16, 16))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(tiny.decode(latents), real) > least
    assert 0.6 < latents.std() < 1.6
    # latents of diffusion are never exact
    assert psnr(tiny.decode(latents + 0.1 * noise), real) > least - 2


def test_is_small_and_of_any_size(tiny):
    assert (BUNDLED["tiny"] / WEIGHTS).stat().st_size < 2e6
    assert (tiny.factor, tiny.channels) == (4, 4)
    assert tiny.latent_shape((48, 128)) == (4, 12, 32)
    wide = photos()[:1].repeat(1, 1, 1, 2)[:, :, :48]
    latents = tiny.draw(tiny.encode(wide), torch.zeros(1, 4, 12, 32))
    assert tiny.decode(latents).shape == (1, 3, 48, 128)


def test_its_name_is_never_that_of_a_folder(tmp_path, monkeypatch, tiny):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_if_local("tiny") == tiny.location == "tiny"
    assert load_autoencoder("tiny").checksum == tiny.checksum


def test_commands_know_it(tmp_path, capsys, tiny):
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number, pixels in enumerate(icons()[:2]):
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            picture.save(tmp_path / "images" / label / f"{number}.png")
    out = tmp_path / "latents"
    data = str(tmp_path / "images")
    encode(EncodeConfig(data=data, out=out, vae="tiny", image_size=64), Ranks())
    assert read_encoding(out).vae == "tiny"
    config = TrainConfig(data=str(out), vae="tiny", image_size=64, out=tmp_path / "run")
    assert with_absolute_paths(config).vae == "tiny"
    source = build_source(config, tiny, Ranks())
    assert source.shape == (4, 16, 16)
    # no word of digits, which would send the user to another autoencoder
    assert "digits" not in capsys.readouterr().err
