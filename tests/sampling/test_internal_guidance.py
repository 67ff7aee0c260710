"""Guidance by a run's own inner head (2512.24176)."""

import dataclasses

import pytest
import torch
from helpers.samples import largest_difference

from dit.commands.sweep.evaluations import count_evaluations
from dit.config import SamplerConfig
from dit.config.sampling import INTERNAL
from dit.diffusion.guidance import cfg, inner_pair, strong_of
from dit.diffusion.process import Denoiser
from dit.errors import UserError
from dit.evaluation.samples import image_settings
from dit.models.parts import BothHeads
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.protocol import protocol

pytestmark = pytest.mark.usefixtures("small_networks")
CPU = torch.device("cpu")
QUICK = SamplerConfig(sampler="heun", precision="fp32", steps=3, batch_size=4)
LABELS, INDICES = torch.tensor([1, 2, 3]), torch.arange(3)
GUIDED = dict(guide=INTERNAL, cfg_scale=2.5)
KINDS = [
    dict(),
    dict(process="linear", objective="eps", learn_sigma=True),
    dict(conditioning="tokens", block="modern"),
    dict(num_classes=0),
]


def latents(run, **settings):
    pipeline = build_pipeline(run, dataclasses.replace(QUICK, **settings))
    return sample_latents(pipeline, LABELS, INDICES)


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_it_extrapolates_from_the_inner_head(make_run, kind):
    """weak + s (strong - weak) of two calls of two networks, written out."""
    run = load_run(make_run(inner_head=True, **kind), CPU)
    network, process = run.denoise.network, run.denoise.process
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.5 * process.end, dtype=torch.float64)
    y = LABELS if run.card.network.num_classes else torch.zeros_like(LABELS)

    found = build_pipeline(run, dataclasses.replace(QUICK, **GUIDED)).denoise(x, t, y)
    strong = run.denoise(x, t, y)
    inner = dataclasses.replace(
        run.denoise, network=lambda x, t, y: network(x, t, y, None, True).inner
    )
    weak = inner(x, t, y)
    for name in ("x0", "eps", "out"):
        high, low = getattr(strong, name), getattr(weak, name)
        expected = low + 2.5 * (high - low)
        torch.testing.assert_close(getattr(found, name), expected)
        assert (expected - high).abs().max() > 1e-3
    if run.denoise.learn_sigma:
        torch.testing.assert_close(found.var_fraction, strong.var_fraction)


def test_scale_1_and_times_outside_of_the_interval_are_not_guided(make_run):
    run = load_run(make_run(inner_head=True), CPU)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    plain = run.denoise(x, t, LABELS)
    both = Denoiser(BothHeads(run.denoise.network), run.denoise.process, run.denoise.objective)
    pair = inner_pair(both)
    for scale, interval in ((1.0, (0.0, 1.0)), (3.0, (0.6, 1.0))):
        guided = cfg(
            strong_of(pair), both.process, scale, null_label=10, interval=interval, pair=pair
        )
        assert torch.equal(guided(x, t, LABELS).out, plain.out)


def test_it_takes_one_call_a_step_of_one_row(make_run):
    run = load_run(make_run(inner_head=True), CPU)
    assert count_evaluations(run, dataclasses.replace(QUICK, **GUIDED)) == 5
    assert count_evaluations(run, QUICK) == 5


@pytest.mark.portable
def test_batches_intervals_and_channels(make_run):
    run = load_run(make_run(inner_head=True), CPU)
    plain, guided = latents(run), latents(run, **GUIDED)
    assert largest_difference(plain, guided) > 1e-2
    assert largest_difference(latents(run, batch_size=2, **GUIDED), guided) < 1e-4
    assert largest_difference(latents(run, cfg_interval=(0.0, 0.6), **GUIDED), guided) > 1e-3
    assert largest_difference(latents(run, cfg_channels=2, **GUIDED), guided) > 1e-3
    # a head after the last call is no guidance of the trained network
    assert largest_difference(latents(run, guide=INTERNAL, cfg_scale=1.0 + 1e-7), plain) < 1e-3


def test_records_name_it(make_run, tmp_path):
    run = load_run(make_run(inner_head=True), CPU)
    settings = dataclasses.replace(QUICK, **GUIDED)
    record = protocol(build_pipeline(run, settings))
    assert record["guide"] == "its inner head"
    assert record["network"]["inner_head"] is True
    assert image_settings(run, settings)["guide"] == "internal"


@pytest.mark.parametrize(
    ("trained", "asked", "message"),
    [
        (dict(), dict(), "--guide internal for a run without an inner head"),
        (dict(inner_head=True), dict(block_cache=2), "--guide internal with --block-cache 2"),
    ],
)
def test_refused(make_run, trained, asked, message):
    with pytest.raises(UserError, match=message):
        latents(load_run(make_run(**trained), CPU), **GUIDED, **asked)


def test_the_block_cache_serves_a_run_with_a_head(make_run):
    run = load_run(make_run(inner_head=True), CPU)
    assert latents(run, block_cache=2, cfg_scale=2.0).isfinite().all()
