"""The U-Net baseline: levels, sizes, what it depends on, what a fresh one says."""

import dataclasses

import pytest
import torch

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.registry import create_model, multiply_adds, parameters
from dit.models.unet import UNet
from dit.runs.card import ModelCard, NetworkSpec
from dit.sampling.load import load_run
from dit.training.trainer import train

SMALL = dict(
    input_size=8,
    in_channels=3,
    num_classes=5,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_sides=(4,),
)


def perturbed(**changes):
    """A network whose last convolution says something."""
    torch.manual_seed(0)
    network = UNet(**{**SMALL, **changes})
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network


def inputs(n=3, size=(8, 8), channels=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, *size, generator=generator)
    return x, torch.rand(n, generator=generator) * 1000, torch.arange(n)


def levels(network, x):
    """Shape that each level of the way down ends with."""
    found = []
    for block in network.unet.down_blocks:
        block.register_forward_hook(lambda m, a, out: found.append(tuple(out[0].shape)))
    network(x, torch.zeros(len(x)), torch.zeros(len(x), dtype=torch.long))
    return found


def test_worked_example_of_levels():
    with torch.device("meta"):
        network = UNet(
            input_size=128,
            in_channels=3,
            num_classes=0,
            layers_per_block=2,
            attention_sides=(16,),
            block_out_channels=(128, 128, 256, 256, 512, 512),
        )
        found = levels(network, torch.empty(32, 3, 128, 128))
    assert found == [
        (32, 128, 64, 64),
        (32, 128, 32, 32),
        (32, 256, 16, 16),
        (32, 256, 8, 8),
        (32, 512, 4, 4),
        (32, 512, 4, 4),  # the last level does not halve
    ]


def test_b_is_the_network_of_ddpm():
    """2006.11239, appendix B: 35.7 M parameters for CIFAR-10, here with one label embedding more."""
    with torch.device("meta"):
        network = create_model("UNet-B", input_size=32, in_channels=3, num_classes=0)
    assert parameters(network) == 35_746_307 + 4 * 128  # google/ddpm-cifar10-32
    blocks = [
        type(block).__name__ for block in (*network.unet.down_blocks, *network.unet.up_blocks)
    ]
    attends = [index for index, name in enumerate(blocks) if "Attn" in name]
    assert attends == [1, 4 + 2]


def test_s_costs_about_what_the_smallest_dit_costs():
    shape = dict(input_size=8, in_channels=4, num_classes=10)
    unet, dit = (multiply_adds(name, **shape) for name in ("UNet-S", "DiT-Ti/2"))
    assert unet == pytest.approx(dit, rel=0.25)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("size", "channels"), [((8, 8), 4), ((16, 8), 3), ((4, 12), 1)])
def test_shapes_in_pixels_latents_and_rectangles(learn_sigma, size, channels):
    network = perturbed(input_size=size, in_channels=channels, learn_sigma=learn_sigma)
    assert network(*inputs(3, size, channels)).shape == (
        3,
        channels * (2 if learn_sigma else 1),
        *size,
    )


def test_a_fresh_network_says_exactly_zero():
    assert not UNet(**SMALL)(*inputs()).any()
    assert perturbed()(*inputs()).abs().min() > 0


def test_each_image_depends_on_its_own_time_and_class():
    network, (x, t, y) = perturbed(), inputs()
    said = network(x, t, y)
    later, null = t.clone(), y.clone()
    later[1], null[2] = later[1] + 100, 5
    for changed, who in ((network(x, later, y), 1), (network(x, t, null), 2)):
        moved = (changed - said).abs().amax(dim=(1, 2, 3))
        assert moved[who] > 1e-3
        assert moved[[i for i in range(3) if i != who]].max() < 1e-5
    with pytest.raises(IndexError):
        network(x, t, y + 4)


def test_times_between_whole_steps_count():
    network, (x, t, y) = perturbed(), inputs()
    assert (network(x, t.floor() + 0.5, y) - network(x, t.floor(), y)).abs().max() > 1e-4


def test_gradient_reaches_everything():
    network = perturbed(learn_sigma=True)
    network(*inputs()).square().sum().backward()
    assert [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_label_embeddings_have_the_key_of_dit():
    network = UNet(**{**SMALL, "num_classes": 300})
    table = network.state_dict()["y_embedder.embedding_table.weight"]
    assert table.shape == (301, 4 * 32)
    assert table.std().item() == pytest.approx(0.02, rel=0.05)


def test_attention_where_it_is_asked_for():
    def attends(**changes):
        network = UNet(**{**SMALL, **changes})
        return [
            "Attn" in type(block).__name__
            for block in (*network.unet.down_blocks, *network.unet.up_blocks)
        ]

    assert attends() == [False, True, True, False]
    assert attends(attention_sides=()) == [False] * 4
    assert attends(attention_sides=(8,), input_size=(8, 24)) == [True, False, False, True]


def test_attention_at_levels_of_ones_choice(tmp_path):
    config = TrainConfig(
        model="UNet-S",
        vae="identity",
        image_size=8,
        global_batch_size=16,
        steps=1,
        sample_every=0,
        log_every=0,
        out=tmp_path / "run",
        unet_attention=(2,),
    )
    run = load_run(train(config, Ranks()), torch.device("cpu"))
    assert run.card.network.unet_attention == (2,)
    assert run.card.network.summary["unet_attention"] == (2,)
    attends = ["Attn" in type(block).__name__ for block in run.denoise.network.unet.down_blocks]
    assert attends == [False, False, True]
    train(dataclasses.replace(config, resume=str(config.out), steps=2), Ranks())
    with pytest.raises(UserError, match=r"unet_attention \(2,\) there, None now"):
        train(
            dataclasses.replace(config, resume=str(config.out), steps=2, unet_attention=None),
            Ranks(),
        )


def test_attention_where_there_is_no_level():
    with pytest.raises(
        UserError, match=r"--unet-attention 8 5 with --model UNet-S; expected sides .*: 8 4 2"
    ):
        create_model("UNet-S", input_size=8, in_channels=3, num_classes=5, unet_attention=(8, 5))
    with pytest.raises(
        UserError, match="--unet-attention 16 8 with --model DiT-S/2; expected a UNet"
    ):
        TrainConfig(model="DiT-S/2", unet_attention=(16, 8))


def test_runs_from_before_the_choice_are_read(make_run):
    spec = {
        "model": "UNet-S",
        "input_size": 8,
        "in_channels": 3,
        "num_classes": 10,
        "learn_sigma": False,
    }
    assert NetworkSpec(**spec).summary == spec | {"input_size": 8}
    card = ModelCard.read(make_run(model="UNet-S")).to_json()
    del card["network"]["unet_attention"], card["config"]["unet_attention"]
    assert ModelCard.from_json(card).network.unet_attention is None


@pytest.mark.parametrize("size", [9, (8, 7), (5, 8)])
def test_sizes_that_can_not_be_halved(size):
    with pytest.raises(UserError, match="for a U-Net of 2 levels; expected multiples of 2"):
        UNet(**{**SMALL, "input_size": size})
    network = perturbed()
    with pytest.raises(UserError, match="multiples of 2"):
        network.resize(size)


def test_another_size_takes_nothing_but_the_image():
    network = perturbed()
    network.resize((8, 16))
    x, t, y = inputs(2, (8, 16))
    said = network(x, t, y)
    assert said.shape == x.shape
    assert torch.equal(perturbed()(x, t, y), said)


def test_it_trains_and_draws(tmp_path):
    config = TrainConfig(
        model="UNet-S",
        vae="identity",
        image_size=8,
        global_batch_size=16,
        steps=3,
        sample_every=0,
        log_every=0,
        out=tmp_path / "run",
    )
    run = load_run(train(config, Ranks()), torch.device("cpu"))
    said = run.denoise(
        torch.randn(2, 3, 8, 8),
        torch.tensor([0.5, 0.9], dtype=torch.float64),
        torch.tensor([0, 10]),
    )
    assert said.out.abs().min() > 0
    assert said.out.isfinite().all()
