"""Activation checkpointing changes what is kept and what is computed, and no number."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers.gradients import gradients, made, spec
from helpers.training import TINY, a_session, do_step, first_moment, flat
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode

from dit.commands.train import train
from dit.distributed.activation_checkpoint import activation_checkpointing
from dit.distributed.ranks import Ranks

CPU = torch.device("cpu")
MODES = ["selective", "full"]
pytestmark = pytest.mark.usefixtures("small_networks")


KINDS = [
    spec(),
    spec(conditioning="adaln"),
    spec(conditioning="cross-attention"),
    spec(conditioning="in-context"),
    spec(conditioning="adaln-single"),
    spec(conditioning="text", text_width=32),
    spec("Classifier-Ti/4"),
    spec("UNet-S"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda s: f"{s.model}-{s.conditioning}")
def test_gradients_and_names_are_the_same(kind, mode, precision):
    network, inputs = made(kind)
    names, expected = list(network.state_dict()), gradients(network, inputs, precision)
    activation_checkpointing(network, mode)
    assert list(network.state_dict()) == names
    found = gradients(network, inputs, precision)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert min(g.abs().max() for g in expected.values()) > 0


def work(network, inputs):
    """FLOPs of matrix products, and of one forward pass."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(*inputs)
    with FlopCounterMode(display=False) as both:
        gradients(network, inputs)
    return both.get_total_flops(), forward.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "share"), [(spec(), 0.85), (spec("UNet-S"), 0.5)], ids=["DiT", "UNet"]
)
def test_selective_repeats_no_product_and_full_repeats_the_forward_pass(kind, share):
    """Of a U-Net, all but layers outside its ResNet blocks and their last convolutions."""
    network, inputs = made(kind)
    plain, forward = work(network, inputs)
    activation_checkpointing(copied := copy.deepcopy(network), "selective")
    assert work(copied, inputs) == (plain, forward)
    activation_checkpointing(network, "full")
    assert plain + share * forward < work(network, inputs)[0] <= plain + forward


def test_a_copy_runs_its_own_blocks():
    """As the EMA's, which is copied from a network that recomputes."""
    network, inputs = made(spec())
    activation_checkpointing(network, "full")
    copied = copy.deepcopy(network)
    nn.init.zeros_(copied.final_layer.linear.weight)
    nn.init.zeros_(copied.blocks[0].mlp.fc1.weight)
    expected = gradients(network, inputs)["blocks.0.mlp.fc1.weight"]
    assert gradients(copied, inputs)["blocks.0.mlp.fc2.bias"].norm() == 0
    assert torch.equal(gradients(network, inputs)["blocks.0.mlp.fc1.weight"], expected)


@pytest.mark.portable
@pytest.mark.parametrize(("mode", "precision"), [("selective", "bf16"), ("full", "fp32")])
def test_compiled_gradients_are_those_of_eager(mode, precision):
    network, inputs = made(spec())
    expected = gradients(network, inputs, precision)
    activation_checkpointing(network, mode)
    found = gradients(
        torch.compile(network, backend="aot_eager_decomp_partition", fullgraph=True),
        inputs,
        precision,
    )
    for name, gradient in found.items():
        close = 1e-5 if precision == "fp32" else 2e-2
        expected_gradient = expected[name.removeprefix("_orig_mod.")]
        assert (gradient - expected_gradient).norm() <= close * expected_gradient.norm(), name


@pytest.fixture
def alone():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", MODES)
def test_blocks_can_be_sharded_afterwards(alone, mode):
    network, inputs = made(spec())
    expected = gradients(network, inputs)
    activation_checkpointing(network, mode)
    mesh = dist.init_device_mesh("cpu", (1,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    found = gradients(fully_shard(network, mesh=mesh), inputs)
    assert [
        name for name in expected if not torch.equal(found[name].full_tensor(), expected[name])
    ] == []


@pytest.mark.parametrize("mode", MODES)
def test_training_accumulates_the_same_gradients(mode, tmp_path, weights):
    plain, less = (
        do_step(a_session(tmp_path / m, init=weights, recompute=m, grad_accum=2))
        for m in ("none", mode)
    )
    assert first_moment(plain).norm() > 0.01
    assert torch.equal(first_moment(less), first_moment(plain))
    assert torch.equal(flat(less), flat(plain))


def test_a_run_may_go_on_with_another_choice(tmp_path):
    step = partial(dataclasses.replace, TINY, out=tmp_path / "run", ckpt_every=1, resume="auto")
    train(step(steps=1), Ranks())
    assert train(step(steps=2, recompute="full"), Ranks()) == tmp_path / "run"
