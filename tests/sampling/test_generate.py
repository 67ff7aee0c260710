"""Images from seeds: noise by image, batches, progress, NaN; and the flags of sample.py."""

import copy
import dataclasses
import pickle
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import Copies
from helpers.samples import QUICK, fill, largest_difference
from PIL import Image
from tqdm import tqdm

from dit.commands.sample import sample
from dit.config import SampleConfig, SamplerConfig
from dit.distributed.ranks import Ranks
from dit.errors import NotFinite, UserError
from dit.evaluation.samples import settings_key
from dit.sampling import sample_folder as module
from dit.sampling.generate import ImageNoise, generate, sample_latents
from dit.sampling.image_grid import sample_grid
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.sample_folder import progress_callback, sampling_bar

pytestmark = pytest.mark.usefixtures("small_networks")

CPU, ALONE = torch.device("cpu"), Ranks()


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run, CPU)


# -- noise and tensors -----------------------------------------------------------------------------


def test_noise_of_an_image_depends_on_seed_and_index_alone():
    many = ImageNoise(7, range(1000), (3, 4, 4), CPU)
    few = ImageNoise(7, torch.tensor([41, 3]), (3, 4, 4), CPU)
    first, second = many(), many()
    assert torch.equal(few(), first[[41, 3]])
    assert torch.equal(few(), second[[41, 3]])
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert not torch.equal(first, ImageNoise(8, range(1000), (3, 4, 4), CPU)())
    assert len(first.flatten(1).unique(dim=0)) == 1000
    assert first.mean().abs() < 0.02
    assert abs(first.std() - 1) < 0.02


@pytest.mark.portable
@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_images_do_not_depend_on_batch_size(run: LoadedRun, sampler: str):
    config = dataclasses.replace(QUICK, sampler=sampler)
    labels, indices = torch.arange(7) % 3, torch.arange(7)
    pipeline = build_pipeline(run, config)
    together = sample_latents(pipeline, labels, indices)
    alone = [sample_latents(pipeline, labels[i : i + 1], indices[i : i + 1]) for i in range(7)]
    assert largest_difference(together, torch.cat(alone)) < 1e-4
    assert together[0].sub(together[3]).abs().max() > 0.1, "two images of a class are the same"

    images = []
    for size in (1, 4, 7):
        sized = build_pipeline(run, dataclasses.replace(config, batch_size=size))
        images.append(generate(sized, labels, indices))
    assert images[0].dtype == torch.uint8
    assert images[0].shape == (7, 3, 8, 8)
    assert largest_difference(images[0].int(), images[1].int()) <= 1
    assert largest_difference(images[0].int(), images[2].int()) <= 1


def test_class_and_seed_change_the_image(run: LoadedRun):
    pipeline, zero = build_pipeline(run, QUICK), torch.zeros(1, dtype=torch.long)
    latents = sample_latents(pipeline, zero, zero)
    assert largest_difference(latents, sample_latents(pipeline, zero + 1, zero)) > 1e-2
    other = build_pipeline(run, dataclasses.replace(QUICK, seed=6))
    assert largest_difference(latents, sample_latents(other, zero, zero)) > 1e-2


def test_a_pipeline_has_no_open_settings(run: LoadedRun):
    settings = build_pipeline(run, SamplerConfig(precision="fp32")).settings
    assert (settings.sampler, settings.steps, settings.variance) == ("dpmpp_2m", 25, "small")
    assert (settings.image_size, settings.compile) == (8, False)
    automatic = build_pipeline(run, SamplerConfig()).settings.precision
    assert automatic in ("fp32", "bf16")


@pytest.mark.parametrize(("sampler", "calls"), [("heun", 5), ("ddpm", 3)])
def test_progress_is_counted_by_network_calls(run: LoadedRun, sampler: str, calls: int):
    pipeline = build_pipeline(run, dataclasses.replace(QUICK, sampler=sampler))
    progress: list[float] = []
    labels, indices = torch.arange(6), torch.arange(6)
    counted = generate(pipeline.with_progress(progress.append), labels, indices)
    assert progress == pytest.approx([4 / calls] * calls + [2 / calls] * calls)
    assert torch.equal(counted, generate(pipeline, labels, indices))


def test_a_bar_moves_within_a_batch_and_ends_with_all_images(
    tiny_run: Path, tmp_path: Path, capfd, monkeypatch
):
    monkeypatch.setattr(module, "tqdm", lambda **options: tqdm(**options | dict(mininterval=0)))
    for flags in (dict(per_class=1), dict(num_samples=10, out=tmp_path / "out")):
        sample(SampleConfig(run=tiny_run, steps=4, **flags), ALONE)
        counts = re.findall(r"(\S+)/10 img", capfd.readouterr().err)
        assert counts[0] == "0"
        assert counts[-1] == "10"
        # after each of four calls: 2.5, 5, 7.5 and 10 images
        assert {"2", "5", "7"} < {*counts} <= {"0", "2", "5", "7", "10"}


def test_the_bar_does_not_pass_its_end():
    """As it would on a rank that makes more images than the others."""
    bar = sampling_bar(5, 0, ALONE)
    bar.mininterval = 0
    move = progress_callback(bar, 2)
    for _ in range(20):
        move(0.3)
    assert (bar.n, bar.total) == (5, 5)


def test_a_batch_sends_only_its_noise_and_labels(run: LoadedRun, monkeypatch: pytest.MonkeyPatch):
    """A tensor on the meta device has no values, so asking for one would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    network = copy.deepcopy(run.denoise.network).to("meta")
    denoise = dataclasses.replace(run.denoise, network=network)
    remote = dataclasses.replace(run, denoise=denoise, device=torch.device("meta"))
    pipeline = build_pipeline(remote, dataclasses.replace(QUICK, sampler="ddpm"))

    with Copies() as copies:
        latents = sample_latents(pipeline, torch.arange(2), torch.arange(2))
    assert latents.device.type == "meta"
    noise, labels = (2, 3, 8, 8), (2,)
    assert [tuple(tensor.shape) for tensor in copies.found] == [labels, noise, noise, noise]


def test_nan_names_the_image(run: LoadedRun):
    pipeline = build_pipeline(run, QUICK)

    def poisoned(denoise, process, x, y, times, noise):
        x = pipeline.sampler(denoise, process, x, y, times, noise)
        return torch.where((y == 7).view(-1, 1, 1, 1), torch.nan, x)

    bad = dataclasses.replace(pipeline, sampler=poisoned)
    with pytest.raises(UserError, match=r"image 25 \(class 7\) came out as NaN.*--precision fp32"):
        generate(bad, torch.tensor([1, 2, 3, 4, 5, 7]), torch.arange(20, 26))


def test_the_error_of_nan_can_be_sent_to_other_ranks():
    error = pickle.loads(pickle.dumps(NotFinite(25, 7)))
    assert (str(error), error.image) == (str(NotFinite(25, 7)), 25)


def test_spacing_is_a_setting_of_the_images(run: LoadedRun, tmp_path: Path):
    cosine = dataclasses.replace(QUICK, spacing="cosine")
    times = [build_pipeline(run, config).times for config in (QUICK, cosine)]
    assert not torch.equal(*times)
    assert settings_key(run, QUICK, 4) != settings_key(run, cosine, 4)
    slower = dataclasses.replace(QUICK, compile=False, batch_size=1)
    assert settings_key(run, QUICK, 4) == settings_key(run, slower, 4)
    fill(run, tmp_path / "out", 2, config=cosine)
    with pytest.raises(UserError, match=r"no --spacing .* made with --spacing cosine"):
        fill(run, tmp_path / "out", 2)


# -- grids and flags -------------------------------------------------------------------------------


def test_a_grid_has_each_class_in_turn(run: LoadedRun):
    images, labels = sample_grid(build_pipeline(run, QUICK, [4, 2]), 3)
    assert labels.tolist() == [4, 4, 4, 2, 2, 2]
    assert images.shape == (6, 3, 8, 8)


def test_a_grid_goes_to_the_run(make_run, capsys: pytest.CaptureFixture[str]):
    home = make_run()
    newer = home / "checkpoints" / "step-0000004"
    newer.mkdir()
    out = sample(SampleConfig(run=home, steps=2, classes=("0,7",), per_class=3, cfg_scale=4), ALONE)
    assert out.parent == home / "samples"
    assert out.match("grid-step-0000003-dpmpp_2m-2-cfg-4-seed-0-??????.png")
    printed = capsys.readouterr()
    assert str(out) in printed.out
    skipped = f"{newer} has no meta.json and is not counted; sampling from step-0000003"
    assert f"warning: {skipped}\n" in printed.err
    with Image.open(out) as picture:
        assert picture.width > picture.height > 16
    assert sample(SampleConfig(run=home, steps=2, per_class=1, out=home / "my.png"), ALONE).exists()


def test_grids_are_named_by_what_changes_them(tiny_run: Path, monkeypatch: pytest.MonkeyPatch):
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr("dit.commands.sample.draw_grid", lambda *args: blank)

    def name(**flags) -> str:
        settings = dict(run=tiny_run, steps=2, cfg_scale=2.0)
        return sample(SampleConfig(**{**settings, **flags}), ALONE).name

    changes = (
        dict(steps=3),
        dict(sampler="euler"),
        dict(sampler="ddim"),
        dict(sampler="ddim", eta=1.0),
        dict(cfg_interval=(0.1, 0.8)),
        dict(cfg_channels=2),
        dict(sampler="ddpm", variance="large"),
        dict(sampler="ddpm"),
        dict(classes=("0,7",)),
        dict(classes=("7,0",)),
        dict(per_class=3),
        dict(seed=1),
        dict(cfg_scale=1.0),
        dict(image_size=16),
    )
    assert len({name(), *(name(**change) for change in changes)}) == 1 + len(changes)
    assert name() == name(sampler="dpmpp_2m", batch_size=3, classes=("0,1,2,3,4,5,6,7,8,9",))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (dict(num_samples=3), "--num-samples without --out"),
        (
            dict(num_samples=3, out=Path("grid.png")),
            "--out grid.png with --num-samples; expected a folder",
        ),
        (dict(num_samples=0, out=Path("x")), "--num-samples 0"),
        (dict(out=Path("folder")), "a .png file for the grid"),
        (dict(per_class=0), "--per-class 0"),
        (
            dict(per_class=3, num_samples=3, out=Path("x")),
            "--per-class 3 with --num-samples 3; expected a grid",
        ),
        (dict(format="npz"), "--format npz without --num-samples; expected many images"),
        (dict(variance="small"), "--variance small with --sampler dpmpp_2m; expected ddpm"),
        (dict(sampler="ddpm", variance="learned"), "--variance learned; expected a network"),
        (dict(cfg_scale=2.0, cfg_channels=4), "--cfg-channels 4; expected at most 3"),
        (
            dict(out=Path("/proc/x.png")),
            "--out /proc/x.png cannot be written .* a .png file in a writable place",
        ),
        (dict(out=Path("/proc/x"), num_samples=3), "--out /proc/x cannot be created"),
        (dict(classes=("0,10",)), "class ids from 0 to 9"),
        (dict(run=Path("nowhere")), "no checkpoint in nowhere"),
    ],
)
def test_flags_that_do_not_fit(tiny_run: Path, flags: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        sample(SampleConfig(**{"run": tiny_run, **flags}), ALONE)


def test_steps_of_a_ddpm_have_different_times(make_run):
    run = load_run(make_run(process="linear", objective="eps", time_sampling="uniform"), CPU)
    build_pipeline(run, SamplerConfig(steps=70, spacing="cosine"))
    dense = SamplerConfig(
        steps=80, spacing="cosine", cfg_scale=2.0, guide=Path("not looked for yet")
    )
    with pytest.raises(UserError, match="--spacing cosine with --steps 80"):
        build_pipeline(run, dense)
    with pytest.raises(UserError, match="--steps 1001; expected at most 1000 with linear betas"):
        build_pipeline(run, SamplerConfig(steps=1001))
