"""`dit train-vae`: the command, mistakes, losses beside diffusers' and torchmetrics', and data."""

import json
import math
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.image_data import noise_file
from PIL import Image

from dit.cli import main, parse
from dit.commands.train_vae import learner as learners
from dit.commands.train_vae.batches import batches, random_shift, split, to_unit
from dit.commands.train_vae.codebook import (
    count_usage,
    nearest_entries,
    perplexity,
    restart_entries,
)
from dit.commands.train_vae.command import train_vae
from dit.commands.train_vae.discriminator import GanLoss, PatchGAN, adaptive_weight, hinge
from dit.commands.train_vae.inputs import find_readable, load_shown
from dit.commands.train_vae.learner import Learner, learning_rate
from dit.commands.train_vae.loop import Split, fit
from dit.commands.train_vae.losses import RESTART_EVERY, KLForward, VQForward, load_lpips
from dit.commands.train_vae.networks import create_network
from dit.commands.train_vae.quality import latent_statistics, measure
from dit.config import VaeConfig
from dit.data.images import ImageFolder
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import CONFIG, WEIGHTS, VQCodec, load_autoencoder
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.load import load_extractors
from dit.latents.on_the_fly import MemoryLatents

CPU = torch.device("cpu")
SMALL: dict[str, Any] = dict(
    channels=(8, 8), image_size=16, steps=2, batch_size=4, precision="fp32"
)
COMMAND = "train-vae --image-size 16 --channels 8 8 --out"


def config(out: Path, **settings: Any) -> VaeConfig:
    return VaeConfig(out=out, **{**SMALL, **settings}).resolved()


def parts(cfg: VaeConfig) -> Split:
    images = load_images("digits", 16)
    training, held_out = split(cfg, len(images))
    return Split(images, training, load_shown(images, held_out))


def write_photos(root: Path, count: int) -> Path:
    (root / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "a" / f"{i}.png")
    return root


def read_log(out: Path) -> list[dict[str, float]]:
    """Return the lines that have a loss: others have only the PSNR of a picture."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def read_scores(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())["scores"]


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "own"), [("kl", "posterior deviation"), ("vq", "codebook usage")])
def test_the_command_writes_an_autoencoder(tmp_path: Path, kind: str, own: str, capsys):
    out = tmp_path / "vae"
    assert main(f"{COMMAND} {out} --kind {kind} --steps 2".split()) == 0
    printed = capsys.readouterr().out
    assert f"next: dit train --data digits --vae {out} --image-size 16" in printed
    assert {"PSNR", "SSIM", "rFD(digits-cnn)", own} <= read_scores(out).keys()
    for name in ("reconstructions.png", "loss.png"):
        Image.open(out / name).verify()
    assert [line["step"] for line in read_log(out)] == [2]

    autoencoder = load_autoencoder(str(out))
    latents = MemoryLatents.encode(load_images("digits", 16), autoencoder, flips=False)
    assert latents.shape == (4, 8, 8)
    # these are of all images, the autoencoder's of its training images
    mean, std = latents.statistics()
    torch.testing.assert_close(autoencoder.shift.flatten(), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(1 / autoencoder.scale.flatten(), std, rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_same_seed_same_weights(tmp_path: Path, kind: str):
    def trained(seed: int) -> torch.Tensor:
        cfg = config(tmp_path, kind=kind, seed=seed, gan_weight=1.0, gan_start=1)
        learner = Learner.create(cfg, CPU)
        fit(learner, parts(cfg), cfg)
        return torch.nn.utils.parameters_to_vector(learner.network.parameters())

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_rectangles_without_inception(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    data = write_photos(tmp_path / "photos", 5)
    out = tmp_path / "vae"
    train_vae(VaeConfig(out=out, data=str(data), **SMALL | dict(image_size=(8, 16))), Ranks())
    scores = read_scores(out)
    assert scores["rFD(colour-cnn)"] > 0
    assert scores["SSIM"].startswith("not available (its window")
    assert "--image-size 8 16" in capsys.readouterr().out

    def no_download(*args: object, **more: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_download)
    asked = VaeConfig(out=tmp_path / "new", data=str(data), extractor="inception", **SMALL)
    with pytest.raises(UserError, match="Inception's weights"):
        train_vae(asked, Ranks())
    assert not asked.out.exists()


def test_an_interrupted_training_leaves_no_autoencoder_and_can_start_again(
    tmp_path: Path, monkeypatch, capsys
):
    original, steps = Learner.step, []

    def step(*args: Any) -> dict[str, torch.Tensor]:
        steps.append(1)
        if len(steps) > 25:
            raise KeyboardInterrupt
        return original(*args)

    out = tmp_path / "vae"
    argv = f"{COMMAND} {out} --batch-size 2".split()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", step)
        assert main(argv) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert len(read_log(out)) == 1
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_autoencoder(str(out))

    assert main([*argv, "--steps", "1"]) == 0
    before = (out / WEIGHTS).read_bytes()
    assert main(argv) == 2
    message = r"--out .* holds .*; expected a folder that is new, empty or of a stopped dit"
    assert re.search(message, capsys.readouterr().err)
    assert (out / WEIGHTS).read_bytes() == before


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--kind vq --kl-weight 0.1", "--kl-weight 0.1; expected --kl-weight with --kind kl"),
        ("--commitment 1", "--kind kl with --commitment 1.0; expected --commitment with --kind vq"),
        ("--codebook-size 8", "--kind kl with --codebook-size 8"),
        ("--lpips-weight 2", "--lpips-weight 2.0 without --lpips FILE"),
        ("--gan-start 2", "--gan-start 2 without --gan-weight"),
        ("--gan-weight 1 --gan-start 9 --steps 9", "--steps 9; expected a step before the last"),
        ("--channels 12 16", "--channels 12 16; expected multiples of 8"),
        ("--held-out 1", "--held-out 1;"),
        ("--image-size 30", "3 --channels, which shrink it by 4; expected a multiple of 4"),
        ("--lpips nowhere.pth", "no file nowhere.pth for --lpips"),
        ("--weights nowhere.pth", "nowhere.pth"),
        ("--data nowhere", "nowhere"),
    ],
)
def test_mistakes_get_one_line(flags: str, message: str, tmp_path: Path, capsys):
    assert main(["train-vae", "--out", str(tmp_path / "out"), *flags.split()]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_defaults_depend_on_the_kind():
    kl = parse(VaeConfig, ["--out", "o"], "dit train-vae").resolved()
    assert (kl.kl_weight, kl.codebook_size, kl.commitment, kl.gan_start) == (1e-3, None, None, None)
    flags = "--kind vq --out o --latent-channels 6 --gan-weight 1 --steps 8"
    vq = parse(VaeConfig, flags.split(), "dit train-vae").resolved()
    assert (vq.kl_weight, vq.codebook_size, vq.codebook_dim, vq.gan_start) == (None, 512, 6, 4)


def test_a_folder_of_other_files_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        train_vae(VaeConfig(out=tmp_path / "file", **SMALL), Ranks())
    with pytest.raises(UserError, match="holds file"):
        train_vae(VaeConfig(out=tmp_path, **SMALL), Ranks())
    data = write_photos(tmp_path / "photos", 3)
    with pytest.raises(UserError, match=r"lies in .*a folder of images"):
        train_vae(VaeConfig(out=data / "a" / "vae", data=str(data), **SMALL), Ranks())
    with pytest.raises(UserError, match="2 processes"):
        train_vae(VaeConfig(out=tmp_path / "new", **SMALL), Ranks(0, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos"]


def test_too_few_images_to_hold_any_out(tmp_path: Path):
    with pytest.raises(UserError, match="2 images in --data"):
        split(config(tmp_path), 2)
    training, held_out = split(config(tmp_path), 3)
    assert (len(training), len(held_out)) == (1, 2)


def test_a_loss_that_is_not_finite_ends_in_one_line(tmp_path: Path, capsys):
    argv = f"{COMMAND} {tmp_path / 'vae'} --steps 40 --lr 1e18 --batch-size 2"
    assert main(argv.split()) == 2
    message = r"error: the loss is not finite by step \d+ .*lower --lr \(it is 1e\+18\)"
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "vae" / CONFIG).exists()


# -- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_residual_blocks_start_as_the_identity(tmp_path: Path, kind: str):
    network = create_network(config(tmp_path, kind=kind))
    blocks = [block for name, block in network.named_modules() if name.endswith("resnets.0")]
    assert len(blocks) == 6  # two and a middle one in each half
    x = torch.randn(2, 8, 16, 16)
    for block in blocks:
        torch.testing.assert_close(block(x, temb=None), x)


def test_the_first_latents_have_little_noise(tmp_path: Path):
    network = create_network(config(tmp_path))
    posterior = network.encode(torch.rand(2, 3, 16, 16) * 2 - 1).latent_dist
    assert posterior.mean.std() > 0.1
    assert 0.01 < posterior.std.min() < posterior.std.max() < 0.2


@pytest.mark.parametrize(
    ("channels", "groups"), [((8, 16), 1), ((16, 32, 32), 2), ((24, 40), 1), ((64, 128), 8)]
)
def test_groups_have_8_channels_or_more(tmp_path: Path, channels: tuple[int, ...], groups: int):
    assert create_network(config(tmp_path, channels=channels)).config.norm_num_groups == groups


# -- losses ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return to_unit(load_images("digits", 16).images[:4].contiguous())


def test_kl_loss_equals_diffusers(tmp_path: Path, x: torch.Tensor):
    cfg = config(tmp_path, kl_weight=0.5)
    network, noise = create_network(cfg), torch.randn(4, 4, 8, 8)
    output, regulariser, terms = KLForward(cfg)(network, x, noise)
    posterior = network.encode(x).latent_dist
    torch.testing.assert_close(terms["kl"], posterior.kl().mean() / (4 * 8 * 8))
    torch.testing.assert_close(regulariser, 0.5 * terms["kl"])
    expected = network.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(output, expected)


def test_vq_loss_equals_diffusers_with_the_weight_on_the_commitment(
    tmp_path: Path, x: torch.Tensor
):
    cfg = config(tmp_path, kind="vq", codebook_size=16, commitment=0.25)
    network, forward = create_network(cfg), VQForward(cfg)
    forward.steps = 1  # no restart
    output, regulariser, _ = forward(network, x, torch.empty(0))
    network.quantize.legacy = False
    z = network.encode(x).latents
    _, loss, (_, _, entries) = network.quantize(z)
    torch.testing.assert_close(regulariser, loss)
    torch.testing.assert_close(output, network.decode(z).sample)
    assert torch.equal(nearest_entries(network.quantize.embedding.weight, z).flatten(), entries)
    parameters = list(network.parameters())
    ours = torch.autograd.grad(output.sum() + regulariser, parameters)
    theirs = torch.autograd.grad(network.decode(z).sample.sum() + loss, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_only_dead_entries_are_restarted(tmp_path: Path):
    z = torch.randn(2, 3, 4, 4)
    codebook = torch.randn(8, 3)
    before, dead = codebook.clone(), torch.arange(8) % 2 == 0
    restart_entries(codebook, dead, z, torch.Generator().manual_seed(0))
    assert torch.equal(codebook[~dead], before[~dead])
    assert torch.cdist(codebook[dead], z.movedim(1, -1).flatten(0, 2)).min(1).values.max() == 0
    cfg = config(tmp_path, kind="vq", codebook_size=64, steps=100)
    network, forward = create_network(cfg), VQForward(cfg)
    weight = network.quantize.embedding.weight
    for step in range(80):
        before, dead = weight.detach().clone(), forward.counts == 0
        with torch.no_grad():
            # other images each time: no entry is moved to where it is
            forward(network, torch.randn(1, 3, 16, 16), torch.empty(0))
        moved = (weight.detach() != before).any(1)
        restarts = step % RESTART_EVERY == 0 and step <= 50
        assert torch.equal(moved, dead & restarts)


def test_perplexity_counts_equally_used_entries():
    counts = count_usage(torch.tensor([[0, 1], [2, 3]]), 9)
    assert counts.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert perplexity(counts).item() == pytest.approx(4)
    assert perplexity(torch.tensor([5, 0])).item() == pytest.approx(1)


class Rounding(VQCodec):
    """z is the pixels; decoding rounds them to black, gray or white. A fourth entry is unused."""

    codebook = torch.tensor([-1.0, 0.0, 1.0, 9.0])[:, None].expand(-1, 3)

    def __init__(self) -> None:
        pass

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels, torch.zeros_like(pixels)

    def pixels(self, z: torch.Tensor) -> torch.Tensor:
        return self.codebook[nearest_entries(self.codebook, z)].movedim(-1, 1)


class ImagesInMemory:
    image_size = 16

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_quality_of_a_known_codebook():
    # three black images are exact, a light gray one, 235, becomes white
    gray = [0, 0, 0, 235]
    pixels = torch.tensor(gray, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    data: Any = ImagesInMemory(pixels)
    autoencoder = replace(load_autoencoder("identity"), codec=Rounding())

    def brightness(x: torch.Tensor) -> Outputs:
        return Outputs(x.float().mean((1, 2, 3))[:, None])

    extractor = Extractor(brightness, "mean", "", "", "", CPU, (1, 0, 0))
    scores = measure(autoencoder, data, np.arange(4), extractor, 3, 0)
    assert scores["PSNR"] == pytest.approx(10 * math.log10(255**2 / (20**2 / 4)))
    real, ours = np.array(gray), np.array([0, 0, 0, 255])
    distance = (real.mean() - ours.mean()) ** 2 + (real.std(ddof=1) - ours.std(ddof=1)) ** 2
    assert scores["rFD(mean)"] == pytest.approx(distance, rel=1e-5)
    assert scores["codebook usage"] == 2 / 4
    shares = 4 * 3 ** (-3 / 4)  # perplexity of shares 3/4 and 1/4
    assert scores["codebook perplexity"] == pytest.approx(shares)


# -- perceptual and adversarial loss ---------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: p.shape for name, p in vgg16(weights=None).features.state_dict().items()}
    torch.manual_seed(0)
    state = {f"features.{name}": 0.05 * torch.randn(shape) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path, state


@pytest.fixture(scope="module")
def lpips(vgg) -> torch.nn.Module:
    return load_lpips(vgg[0])


def test_lpips_equals_its_definition(vgg, lpips, x: torch.Tensor):
    from torchvision.models import vgg16

    state = {name.removeprefix("features."): tensor for name, tensor in vgg[1].items()}
    with torch.device("meta"):
        features = vgg16().features
    features.to_empty(device="cpu").load_state_dict(state)
    torchmetrics = Path(str(find_spec("torchmetrics").origin)).parent
    file = torchmetrics / "functional/image/lpips_models/vgg.pth"
    heads = torch.load(file, map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    def layers(pixels: torch.Tensor) -> list[torch.Tensor]:
        h, outputs = (pixels - shift) / scale, []
        for i, layer in enumerate(features[:30]):  # without the last pooling
            h = layer(h)
            if i in (3, 8, 15, 22, 29):
                outputs.append(torch.nn.functional.normalize(h, dim=1))
        return outputs

    a, b = x[:1].repeat_interleave(2, 2), x[1:2].repeat_interleave(2, 2).requires_grad_()
    distance = 0
    for i, (one, other) in enumerate(zip(layers(a), layers(b), strict=True)):
        distance += (heads[f"lin{i}.model.1.weight"] * (one - other).square()).sum(1).mean()
    value = lpips(a, b)
    torch.testing.assert_close(value.squeeze(), distance, rtol=1e-3, atol=1e-6)
    assert value.item() > 0
    assert lpips(a, a).item() == 0
    assert torch.autograd.grad(value.sum(), b)[0].abs().max() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_other_weights_are_no_lpips(vgg, tmp_path: Path):
    torch.save({**vgg[1], "features.0.weight": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"tensor features\.0\.weight is \(1,\)"):
        load_lpips(tmp_path / "wrong.pth")
    (tmp_path / "pickle.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="nothing in it was run"):
        load_lpips(tmp_path / "pickle.pth")


def test_patches_have_seventy_pixels():
    network = PatchGAN(3, width=2).eval()
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(x)
    assert logits.shape == (1, 1, 14, 14)
    gradient = torch.autograd.grad(logits[0, 0, 7, 7], x)[0][0].abs().sum(0)
    rows = gradient.sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


def test_adaptive_weight_balances_the_gradients():
    last = torch.randn(5, requires_grad=True)
    reconstruction, verdict = (last**2).sum(), (3 * last).sum()
    weight = adaptive_weight(reconstruction, verdict, last)
    assert weight.item() == pytest.approx((2 * last).norm().item() / (3 * 5**0.5), rel=1e-4)
    assert adaptive_weight(reconstruction, 0 * verdict, last).item() == 1e4


def test_hinge_is_zero_beyond_the_margins():
    assert hinge(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -9.0])).item() == 0
    assert hinge(torch.zeros(2), torch.zeros(2)).item() == 1


def assert_total(logged: dict[str, torch.Tensor], **weights: float) -> None:
    total = sum(weight * logged[name].item() for name, weight in weights.items())
    assert logged["loss"].item() == pytest.approx(logged["l1"].item() + total, rel=1e-5)


def test_the_discriminator_learns_and_counts_from_its_first_step(tmp_path: Path, x: torch.Tensor):
    cfg = config(tmp_path, gan_weight=0.5, gan_start=2, steps=4)
    learner, noise = Learner.create(cfg, CPU), torch.randn(4, 4, 8, 8)
    assert "verdict" not in learner.step(1, x, noise, cfg)
    logged = learner.step(2, x, noise, cfg)
    assert_total(logged, kl=cfg.kl_weight, verdict=0.5 * logged["gan_weight"].item())
    gan = GanLoss(cfg, CPU)
    losses = [gan.train_discriminator(x, -x, 1e-3).item() for _ in range(8)]
    assert losses[-1] < losses[0] / 2


def test_the_perceptual_loss_counts(tmp_path: Path, x: torch.Tensor, vgg, lpips, monkeypatch):
    monkeypatch.setattr(learners, "load_lpips", lambda path: lpips)  # loading takes seconds
    cfg = config(tmp_path, lpips=vgg[0], lpips_weight=0.5)
    logged = Learner.create(cfg, CPU).step(1, x, torch.randn(4, 4, 8, 8), cfg)
    assert logged["lpips"].item() > 0
    assert_total(logged, kl=cfg.kl_weight, lpips=0.5)


# -- data and quality ------------------------------------------------------------------------------


def test_batches_have_only_training_images_and_new_noise(tmp_path: Path):
    images = load_images("digits", 16)
    cfg = config(tmp_path, shift=0)
    chosen = np.array([3, 5, 8])
    source = batches(images, chosen, cfg)
    known = to_unit(images.images[chosen].contiguous())
    sampled = [next(source) for _ in range(3)]
    source.close()
    for x, noise in sampled:
        assert ((x[:, None] - known[None]).abs().amax((2, 3, 4)).min(1).values == 0).all()
        assert noise.shape == (4, 4, 8, 8)
    assert not torch.equal(sampled[0][1], sampled[1][1])


def test_random_shift_is_the_same_in_all_channels():
    x = torch.arange(2 * 3 * 8 * 12).float().reshape(2, 3, 8, 12)
    assert torch.equal(random_shift(x, 0, torch.Generator()), x)
    moved = random_shift(x, 2, torch.Generator().manual_seed(1))
    shifts = moved[:, :, 3, 3] - x[:, :, 3, 3]  # 12 * row shift + column shift
    assert torch.equal(shifts, shifts[:, :1].expand(-1, 3))
    possible = {12 * row + column for row in range(-2, 3) for column in range(-2, 3)}
    assert set(shifts.flatten().tolist()) <= possible


def test_the_bundled_autoencoder_has_its_documented_quality(tmp_path: Path):
    images, bundled = load_images("digits", 32), load_autoencoder("digits")
    _, held_out = split(VaeConfig(out=tmp_path), len(images))
    extractor = load_extractors(["digits-cnn"], [], CPU)[0]
    scores = measure(bundled, images, held_out, extractor, 64, seed=0)
    assert scores["PSNR"] == pytest.approx(37.9, abs=0.1)
    assert scores["PSNR drawn"] == pytest.approx(37.6, abs=0.1)
    assert scores["PSNR drawn + 0.1 deviations"] == pytest.approx(33.5, abs=0.1)
    assert scores["SSIM"] > 0.99
    assert 0 < scores["rFD(digits-cnn)"] < 0.1


def test_statistics_are_those_of_sampled_latents():
    images, bundled = load_images("digits", 32), load_autoencoder("digits")
    seen, _ = split(VaeConfig(out=Path("unused")), len(images))
    mean, std = latent_statistics(bundled.codec.network, images, seen, 64, CPU)
    torch.testing.assert_close(mean, bundled.shift.flatten(), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, 1 / bundled.scale.flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_the_schedule_allows_any_number_of_steps(steps: int, tmp_path: Path):
    cfg = config(tmp_path, steps=steps)
    rates = [learning_rate(cfg, step) for step in range(steps)]
    assert all(0 < rate <= cfg.lr for rate in rates)


def test_the_schedule_is_one_cycle_of_pytorch(tmp_path: Path):
    cfg = config(tmp_path, steps=40)
    optimizer = torch.optim.SGD([torch.zeros(1)], cfg.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.lr, 40, pct_start=0.1, cycle_momentum=False
    )
    for step in range(40):
        assert learning_rate(cfg, step) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_loss_falls_within_a_few_steps(tmp_path: Path):
    cfg = config(tmp_path, steps=60, lr=4e-3)
    learner = Learner.create(cfg, CPU)
    fit(learner, parts(cfg), cfg)
    lines = read_log(tmp_path)
    assert lines[-1]["l1"] < 0.5 * lines[0]["l1"]


@pytest.mark.slow
def test_the_defaults_reach_the_bundled_autoencoder(tmp_path: Path):
    # the bundled one, from diffusers' start, has 37.9 dB
    out = train_vae(VaeConfig(out=tmp_path / "vae"), Ranks())
    assert read_scores(out)["PSNR"] == pytest.approx(38.5, abs=0.4)


def test_damaged_images_are_named_before_training_or_left_out(tmp_path, capsys):
    for i in range(6):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{i}.png").write_bytes(noise_file(i))
    (tmp_path / "data" / "3.png").write_bytes(b"<html>404</html>")
    flags = "--image-size 8 --channels 8 8 --steps 1 --batch-size 2"
    argv = ["train-vae", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*argv, *flags.split()]) == 2
    assert "1 of 6 images cannot be read: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    cfg = VaeConfig(data=str(tmp_path / "data"), out=tmp_path / "out", skip_damaged=True)
    readable = find_readable(ImageFolder(cfg.data, 8), cfg, Ranks())
    assert readable.tolist() == [0, 1, 2, 4, 5]
    printed = capsys.readouterr()
    assert "left out: 1 damaged image: " in printed.err
    assert "5 images" in printed.out
