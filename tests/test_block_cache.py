"""Feature caching: what is reused, when, and that nothing stays behind."""

import dataclasses

import pytest
import torch
from conftest import random_weights

from dit.build import build_network
from dit.config import SamplerConfig
from dit.errors import UserError
from dit.generate import sample_latents
from dit.hardware import Ranks
from dit.models.caching import remembering
from dit.runs import NetworkSpec
from dit.sample_folder import sample_folder
from dit.sampling_plan import build_sampling
from dit.trained import load_run

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
    with torch.no_grad(), remembering(network, 3):
        for n in range(7):
            computed.clear()
            network(x, t, y)
            assert computed == (list(range(last + 1)) if n % 3 == 0 else [0, last])
        computed.clear()
        network(x[:1], t[:1], y[:1])  # another batch: nothing that is remembered fits
        assert len(computed) == last + 1
    assert network.blocks is blocks


def test_the_same_time_again_gives_the_same_and_another_one_nearly(network):
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 8, 8), torch.arange(2)
    near, far = torch.full((2,), 0.51), torch.full((2,), 0.9)
    with torch.no_grad():
        plain = [network(x, t, y) for t in (near, far)]
        found = []
        for t in (near, far):
            with remembering(network, 2):
                network(x, torch.full((2,), 0.5), y)
                found.append(network(x, t, y))
        with remembering(network, 2):
            twice = network(x, near, y), network(x, near, y)
    torch.testing.assert_close(*twice)
    errors = [(a - b).abs().max() for a, b in zip(plain, found, strict=True)]
    assert 0 < errors[0] < errors[1]


def test_sampling_with_it_is_faster_work_of_its_own_and_leaves_no_trace(tiny_run, tmp_path):
    run = load_run(tiny_run, torch.device("cpu"))
    latents = [sample_latents(run, build_sampling(run, config), config, IDS, IDS)
               for config in (PLAIN, dataclasses.replace(PLAIN, block_cache=2), PLAIN)]
    assert torch.equal(latents[0], latents[2])
    assert not torch.equal(latents[0], latents[1])
    cached = dataclasses.replace(PLAIN, block_cache=2)
    sample_folder(run, cached, [0], 2, tmp_path / "a", "png", Ranks())
    with pytest.raises(UserError, match="block_cache"):
        sample_folder(run, PLAIN, [0], 2, tmp_path / "a", "png", Ranks())


def test_a_unet_has_no_blocks_to_skip(make_run):
    run = load_run(make_run(model="UNet-S"), torch.device("cpu"))
    with pytest.raises(UserError, match="--block-cache 2 for a UNet-S"):
        build_sampling(run, SamplerConfig(block_cache=2))
