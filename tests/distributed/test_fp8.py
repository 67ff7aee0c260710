"""Float8 layers: which, what they compute, and that nothing but training hears of them."""

import copy
import dataclasses
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file
from test_activation_checkpoint import gradients, made, spec
from test_trainer_steps import TINY, a_session, do_step, flat, weights  # noqa: F401
from torch import Tensor, nn

from benchmarks import forked
from dit.build import build_network
from dit.config import SamplerConfig, TrainConfig
from dit.distributed import float8 as fp8
from dit.distributed.activation_checkpoint import activation_checkpointing
from dit.distributed.device import autocast, compute_precision
from dit.distributed.float8 import convert_to_float8, require_fp8
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.dit import SIZES
from dit.runs.checkpoints import find_weights
from dit.runs.metrics import read_metrics
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.training import prepare, trainer
from dit.training.monitoring.previews import sampler_settings
from dit.training.trainer import train

pytest.importorskip("torchao", reason="needs torchao: make test-fp8")

from torchao.float8.float8_linear import Float8Linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
CONDITIONINGS = [
    spec(),
    spec(conditioning="adaln"),
    spec(conditioning="cross-attention"),
    spec(conditioning="in-context"),
    spec(conditioning="text", text_width=32),
]
emulate = partial(convert_to_float8, emulate=True)
pytestmark = pytest.mark.usefixtures("small_networks")


def emulated(network: nn.Module) -> nn.Module:
    """A copy of it in float8."""
    emulate(copied := copy.deepcopy(network))
    return copied


@pytest.fixture
def on_cpu(monkeypatch):
    """--precision fp8 on a CPU, whose products are emulated."""
    monkeypatch.setattr(prepare, "use_fp8", emulate)
    monkeypatch.setattr(trainer, "require_fp8", lambda *asked: None)


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONDITIONINGS, ids=lambda s: s.conditioning)
def test_all_linear_layers_of_blocks_but_modulations_are_converted(kind):
    network = build_network(kind)
    emulate(network)
    found = {name for name, module in network.named_modules() if isinstance(module, Float8Linear)}
    attention = {"cross-attention": ["cross_attn"], "text": ["text_attn"]}.get(
        kind.conditioning, []
    )
    layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    layers += [f"{part}.{layer}" for part in attention for layer in ("q", "kv", "proj")]
    assert found == {f"blocks.{i}.{layer}" for i in range(len(network.blocks)) for layer in layers}


def test_sides_that_float8_does_not_take_stay():
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(32, 48), nn.Linear(32, 40), nn.Linear(40, 32)])
    emulate(network)
    assert [isinstance(layer, Float8Linear) for layer in network.blocks] == [True, False, False]


@pytest.mark.parametrize("name", SIZES)
def test_every_network_by_name_fits(name):
    assert SIZES[name]["hidden_size"] % 16 == 0


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """What float8 holds of a tensor that was scaled to its range."""
    scale = torch.finfo(kind).max / x.abs().max()
    return (x * scale).to(kind).float() / scale


@pytest.mark.parametrize(
    "rows", [32, 12]
)  # that the weight's gradient sums: they need not be a multiple of 16
@pytest.mark.parametrize("emulation", [True, False])
def test_products_are_of_rounded_tensors(rows, emulation):
    """Inputs and weights to e4m3, gradients to e5m2; emulated, or by torch's own float8 product."""
    torch.manual_seed(0)
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(48, 32)])
    convert_to_float8(network, emulate=emulation)
    layer, x, gradient = (
        network.blocks[0],
        torch.randn(rows, 48, requires_grad=True),
        torch.randn(rows, 32),
    )
    out = layer(x)
    out.backward(gradient)
    x8, w8, g8 = (
        rounded(x.detach(), E4M3),
        rounded(layer.weight.detach(), E4M3),
        rounded(gradient, E5M2),
    )
    for found, expected in (
        (out, x8 @ w8.T + layer.bias),
        (x.grad, g8 @ w8),
        (layer.weight.grad, g8.T @ x8),
        (layer.bias.grad, gradient.sum(0)),
    ):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


# -- networks --------------------------------------------------------------------------------------------------------


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_outputs_and_gradients_are_near_those_of_bf16():
    """One number is off by at most 2^-4 in e4m3 and 2^-3 in e5m2, sums of many by less; of bf16 by 2^-9."""
    network, inputs = made(spec())
    other = emulated(network)
    with torch.no_grad(), autocast(CPU, "bf16"):
        assert 2**-9 < distance(other(*inputs), network(*inputs)) < 2**-4
    expected, found = gradients(network, inputs, "bf16"), gradients(other, inputs, "fp8")
    assert expected.keys() == found.keys()
    assert {
        name: d for name in expected if (d := distance(found[name], expected[name])) > 2**-3
    } == {}
    assert distance(found["blocks.0.mlp.fc1.weight"], expected["blocks.0.mlp.fc1.weight"]) > 2**-7


def test_weights_are_the_same_by_the_same_names():
    network, _ = made(spec())
    before = dict(network.named_parameters())
    emulate(network)
    assert list(network.state_dict()) == list(build_network(spec()).state_dict())
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
    plain = build_network(spec())
    plain.load_state_dict(network.state_dict())
    network.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_changes_no_gradient(mode):
    network, inputs = made(spec())
    emulate(network)
    expected = gradients(network, inputs, "fp8")
    activation_checkpointing(network, mode)
    found = gradients(network, inputs, "fp8")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(("mode", "emulation"), [("none", True), ("selective", False)])
def test_compiled_gradients_are_those_of_eager(mode, emulation):
    """But for numbers that another order of sums rounds to the next float8."""
    network, inputs = made(spec())
    convert_to_float8(network, emulate=emulation)
    expected = gradients(network, inputs, "fp8")
    activation_checkpointing(network, mode)
    found = gradients(
        torch.compile(network, backend="aot_eager_decomp_partition", fullgraph=True), inputs, "fp8"
    )
    far = {
        n: d
        for n, g in found.items()
        if (d := distance(g, expected[n.removeprefix("_orig_mod.")])) > 2e-2
    }
    assert far == {}


# -- training --------------------------------------------------------------------------------------------------------


def test_steps_move_weights_as_bf16_does_and_averages_are_plain(on_cpu, tmp_path, weights):  # noqa: F811
    settings = dict(init=weights, lr=1e-3, warmup=0, ema_lengths=(0.1,))
    jobs = [
        a_session(tmp_path / precision, precision=precision, **settings)
        for precision in ("bf16", "fp8")
    ]
    start = flat(jobs[0])
    for session in jobs:
        for step in range(1, 5):
            do_step(session, step)
    losses = [session.state.window.close(session.ranks)["loss"] for session in jobs]
    moved, apart = (flat(jobs[0]) - start).norm(), (flat(jobs[1]) - flat(jobs[0])).norm()
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[1] != losses[0]
    assert apart < 0.5 * moved
    assert {p.dtype for p in jobs[1].state.network.parameters()} == {torch.float32}
    networks = [jobs[1].state.network, *(average.network for average in jobs[1].state.averages)]
    assert [
        any(isinstance(m, Float8Linear) for m in network.modules()) for network in networks
    ] == [True, False, False]
    assert sampler_settings(jobs[1].card).precision == "bf16"


def test_checkpoints_go_on_in_any_precision_and_are_sampled_from(on_cpu, tmp_path):
    step = partial(
        dataclasses.replace,
        TINY,
        out=tmp_path / "run",
        cooldown=0,
        log_every=1,
        sample_every=4,
        ckpt_every=2,
    )
    train(step(steps=2, precision="fp8"), Ranks())
    train(step(steps=4, precision="fp8", resume="auto"), Ranks())
    run = train(step(steps=6, precision="bf16", resume=str(tmp_path / "run")), Ranks())
    whole = train(step(steps=4, precision="fp8", out=tmp_path / "whole"), Ranks())
    lines = [
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (run, whole)
    ]
    assert len(lines[0]) == 6
    assert lines[0][:4] == lines[1]
    assert (whole / "samples" / "step-0000004.png").exists()
    assert '"arithmetic": "fp8"' in (whole / "machine.json").read_text()
    loaded, config, index = load_run(whole, CPU), SamplerConfig(steps=2), torch.arange(2)
    assert not any(isinstance(module, Float8Linear) for module in loaded.denoise.network.modules())
    assert sample_latents(build_pipeline(loaded, config), index, index).isfinite().all()


def train_emulated(ranks: Ranks, config: TrainConfig) -> None:
    SIZES["Ti"] = SMALL
    prepare.use_fp8, trainer.require_fp8 = emulate, lambda *asked: None
    torch.compile = partial(
        torch.compile, backend="aot_eager_decomp_partition"
    )  # quicker than code for a CPU
    train(config, ranks)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shares_learn_what_one_process_learns(compiled, on_cpu, tmp_path, weights):  # noqa: F811
    """But that each rank scales its own part of a batch."""
    config = dataclasses.replace(
        TINY, init=weights, precision="fp8", steps=2, warmup=0, cooldown=0, clip=0
    )
    one = train(dataclasses.replace(config, out=tmp_path / "one"), Ranks())
    two = dataclasses.replace(config, out=tmp_path / "two", parallel="fsdp", compile=compiled)
    forked.run(2, train_emulated, two)
    ends = [
        torch.cat([v.flatten() for v in load_file(find_weights(run)).values()])
        for run in (weights, one, two.out)
    ]
    assert (ends[2] - ends[1]).norm() < 0.5 * (ends[1] - ends[0]).norm()


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "capability", "told"),
    [
        (CPU, None, "--precision fp8 on cpu"),
        (CUDA, (8, 0), "--precision fp8 on NVIDIA A100"),
        (CUDA, (8, 9), None),
        (CUDA, (9, 0), None),
        (CUDA, (10, 0), None),
    ],
)
def test_devices_without_float8_are_refused(device, capability, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for precision in ("auto", "fp32", "bf16"):
        require_fp8(precision, device)
    refusal = pytest.raises(
        UserError, match=rf"^{told}.*compute capability 8\.9 or more.*pass --precision bf16"
    )
    with refusal if told else nullcontext():
        require_fp8("fp8", device)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8, "find_spec", lambda name: None)
    require_fp8("bf16", CUDA)
    with pytest.raises(UserError, match=r"--precision fp8 without torchao.*pip install torchao"):
        require_fp8("fp8", CUDA)


@pytest.mark.parametrize("dry_run", [False, True])
def test_training_refuses_before_it_reads_anything(dry_run, tmp_path):
    config = dataclasses.replace(
        TINY, precision="fp8", out=tmp_path / "run", data="nowhere", dry_run=dry_run
    )
    with pytest.raises(UserError, match="--precision fp8 on cpu"):
        train(config, Ranks())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["UNet-S", "Classifier-Ti/4"])
def test_networks_without_float8_are_refused(model):
    with pytest.raises(UserError, match=f"--precision fp8 with --model {model}.*a DiT with it"):
        TrainConfig(precision="fp8", model=model, label_dropout=0.0)


def test_auto_is_never_fp8(monkeypatch):
    monkeypatch.setattr("dit.distributed.device.fast_bf16", lambda device: True)
    assert [compute_precision(CUDA, asked) for asked in ("auto", "fp32", "bf16", "fp8")] == [
        "bf16",
        "fp32",
        "bf16",
        "fp8",
    ]
