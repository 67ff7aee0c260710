"""MeanFlow (2505.13447; improved: 2512.02012): few steps, by velocities averaged over each step.

    u(x_t, r, t) = 1 / (t - r) * integral of v(x_s, s) ds from r to t, for times r <= t
    x_r = x_t - (t - r) u(x_t, r, t): one step is exact, of any length
    u + (t - r) du/dt = v: what training uses (equation 6); d/dt along dx/dt = v, with r fixed

A network of intervals takes t and the length t - r. At length 0 it is the velocity of a flow.
B images; times are of a flow, 0 = data and 1 = noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dit.diffusion.objective import Loss
from dit.diffusion.process import (
    Denoiser,
    Flow,
    Prediction,
    Process,
    add_noise,
    like,
    network_times,
)

CONSTANT, POWER = 0.01, 1.0  # of the adaptive weight, as in the code of 2505.13447
ROUNDING = 1e-6  # of a number of images

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Tangent = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, times, y, direction of x, direction of the times) -> derivative of the network."""


# -- times -----------------------------------------------------------------------------------------


class IntervalFlow(Flow):
    """Flow matching with training times in pairs: t is the later of two draws, r the earlier."""

    def sample_time(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the later times t of n pairs [n], float64."""
        first = super().sample_time(n, generator)
        return torch.maximum(first, super().sample_time(n, generator))

    def earlier(self, t: Tensor, uniforms: Tensor) -> Tensor:
        """Return the earlier times r [B] of pairs whose later ones are t [B].

        Given the later of two draws, the other has their distribution F up to it: F(r) = u F(t).
        """
        u = uniforms.double()
        unshifted = t / (self.shift + (1 - self.shift) * t)
        if self.time_sampling == "uniform":
            return self._shifted(u * unshifted)
        below = torch.special.ndtr(unshifted.logit())
        return self._shifted(torch.special.ndtri(u * below).sigmoid())


def interval(process: Process, t: Tensor, r: Tensor, x: Tensor) -> Tensor:
    """Return times t and lengths t - r as the network takes them: [B, 2], for x [B, ...]."""
    # a flow's network time has no offset, so that lengths are as times are
    return torch.stack([network_times(process, t, x), network_times(process, t - r, x)], dim=1)


def moving_rows(images: int, instant: float) -> Tensor:
    """Return the images of a micro-batch whose intervals have a length, evenly spread.

    By place instead of by chance, so that the others need no derivative and their number is fixed.
    """
    edges = (torch.arange(images + 1).double() * (1 - instant) + ROUNDING).floor()
    return edges.diff().nonzero().flatten()


# -- training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanFlowLoss:
    """The loss of average velocities, a `LossFunction`; the flags --meanflow-* name its options.

    Times and uniforms are on one device, which has float64.

    Attributes:
        network: (x [B, C, H, W], times and lengths [B, 2], class ids [B]) -> u; it is trained.
        tangent: derivative of the same network, without gradient.
        null_label: id of the null class.
        classic: 2505.13447 instead of 2512.02012.
        instant: share of images with r = t.
        scale, mix: of the guidance that the network learns, see `guided_velocity`.
    """

    network: Network
    tangent: Tangent
    process: IntervalFlow
    null_label: int
    classic: bool = False
    instant: float = 0.5
    scale: float = 1.0
    mix: float = 0.0

    def __call__(self, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, uniforms: Tensor) -> Loss:
        rows = moving_rows(len(x0), self.instant).to(t.device, non_blocking=True)
        r = t.index_copy(0, rows, self.process.earlier(t[rows], uniforms[rows, 0]))
        x_t = add_noise(self.process, x0, eps, t)

        # before the pass with gradient, while there are no activations
        with torch.no_grad():
            v, moved = self.targets(x_t, y, t, r, eps - x0, rows)
        u = self.network(x_t, interval(self.process, t, r, x_t), y).to(x_t.dtype)
        # 2512.02012: V = u + (t - r) sg(du/dt) predicts v. For 2505.13447, equation 9, it is the
        # same difference: u minus its target v - (t - r) du/dt. The code of 2512.02012 weights
        # it as 2505.13447 does; its equation does not.
        each = (u + moved - v).square().flatten(1)
        mse = each.mean(1)
        if not self.classic:
            return Loss(mse, {"mse": mse.detach()})
        # 2505.13447, equation 22: |d|^2 / sg(|d|^2 + c)^p
        total = each.sum(1)
        return Loss(total / (total.detach() + CONSTANT) ** POWER, {"mse": mse.detach()})

    def targets(
        self, x_t: Tensor, y: Tensor, t: Tensor, r: Tensor, v: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity to predict, and (t - r) du/dt, both in the shape of x_t.

        du/dt is the derivative along (dx/dt, dr/dt, dt/dt) = (velocity, 0, 1). The length t - r
        grows with t.
        """
        own = None
        if self.scale != 1:
            own = self.velocity(x_t, t, y) if self.mix else None
            v = self.guided_velocity(x_t, t, y, v, own)
        moved = torch.zeros_like(x_t)
        if not len(rows):
            return v, moved

        t, r = t[rows], r[rows]
        rows = rows.to(x_t.device)
        x, y = x_t[rows], y[rows]
        if self.classic:
            along = v[rows]  # 2505.13447, algorithm 1
        else:
            # 2512.02012: the marginal velocity, as the network has it
            along = self.velocity(x, t, y) if own is None else own[rows]
        times = interval(self.process, t, r, x)
        # a second of a flow is 1000 of the network's
        ones = interval(self.process, torch.ones_like(t), torch.zeros_like(t), x)
        du = self.tangent(x, times, y, along, ones).to(x.dtype)
        return v, moved.index_copy(0, rows, like(t - r, x) * du)

    def guided_velocity(
        self, x_t: Tensor, t: Tensor, y: Tensor, v: Tensor, own: Tensor | None
    ) -> Tensor:
        """Return w v + (1 - w - k) u(null) + k u(y) at time t, with w = scale (1 - k).

        This is from 2505.13447. Its fixed point u(y) is guidance of that scale, whatever k:
        u(y) = [w v + (1 - w - k) u(null)] / (1 - k) = scale v + (1 - scale) u(null). With
        k = 1 - 1 / scale, w is 1: v + (1 - 1 / scale) (u(y) - u(null)) of 2512.02012.
        Images of the null class keep v.

        Args:
            own: u(y); with a mix k of 0 it is not read.
        """
        null = torch.full_like(y, self.null_label)
        weight = self.scale * (1 - self.mix)
        away = self.velocity(x_t, t, null)
        guided = weight * v + (1 - weight - self.mix) * away
        if own is not None:
            guided = guided + self.mix * own
        return torch.where(like(y == null, x_t).bool(), v, guided)

    def velocity(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the network's own velocity u(x_t, t, t)."""
        return self.network(x_t, interval(self.process, t, t, x_t), y).to(x_t.dtype)


def mix_of(scale: float, mix: float | None) -> float:
    """Return the share k of `guided_velocity`: without one, that with w = 1 (2512.02012)."""
    return 1 - 1 / scale if mix is None else mix


def forward_passes(classic: bool, instant: float, scale: float, mix: float) -> float:
    """Return how many forward passes an image takes beside that with a gradient, in the mean."""
    moving, guided = 1 - instant, scale != 1
    own = guided and mix > 0  # u(y) of all images, which is also the derivative's direction
    passes = 2 * moving + guided + own
    return passes if classic or own else passes + moving


# -- sampling --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepDenoiser(Denoiser):
    """A denoiser whose velocity is the average over the step that begins at the time given.

    With it, Euler's method takes the steps of the paper: x_s = x_t - (t - s) u(x_t, s, t).

    Attributes:
        ends: end of each step by its beginning, see `steps_between`.
    """

    ends: dict[float, float] = field(kw_only=True)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        end = torch.tensor(self.ends[float(t)], dtype=torch.float64)
        times = interval(self.process, t, end, x_t)

        def network(x: Tensor, _: Tensor, y: Tensor) -> Tensor:
            return self.network(x, times, y)

        plain = Denoiser(network, self.process, self.objective, self.learn_sigma)
        return plain(x_t, t, y)


def steps_between(denoise: Denoiser, times: Tensor) -> StepDenoiser:
    """Return the denoiser of the steps between these times [steps + 1]."""
    ends = dict(pairwise(times.tolist()))
    return StepDenoiser(
        denoise.network, denoise.process, denoise.objective, denoise.learn_sigma, ends=ends
    )
