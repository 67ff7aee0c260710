"""`dit export --stock`: diffusers' own DiTPipeline, what it is told, and what it cannot be told."""

import dataclasses
import json

import diffusers
import pytest
import torch
from helpers.exports import CPU, DDPM, STATISTICS, images_of, write_latent_run

from dit.errors import UserError
from dit.export.diffusers import export_diffusers
from dit.export.stock import require_stock
from dit.export.stock_difference import UNSEEN, Difference, measure
from dit.export.stock_networks import TABLE, TIMES, fit_times, stock_weights
from dit.models.embeddings import sinusoids
from dit.runs.formats.diffusers_folder import INDEX
from dit.sampling.classes import find_class
from dit.sampling.load import load_run

SLOW = 48  # from this wave on they are slow

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module", params=["ddpm", "flow"])
def exported(request, small_networks, tmp_path_factory):
    root = tmp_path_factory.mktemp("stock")
    kind = dict(DDPM) if request.param == "ddpm" else dict(card=STATISTICS)
    run = load_run(write_latent_run(root, **kind), CPU)
    # fast waves of times cannot be met, see fit_times
    embedder = run.denoise.network.t_embedder.mlp[0].weight.data
    for weight in (run.weights.state_dict[f"{TIMES}.weight"], embedder):
        weight[:, :SLOW] = weight[:, 128 : 128 + SLOW] = 0
    return run, export_diffusers(run, root / "out", stock=True)


def test_it_is_a_pipeline_of_diffusers_alone(exported):
    run, folder = exported
    index = json.loads((folder / INDEX).read_text())
    assert index["_class_name"] == "DiTPipeline"
    assert index["id2label"]["3"] == "3"
    assert not list(folder.rglob("*.py"))
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    assert pipe.get_label_ids(["3"]) == [3]
    # random weights hardly depend on time: all else must agree
    difference = measure(run, folder)
    assert difference.largest <= 2
    assert str(difference) in (folder / "README.md").read_text()
    assert "Up to 4 cannot be seen. It comes from the times" in str(difference)
    assert difference.visible == 0


def test_a_difference_that_can_be_seen_is_named():
    shown = str(Difference(largest=5, mean=0.6, visible=0.0123, scale=1.5))
    assert "at most 5, on average 0.6 of 255. Up to 4 cannot be seen; 1.2% of the values" in shown


def test_what_cannot_be_seen_is_below_a_just_noticeable_difference():
    code = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    # CIELAB: L* of gray, whose luminance is that of each channel
    cube = (6 / 29) ** 3
    root = torch.where(linear > cube, linear ** (1 / 3), linear / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * root - 16
    assert 2 < (lightness[UNSEEN:] - lightness[:-UNSEEN]).max() < 2.04


def test_times_are_embedded_as_in_the_run(exported):
    run, folder = exported
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.scheduler.set_timesteps(25)
    t = pipe.scheduler.timesteps.float()
    assert (t.max() > 900, t.min() < 100) == (True, True)
    with torch.no_grad():
        ours = run.denoise.network.t_embedder(t)
        for block in pipe.transformer.transformer_blocks:
            embedding = block.norm1.emb
            theirs = embedding.timestep_embedder(embedding.time_proj(t))
            # docs/interop.md, and fit_times
            assert (theirs - ours).abs().max() < 1e-3 * ours.abs().max()


def test_the_network_back_is_that_of_diffusers(exported):
    """Times, positions, norms and the null class, on random inputs."""
    run, folder = exported
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    back = load_run(folder, CPU)
    assert back.card.classes == run.card.classes
    assert back.card.config.process == run.card.config.process
    classes = len(run.card.classes)
    assert back.card.network.num_classes == classes  # no id of a row without a class
    x, y = torch.randn(4, 2, 8, 8), torch.tensor([0, 1, 9, 1000])
    own = y.where(y < 1000, classes)  # the null class
    for t in (torch.tensor([0, 1, 500, 999]), torch.tensor([3, 998, 77, 250])):
        with torch.no_grad():
            theirs = pipe.transformer(x, t, y).sample
            ours = back.denoise.network(x, t.float(), own)
        assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
    with pytest.raises(UserError, match="500"):
        find_class(500, back.card)


def test_the_image_back_is_the_image(exported):
    run, folder = exported
    settings = dict(sampler="dpmpp_2m", steps=4, cfg_scale=1.5)
    difference = images_of(folder, **settings) - images_of(run, **settings)
    assert difference.abs().max() <= 2


def test_statistics_are_in_the_autoencoder(exported):
    run, folder = exported
    theirs = diffusers.DiTPipeline.from_pretrained(folder).vae
    ours = run.autoencoder
    factor = theirs.config.scaling_factor
    latents, pixels = torch.randn(2, 2, 8, 8), 2 * torch.rand(2, 3, 16, 16) - 1
    with torch.no_grad():
        decoded = theirs.decode(latents / factor).sample
        expected = ours.codec.pixels(latents / ours.scale + ours.shift)
        assert (decoded - expected).abs().max() < 1e-4
        posterior = theirs.encode(pixels).latent_dist
        mean, std = ours.codec.posterior(pixels)
        assert (posterior.mean * factor - (mean - ours.shift) * ours.scale).abs().max() < 1e-4
        assert (posterior.std * factor - std * ours.scale).abs().max() < 1e-4


def test_slow_waves_of_times_are_met():
    torch.manual_seed(0)
    slow = torch.zeros(8, 256)
    slow[:, SLOW:128] = torch.randn(8, 128 - SLOW)
    slow[:, 128 + SLOW :] = torch.randn(8, 128 - SLOW)
    bias = torch.randn(8)
    weight, moved = fit_times(slow, bias)
    t = torch.arange(1000).double()
    ours = sinusoids(t, 256) @ slow.double().T + bias
    theirs = sinusoids(t, 256, endpoint=True) @ weight.double().T + moved
    assert (ours - theirs).abs().max() < 1e-3 * ours.abs().max()
    # as they are, they miss by much
    unchanged = sinusoids(t, 256, endpoint=True) @ slow.double().T + bias
    assert (ours - unchanged).abs().max() > 0.05 * ours.abs().max()


def test_1000_classes_and_their_null_class_fit(exported):
    run, _ = exported
    table = torch.randn(1001, 64)
    given = {**run.weights.state_dict, TABLE: table}
    assert torch.equal(stock_weights(given, run.card)[TABLE], table)


@pytest.mark.parametrize(
    ("network", "settings", "reason"),
    [
        (dict(model="UNet-S"), {}, "a UNet-S"),
        (dict(conditioning="tokens"), {}, "--conditioning tokens"),
        (dict(conditioning="text", text_width=8), {}, "--conditioning text"),
        (dict(block="modern"), {}, "--block modern"),
        (dict(inner_head=True), {}, "an inner head"),
        (dict(interval=True), {}, "lengths of steps"),
        (dict(time_scale=1e-3), {}, "times scaled by 0.001"),
        (dict(input_size=(8, 16)), {}, "latents of 8 x 16"),
        (dict(num_classes=1001), {}, "1,001 classes"),
        ({}, dict(label_dropout=0.0), "no null class"),
        ({}, dict(process="cosine", objective="eps", time_sampling="uniform"), "cosine betas"),
        ({}, dict(objective="x0"), "--objective x0 of a flow"),
    ],
)
def test_what_it_has_not_is_refused_by_name(exported, network, settings, reason):
    run, _ = exported
    card = run.card
    config = dataclasses.replace(
        card.config,
        **(dict(process="flow", objective="v", learn_sigma=False) | settings),
    )
    spec = dataclasses.replace(card.network, **network)
    changed = dataclasses.replace(card, network=spec, config=config)
    weights = dataclasses.replace(run.weights, card=changed)
    with pytest.raises(UserError, match=reason):
        require_stock(dataclasses.replace(run, weights=weights))


def test_a_vq_and_pixels_are_refused(tmp_path, make_run):
    vq = load_run(write_latent_run(tmp_path, "vq"), CPU)
    pixels = load_run(make_run("pixels"), CPU)
    for run in (vq, pixels):
        with pytest.raises(UserError, match=r"with --vae"):
            export_diffusers(run, tmp_path / "out", stock=True)
    assert not (tmp_path / "out").exists()
