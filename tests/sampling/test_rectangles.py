"""Rectangular images, and sizes that a run was not trained at, from the data to the report."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit.build import build_network
from dit.commands.encode import encode
from dit.commands.evaluate import evaluate
from dit.commands.info import info
from dit.commands.sample import sample
from dit.commands.stats import stats
from dit.commands.sweep.command import sweep
from dit.commands.train import train
from dit.config import (
    EncodeConfig,
    EvalConfig,
    SampleConfig,
    SamplerConfig,
    StatsConfig,
    SweepConfig,
    TrainConfig,
)
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.store import LatentStore
from dit.runs.card import ModelCard
from dit.sampling.generate import generate
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.sample_folder import sample_folder

pytestmark = pytest.mark.usefixtures("small_networks")
ALONE = Ranks()
HIGH, WIDE = 8, 16
TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=(HIGH, WIDE),
    global_batch_size=8,
    steps=2,
    warmup=1,
    sample_every=2,
    ckpt_every=0,
    precision="fp32",
)
QUICK = dict(steps=2, precision="fp32")
SAMPLER = SamplerConfig(**QUICK)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    train(dataclasses.replace(TINY, out=out), ALONE)
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images of several sizes."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i, size in enumerate([(20, 30), (40, 17), (16, 16), (9, 33), (24, 24), (8, 16)]):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root


def images(run: LoadedRun, count: int = 4) -> torch.Tensor:
    indices = torch.arange(count)
    return generate(build_pipeline(run, SAMPLER), indices, indices)


# -- trained on rectangles -------------------------------------------------------------------------


def test_a_run_of_rectangles_is_sampled_in_its_shape(run: Path, tmp_path: Path):
    card = ModelCard.read(run)
    assert (card.config.image_size, card.network.input_size) == ((HIGH, WIDE), (HIGH, WIDE))
    loaded = load_run(run, ALONE.device)
    png = sample_folder(loaded, SAMPLER, [1, 7], 3, tmp_path / "png", "png", ALONE)
    npz = sample_folder(loaded, SAMPLER, [1, 7], 3, tmp_path / "npz", "npz", ALONE)
    with Image.open(png / "000000.png") as first:
        assert first.size == (WIDE, HIGH)
    assert np.load(npz / "samples.npz")["arr_0"].shape == (3, HIGH, WIDE, 3)
    with Image.open(run / "samples" / "step-0000002.png") as preview:
        assert preview.height == 4 + 10 * (4 * HIGH + 4)  # four times enlarged
    assert "16x8 pixels (width x height)" in info(run)


def test_digits_in_rectangles_are_scored_by_class(run: Path, tmp_path: Path):
    out = evaluate(EvalConfig(run=run, num_samples=20, bootstrap=0, out=tmp_path, **QUICK), ALONE)
    report = json.loads((out / "report.json").read_text())
    for images in ("samples", "reference"):
        assert report["protocol"][images]["size"] == f"{WIDE}x{HIGH}"
    assert len(report["classes"]) == 10
    assert report["digits_recognised"]["found"]["count"] == 20


def test_folders_are_encoded_in_rectangles(photos: Path, tmp_path: Path, capsys):
    config = EncodeConfig(
        data=str(photos), out=tmp_path / "latents", vae="identity", image_size=(HIGH, WIDE)
    )
    stored = encode(config, ALONE)
    assert f"latents 3 x {HIGH} x {WIDE} in" in capsys.readouterr().out
    before = (stored / "shard-00000.npy").stat().st_mtime_ns
    encode(config, ALONE)
    assert (stored / "shard-00000.npy").stat().st_mtime_ns == before
    assert LatentStore(stored).shape == (3, HIGH, WIDE)

    turned = dict(image_size=(WIDE, HIGH))
    with pytest.raises(UserError, match=r"image_size \(8, 16\), not \(16, 8\)"):
        encode(dataclasses.replace(config, **turned), ALONE)
    with pytest.raises(UserError, match="encoded with --image-size 8 16, not --image-size 16 8"):
        train(dataclasses.replace(TINY, data=str(stored), **turned), ALONE)


def test_folders_are_trained_on_and_scored_in_rectangles(photos: Path, tmp_path: Path):
    scored = dict(eval_every=2, eval_samples=4, eval_extractor="digits-cnn")
    config = dataclasses.replace(TINY, data=str(photos), out=tmp_path / "run", **scored)
    run, network = train(config, ALONE), ("digits-cnn",)
    asked = EvalConfig(
        run=run, num_samples=4, extractor=network, bootstrap=0, out=tmp_path / "scores", **QUICK
    )
    report = json.loads((evaluate(asked, ALONE) / "report.json").read_text())
    assert report["protocol"]["reference"]["crop"] == "ADM's, to 16x8"

    of_photos = StatsConfig(
        data=str(photos), out=tmp_path / "s.npz", image_size=(HIGH, WIDE), extractor=network
    )
    asked = dataclasses.replace(asked, reference=str(stats(of_photos, ALONE)))
    evaluate(asked, ALONE)
    message = r"samples of 8x16 pixels \(width x height\) and statistics of 16x8 .*"
    with pytest.raises(UserError, match=message + r"`dit stats --image-size 16 8`$"):
        evaluate(dataclasses.replace(asked, image_size=(WIDE, HIGH)), ALONE)


def test_a_patch_or_factor_that_divides_one_side_only_is_refused(tmp_path: Path):
    asked = dataclasses.replace(TINY, out=tmp_path / "run")
    message = r"--image-size 8 18 with DiT-Ti/4 .*a multiple of 4; pass --image-size 8 16"
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(asked, image_size=(HIGH, 18)), ALONE)
    with pytest.raises(UserError, match="--image-size 32 50 with --vae digits, which shrinks by 4"):
        train(dataclasses.replace(asked, vae="digits", image_size=(32, 50)), ALONE)
    assert not (tmp_path / "run").exists()


def test_one_number_and_the_same_twice_are_one_size(tmp_path: Path):
    asked = dataclasses.replace(TINY, image_size=(HIGH, HIGH), out=tmp_path, sample_every=0)
    train(asked, ALONE)
    train(dataclasses.replace(asked, image_size=HIGH, steps=3, resume=str(tmp_path)), ALONE)


# -- sampled at another size -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, (12, 8), (8, 24)])
def test_another_size_than_trained(tiny_run: Path, size, tmp_path: Path):
    loaded = load_run(tiny_run, ALONE.device, size)
    height, width = loaded.image_size
    assert images(loaded).shape == (4, 3, height, width)
    assert loaded.trained_size == (None if size == 8 else 8)
    out = sample_folder(loaded, SAMPLER, [0], 2, tmp_path / "out", "npz", ALONE)
    record = json.loads((out / "samples.json").read_text())
    assert record["image_size"] == (size if isinstance(size, int) else list(size))
    assert record.get("trained_size") == loaded.trained_size


def test_a_resized_network_is_that_of_its_size_but_for_the_positions(tiny_run: Path):
    """A network built at 16 px with the weights of the resized one has the same outputs."""
    loaded = load_run(tiny_run, ALONE.device, 16)
    built = build_network(loaded.card.network)
    fresh = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    state = loaded.denoise.network.state_dict()
    built.load_state_dict(state)
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9]), torch.tensor([1, 5])
    with torch.no_grad():
        torch.testing.assert_close(
            built.eval()(*inputs), loaded.denoise.network(*inputs), rtol=0, atol=0
        )
    assert not torch.allclose(fresh["pos_embed"], state["pos_embed"])


def test_every_command_samples_at_another_size(tiny_run: Path, tmp_path: Path):
    config = SampleConfig(
        run=tiny_run, image_size=(8, 16), classes=("1,2",), out=tmp_path / "g.png", **QUICK
    )
    with Image.open(sample(config, ALONE)) as picture:
        assert picture.height == 4 + 2 * (4 * 8 + 4)

    asked = EvalConfig(
        run=tiny_run, image_size=16, num_samples=10, bootstrap=0, out=tmp_path / "e", **QUICK
    )
    protocol = json.loads((evaluate(asked, ALONE) / "report.json").read_text())["protocol"]
    assert (protocol["samples"]["size"], protocol["sampling"]["trained_size"]) == ("16x16", 8)
    for size in (8, None):
        evaluate(dataclasses.replace(asked, image_size=size), ALONE)
    assert len(list((tmp_path / "e").glob("samples-*"))) == 2  # 8 is the size of training

    grid = dict(cfg_scale="1", steps="1", num_samples=10, bootstrap=0, precision="fp32")
    out = sweep(SweepConfig(run=tiny_run, image_size=(16, 8), out=tmp_path / "s", **grid), ALONE)
    assert "--image-size 16 8" in (out / "sweep.html").read_text()


def test_sizes_that_do_not_fit_are_refused_before_anything_is_sampled(
    tiny_run: Path, make_run, tmp_path: Path
):
    with pytest.raises(UserError, match=r"--image-size 16 18 with DiT-Ti/4 .*a multiple of 4"):
        sample(SampleConfig(run=tiny_run, image_size=(16, 18), out=tmp_path / "g.png"), ALONE)
    factor = load_autoencoder("digits").factor
    latents = make_run(vae="digits", image_size=8 * factor)
    message = f"--image-size 30 with --vae digits, which shrinks by {factor}"
    with pytest.raises(UserError, match=message):
        load_run(latents, ALONE.device, 30)
    assert list(tmp_path.glob("*.png")) == []
