"""Feature caching: what is reused, when, and that nothing stays behind."""

import dataclasses
from functools import partial

import pytest
import torch
from conftest import random_weights

from dit.build import build_network
from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.caching import Cached, full, short
from dit.models.conditioning import CONDITIONINGS
from dit.runs.card import NetworkSpec
from dit.sampling.folder import sample_folder
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline

SPEC = NetworkSpec(model="DiT-Ti/4", input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
PLAIN = SamplerConfig(steps=6, cfg_scale=2.0, precision="fp32", sampler="euler")
IDS = torch.arange(3)


@pytest.fixture
def network():
    made = build_network(SPEC)
    made.load_state_dict(random_weights(SPEC))
    return made.eval()


def test_middle_blocks_compute_in_one_of_so_many_calls_and_repeat_their_change(network):
    blocks, computed = network.blocks, []
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda module, given, out, i=i: computed.append(i))
    x, t, y = torch.randn(2, 3, 8, 8), torch.full((2,), 0.5), torch.arange(2)
    last = len(blocks) - 1
    cached = Cached(partial(full, network), partial(short, network), 3)
    with torch.no_grad():
        for n in range(7):
            computed.clear()
            cached(x, t, y)
            assert computed == (list(range(last + 1)) if n % 3 == 0 else [0, last])
        computed.clear()
        cached(x[:1], t[:1], y[:1])  # another batch: nothing that is remembered fits
        cached.forget()
        cached(x[:1], t[:1], y[:1])
        assert len(computed) == 2 * (last + 1)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_all_blocks_say_what_the_network_says_and_their_change_says_it_again(conditioning):
    spec = dataclasses.replace(
        SPEC, conditioning=conditioning, text_width=5 if conditioning == "text" else None
    )
    network = build_network(spec)
    network.load_state_dict(random_weights(spec))
    x, t, y = torch.randn(2, 3, 8, 8), torch.rand(2), torch.arange(2)
    y = torch.randn(2, 4, 5) if conditioning == "text" else y
    with torch.no_grad():
        out, change = full(network, x, t, y)
        assert torch.equal(out, network(x, t, y))
        torch.testing.assert_close(short(network, x, t, y, change), out)
        assert not torch.allclose(short(network, x, t, y, 2 * change), out)


def test_the_change_of_one_time_is_nearly_that_of_another(network):
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 8, 8), torch.arange(2)
    near, far = torch.full((2,), 0.51), torch.full((2,), 0.9)
    with torch.no_grad():
        plain = [network(x, t, y) for t in (near, far)]
        _, change = full(network, x, torch.full((2,), 0.5), y)
        found = [short(network, x, t, y, change) for t in (near, far)]
    errors = [(a - b).abs().max() for a, b in zip(plain, found, strict=True)]
    assert 0 < errors[0] < errors[1]


def test_sampling_with_it_is_faster_work_of_its_own_and_leaves_no_trace(tiny_run, tmp_path):
    run = load_run(tiny_run, torch.device("cpu"))
    cached = dataclasses.replace(PLAIN, block_cache=4)
    plain, plan = build_pipeline(run, PLAIN), build_pipeline(run, cached)
    latents = [sample_latents(one, IDS, IDS) for one in (plan, plan, plain)]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])
    sample_folder(run, cached, [0], 2, tmp_path / "a", "png", Ranks())
    with pytest.raises(UserError, match="block_cache"):
        sample_folder(run, PLAIN, [0], 2, tmp_path / "a", "png", Ranks())


def test_a_unet_has_no_blocks_to_skip(make_run):
    run = load_run(make_run(model="UNet-S"), torch.device("cpu"))
    with pytest.raises(UserError, match="--block-cache 2 for a UNet-S"):
        build_pipeline(run, SamplerConfig(block_cache=2))
