"""Feature caching: what is reused, when, and that no change outlives its images."""

import dataclasses
from functools import partial

import pytest
import torch
from conftest import random_weights
from helpers.networks import inputs, perturbed_dit

from dit.build import build_network
from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.conditioning import CONDITIONINGS
from dit.models.feature_cache import CachedNetwork, run_all_blocks, run_outer_blocks
from dit.runs.card import NetworkSpec
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.sample_folder import sample_folder

SPEC = NetworkSpec(model="DiT-Ti/4", input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
PLAIN = SamplerConfig(steps=6, cfg_scale=2.0, precision="fp32", sampler="euler")
IDS = torch.arange(3)


@torch.no_grad()
def test_middle_blocks_compute_in_one_of_so_many_calls():
    network, computed = perturbed_dit(depth=4), []
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: computed.append(i))
    cached = CachedNetwork(partial(run_all_blocks, network), partial(run_outer_blocks, network), 3)
    x, t, y = inputs()
    for n in range(7):
        computed.clear()
        cached(x, t, y)
        assert computed == ([0, 1, 2, 3] if n % 3 == 0 else [0, 3])

    computed.clear()
    cached(x[:1], t[:1], y[:1])  # another batch size, which the stored change does not fit
    cached.forget()
    cached(x[:1], t[:1], y[:1])
    assert computed == [0, 1, 2, 3] * 2


@torch.no_grad()
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_all_blocks_give_the_output_and_their_change_repeats_it(conditioning):
    network, (x, t, y) = perturbed_dit(conditioning, depth=4), inputs(conditioning)
    out, change = run_all_blocks(network, x, t, y)
    assert torch.equal(out, network(x, t, y))
    torch.testing.assert_close(run_outer_blocks(network, x, t, y, change), out)
    assert not torch.allclose(run_outer_blocks(network, x, t, y, 2 * change), out)


@torch.no_grad()
def test_the_change_of_one_time_is_nearly_that_of_another():
    network = build_network(SPEC)
    network.load_state_dict(random_weights(SPEC))
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 8, 8), torch.arange(2)
    _, change = run_all_blocks(network, x, torch.full((2,), 0.5), y)
    errors = []
    for time in (0.51, 0.9):
        t = torch.full((2,), time)
        errors.append((network(x, t, y) - run_outer_blocks(network, x, t, y, change)).abs().max())
    assert 0 < errors[0] < errors[1]


def test_sampling_is_repeatable_and_in_the_protocol(tiny_run, tmp_path):
    run = load_run(tiny_run, torch.device("cpu"))
    cached = dataclasses.replace(PLAIN, block_cache=4)
    plain, pipeline = build_pipeline(run, PLAIN), build_pipeline(run, cached)
    latents = [sample_latents(one, IDS, IDS) for one in (pipeline, pipeline, plain)]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])
    sample_folder(run, cached, [0], 2, tmp_path / "a", "png", Ranks())
    with pytest.raises(UserError, match=r"no --block-cache .* made with --block-cache 4"):
        sample_folder(run, PLAIN, [0], 2, tmp_path / "a", "png", Ranks())


def test_a_unet_has_no_blocks_to_skip(make_run):
    run = load_run(make_run(model="UNet-S"), torch.device("cpu"))
    with pytest.raises(UserError, match="--block-cache 2 for a UNet-S"):
        build_pipeline(run, SamplerConfig(block_cache=2))
