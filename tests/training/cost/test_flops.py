"""What training costs, and what there is to spend."""

import pytest
import torch
from helpers.encoders import write_encoder
from helpers.training import TINY, a_session, do_step
from torch.utils.flop_counter import FlopCounterMode

from dit.config import TrainConfig
from dit.models.registry import create_model, zero_inputs
from dit.models.sizes import SIZES
from dit.runs.card import NetworkSpec
from dit.training.cost import flops
from dit.training.cost.flops import (
    Meter,
    Peak,
    flops_per_image,
    meter,
    peak_of,
    training_flops,
)

CUDA = torch.device("cuda")
SPEC = NetworkSpec(model="DiT-S/4", input_size=16, in_channels=4, num_classes=10, learn_sigma=False)


def test_six_a_multiply_add_is_what_a_forward_and_a_backward_pass_cost():
    network = create_model(SPEC.model, **SPEC.sizes)
    with FlopCounterMode(display=False) as counter:
        network(*zero_inputs(SPEC.model, 4, 0, **SPEC.sizes)).sum().backward()
    assert training_flops(SPEC, TrainConfig()) == pytest.approx(
        counter.get_total_flops() / 4, rel=0.02
    )  # none for the input itself


def test_the_paper_s_largest_network_costs_712_gflop():
    spec = NetworkSpec(
        model="DiT-XL/2", input_size=32, in_channels=4, num_classes=1000, learn_sigma=True
    )
    assert training_flops(spec, TrainConfig()) == pytest.approx(712e9, rel=0.002)


@pytest.mark.parametrize("teacher", ["self", "encoder", "encoder of decoded latents"])
def test_alignment_counts_in_the_share_of_steps_that_it_lasts(teacher, tmp_path, monkeypatch):
    """In the mean over a run's steps, as steps of the trainer have them."""
    monkeypatch.setitem(SIZES, "Ti", dict(depth=6, hidden_size=64, num_heads=2))
    align, first_stage = "self", {}
    if teacher != "self":
        align = str(write_encoder(tmp_path / "encoder"))
    if teacher == "encoder of decoded latents":
        first_stage = dict(vae="digits", image_size=32)
    session = a_session(tmp_path, TINY, align=align, align_until=0.5, **first_stage)
    spent = []
    for step in range(1, 7):
        with FlopCounterMode(display=False) as counter:
            do_step(session, step)
        spent.append(counter.get_total_flops() / 16)

    assert spent[0] == spent[2] > 1.05 * spent[3] == 1.05 * spent[5]
    assert training_flops(session.card.network, session.config) == pytest.approx(spent[5], rel=0.02)
    assert meter(session).flops == pytest.approx(sum(spent) / 6, rel=0.02)
    given = 0, session.autoencoder, session.vision
    # up to a step in its middle, as a row of a benchmark
    assert flops_per_image(session.card, 4, *given) == pytest.approx(sum(spent[:4]) / 4, rel=0.02)
    assert flops_per_image(session.card, 2, *given) == pytest.approx(spent[0], rel=0.02)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 66.9),
        ("NVIDIA H100 PCIe", 756, 51.2),
        ("NVIDIA H200", 989, 66.9),
        ("NVIDIA GH200 480GB", 989, 66.9),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
    ],
)
def test_known_gpus_have_the_figures_of_their_data_sheets(name, bf16, fp32, monkeypatch):
    monkeypatch.setattr(flops, "device_kind", lambda device: name)
    assert peak_of(CUDA, True) == (bf16 * 1e12, "data sheet, dense bf16")
    assert peak_of(CUDA, False) == (fp32 * 1e12, "data sheet, dense fp32")


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A10G",
        "Another L4000",
    ],
)
def test_parts_and_unknown_ones_are_measured(name, monkeypatch):
    monkeypatch.setattr(flops, "device_kind", lambda device: name)
    monkeypatch.setattr(flops, "measured_rate", lambda device, side, bf16: 5.0)
    assert peak_of(CUDA, True) == (5.0, "measured, bf16 products of 8192 x 8192 matrices")


def test_a_cpu_is_measured_without_touching_training_s_randomness():
    before = torch.get_rng_state()
    flops.measured_rate.cache_clear()
    peak = peak_of(torch.device("cpu"), False)
    assert peak.source.startswith("measured, fp32")
    assert 1e8 < peak.flops < 1e14
    assert torch.equal(before, torch.get_rng_state())


def test_utilisation_is_of_all_devices():
    assert Meter(2e9, Peak(1e12, ""), devices=8).utilisation(1000) == pytest.approx(0.25)
