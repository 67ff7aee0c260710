"""`dit nll`: bits of a run's images, whatever the batches and ranks, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit.cli import main
from dit.commands import nll as likelihood
from dit.commands.nll import choose, measure, nll
from dit.config import NllConfig
from dit.data.images import Digits
from dit.diffusion.process import Prediction, like
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array
from dit.latents.load import build_source
from dit.runs.checkpoints import find_weights
from dit.sampling.load import load_run
from dit.utils.files import sha256

pytestmark = pytest.mark.usefixtures("small_networks")
DDPM = dict(process="linear", objective="eps", learn_sigma=True)


def measured(run, **flags):
    """Bits of each image by parts, [N, parts], and the plan."""
    config = NllConfig(run=run, **{"num_images": 6, "steps": 4, **flags})
    loaded = load_run(run, torch.device("cpu"))
    plan = choose(loaded, config)
    source = build_source(dataclasses.replace(loaded.card.config, flip=False), loaded.autoencoder)
    chosen = np.linspace(0, 1796, config.num_images).round().astype(int)
    return measure(loaded, plan, config, source, source.labels, chosen, Ranks()), plan


@pytest.fixture
def ddpm(make_run):
    return make_run("ddpm", **DDPM)


@pytest.mark.portable
@pytest.mark.parametrize("settings", [{}, DDPM], ids=["flow", "ddpm"])
def test_bits_do_not_depend_on_the_batch(settings, make_run):
    run = make_run(**settings)
    whole, parts = (measured(run, batch_size=size)[0] for size in (64, 4))
    assert torch.allclose(whole, parts, rtol=1e-5, atol=1e-4)
    assert (whole.std(0) > 0).any()


@pytest.mark.portable
def test_ranks_measure_what_one_process_measures(tmp_path, make_run):
    run = make_run()
    config, loaded = NllConfig(run=run, num_images=5, steps=3), load_run(run, torch.device("cpu"))
    source = build_source(loaded.card.config, loaded.autoencoder)
    chosen = np.arange(5)
    plan = choose(loaded, config)
    one, *two = (
        measure(loaded, plan, config, source, source.labels, chosen, ranks)
        for ranks in (Ranks(), Share(0, 2), Share(1, 2))
    )
    assert (one - sum(two)).abs().max() < 1e-4
    assert all((part == 0).any() for part in two)


class Share(Ranks):
    """One of two ranks, whose sums are its own."""

    def total(self, values):
        return values


def test_hutchinson_estimates_the_exact_divergence(make_run):
    run = make_run()
    exact, few = (
        measured(run, num_images=2, steps=1, **how)[0]
        for how in (dict(exact=True), dict(probes=100))
    )
    assert (exact - few).abs().max() < 0.02
    assert not torch.equal(exact, few)


def test_scaled_pixels_have_the_bits_of_pixels(monkeypatch, make_run):
    """One Gaussian model, in pixels and in scaled pixels; one probe is exact, for no pixel heeds another."""

    def gaussian(process, mean, std):
        def denoise(x_t, t, y):
            alpha, sigma, *_ = (like(c, x_t) for c in process.coefficients(t))
            off, var = x_t - alpha * mean, alpha**2 * std**2 + sigma**2
            return Prediction(mean + alpha * std**2 / var * off, sigma / var * off, off, None)

        return denoise

    loaded = load_run(make_run(), torch.device("cpu"))
    config = NllConfig(run=loaded.home, num_images=4, steps=200)
    source = build_source(loaded.card.config, loaded.autoencoder)
    chosen = np.arange(0, 1600, 400)
    bits = []
    for mean, std in ((0.0, 1.0), (-0.4, 0.5)):
        run = dataclasses.replace(
            loaded, autoencoder=loaded.autoencoder.with_statistics([mean] * 3, [std] * 3)
        )
        inside = gaussian(loaded.denoise.process, (-0.4 - mean) / std, 0.5 / std)
        monkeypatch.setattr(likelihood, "ode_log_density", with_denoiser(inside))
        bits.append(
            measure(run, choose(run, config), config, source, source.labels, chosen, Ranks())
        )
    assert (bits[0] - bits[1]).abs().max() < 2e-3
    pixels = source.read(chosen, np.zeros(4, bool))[:, :3]
    nats = -torch.distributions.Normal(-0.4, 0.5).log_prob(pixels).mean((1, 2, 3))
    direct = (nats + math.log(127.5)) / math.log(2)
    assert (bits[0][:, 0] - direct).abs().max() < 5e-3


def with_denoiser(denoise):
    from dit.diffusion.ode_likelihood import ode_log_density

    return lambda _, *others: ode_log_density(denoise, *others)


def test_the_file_tells_all(capsys, ddpm):
    assert main(["nll", "--run", str(ddpm), "--num-images", "3", "--steps", "3"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    report = json.loads((ddpm / "nll.json").read_text())
    assert line.startswith(
        f"{report['bits_per_dim']:.4f} ± {report['standard_error']:.4f} bits/dim at most (3 images"
    )
    assert all(f"{name} {value:.4f}" in line for name, value in report["parts"].items())
    assert sum(report["parts"].values()) == pytest.approx(report["bits_per_dim"])
    told = report["protocol"]
    assert told["weights_sha256"] == sha256(find_weights(ddpm))
    assert (told["method"], told["steps"], told["variance"], told["images"]) == (
        "vlb",
        3,
        "learned",
        3,
    )
    assert (told["data"], told["seed"], told["precision"]) == ("digits", 0, "fp32")
    pixels = from_array(
        Digits(8).images[[0, 898, 1796]].permute(0, 2, 3, 1).numpy(), "three digits"
    )
    assert told["pixels_sha256"] == extract(pixels, [], 2, Ranks(), "").digest


def test_flow_and_ddpm_by_the_ode(capsys, make_run, ddpm, tmp_path):
    for run in (make_run("flow"), ddpm):
        nll(
            NllConfig(run=run, num_images=1, steps=3, method="ode", out=tmp_path / "one.json"),
            Ranks(),
        )
        report = json.loads((tmp_path / "one.json").read_text())
        assert report["standard_error"] is None
        assert report["protocol"]["probes"] == 1
        assert math.isfinite(report["bits_per_dim"])
    assert "±" not in capsys.readouterr().out


def test_classes_of_other_data_are_told_by_their_names(make_run, tmp_path):
    for name in ("7", "3"):
        (tmp_path / "some" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "gray").save(tmp_path / "some" / name / "a.png")
    run = load_run(make_run(), torch.device("cpu"))
    data = str(tmp_path / "some")
    source = build_source(dataclasses.replace(run.card.config, data=data), run.autoencoder)
    same, labels = likelihood.conditioned(run, source, data)
    assert same is run
    assert labels.tolist() == [3, 7]
    (tmp_path / "some" / "3").rename(tmp_path / "some" / "heron")
    source = build_source(dataclasses.replace(run.card.config, data=data), run.autoencoder)
    with pytest.raises(UserError, match="heron"):
        likelihood.conditioned(run, source, data)


def test_nan_is_named():
    bad = torch.zeros(3, 1)
    bad[1] = float("nan")
    with pytest.raises(UserError, match="image 40 came out as NaN"):
        likelihood.require_finite(bad, np.array([10, 40, 70]))


@pytest.mark.parametrize(
    ("settings", "flags", "named"),
    [
        (dict(vae="digits", image_size=32), {}, "--vae digits"),
        ({}, dict(method="vlb"), "--method vlb"),
        (DDPM, dict(exact=True), "--exact with --method vlb"),
        (DDPM, dict(probes=3), "--probes 3 with --method vlb"),
        (DDPM, dict(steps=1001), "--steps 1001"),
        (DDPM, dict(steps=1), "--steps 1"),
        (DDPM, dict(method="ode", variance="small"), "--variance small with --method ode"),
        ({**DDPM, "learn_sigma": False}, dict(variance="learned"), "--variance learned"),
    ],
)
def test_what_does_not_fit_is_refused(settings, flags, named, make_run):
    if settings.get("vae"):
        pytest.importorskip("diffusers")
    config = NllConfig(
        run=make_run(**{k: v for k, v in settings.items() if k not in ("vae", "image_size")}),
        **flags,
    )
    run = load_run(config.run, torch.device("cpu"))
    if settings.get("vae"):
        card = dataclasses.replace(
            run.card, config=dataclasses.replace(run.card.config, vae="digits")
        )
        run = dataclasses.replace(run, weights=dataclasses.replace(run.weights, card=card))
    with pytest.raises(UserError) as error:
        choose(run, config)
    assert named in error.value.given


def test_exact_with_probes_is_refused(tmp_path):
    with pytest.raises(UserError, match="--exact with --probes 2"):
        NllConfig(run=tmp_path, exact=True, probes=2)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("{tmp}", "--out {tmp} is a folder; expected a .json file"),
        ("/proc/x.json", "--out /proc/x.json can not be written"),
    ],
)
def test_a_place_that_is_none_is_refused_before_the_work(
    tiny_run, tmp_path, monkeypatch, out, said
):
    monkeypatch.setattr("dit.commands.nll.measure", pytest.fail)
    with pytest.raises(UserError, match=said.format(tmp=tmp_path)):
        nll(NllConfig(run=tiny_run, out=Path(out.format(tmp=tmp_path))), Ranks())
