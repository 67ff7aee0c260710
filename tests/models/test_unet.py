"""The U-Net baseline: levels, sizes, what it depends on, initial outputs."""

import dataclasses

import pytest
import torch
from helpers.networks import changed_images, inputs, perturb, without_gradient

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.registry import count_parameters, create_model, multiply_adds
from dit.models.unet import UNet
from dit.runs.card import ModelCard
from dit.sampling.load import load_run

SMALL = dict(
    input_size=8,
    in_channels=3,
    num_classes=5,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_sides=(4,),
)


def perturbed(**changes):
    torch.manual_seed(0)
    return perturb(UNet(**{**SMALL, **changes}), 0.05)


def test_sides_and_features_of_levels():
    with torch.device("meta"):
        network = UNet(
            input_size=128,
            in_channels=3,
            num_classes=0,
            layers_per_block=2,
            attention_sides=(16,),
            block_out_channels=(128, 128, 256, 256, 512, 512),
        )
        shapes = []
        for block in network.unet.down_blocks:
            block.register_forward_hook(lambda m, a, out: shapes.append(tuple(out[0].shape[1:])))
        network(torch.empty(2, 3, 128, 128), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    features_and_sides = [(128, 64), (128, 32), (256, 16), (256, 8), (512, 4)]
    features_and_sides.append((512, 4))  # the last level does not halve
    assert shapes == [(features, side, side) for features, side in features_and_sides]


def with_attention(network):
    """Which levels have attention, on the way down and up."""
    levels = (*network.unet.down_blocks, *network.unet.up_blocks)
    return ["Attn" in type(block).__name__ for block in levels]


def test_b_is_the_network_of_ddpm():
    """2006.11239, appendix B: 35.7 M parameters for CIFAR-10, and one label embedding here."""
    with torch.device("meta"):
        network = create_model("UNet-B", input_size=32, in_channels=3, num_classes=0)
    assert count_parameters(network) == 35_746_307 + 4 * 128  # google/ddpm-cifar10-32
    assert [i for i, has in enumerate(with_attention(network)) if has] == [1, 4 + 2]


def test_s_costs_about_what_dit_ti_costs():
    shape = dict(input_size=8, in_channels=4, num_classes=10)
    dit = multiply_adds("DiT-Ti/2", **shape)
    assert multiply_adds("UNet-S", **shape) == pytest.approx(dit, rel=0.25)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("size", "channels"), [((8, 8), 4), ((16, 8), 3), ((4, 12), 1)])
def test_shapes_in_pixels_latents_and_rectangles(learn_sigma, size, channels):
    network = perturbed(input_size=size, in_channels=channels, learn_sigma=learn_sigma)
    out = network(*inputs(size=size, channels=channels))
    assert out.shape == (3, channels * (2 if learn_sigma else 1), *size)


def test_output_of_a_fresh_network_is_zero():
    assert not UNet(**SMALL)(*inputs()).any()
    assert perturbed()(*inputs()).abs().min() > 0


@pytest.mark.portable
def test_each_image_depends_on_its_own_time_and_class():
    network, (x, t, y) = perturbed(), inputs()
    out = network(x, t, y)
    later, null = t.clone(), y.clone()
    later[1], null[2] = later[1] + 100, 5
    assert changed_images(network(x, later, y), out) == [False, True, False]
    assert changed_images(network(x, t, null), out) == [False, False, True]
    with pytest.raises(IndexError):
        network(x, t, y + 4)


def test_times_between_whole_steps_count():
    network, (x, t, y) = perturbed(), inputs()
    assert (network(x, t.floor() + 0.5, y) - network(x, t.floor(), y)).abs().max() > 1e-4


def test_every_parameter_gets_a_gradient():
    network = perturbed(learn_sigma=True)
    network(*inputs()).square().sum().backward()
    assert without_gradient(network) == set()


def test_label_embeddings_have_the_key_of_dit():
    network = UNet(**{**SMALL, "num_classes": 300})
    table = network.state_dict()["y_embedder.embedding_table.weight"]
    assert table.shape == (301, 4 * 32)
    assert table.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(), [False, True, True, False]),
        (dict(attention_sides=()), [False] * 4),
        (dict(attention_sides=(8,), input_size=(8, 24)), [True, False, False, True]),
    ],
)
def test_levels_with_attention(changes, expected):
    assert with_attention(UNet(**{**SMALL, **changes})) == expected


@pytest.mark.slow
def test_chosen_levels_are_trained_stored_and_checked_at_resume(tmp_path):
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
    assert with_attention(run.denoise.network)[:3] == [False, False, True]
    t = torch.tensor([0.5, 0.9], dtype=torch.float64)
    out = run.denoise(torch.randn(2, 3, 8, 8), t, torch.tensor([0, 10])).out
    assert out.isfinite().all()
    assert out.abs().min() > 0

    resumed = dataclasses.replace(config, resume=str(config.out), steps=2)
    train(resumed, Ranks())
    with pytest.raises(UserError, match=r"--unet-attention 2 there, no --unet-attention now"):
        train(dataclasses.replace(resumed, unet_attention=None), Ranks())


def test_attention_where_there_is_no_level():
    with pytest.raises(
        UserError, match=r"--unet-attention 8 5 with --model UNet-S; expected sides .*: 8 4 2"
    ):
        create_model("UNet-S", input_size=8, in_channels=3, num_classes=5, unet_attention=(8, 5))
    with pytest.raises(UserError, match=r"--unet-attention 16 8 .* DiT-S/2; expected a UNet"):
        TrainConfig(model="DiT-S/2", unet_attention=(16, 8))


def test_cards_from_before_the_choice_of_levels_are_read(make_run):
    card = ModelCard.read(make_run(model="UNet-S")).to_json()
    del card["network"]["unet_attention"], card["config"]["unet_attention"]
    assert ModelCard.from_json(card).network.unet_attention is None


@pytest.mark.parametrize("size", [9, (8, 7), (5, 8)])
def test_sizes_that_can_not_be_halved(size):
    with pytest.raises(UserError, match="for a U-Net of 2 levels; expected multiples of 2"):
        UNet(**{**SMALL, "input_size": size})
    with pytest.raises(UserError, match="multiples of 2"):
        perturbed().resize(size)


def test_resizing_changes_no_output():
    network, (x, t, y) = perturbed(), inputs(size=(8, 16))
    network.resize((8, 16))
    assert torch.equal(perturbed()(x, t, y), network(x, t, y))
