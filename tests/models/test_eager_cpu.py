"""RMSNorm and rotation of eager CPUs: the formulas of layers.py, and derivatives both ways."""

import pytest
import torch
from helpers.networks import inputs, perturb

from dit.models import eager_cpu, layers
from dit.models.embeddings import axial_rotation
from dit.models.layers import EPS, RMSNorm, rotate
from dit.models.registry import create_model


@pytest.fixture
def modern():
    """A network of modern blocks in float64, whose attention has forward derivatives."""
    torch.manual_seed(0)
    sizes = dict(input_size=8, in_channels=3, num_classes=5)
    network = perturb(create_model("DiT-Ti/4", block="modern", **sizes)).double()
    for block in network.blocks:
        block.attn.fused_attn = False
    return network


def both_ways(monkeypatch, compute):
    """Return what is computed by these functions, and by the formulas of layers.py."""
    fast = compute()
    monkeypatch.setattr(layers, "is_eager_cpu", lambda x: False)
    return fast, compute()


@pytest.mark.portable
def test_derivatives_of_the_norm_are_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda x, weight: eager_cpu.rms_norm(x, weight, EPS), (x, weight), check_forward_ad=True
    )


@pytest.mark.portable
def test_derivatives_of_the_rotation_are_finite_differences():
    x = torch.randn(2, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = axial_rotation(8, (2, 2)).double()
    torch.autograd.gradcheck(lambda x: eager_cpu.rotate(x, cos, sin), (x,), check_forward_ad=True)


@pytest.mark.portable
def test_outputs_and_gradients_are_those_of_the_formulas(modern, monkeypatch):
    x, t, y = inputs()

    def compute():
        modern.zero_grad()
        out = modern(x.double(), t, y)
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in modern.parameters() if p.requires_grad)]

    for fast, plain in zip(*both_ways(monkeypatch, compute), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8 * float(plain.abs().max()))


@pytest.mark.portable
def test_forward_derivatives_pass_through_modern_blocks(modern):
    """torch.func.jvp beside a central difference, and the gradient of its primal output."""
    x, t, y = inputs()
    x, direction = x.double(), torch.randn(x.shape, dtype=torch.float64)
    out, slope = torch.func.jvp(lambda x: modern(x, t, y), (x,), (direction,))
    h = 1e-5
    with torch.no_grad():
        difference = modern(x + h * direction, t, y) - modern(x - h * direction, t, y)
    torch.testing.assert_close(slope, difference / (2 * h), rtol=1e-5, atol=1e-6)

    found = torch.autograd.grad(out.square().sum(), modern.blocks[0].norm1.weight)
    expected = torch.autograd.grad(modern(x, t, y).square().sum(), modern.blocks[0].norm1.weight)
    torch.testing.assert_close(found, expected)


def test_bfloat16_is_rounded_as_by_the_formulas(monkeypatch):
    """Both compute in float32 and round after the norm and after the rotation."""
    torch.manual_seed(0)
    norm, rotation = perturb(RMSNorm(64)), axial_rotation(64, (2, 2))
    x = torch.randn(8, 2, 6, 64).bfloat16().requires_grad_()
    g = torch.randn(x.shape).bfloat16()

    def compute():
        with torch.autocast("cpu", torch.bfloat16):
            out = rotate(norm(x), rotation)
            return out, *torch.autograd.grad(out, [x, norm.weight], g)

    eps = torch.finfo(torch.bfloat16).eps
    # the last digit of each of two terms; the weight's gradient sums 8 * 2 * 6 vectors of them
    for terms, fast, plain in zip((2, 2, 2 * 96), *both_ways(monkeypatch, compute), strict=True):
        assert fast.dtype == plain.dtype
        bound = terms * eps * float(x.detach().abs().max() * g.abs().max())
        torch.testing.assert_close(fast, plain, rtol=0, atol=bound)


def test_zeros_have_finite_derivatives():
    x = torch.zeros(2, 8, requires_grad=True)
    norm = RMSNorm(8)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()
    assert norm(x).eq(0).all()


def test_a_second_derivative_is_refused():
    """It would be wrong in silence: the kernel takes the scale for a constant."""
    x = torch.randn(2, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(RMSNorm(8)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
