"""Training img/s of DiT-S/4 on 4x32x32 latents: ours and diffusers', each as ratio to a plain float32 eager step.

    python -m benchmarks.training_speed [--batch 32] [--rounds 5]

A step is forward, loss (with learned variance), backward, AdamW and EMA. All variants take turns in every round, so
that a noisy machine disturbs them alike; the figure is the median over rounds, the ratio that of medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.record import record
from dit.convert import diffusers_config
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.objective import diffusion_loss
from dit.diffusion.process import DDPM
from dit.hardware import Ranks, autocast, choose_attention
from dit.models.create import create_model, multiply_adds
from dit.runs import NetworkSpec
from dit.training.ema import EMA
from dit.training.parallel import called

SHAPE = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)


def ours() -> nn.Module:
    """DiT-S/4 of this package."""
    return create_model("DiT-S/4", **SHAPE)


class Diffusers(nn.Module):
    """diffusers' DiTTransformer2DModel of the same size, called as ours is."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.model = DiTTransformer2DModel(**diffusers_config(NetworkSpec(model="DiT-S/4", **SHAPE)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As in `dit.models`."""
        return self.model(x, timestep=t.long(), class_labels=y).sample


def step_of(
    network: nn.Module, batch: int, precision: str, compiled: bool, fused: bool, device: str
) -> Callable[[], None]:
    """One training step as a function."""
    network.to(device).train()
    ema = EMA(network, 0.9999)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=fused)
    choose_attention(network, torch.device(device), precision)
    calls = called(network, Ranks(device=torch.device(device)), compiled)
    denoise = Denoiser(calls, DDPM("linear"), "eps", learn_sigma=True)
    x0, eps = torch.randn(2, batch, 4, 32, 32, device=device)
    y, t = torch.randint(1000, (batch,), device=device), torch.randint(1, 1001, (batch,)).double()

    def step() -> None:
        with autocast(torch.device(device), precision):
            loss = diffusion_loss(denoise, x0, y, t, eps)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(network, 1)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    variants = {
        "plain fp32 eager": (ours, "fp32", False, False),
        "dit fp32 eager": (ours, "fp32", False, True),
        "dit bf16 eager": (ours, "bf16", False, True),
        "dit bf16 compiled": (ours, "bf16", True, True),
        "diffusers fp32 eager": (Diffusers, "fp32", False, True),
        "diffusers bf16 eager": (Diffusers, "bf16", False, True),
        "diffusers bf16 compiled": (Diffusers, "bf16", True, True),
    }
    steps = {}
    for name, (make, precision, compiled, fused) in variants.items():
        steps[name] = step_of(make(), args.batch, precision, compiled, fused, device)
        for _ in range(2):
            steps[name]()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            step()
            seconds[name].append((time.perf_counter() - begin) / 2)
    flops = 6 * multiply_adds("DiT-S/4", **SHAPE)
    plain = statistics.median(seconds["plain fp32 eager"])
    results = {
        name: {
            "img_per_s": round(args.batch / statistics.median(s), 2),
            "ratio_to_plain": round(plain / statistics.median(s), 3),
            "gflop_per_s": round(flops * args.batch / statistics.median(s) / 1e9, 1),
            "spread": round((max(s) - min(s)) / statistics.median(s), 3),
        }
        for name, s in seconds.items()
    }
    print(f"{'':<26}{'img/s':>8}{'ratio':>8}{'GFLOP/s':>10}{'spread':>8}")
    for name, r in results.items():
        print(f"{name:<26}{r['img_per_s']:>8}{r['ratio_to_plain']:>8}{r['gflop_per_s']:>10}{r['spread']:>8}")
    command = f"python -m benchmarks.training_speed --batch {args.batch} --rounds {args.rounds}"
    print(record("training-speed", command, results))


if __name__ == "__main__":
    main()
