"""SiT and REPA against a second implementation of the papers' equations, in their conventions."""

import math

import pytest
import torch
from helpers.foreign import REPA, SIT, checkpoint, dit_spec, dit_weights, repa_weights, saved
from torch.nn import functional as F

from dit.build import build_denoiser, build_network, build_process
from dit.diffusion import samplers
from dit.models.embeddings import sinusoids
from dit.models.sizes import SIZES
from dit.runs.formats.foreign import read_foreign
from dit.runs.formats.sit import reversed_times

pytestmark = pytest.mark.usefixtures("small_networks")
STEPS = 10


def published(weights, x, t, y):
    """The transformer of the papers (2212.09748, figure 3), which embeds times 0 … 1 as they are.

    Returns the first channels of the output, the velocity.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads = SIZES["Ti"]["num_heads"]

    def linear(name, z):
        return F.linear(z, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulated(z, shift, scale):
        normed = F.layer_norm(z, z.shape[-1:], eps=1e-6)
        return normed * (1 + scale[:, None]) + shift[:, None]

    def attention(name, z):
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(f"{name}.qkv", z).chunk(3, dim=-1)
        )
        weight = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return linear(f"{name}.proj", (weight @ v).transpose(1, 2).flatten(2))

    # embeddings of the patches, of time and of class
    patches = F.conv2d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=4)
    z = patches.flatten(2).mT + w["pos_embed"]
    angles = t.double()[:, None] * 10_000 ** (-torch.arange(128).double() / 128)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    c = F.silu(time + w["y_embedder.embedding_table.weight"][y])

    for block in [f"blocks.{i}" for i in range(SIZES["Ti"]["depth"])]:
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(
            f"{block}.adaLN_modulation.1", c
        ).chunk(6, dim=1)
        z = z + gate1[:, None] * attention(f"{block}.attn", modulated(z, shift1, scale1))
        hidden = linear(f"{block}.mlp.fc1", modulated(z, shift2, scale2))
        hidden = linear(f"{block}.mlp.fc2", F.gelu(hidden, approximate="tanh"))
        z = z + gate2[:, None] * hidden

    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    out = linear("final_layer.linear", modulated(z, shift, scale))
    # a token has 4 x 4 pixels, a pixel its channels
    image = (
        out.reshape(len(x), 4, 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, 16, 16)
    )
    return image[:, :3]


def imported(tmp_path, content):
    """The network as `dit convert` writes it and sample.py loads it."""
    foreign = read_foreign(saved(tmp_path, content))
    network = build_network(foreign.spec).eval().requires_grad_(False)
    network.load_state_dict(foreign.state_dict)
    config = foreign.config("identity")
    return build_denoiser(config, network), build_process(config)


def inputs():
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 4, 5])


def error(found, expected):
    assert expected.std() > 0.1
    return (found - expected).abs().max() / expected.abs().max()


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("t", [0.0, 0.001, 0.3, 0.999, 1.0])
def test_sit_predicts_data_minus_noise_at_times_from_noise_to_data(tmp_path, learn_sigma, t):
    weights = dit_weights(learn_sigma=learn_sigma)
    denoise, _ = imported(tmp_path, checkpoint(weights, **SIT))
    x, y = inputs()
    theirs = published(weights, x, torch.full((3,), t), y)
    ours = denoise(x, torch.tensor(1 - t, dtype=torch.float64), y)
    assert ours.var_fraction is None
    assert error(-ours.out, theirs) < 1e-5
    # x = t data + (1 - t) noise, and v = data - noise
    assert error(ours.x0, x + (1 - t) * theirs) < 1e-5
    assert error(ours.eps, x - t * theirs) < 1e-5


def test_sit_samples_as_its_own_ode(tmp_path):
    weights = dit_weights()
    denoise, process = imported(tmp_path, checkpoint(weights, **SIT))
    x, y = inputs()
    theirs = x.double()
    for step in range(STEPS):
        t = torch.full((3,), step / STEPS)
        theirs = theirs + published(weights, theirs, t, y) / STEPS
    ours = samplers.euler(denoise, process, x, y, process.times(STEPS), lambda: None)
    assert error(ours, theirs) < 1e-5


@pytest.mark.parametrize("numbering", ["now", "early"])
def test_repa_samples_as_its_own_ode(tmp_path, numbering):
    weights = repa_weights()
    content = weights
    if numbering == "early":
        # blocks after the projectors had names of their own
        content = {
            name.replace("blocks.1.", "decoder_blocks.0."): value for name, value in weights.items()
        }
    denoise, process = imported(tmp_path, checkpoint(content, **REPA))
    x, y = inputs()
    theirs = x.double()
    for step in range(STEPS):
        t = torch.full((3,), 1 - step / STEPS)
        theirs = theirs - published(weights, theirs, t, y) / STEPS
    ours = samplers.euler(denoise, process, x, y, process.times(STEPS), lambda: None)
    assert error(ours, theirs) < 1e-5


def test_a_layer_of_reversed_times_is_exact():
    weight = torch.randn(7, 256, dtype=torch.float64)
    t = torch.rand(50, dtype=torch.float64)
    expected = sinusoids(1 - t, 256) @ weight.T
    found = sinusoids(t, 256) @ reversed_times(weight).T
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


def test_only_the_scale_of_times_is_part_of_the_description(tmp_path):
    for content in (checkpoint(dit_weights(), **SIT), checkpoint(repa_weights(), **REPA)):
        foreign = read_foreign(saved(tmp_path, content))
        assert foreign.spec == dit_spec(learn_sigma=False, time_scale=1e-3)
        config = foreign.config("identity")
        assert (config.process, config.objective, config.learn_sigma) == ("flow", "v", False)
        assert (config.time_sampling, config.time_shift) == ("uniform", 1.0)
