"""Trainings of MeanFlow: from a flow's weights, in every layout, resumed; and their samples."""

import dataclasses
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import PROPORTIONAL, SMALL, random_weights, write_run
from helpers import forked
from helpers.training import TINY, a_session, differing, do_step, logged, run
from safetensors.torch import load_file

from dit.commands.train import train
from dit.config import SamplerConfig, TrainConfig, to_json
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.embeddings import SMOOTHING
from dit.models.feature_cache import run_all_blocks, run_outer_blocks
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import checkpoints, find_weights, latest_checkpoint
from dit.runs.weights import read_weights, write_weights
from dit.sampling.generate import ImageNoise, sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.resolve import notes_on_guidance
from dit.training.batches import draw_loss_inputs, read_batch
from dit.training.cost.flops import meter
from dit.training.finetune import find_origin
from dit.training.monitoring.previews import CFG_SCALE, preview_settings
from dit.utils.typed_json import from_json

pytestmark = pytest.mark.usefixtures("small_networks")
MEAN = dataclasses.replace(TINY, objective="meanflow", cooldown=0, log_every=1, compile=False)


# -- layouts ---------------------------------------------------------------------------------------

LEARN = dataclasses.replace(MEAN, steps=3, warmup=0, lr=1.0, meanflow_scale=1.5)
LAYOUTS = {
    "2-ddp": (2, dict(parallel="ddp")),
    "2-fsdp": (2, dict(parallel="fsdp")),
    "selective": (1, dict(recompute="selective")),
    "full": (2, dict(recompute="full", grad_accum=2)),
    "full-fsdp": (2, dict(recompute="full", parallel="fsdp")),
    "compiled": (2, dict(compile=True, grad_accum=2)),
    "compiled-fsdp": (2, dict(compile=True, parallel="fsdp")),
}
QUICK = ("selective", "full", "full-fsdp")
"""Of these, with the parts of the others but compiling: DDP, FSDP2 and micro-batches."""


def train_small(ranks: Ranks, config: TrainConfig) -> None:
    SIZES["Ti"] = SMALL
    torch.optim.AdamW = PROPORTIONAL
    torch.compile = partial(torch.compile, backend="aot_eager")
    train(config, ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_networks):
    """The same training by one process, and by one in four micro-batches."""
    root = tmp_path_factory.mktemp("layouts")
    weights = write_run(root / "weights")
    for name, grad_accum in (("one", 1), ("in-parts", 4)):
        config = dataclasses.replace(LEARN, out=root / name, init=weights, grad_accum=grad_accum)
        forked.run(1, train_small, config)
    return root


def distance(a, b):
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in a) ** 0.5


@pytest.mark.portable
@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LAYOUTS],
)
def test_any_layout_learns_what_one_process_learns(runs, layout, tmp_path):
    world, changes = LAYOUTS[layout]
    out = tmp_path / "run"
    config = dataclasses.replace(LEARN, out=out, init=runs / "weights", **changes)
    forked.run(world, train_small, config)

    one, parts, found, start = (
        load_file(find_weights(path))
        for path in (runs / "one", runs / "in-parts", out, runs / "weights")
    )
    moved = distance(start, one)
    # sums in another order differ by the same rounding
    rounding = distance(one, parts)
    assert 0 < rounding < 1e-5 * moved
    assert distance(one, found) < 4 * rounding
    assert np.allclose(logged(out, "loss"), logged(runs / "one", "loss"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_training_has_the_losses_of_eager(tmp_path, weights):
    settings = dict(init=weights, steps=3)
    runs = [run(tmp_path / str(c), MEAN, compile=c, **settings) for c in (False, True)]
    eager, compiled = (np.array(logged(out, "loss")) for out in runs)
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert (compiled != eager).any(), "not compiled"


# -- one process -----------------------------------------------------------------------------------


KINDS = {
    "classic": dict(meanflow_form="classic", meanflow_instant=0.75, meanflow_scale=2.5),
    "text": dict(conditioning="text", meanflow_scale=2.0, meanflow_mix=0.3),
    "modern": dict(block="modern", conditioning="tokens", optimizer="muon", time_shift=0.67),
    "bf16": dict(precision="bf16", meanflow_instant=0.0),
    "unconditional": dict(num_classes=0, time_sampling="uniform"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_as_one_that_never_stopped(kind, tmp_path):
    settings = dict(steps=4, ckpt_every=2, resume="auto", **KINDS[kind])
    out = run(tmp_path / "run", MEAN, **settings)
    before = load_file(find_weights(out))
    shutil.rmtree(latest_checkpoint(out))
    run(out, MEAN, **settings)
    assert len(checkpoints(out)) == 2
    assert differing(before, load_file(find_weights(out))) == []
    assert all(np.isfinite(loss) for (loss,) in logged(out, "loss"))


def test_every_weight_learns_in_bf16(tmp_path, weights):
    """Passes without gradient come first; weights that autocast kept from them would not learn."""
    session = a_session(tmp_path, MEAN, init=weights, precision="bf16", meanflow_scale=2.0)
    learns = {n: p for n, p in session.state.network.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in learns.items()}
    do_step(session)
    do_step(session)  # the length's last layer is zero before the first
    assert [name for name in learns if torch.equal(learns[name], before[name])] == []


@pytest.mark.parametrize("changes", [dict(meanflow_scale=2.0), dict(meanflow_form="classic")])
def test_lengths_are_learnt(tmp_path, weights, changes):
    session = a_session(tmp_path, MEAN, init=weights, **changes)
    last = session.state.network.t_embedder.length_mlp[2].weight
    assert not last.any()
    do_step(session)
    assert last.any()


def test_waves_stay_those_that_weights_were_trained_with(tmp_path, weights):
    """A card of 0.2 does not say how they are smoothed; those of a flow are not."""
    of_flow = a_session(tmp_path / "a", MEAN, init=weights)
    assert of_flow.state.network.t_embedder.smoothing == SMOOTHING
    assert of_flow.card.network.interval_smoothing == SMOOTHING

    earlier = write_averaging(tmp_path / "b")
    trained = read_weights(earlier)
    values = trained.card.to_json()
    del values["network"]["interval_smoothing"]
    write_weights(earlier, trained.state_dict, ModelCard.from_json(values), 1)
    assert load_run(earlier, torch.device("cpu")).denoise.network.t_embedder.smoothing == 25
    again = run(tmp_path / "c", MEAN, init=earlier, steps=1)
    assert ModelCard.read(again).network.interval_smoothing == 25


def test_it_starts_with_the_weights_of_a_flow(tmp_path, weights):
    session = a_session(tmp_path, MEAN, init=weights)
    own = session.state.network.state_dict()
    flow = load_file(find_weights(weights))
    assert [name for name in flow if not torch.equal(own[name], flow[name])] == []
    new = set(own) - set(flow)
    assert new
    assert all(name.startswith("t_embedder.length_mlp.") for name in new)


def test_at_its_start_it_has_nearly_the_loss_of_the_flow(tmp_path):
    """Means of waves cost a trained flow less than a twentieth of what it has learnt."""
    trained = run(tmp_path / "flow", dataclasses.replace(TINY, steps=200, lr=2e-3, ema=0.9))
    settings = dict(global_batch_size=256, meanflow_instant=1.0)
    flow = a_session(tmp_path / "a", global_batch_size=256, init=trained)
    fresh = a_session(tmp_path / "b", global_batch_size=256)
    averaging = a_session(tmp_path / "c", MEAN, init=trained, **settings)

    inputs = draw_loss_inputs(flow.stream, read_batch(flow.stream, 0), flow.autoencoder, None, 0)
    given = inputs.x0, inputs.labels, inputs.t, inputs.eps, torch.zeros(256, 1)
    with torch.no_grad():
        plain, untrained, found = (
            session.loss(*given).mean.item() for session in (flow, fresh, averaging)
        )
    assert 0 < abs(found - plain) < 0.05 * (untrained - plain)


def test_guidance_that_is_learned_and_given_too_is_noted(tmp_path):
    learned = a_session(tmp_path / "learned", MEAN, meanflow_scale=2.0).card
    plain = a_session(tmp_path / "plain", MEAN).card
    (note,) = notes_on_guidance(SamplerConfig(cfg_scale=1.5), learned)
    assert note.startswith("--cfg-scale 1.5 guides a network that learned guidance of scale 2")
    assert not notes_on_guidance(SamplerConfig(cfg_scale=1.0), learned)
    assert not notes_on_guidance(SamplerConfig(cfg_scale=1.5), plain)
    # previews and scores while training
    assert preview_settings(learned).cfg_scale == 1
    assert preview_settings(plain).cfg_scale == CFG_SCALE


def test_only_a_flow_of_velocities_may_become_one_of_averages(tmp_path, weights):
    averaging = run(tmp_path / "averaging", MEAN, steps=1)
    card = ModelCard.read(averaging)
    find_origin(card, weights)
    find_origin(card, averaging)
    with pytest.raises(UserError, match="--objective meanflow, not v"):
        find_origin(ModelCard.read(weights), averaging)
    images = write_run(tmp_path / "images", objective="x0")
    with pytest.raises(UserError, match="--objective x0, not meanflow"):
        find_origin(card, images)


def test_the_meter_counts_the_passes_of_the_loss(tmp_path):
    flow = meter(a_session(tmp_path / "flow")).flops
    for form, instant, passes in (("improved", 0.5, 1.5), ("classic", 0.75, 0.5)):
        changes = dict(meanflow_form=form, meanflow_instant=instant)
        found = meter(a_session(tmp_path / form, MEAN, **changes)).flops
        # embedding lengths is a thousandth of the network here
        assert found == pytest.approx(flow * (6 + 2 * passes) / 6, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "given", "do"),
    [
        (dict(global_batch_size=5), "0.5 of 5 images", "pass --batch-size 4, or"),
        (
            dict(global_batch_size=30, grad_accum=2, meanflow_instant=0.3),
            "0.3 of 15 images",
            "pass --batch-size 40, or",
        ),
        (dict(meanflow_instant=1.0), "1; expected at least 0 and below 1", "pass --objective v"),
    ],
)
def test_micro_batches_have_a_whole_number_of_steps_without_length(changes, given, do, tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path / "run", MEAN, **changes)
    assert str(error.value).startswith(f"--meanflow-instant {given}")
    assert do in str(error.value)


def test_a_run_all_of_whose_steps_have_no_length_is_read():
    """Version 0.2.0 trained them."""
    settings = to_json(dataclasses.replace(MEAN, meanflow_instant=1.0))
    assert from_json(TrainConfig, settings).meanflow_instant == 1


# -- samples ---------------------------------------------------------------------------------------


def write_averaging(root):
    """Write weights that are random, of a network that hears the length of a step."""
    out = run(root / "run", MEAN, steps=1, sample_every=1)
    weights = read_weights(find_weights(out))
    tensors = random_weights(weights.card.network)
    for name, tensor in tensors.items():
        if "length_mlp" in name:
            tensors[name] = tensor + 0.1 * torch.randn_like(tensor)
    file = out.parent / "averaging.safetensors"
    write_weights(file, tensors, weights.card, 1)
    return file


@pytest.fixture(scope="module")
def averaging(tmp_path_factory, small_networks):
    return write_averaging(tmp_path_factory.mktemp("averaging"))


def latents(path, **settings):
    loaded = load_run(path, torch.device("cpu"))
    pipeline = build_pipeline(loaded, SamplerConfig(precision="fp32", **settings))
    labels = torch.arange(6) % 10
    return pipeline, sample_latents(pipeline, labels, torch.arange(6))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_samples_are_steps_of_the_average_velocity(averaging, steps, scale):
    pipeline, found = latents(averaging, steps=steps, cfg_scale=scale)
    assert pipeline.settings.sampler == "euler"
    network, y = pipeline.run.denoise.network, torch.arange(6) % 10

    x = ImageNoise(0, range(6), pipeline.run.latent_shape, torch.device("cpu"))()
    for i in range(steps):
        t, length = 1 - i / steps, 1 / steps
        times = torch.tensor([[1000 * t, 1000 * length]]).expand(6, -1)
        with torch.no_grad():
            u = network(x, times, y)
            null = network(x, times, torch.full_like(y, 10))
        x = x - length * (null + scale * (u - null))
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_two_steps_unless_given_and_other_samplers_take_velocities_at_times(averaging):
    two, _ = latents(averaging)
    assert two.steps == 2
    many, _ = latents(averaging, sampler="dpmpp_2m")
    assert many.steps == 25
    _, euler = latents(averaging, steps=2)
    # ddim without noise is Euler's method, here of velocities at times
    _, ddim = latents(averaging, sampler="ddim", steps=2)
    assert (euler - ddim).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_do_not_depend_on_the_batch(averaging, scale):
    _, found = latents(averaging, batch_size=4, cfg_scale=scale)
    _, expected = latents(averaging, cfg_scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_block_cache_adds_the_change_of_the_first_of_two_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(SMALL, depth=4))
    path = write_averaging(tmp_path)
    pipeline, cached = latents(path, steps=2, block_cache=2)
    _, exact = latents(path, steps=2)

    network, y = load_run(path, torch.device("cpu")).denoise.network, torch.arange(6) % 10
    x = ImageNoise(0, range(6), pipeline.run.latent_shape, torch.device("cpu"))()
    begin, middle = (torch.tensor([[t, 500.0]]).expand(6, -1) for t in (1000.0, 500.0))
    with torch.no_grad():
        u, change = run_all_blocks(network, x, begin, y)
        x = x - 0.5 * u
        x = x - 0.5 * run_outer_blocks(network, x, middle, y, change)
    torch.testing.assert_close(cached, x, rtol=1e-4, atol=1e-4)
    assert (cached - exact).abs().max() > 1e-2


def test_a_guide_averages_too(averaging, weights):
    with pytest.raises(UserError, match="meanflow for both"):
        latents(averaging, guide=weights, cfg_scale=2.0)
    _, found = latents(averaging, guide=averaging, cfg_scale=2.0)
    _, expected = latents(averaging)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
