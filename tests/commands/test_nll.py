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
from dit.commands.nll import make_plan, measure, nll
from dit.config import NllConfig
from dit.data.images import Digits
from dit.diffusion.ode_likelihood import ode_log_density
from dit.diffusion.process import Prediction, like
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array
from dit.latents.load import build_source
from dit.runs.checkpoint_files import find_weights
from dit.sampling.load import load_run
from dit.utils.files import sha256

pytestmark = pytest.mark.usefixtures("small_networks")
CPU = torch.device("cpu")
DDPM = dict(process="linear", objective="eps", learn_sigma=True)


def bits_of(run, ranks=None, **flags):
    """Bits of each image by parts, [N, parts]; `run` is a path or a loaded run."""
    loaded = load_run(run, CPU) if isinstance(run, Path) else run
    config = NllConfig(run=loaded.home, **{"num_images": 6, "steps": 4, **flags})
    source = build_source(dataclasses.replace(loaded.card.config, flip=False), loaded.autoencoder)
    chosen = np.linspace(0, 1796, config.num_images).round().astype(int)
    plan = make_plan(loaded, config)
    return measure(loaded, plan, config, source, source.labels, chosen, ranks or Ranks())


@pytest.fixture
def ddpm(make_run):
    return make_run("ddpm", **DDPM)


@pytest.mark.portable
@pytest.mark.parametrize("settings", [{}, DDPM], ids=["flow", "ddpm"])
def test_bits_do_not_depend_on_the_batch(settings, make_run):
    run = make_run(**settings)
    one_batch, small_batches = (bits_of(run, batch_size=size) for size in (64, 4))
    assert torch.allclose(one_batch, small_batches, rtol=1e-5, atol=1e-4)
    assert (one_batch.std(0) > 0).any()


class Share(Ranks):
    """One of two ranks, whose sums are its own."""

    def sum(self, values):
        return values


@pytest.mark.portable
def test_ranks_measure_what_one_process_measures(tiny_run):
    alone, *shares = (bits_of(tiny_run, ranks) for ranks in (Ranks(), Share(0, 2), Share(1, 2)))
    assert (alone - sum(shares)).abs().max() < 1e-4
    assert all((part == 0).any() for part in shares)


def test_hutchinson_estimates_the_exact_divergence(tiny_run):
    exact = bits_of(tiny_run, num_images=2, steps=1, exact=True)
    estimate = bits_of(tiny_run, num_images=2, steps=1, probes=100)
    assert (exact - estimate).abs().max() < 0.02
    assert not torch.equal(exact, estimate)


def test_scaled_pixels_have_the_bits_of_pixels(monkeypatch, make_run):
    """One Gaussian model, in pixels and in scaled pixels.

    One probe is exact, as no pixel depends on another.
    """

    def gaussian(process, mean, std):
        def denoise(x_t, t, y):
            alpha, sigma, *_ = (like(c, x_t) for c in process.coefficients(t))
            off, var = x_t - alpha * mean, alpha**2 * std**2 + sigma**2
            return Prediction(mean + alpha * std**2 / var * off, sigma / var * off, off, None)

        return denoise

    loaded, bits = load_run(make_run(), CPU), []
    for mean, std in ((0.0, 1.0), (-0.4, 0.5)):
        scaled = loaded.autoencoder.with_statistics([mean] * 3, [std] * 3)
        model = gaussian(loaded.denoise.process, (-0.4 - mean) / std, 0.5 / std)

        def density(_, *others, model=model):
            return ode_log_density(model, *others)

        monkeypatch.setattr(likelihood, "ode_log_density", density)
        run = dataclasses.replace(loaded, autoencoder=scaled)
        bits.append(bits_of(run, num_images=4, steps=200))
    assert (bits[0] - bits[1]).abs().max() < 2e-3

    source = build_source(loaded.card.config, loaded.autoencoder)
    chosen = np.linspace(0, 1796, 4).round().astype(int)
    pixels = source.read(chosen, np.zeros(4, bool))[:, :3]
    nats = -torch.distributions.Normal(-0.4, 0.5).log_prob(pixels).mean((1, 2, 3))
    direct = (nats + math.log(127.5)) / math.log(2)
    assert (bits[0][:, 0] - direct).abs().max() < 5e-3


def test_the_file_has_the_bits_and_their_protocol(capsys, ddpm):
    assert main(["nll", "--run", str(ddpm), "--num-images", "3", "--steps", "3"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    report = json.loads((ddpm / "nll.json").read_text())
    bits = f"{report['bits_per_dim']:.4f} ± {report['standard_error']:.4f} bits/dim at most"
    assert line.startswith(f"{bits} (3 images")
    assert all(f"{name} {value:.4f}" in line for name, value in report["parts"].items())
    assert sum(report["parts"].values()) == pytest.approx(report["bits_per_dim"])

    protocol = report["protocol"]
    expected = dict(
        method="vlb",
        steps=3,
        variance="learned",
        images=3,
        data="digits",
        seed=0,
        precision="fp32",
        weights_sha256=sha256(find_weights(ddpm)),
    )
    assert {key: protocol[key] for key in expected} == expected
    digits = Digits(8).images[[0, 898, 1796]].permute(0, 2, 3, 1).numpy()
    images = from_array(digits, "three digits", None)
    assert protocol["pixels_sha256"] == extract(images, [], 2, Ranks(), "").digest


def test_flow_and_ddpm_by_the_ode(capsys, tiny_run, ddpm, tmp_path):
    for run in (tiny_run, ddpm):
        out = tmp_path / "one.json"
        nll(NllConfig(run=run, num_images=1, steps=3, method="ode", out=out), Ranks())
        report = json.loads(out.read_text())
        assert report["standard_error"] is None
        assert report["protocol"]["probes"] == 1
        assert math.isfinite(report["bits_per_dim"])
    assert "±" not in capsys.readouterr().out


def test_classes_of_other_data_are_matched_by_name(tiny_run, tmp_path):
    folder = tmp_path / "some"
    for name in ("7", "3"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "gray").save(folder / name / "a.png")
    run, data = load_run(tiny_run, CPU), str(folder)
    same, labels = likelihood.match_classes(run, likelihood.open_data(run, data), data)
    assert same is run
    assert labels.tolist() == [3, 7]
    (folder / "3").rename(folder / "heron")
    with pytest.raises(UserError, match="heron"):
        likelihood.match_classes(run, likelihood.open_data(run, data), data)


def test_nan_is_named():
    bad = torch.zeros(3, 1)
    bad[1] = float("nan")
    with pytest.raises(UserError, match="image 40 came out as NaN"):
        likelihood.require_finite(bad, np.array([10, 40, 70]))


@pytest.mark.parametrize(
    ("settings", "flags", "named"),
    [
        ({}, dict(method="vlb"), "--method vlb"),
        (DDPM, dict(exact=True), "--exact with --method vlb"),
        (DDPM, dict(probes=3), "--probes 3 with --method vlb"),
        (DDPM, dict(steps=1001), "--steps 1001"),
        (DDPM, dict(steps=1), "--steps 1"),
        (DDPM, dict(method="ode", variance="small"), "--variance small with --method ode"),
        ({**DDPM, "learn_sigma": False}, dict(variance="learned"), "--variance learned"),
    ],
)
def test_flags_that_do_not_fit(settings, flags, named, make_run):
    config = NllConfig(run=make_run(**settings), **flags)
    with pytest.raises(UserError) as error:
        make_plan(load_run(config.run, CPU), config)
    assert named in error.value.given


def test_a_run_of_latents_is_refused(make_run):
    config = NllConfig(run=make_run(vae="digits", image_size=32))
    with pytest.raises(UserError, match="generates latents of --vae digits"):
        nll(config, Ranks())


def test_exact_with_probes_is_refused(tmp_path):
    with pytest.raises(UserError, match="--exact with --probes 2"):
        NllConfig(run=tmp_path, exact=True, probes=2)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("{tmp}", "--out {tmp} is a folder; expected a .json file"),
        ("/proc/x.json", "--out /proc/x.json cannot be written"),
    ],
)
def test_an_out_that_can_not_be_written_is_refused_first(
    tiny_run, tmp_path, monkeypatch, out, message
):
    monkeypatch.setattr("dit.commands.nll.measure", pytest.fail)
    with pytest.raises(UserError, match=message.format(tmp=tmp_path)):
        nll(NllConfig(run=tiny_run, out=Path(out.format(tmp=tmp_path))), Ranks())
