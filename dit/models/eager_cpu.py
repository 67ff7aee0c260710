"""RMSNorm and rotary positions for CPUs without the compiler: few passes over memory.

Eager code on a CPU is as slow as the number of times it reads and writes the tokens. On GPUs, and
where the compiler fuses operations, layers.py has the formulas as they are printed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_eager_cpu(x: Tensor) -> bool:
    """Whether operations on x run one by one on a CPU."""
    return x.is_cpu and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis; float32 or float64."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (length.square() / x.shape[-1] + eps).rsqrt()
    return _ScaledByRMS.apply(x, weight.to(x.dtype), scale)  # type: ignore[no-any-return]


class _ScaledByRMS(torch.autograd.Function):
    """x * scale * weight, where derivatives know that scale is 1 / rms(x): n = x * scale.

    dL/dx = scale (g w - n mean(g w n)) is LayerNorm's, without its term of the mean: PyTorch's
    kernel for LayerNorm computes all of it in one pass, and that term is added back.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return (x * scale).mul_(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        size = x.shape[-1]
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, (size,), torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        # autocast would round the product
        with torch.autocast("cpu", enabled=False):
            mean = (g @ weight)[..., None]
        return grad_x.addcmul_(scale, mean, value=1 / size), grad_weight, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dweight: Tensor | None, _: Tensor | None) -> Tensor:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        dnormed = scale * (dx - normed * (normed * dx).mean(dim=-1, keepdim=True))
        out = dnormed * weight
        return out if dweight is None else out + normed * dweight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring features (a, b), as the complex number a + b i times cos + i sin."""
    exact = torch.promote_types(x.dtype, torch.float32)
    turns = torch.complex(cos.to(exact), sin.to(exact))
    pairs = torch.view_as_complex(x.to(exact).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
