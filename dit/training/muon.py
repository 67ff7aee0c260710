"""Muon (Jordan 2024; 2502.16982): steps of matrices are their momentum, made orthogonal.

It keeps one moment where AdamW keeps two. `torch.optim.Muon` knows no matrices that are several in
one, no shards of FSDP2, and no `found_inf`, by which a step is skipped without waiting for the GPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import GluMlp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dit.distributed.device import uses_bf16
from dit.distributed.parallel import full_tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values to 1
ITERATIONS = 5
ADAM_RMS = 0.2  # the root mean square of AdamW's steps, in units of the learning rate (2502.16982)

AT_ONCE = 2**24
"""Numbers in matrices that are made orthogonal together: more gain nothing and take memory."""

STACKED = {".attn.qkv.weight": 3, "_attn.kv.weight": 2}
"""Matrices that are several in one, by the end of their name: each is made orthogonal by itself."""


class MuonAdamW(torch.optim.AdamW):
    """Muon for some matrices, fused AdamW for all else, at one learning rate.

    Args:
        matrices: parameters [n * out, in] with their numbers n of matrices on top of each other.
        others: parameters of AdamW.
        lr, betas, weight_decay: of AdamW; the decay holds for both.
        precision: of training; with bf16 units, matrices are made orthogonal in bfloat16.
    """

    def __init__(
        self,
        matrices: Sequence[tuple[nn.Parameter, int]],
        others: Sequence[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        precision: str = "fp32",
    ):
        groups = [{"params": [matrix for matrix, _ in matrices]}, {"params": list(others)}]
        super().__init__(groups, lr, betas, weight_decay=weight_decay, fused=True)
        self.stacked = dict(matrices)
        self.precision = precision
        self.updates: dict[Tensor, Tensor] = {}  # norm of the last step of each matrix

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, unless `found_inf` is set (see `update_weights`)."""
        gradients = {matrix: matrix.grad for matrix in self.stacked if matrix.grad is not None}
        for matrix in gradients:
            # AdamW passes over parameters without a gradient
            matrix.grad = None
        super().step()

        for matrices in self._batches(gradients):
            self._step_matrices(matrices, [gradients[matrix] for matrix in matrices])
        for matrix, gradient in gradients.items():
            matrix.grad = gradient

    def _batches(self, matrices: Iterable[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
        """Yield groups of one shape, up to `AT_ONCE` numbers: small matrices share a product."""
        groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for matrix in matrices:
            groups.setdefault(self._shape(matrix), []).append(matrix)
        for group in groups.values():
            count = max(1, AT_ONCE // max(matrix.numel() for matrix in group))
            for start in range(0, len(group), count):
                yield group[start : start + count]

    def _shape(self, matrix: nn.Parameter) -> tuple[int, int]:
        """Return output and input features of the matrices in this one."""
        return matrix.shape[0] // self.stacked[matrix], matrix.shape[1]

    def _step_matrices(self, weights: Sequence[nn.Parameter], gradients: list[Tensor]) -> None:
        group: dict[str, Any] = self.param_groups[0]
        skipped = getattr(self, "found_inf", None)
        before = [self._momentum(weight) for weight in weights]
        momenta = torch._foreach_lerp(before, gradients, 1 - MOMENTUM)
        directions = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's

        out, size = self._shape(weights[0])
        scale = ADAM_RMS * max(out, size) ** 0.5
        full = torch.cat([full_tensor(direction).view(-1, out, size) for direction in directions])
        if uses_bf16(full.device, self.precision):
            full = full.bfloat16()
        parts = orthogonalise(full).split([self.stacked[weight] for weight in weights])
        for weight, old, new, part in zip(weights, before, momenta, parts, strict=True):
            decay = group["weight_decay"] * weight
            update = group["lr"] * (scale * _like(part.to(weight.dtype), weight) + decay)
            if skipped is not None:
                update = torch.where(skipped.bool(), 0, update)
                new = torch.where(skipped.bool(), old, new)
            weight.sub_(update)
            old.copy_(new)
            self.updates[weight] = update.norm()

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        return state["momentum"]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return U V^T of U S V^T, nearly: singular values between 0.7 and 1.2; [n, out, in].

    Newton and Schulz's iteration.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        # x <- a x + (b gram + c gram^2) x, with the sums as part of the products
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def orthogonalise_flops(network: nn.Module) -> float:
    """Return the FLOPs of `orthogonalise` for all matrices of a network, once a step."""
    flops = 0.0
    for matrix, number in split_parameters(network)[0]:
        short, long = sorted((matrix.shape[0] // number, matrix.shape[1]))
        # x x^T, the square of that, and the polynomial times x
        products = 2 * short**2 * long + 2 * short**3 + 2 * short**2 * long
        flops += number * ITERATIONS * products
    return flops


def split_parameters(
    network: nn.Module,
) -> tuple[list[tuple[nn.Parameter, int]], list[nn.Parameter]]:
    """Return the matrices of attention and MLP in the blocks, and all other trained parameters."""
    matrices = []
    others = []
    gated = {id(mlp.fc1.weight) for mlp in network.modules() if isinstance(mlp, GluMlp)}
    for name, parameter in network.named_parameters():
        of_block = name.startswith("blocks.") and "adaLN" not in name
        if not parameter.requires_grad:
            continue
        if not (of_block and parameter.ndim == 2):
            others.append(parameter)
            continue
        number = 2 if id(parameter) in gated else 1
        for end, count in STACKED.items():
            number = count if name.endswith(end) else number
        matrices.append((parameter, number))
    return matrices, others


def _like(full: Tensor, weight: Tensor) -> Tensor:
    """Return a full tensor [n, out, in] as [n * out, in], or this rank's share of it."""
    full = full.flatten(0, 1)
    if not isinstance(weight, DTensor):
        return full
    # every rank has the same full tensor: nothing is sent
    return distribute_tensor(full, weight.device_mesh, weight.placements, src_data_rank=None)
