"""Compilation: the flag that GCC needs on x86, and gradients of the code that it makes."""

import platform
import shutil

import pytest
import torch
from helpers.gradients import gradients, made, spec
from torch._inductor import config

from dit.distributed.compiling import _options, compile_sizes
from dit.models.sizes import SIZES

FLAG = {"cpp.march": "native -fno-tree-slp-vectorize"}


@pytest.mark.parametrize(
    ("system", "machine", "march", "expected"),
    [
        ("Linux", "x86_64", None, FLAG),
        ("Linux", "x86_64", "skylake", None),  # the user's own
        ("Linux", "x86_64", "", None),
        ("Linux", "aarch64", None, None),
        ("Darwin", "x86_64", None, None),
        ("Windows", "AMD64", None, None),
    ],
)
def test_gcc_on_x86_is_given_a_flag_unless_the_user_names_a_processor(
    system, machine, march, expected, monkeypatch
):
    if not hasattr(config.cpp, "march"):
        pytest.skip("PyTorch has the setting since 2.15")
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with config.patch({"cpp.march": march}):
        assert _options() == expected


def attention(x, scale, shift):
    """Plain attention of two heads over tokens [B, T, D], with other keys and values."""
    q, k, v = (
        part.unflatten(2, (2, -1)).transpose(1, 2)
        for part in (x, x * scale[:, None], x * shift[:, None])
    )
    weights = (0.1 * q @ k.mT).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_the_compiled_gradient_of_a_softmax_in_bfloat16_is_that_of_eager():
    """With GCC 12.2 it was NaN on a processor with AMX."""
    generator = torch.Generator().manual_seed(0)
    shapes = (32, 64, 128), (32, 128), (32, 128)
    given = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]

    def differentiate(function):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(*given)
        return torch.autograd.grad(out.float().square().mean(), given)

    torch.compiler.reset()
    found, expected = differentiate(compile_sizes(attention)), differentiate(attention)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 2e-2 * other.norm()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_gradients_of_64_tokens_in_bfloat16_are_those_of_eager(monkeypatch):
    """With GCC 12.2 and AVX-512 they were NaN: of all weights before the last layer."""
    monkeypatch.setitem(SIZES, "Ti", dict(depth=1, hidden_size=64, num_heads=1))
    network, inputs = made(spec("DiT-Ti/2", input_size=16))
    network.blocks[0].attn.fused_attn = False
    expected = gradients(network, inputs, "bf16")

    torch.compiler.reset()
    found = gradients(compile_sizes(network), inputs, "bf16")
    for name, gradient in found.items():
        eager = expected[name.removeprefix("_orig_mod.")]
        # bfloat16 has eight bits: a few roundings of 0.4%
        assert (gradient - eager).norm() <= 2e-2 * eager.norm(), name
