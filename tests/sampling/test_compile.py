"""Networks as sampling calls them: the same numbers, sooner."""

import dataclasses
from functools import partial

import pytest
import torch
from conftest import SMALL
from torch.utils._pytree import tree_flatten, tree_unflatten

from dit.config import SamplerConfig
from dit.diffusion.process import Prediction
from dit.distributed.device import autocast
from dit.models.feature_cache import CachedNetwork, run_all_blocks, run_outer_blocks
from dit.models.sizes import SIZES
from dit.sampling.compile import compile_network, pad_batches, round_weights
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline

CPU = torch.device("cpu")
FAMILIES = [
    dict(),
    dict(conditioning="adaln"),
    dict(conditioning="cross-attention"),
    dict(conditioning="in-context"),
    dict(conditioning="adaln-single"),
    dict(learn_sigma=True, process="linear", objective="eps", time_sampling="uniform"),
    dict(model="UNet-S"),
]


@pytest.mark.parametrize(
    "settings", FAMILIES, ids=lambda settings: "-".join(map(str, settings.values()))
)
def test_weights_are_rounded_once_to_what_autocast_makes_of_them(settings, make_run):
    network = load_run(make_run(**settings), CPU).denoise.network
    rounded = round_weights(network, CPU, "bf16")
    inputs = torch.randn(3, 3, 8, 8), torch.rand(3), torch.arange(3)

    with torch.inference_mode(), autocast(CPU, "bf16"):
        assert torch.equal(rounded(*inputs), network(*inputs))
    dtypes = {p.dtype for p in rounded.parameters()}
    assert dtypes == {torch.float32, torch.bfloat16}  # norms and embeddings are not rounded
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_all_tensors_are_shared_in_float32(tiny_run):
    network = load_run(tiny_run, CPU).denoise.network
    copy = round_weights(network, CPU, "fp32")
    assert [p.data_ptr() for p in copy.parameters()] == [p.data_ptr() for p in network.parameters()]


@pytest.mark.parametrize(
    ("cache", "graphs", "backend"),
    [
        (2, 3, "aot_eager"),  # all but making code for a CPU, which takes a minute
        pytest.param(2, 3, "inductor", marks=pytest.mark.slow),
        pytest.param(None, 2, "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_images_are_the_same_in_batches_of_any_size(
    cache, graphs, backend, make_run, monkeypatch
):
    """Seven images in batches of three, the last one padded, guided in three of four steps.

    This compiles code for 3 and for 6 rows and, with the cache, which is used in the third step,
    for 6 rows of a short call.
    """
    monkeypatch.setitem(SIZES, "Ti", SMALL | dict(depth=3))  # one block in the middle
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    run, indices = load_run(make_run(), CPU), torch.arange(7)
    config = SamplerConfig(
        precision="fp32",
        steps=4,
        cfg_scale=2.0,
        cfg_interval=(0.2, 0.8),
        batch_size=3,
        block_cache=cache,
        compile=False,
    )

    def latents(config):
        pipeline = build_pipeline(run, config)
        batches = indices.split(config.batch_size)
        return torch.cat([sample_latents(pipeline, batch % 10, batch) for batch in batches])

    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager = latents(config)
    compiled = latents(dataclasses.replace(config, compile=True))
    assert counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4 * eager.abs().max().item())


@pytest.mark.parametrize(("count", "rows"), [(1, 4), (3, 4), (4, 4), (5, 5)])
def test_small_batches_are_padded(count, rows):
    sizes = []

    def denoise(x_t, t, y):
        sizes.append((len(x_t), len(y)))
        return Prediction(x_t * t, x_t, x_t + y.view(-1, 1, 1, 1), None)

    x, t, y = torch.randn(count, 3, 1, 1), torch.tensor(0.5), torch.arange(count)
    padded = pad_batches(denoise, 4)(x, t, y)
    for found, expected in zip(padded, denoise(x, t, y), strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)
    assert sizes[0] == (rows, rows)


def test_outputs_of_cuda_graphs_are_copied(monkeypatch, tiny_run):
    """Without a GPU: a fake compiler writes all results into one buffer, as CUDA graphs do."""
    buffer, modes = torch.zeros(10**5), []

    def compiler(network, dynamic, mode=None, options=None):
        modes.append(mode)

        def call(*inputs):
            results, form = tree_flatten(network(*inputs))
            parts = buffer[: sum(map(torch.numel, results))].split([*map(torch.numel, results)])
            copies = [p.view_as(r).copy_(r) for p, r in zip(parts, results, strict=True)]
            return tree_unflatten(copies, form)

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    network = load_run(tiny_run, CPU).denoise.network
    eager = [partial(run_all_blocks, network), partial(run_outer_blocks, network)]
    graphs = [compile_network(call, torch.device("cuda"), rows=2) for call in eager]
    x, t, y = torch.randn(4, 2, 3, 8, 8), torch.rand(4, 2), torch.arange(2)

    outputs = []
    for calls in (eager, graphs):
        cached = CachedNetwork(*calls, every=3)
        outputs.append(torch.stack([cached(x[i], t[i], y) for i in range(4)]))
    assert torch.equal(*outputs)
    compile_network(network, torch.device("cuda"), rows=64)
    assert modes == ["reduce-overhead", "reduce-overhead", None]
