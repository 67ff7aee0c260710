"""Float8 layers: which there are, what they compute, and that they stay inside of training."""

import copy
import dataclasses
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import SMALL
from helpers import forked
from helpers.gradients import gradients, made, spec
from helpers.training import TINY, a_session, do_step, flat, logged, run
from safetensors.torch import load_file
from torch import Tensor, nn

from dit.build import build_network
from dit.commands.train import train
from dit.config import SamplerConfig, TrainConfig
from dit.distributed import float8
from dit.distributed.activation_checkpoint import activation_checkpointing
from dit.distributed.device import autocast, compute_precision
from dit.distributed.float8 import convert_to_float8, require_fp8
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import find_weights
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.training import build_networks as networks
from dit.training import checks
from dit.training.monitoring.previews import preview_settings

pytest.importorskip("torchao", reason="needs torchao: make test-fp8")

from torchao.float8.float8_linear import Float8Linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
CONDITIONINGS = [
    *(spec(conditioning=kind) for kind in ("adaln-zero", "adaln", "cross-attention", "in-context")),
    spec(conditioning="adaln-single"),
    spec(conditioning="text", text_width=32),
]
QUICK_BACKEND = "aot_eager_decomp_partition"  # of torch.compile: no code for a CPU is made
emulate = partial(convert_to_float8, emulate=True)
pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def on_cpu(monkeypatch):
    """--precision fp8 on a CPU, whose products are emulated."""
    monkeypatch.setattr(networks, "convert_to_float8", emulate)
    monkeypatch.setattr(checks, "require_fp8", lambda *asked: None)


def has_float8(network: nn.Module) -> bool:
    return any(isinstance(module, Float8Linear) for module in network.modules())


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONDITIONINGS, ids=lambda s: s.conditioning)
def test_all_linear_layers_of_blocks_but_modulations_are_converted(kind):
    network = build_network(kind)
    emulate(network)
    found = {name for name, module in network.named_modules() if isinstance(module, Float8Linear)}
    attention = {"cross-attention": ["cross_attn"], "text": ["text_attn"]}
    layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    for part in attention.get(kind.conditioning, []):
        layers += [f"{part}.{layer}" for layer in ("q", "kv", "proj")]
    assert found == {f"blocks.{i}.{layer}" for i in range(len(network.blocks)) for layer in layers}


def test_layers_whose_sides_float8_does_not_take_stay():
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(32, 48), nn.Linear(32, 40), nn.Linear(40, 32)])
    emulate(network)
    assert [isinstance(layer, Float8Linear) for layer in network.blocks] == [True, False, False]
    assert all(size["hidden_size"] % 16 == 0 for size in SIZES.values())


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """What float8 holds of a tensor that was scaled to its range."""
    scale = torch.finfo(kind).max / x.abs().max()
    return (x * scale).to(kind).float() / scale


@pytest.mark.parametrize("rows", [32, 12])  # they need not be a multiple of 16
@pytest.mark.parametrize("emulation", [True, False])
def test_products_are_of_rounded_tensors(rows, emulation):
    """Inputs and weights to e4m3, gradients to e5m2; emulated, or by torch's float8 product."""
    torch.manual_seed(0)
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(48, 32)])
    convert_to_float8(network, emulate=emulation)
    layer = network.blocks[0]
    x, gradient = torch.randn(rows, 48, requires_grad=True), torch.randn(rows, 32)
    out = layer(x)
    out.backward(gradient)
    x8, w8 = rounded(x.detach(), E4M3), rounded(layer.weight.detach(), E4M3)
    g8 = rounded(gradient, E5M2)
    for found, expected in (
        (out, x8 @ w8.T + layer.bias),
        (x.grad, g8 @ w8),
        (layer.weight.grad, g8.T @ x8),
        (layer.bias.grad, gradient.sum(0)),
    ):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


# -- networks --------------------------------------------------------------------------------------


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_outputs_and_gradients_are_near_those_of_bf16():
    """A number is off by at most 2^-4 in e4m3, 2^-3 in e5m2 and 2^-9 in bf16, sums by less."""
    network, inputs = made(spec())
    emulate(other := copy.deepcopy(network))
    with torch.no_grad(), autocast(CPU, "bf16"):
        assert 2**-9 < distance(other(*inputs), network(*inputs)) < 2**-4
    expected, found = gradients(network, inputs, "bf16"), gradients(other, inputs, "fp8")
    assert expected.keys() == found.keys()
    distances = {name: distance(found[name], expected[name]) for name in expected}
    assert max(distances.values()) <= 2**-3
    assert distances["blocks.0.mlp.fc1.weight"] > 2**-7


def test_weights_are_the_same_by_the_same_names():
    network, _ = made(spec())
    before = dict(network.named_parameters())
    emulate(network)
    assert list(network.state_dict()) == list(build_network(spec()).state_dict())
    assert all(parameter is before[name] for name, parameter in network.named_parameters())


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient(mode):
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
    compiled = torch.compile(network, backend=QUICK_BACKEND, fullgraph=True)
    for name, found in gradients(compiled, inputs, "fp8").items():
        assert distance(found, expected[name.removeprefix("_orig_mod.")]) <= 2e-2, name


# -- training --------------------------------------------------------------------------------------


def test_steps_move_weights_as_bf16_does_and_averages_are_plain(on_cpu, tmp_path, weights):
    settings = dict(init=weights, lr=1e-3, warmup=0, ema_lengths=(0.1,))
    bf16, fp8 = (a_session(tmp_path / p, precision=p, **settings) for p in ("bf16", "fp8"))
    start = flat(bf16)
    for step in range(1, 5):
        do_step(bf16, step)
        do_step(fp8, step)
    losses = [one.state.means.compute_and_reset(Ranks())["loss"] for one in (bf16, fp8)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[1] != losses[0]
    assert (flat(fp8) - flat(bf16)).norm() < 0.5 * (flat(bf16) - start).norm()
    assert {p.dtype for p in fp8.state.network.parameters()} == {torch.float32}
    assert has_float8(fp8.state.network)
    assert not any(has_float8(average.network) for average in fp8.state.averages)
    assert preview_settings(fp8.card).precision == "bf16"


def test_checkpoints_continue_in_any_precision_and_are_sampled_from(on_cpu, tmp_path):
    config = dataclasses.replace(TINY, cooldown=0, log_every=1, sample_every=4, ckpt_every=2)
    out = tmp_path / "run"
    run(out, config, steps=2, precision="fp8")
    run(out, config, steps=4, precision="fp8", resume="auto")
    run(out, config, steps=6, precision="bf16", resume=str(out))
    undisturbed = run(tmp_path / "undisturbed", config, steps=4, precision="fp8")
    losses = logged(out, "loss")
    assert len(losses) == 6
    assert losses[:4] == logged(undisturbed, "loss")
    assert (undisturbed / "samples" / "step-0000004.png").exists()
    assert '"arithmetic": "fp8"' in (undisturbed / "machine.json").read_text()

    loaded, settings, index = load_run(undisturbed, CPU), SamplerConfig(steps=2), torch.arange(2)
    assert not has_float8(loaded.denoise.network)
    pipeline = build_pipeline(loaded, settings)
    assert sample_latents(pipeline, index, index).isfinite().all()


def train_emulated(ranks: Ranks, config: TrainConfig) -> None:
    SIZES["Ti"] = SMALL
    networks.convert_to_float8 = emulate
    checks.require_fp8 = lambda *asked: None
    torch.compile = partial(torch.compile, backend=QUICK_BACKEND)
    train(config, ranks)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fsdp_learns_what_one_process_learns(compiled, on_cpu, tmp_path, weights):
    """But that each rank scales its own part of a batch."""
    settings = dict(init=weights, precision="fp8", steps=2, warmup=0, cooldown=0, clip=0)
    config = dataclasses.replace(TINY, **settings)
    one, two = run(tmp_path / "one", config), tmp_path / "two"
    fsdp = dataclasses.replace(config, out=two, parallel="fsdp", compile=compiled)
    forked.run(2, train_emulated, fsdp)
    start, alone, shared = (
        torch.cat([tensor.flatten() for tensor in load_file(find_weights(out)).values()])
        for out in (weights, one, two)
    )
    assert (shared - alone).norm() < 0.5 * (alone - start).norm()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "capability", "message"),
    [
        (CPU, None, "--precision fp8 on cpu"),
        (CUDA, (8, 0), "--precision fp8 on NVIDIA A100"),
        (CUDA, (8, 9), None),
        (CUDA, (10, 0), None),
    ],
)
def test_devices_without_float8_are_refused(device, capability, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for precision in ("auto", "fp32", "bf16"):
        require_fp8(precision, device)
    refused = rf"^{message}.*compute capability 8\.9 or more.*pass --precision bf16"
    with pytest.raises(UserError, match=refused) if message else nullcontext():
        require_fp8("fp8", device)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    require_fp8("bf16", CUDA)
    with pytest.raises(UserError, match=r"--precision fp8 without torchao.*pip install torchao"):
        require_fp8("fp8", CUDA)


@pytest.mark.parametrize("dry_run", [False, True])
def test_training_refuses_before_it_reads_anything(dry_run, tmp_path):
    with pytest.raises(UserError, match="--precision fp8 on cpu"):
        run(tmp_path / "run", precision="fp8", data="nowhere", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["UNet-S", "Classifier-Ti/4"])
def test_networks_without_float8_are_refused(model):
    with pytest.raises(UserError, match=f"--precision fp8 with --model {model}.*a DiT with it"):
        TrainConfig(precision="fp8", model=model, label_dropout=0.0)


def test_auto_is_never_fp8(monkeypatch):
    monkeypatch.setattr("dit.distributed.device.fast_bf16", lambda device: True)
    found = [compute_precision(CUDA, asked) for asked in ("auto", "fp32", "bf16", "fp8")]
    assert found == ["bf16", "fp32", "bf16", "fp8"]
