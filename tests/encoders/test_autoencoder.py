import json

import pytest
import torch
from helpers.autoencoders import save_tiny
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dit.commands.train_vae.networks import create_network
from dit.config import VaeConfig
from dit.data.images import Digits
from dit.encoders.autoencoder import BUNDLED, CONFIG, WEIGHTS, load_autoencoder
from dit.errors import UserError
from dit.latents.on_the_fly import MemoryLatents
from dit.utils.files import sha256


@pytest.fixture(scope="module")
def images():
    return Digits(32).images[::7]  # 257 of them


@pytest.fixture(scope="module")
def bundled():
    return load_autoencoder("digits")


def psnr(a, b):
    return -10 * ((a.float() - b.float()) / 255).square().mean().log10()


def test_bundled_reconstructs_digits(bundled, images):
    assert (bundled.factor, bundled.channels) == (4, 4)
    moments = bundled.encode(images)
    assert moments.shape == (257, 8, 8, 8)
    assert moments.dtype == torch.float32
    noise = torch.randn(257, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = bundled.draw(moments, noise)
    decoded = bundled.decode(latents)
    assert decoded.dtype == torch.uint8
    assert psnr(decoded, images) > 35
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)
    assert psnr(bundled.decode(latents + 0.1 * noise.flip(0)), images) > 30  # robust


def test_bundled_is_small_and_frozen(bundled):
    weights = BUNDLED["digits"] / WEIGHTS
    assert weights.stat().st_size < 2e6
    assert bundled.checksum == sha256(weights)
    network = bundled.codec.network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_draw_uses_mean_and_deviation(bundled):
    mean, std = torch.randn(2, 4, 3, 3), torch.rand(2, 4, 3, 3)
    noise = torch.randn(2, 4, 3, 3)
    z = bundled.draw(torch.cat([mean, std], 1), noise) / bundled.scale + bundled.shift
    torch.testing.assert_close(z, mean + std * noise)


def test_identity_is_exact(images):
    identity = load_autoencoder("identity")
    assert (identity.factor, identity.channels, identity.checksum) == (1, 3, None)
    moments = identity.encode(images)
    mean, std = moments.chunk(2, 1)
    assert std.abs().max() == 0
    assert mean.min() >= -1
    assert mean.max() <= 1
    assert torch.equal(identity.decode(identity.draw(moments, torch.randn_like(mean))), images)


def test_with_statistics_normalises_and_decodes_the_same(bundled, images):
    source = MemoryLatents(bundled.encode(images)[:, None], torch.zeros(257).numpy(), [])
    other = bundled.with_statistics(*(3 * value for value in source.statistics()))
    moments = bundled.encode(images)
    noise = torch.zeros(257, 4, 8, 8)
    a, b = bundled.draw(moments, noise), other.draw(moments, noise)
    assert not torch.allclose(a, b, atol=0.1)
    assert (other.decode(b).int() - bundled.decode(a).int()).abs().max() <= 1
    exact = bundled.with_statistics(*source.statistics())
    noise = torch.randn(257, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = exact.draw(moments, noise)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.01, rtol=0)


def test_with_statistics_refuses_a_constant_channel(bundled):
    with pytest.raises(UserError, match="--latent-norm vae"):
        bundled.with_statistics([0.0] * 4, [1.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, [0.25, 0.25], [0.5, 0.5]),
        ({"scaling_factor": 0.18215}, [0, 0], [0.18215, 0.18215]),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [4.0, 0.5]},
            [1, 2],
            [0.25, 2],
        ),
    ],
)
def test_a_folder_has_its_own_normalisation(tmp_path, config, shift, scale):
    tiny = load_autoencoder(str(save_tiny(tmp_path, **config)))
    assert (tiny.factor, tiny.channels) == (2, 2)
    moments = torch.cat([torch.full((1, 2, 8, 8), 3.0), torch.zeros(1, 2, 8, 8)], 1)
    latents = tiny.draw(moments, torch.zeros(1, 2, 8, 8))[0, :, 0, 0]
    torch.testing.assert_close(latents, (3 - torch.tensor(shift).float()) * torch.tensor(scale))
    assert tiny.decode(torch.zeros(1, 2, 8, 8)).shape == (1, 3, 16, 16)


def test_a_pipeline_has_it_in_its_subfolder(tmp_path):
    save_tiny(tmp_path / "vae")
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    direct, nested = load_autoencoder(str(tmp_path / "vae")), load_autoencoder(str(tmp_path))
    assert torch.equal(direct.encode(images), nested.encode(images))


def test_vq_encodes_before_and_decodes_after_quantisation(tmp_path, capfd):
    statistics = dict(latents_mean=[1.0, 2.0], latents_std=[0.5, 4.0])
    folder = save_tiny(tmp_path / "vqvae", kind="vq", **statistics)
    vq = load_autoencoder(str(tmp_path))
    assert "ignored" not in capfd.readouterr().err  # diffusers' word on the statistics
    assert (vq.factor, vq.channels, vq.checksum) == (2, 2, sha256(folder / WEIGHTS))
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    moments = vq.encode(images)
    z, deviation = moments.chunk(2, 1)
    assert deviation.abs().max() == 0
    torch.testing.assert_close(vq.draw(moments, torch.ones_like(z)), (z - vq.shift) * vq.scale)
    torch.testing.assert_close(vq.scale.flatten(), torch.tensor([2, 0.25]))
    network = vq.codec.network
    with torch.no_grad():
        whole = network(images.float() / 127.5 - 1).sample
    decoded = vq.decode((z - vq.shift) * vq.scale)
    assert torch.equal(decoded, ((whole + 1) * 127.5).round().clamp(0, 255).byte())
    distances = torch.cdist(z.movedim(1, -1).flatten(0, 2), vq.codec.codebook)
    entries = vq.codec.codebook[distances.argmin(1)].view(2, 8, 8, 2).movedim(-1, 1)
    expected = network.decode(entries, force_not_quantize=True).sample
    torch.testing.assert_close(vq.codec.pixels(z), expected, atol=1e-4, rtol=0)


def test_vq_latents_have_the_width_of_the_entries(tmp_path):
    sizes = dict(channels=(8, 8), latent_channels=4, codebook_dim=3, codebook_size=16)
    cfg = VaeConfig(kind="vq", out=tmp_path, **sizes)
    create_network(cfg.resolved()).save_pretrained(tmp_path)
    vq = load_autoencoder(str(tmp_path))
    assert vq.latent_shape(16) == (3, 8, 8)
    assert vq.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 6, 8, 8)
    assert vq.decode(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_latent_shape_names_both_numbers(bundled):
    assert bundled.latent_shape(64) == (4, 16, 16)
    with pytest.raises(UserError, match=r"--image-size 30 .* shrinks by 4"):
        bundled.latent_shape(30)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"\./none is not a folder"):
        load_autoencoder("./none")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_autoencoder(str(tmp_path))
    folder = save_tiny(tmp_path / "vae")
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_autoencoder(str(folder))
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled \.bin weights are not read"):
        load_autoencoder(str(folder))
    (folder / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    message = r"describes AutoencoderTiny .* an AutoencoderKL or a VQModel"
    with pytest.raises(UserError, match=message):
        load_autoencoder(str(folder))


@pytest.mark.parametrize(
    ("save", "names"),
    [
        (dict(variant="fp16"), {"diffusion_pytorch_model.fp16.safetensors"}),
        (dict(variant="non_ema"), {"diffusion_pytorch_model.non_ema.safetensors"}),
        (dict(max_shard_size="10KB"), {"diffusion_pytorch_model.safetensors.index.json"}),
        (
            dict(max_shard_size="10KB", variant="fp16"),
            {"diffusion_pytorch_model.safetensors.index.fp16.json"},
        ),
    ],
)
def test_weights_under_other_names_are_the_same(tmp_path, images, save, names):
    folder = save_tiny(tmp_path / "plain")
    usual = load_autoencoder(str(folder))
    usual.codec.network.save_pretrained(tmp_path / "other", **save)
    written = {file.name for file in (tmp_path / "other").iterdir()}
    assert names <= written
    assert WEIGHTS not in written

    other = load_autoencoder(str(tmp_path / "other"))
    assert torch.equal(other.encode(images[:2]), usual.encode(images[:2]))
    assert (other.checksum == usual.checksum) == ("max_shard_size" not in save)
    if shards := list((tmp_path / "other").glob("*-of-*")):
        shards[0].unlink()
        with pytest.raises(UserError, match=f"no {shards[0].name} in .*copy the autoencoder"):
            load_autoencoder(str(tmp_path / "other"))


def test_of_several_weights_the_usual_come_first_then_the_most_precise(tmp_path):
    folder = save_tiny(tmp_path)
    for number, variant in enumerate(("bf16", "non_ema", "fp16")):
        tensors = {name: value + number for name, value in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / f"diffusion_pytorch_model.{variant}.safetensors")
    assert load_autoencoder(str(folder)).checksum == sha256(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    expected = sha256(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert load_autoencoder(str(folder)).checksum == expected


def test_missing_weights_are_refused(tmp_path):
    folder = save_tiny(tmp_path)
    weights = load_file(folder / WEIGHTS)
    weights.pop("decoder.conv_in.weight")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"lacks 1 weights, as decoder\.conv_in\.weight"):
        load_autoencoder(str(folder))


def test_an_unreachable_hub_names_the_files_to_copy(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_autoencoder("nobody/no-such-vae")
    for part in ("--vae nobody/no-such-vae", "--vae FOLDER", "HF_HOME", WEIGHTS):
        assert part in str(error.value)
