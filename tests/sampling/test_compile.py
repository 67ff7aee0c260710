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
from dit.models.caching import Cached, full, short
from dit.models.dit import SIZES
from dit.sampling.compile import compiled, filled, ready
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline

CPU = torch.device("cpu")
FAMILIES = [
    dict(),
    dict(conditioning="adaln"),
    dict(conditioning="cross-attention"),
    dict(conditioning="in-context"),
    dict(learn_sigma=True, process="linear", objective="eps", time_sampling="uniform"),
    dict(model="UNet-S"),
]


@pytest.mark.parametrize(
    "settings", FAMILIES, ids=lambda settings: "-".join(map(str, settings.values()))
)
def test_weights_are_rounded_once_to_what_autocast_makes_of_them(settings, make_run):
    network = load_run(make_run(**settings), CPU).denoise.network
    twin = ready(network, CPU, "bf16")
    inputs = torch.randn(3, 3, 8, 8), torch.rand(3), torch.arange(3)
    with torch.inference_mode(), autocast(CPU, "bf16"):
        assert torch.equal(twin(*inputs), network(*inputs))
    kinds = {p.dtype for p in twin.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}  # norms and embeddings are not rounded
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_in_float32_all_tensors_are_shared(tiny_run):
    network = load_run(tiny_run, CPU).denoise.network
    twin = ready(network, CPU, "fp32")
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in network.parameters()]


@pytest.mark.parametrize(
    ("cache", "graphs"), [pytest.param(None, 2, marks=pytest.mark.slow), (2, 3)]
)
def test_compiled_images_are_the_same_in_batches_of_any_size(cache, graphs, make_run, monkeypatch):
    """Seven images in batches of three, of which the last is filled up, guided in the last three of four steps: code
    for 3 and for 6 rows, and with the cache, which is used in the third step, for 6 rows of a short call."""
    monkeypatch.setitem(SIZES, "Ti", SMALL | dict(depth=3))  # one block in the middle
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
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager, quick = (
        sample_latents_in_batches(run, one, indices)
        for one in (config, dataclasses.replace(config, compile=True))
    )
    assert counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(quick, eager, rtol=1e-3, atol=1e-4 * eager.abs().max().item())


def sample_latents_in_batches(run, config, indices):
    plan = build_pipeline(run, config)
    return torch.cat(
        [
            sample_latents(run, plan, config, mine % 10, mine)
            for mine in indices.split(config.batch_size)
        ]
    )


@pytest.mark.parametrize(("count", "called"), [(1, 4), (3, 4), (4, 4), (5, 5)])
def test_small_batches_are_filled_up(count, called):
    sizes = []

    def denoise(x_t, t, y):
        sizes.append((len(x_t), len(y)))
        return Prediction(x_t * t, x_t, x_t + y[:, None], None)

    x, t, y = torch.randn(count, 3), torch.tensor(0.5), torch.arange(count)
    said = filled(denoise, 4)(x, t, y)
    for found, expected in zip(said, denoise(x, t, y), strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)
    assert sizes[0] == (called, called)


def test_small_calls_of_a_gpu_are_graphs_whose_memory_is_not_handed_out(monkeypatch, tiny_run):
    """Without a GPU: a stand-in for the compiler that, as CUDA graphs do, writes all results into one place."""
    place, modes = torch.zeros(10**5), []

    def compiler(network, dynamic, mode=None):
        modes.append(mode)

        def call(*inputs):
            results, form = tree_flatten(network(*inputs))
            parts = place[: sum(map(torch.numel, results))].split([*map(torch.numel, results)])
            return tree_unflatten(
                [p.view_as(r).copy_(r) for p, r in zip(parts, results, strict=True)], form
            )

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    network = load_run(tiny_run, CPU).denoise.network
    calls = [partial(full, network), partial(short, network)]
    x, t, y = torch.randn(4, 2, 3, 8, 8), torch.rand(4, 2), torch.arange(2)
    said = []
    for parts in (calls, [compiled(call, torch.device("cuda"), rows=2) for call in calls]):
        cached = Cached(*parts, every=3)
        said.append([cached(x[i], t[i], y) for i in range(4)])
    assert torch.equal(torch.stack(said[1]), torch.stack(said[0]))
    compiled(network, torch.device("cuda"), rows=64)
    assert modes == ["reduce-overhead", "reduce-overhead", None]
