"""Training img/s on stored latents of 4x32x32: this package's trainer beside its peers, in one run.

    python -m benchmarks.training_speed [--rounds 5] [--only PATTERN …] [--batch 32] [--budget 240] [--tiny] [--record]

`dit` is the trainer's own step: a batch from memory, latents drawn, times, dropped labels, forward, hybrid loss with
learned variance, backward, clipping, AdamW, EMA. The peers' step is the plainest that trains the same: latents already
there, no clipping. `plain` is that step with our network, float32 (on CUDA with products in TF32, as the original's
authors advise), eager, AdamW as it is unless told otherwise, as the original release trains; `diffusers` is
DiTTransformer2DModel.

On a CPU all variants of a model take turns in every round, so that a noisy machine disturbs them alike; on a GPU one
follows the other, so that each has the memory to itself, and a round is two seconds of steps in a row. A figure is the
median over rounds. MFU is of the large matrix product measured in the same run; FLOPs are six for each multiply-add of
our network's forward pass. On CUDA the file has the time of kernels by kind, too.
"""

import argparse
import gc
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.arguments import has, pattern, positive, require_rows
from benchmarks.budget import within
from benchmarks.ceilings import calls_of, ceilings, seconds, tf32, told
from benchmarks.kernels import kernels
from benchmarks.memory import session_of, stepper
from benchmarks.record import record, rows_told
from dit.diffusion.objective import diffusion_loss
from dit.diffusion.process import DDPM, Denoiser
from dit.distributed.device import autocast
from dit.distributed.float8 import has_fp8
from dit.distributed.ranks import Ranks
from dit.models.registry import create_model
from dit.runs.card import NetworkSpec
from dit.runs.formats.diffusers import diffusers_config
from dit.training.cost.flops import training_flops
from dit.training.ema import EMA

SHAPE: dict[str, Any] = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
Step = Callable[[], None]


class Variant(NamedTuple):
    """One way to train: whose step, how multiplied, how compiled if at all."""

    whose: str
    precision: str  # fp32, tf32 (products of fp32 on CUDA), bf16, fp8
    compiled: str = ""  # whole, or blocks

    @property
    def title(self) -> str:
        """As in the table."""
        how = {"": "eager", "whole": "compiled", "blocks": "compiled by block"}[self.compiled]
        return f"{self.whose} {self.precision} {how}"


Plan = list[tuple[str, int, list[Variant]]]
DIT, FP8 = Variant("dit", "bf16", "whole"), Variant("dit", "fp8", "blocks")
DIFFUSERS = Variant("diffusers", "bf16", "whole")
BY_BLOCK, HALF, TF32 = (
    Variant("dit", "bf16", "blocks"),
    Variant("dit", "bf16"),
    Variant("plain", "tf32"),
)
VARIANTS = [
    Variant("plain", "fp32"),
    Variant("dit", "fp32"),
    HALF,
    DIT,
    Variant("diffusers", "fp32"),
    Variant("diffusers", "bf16"),
    DIFFUSERS,
]
CPU: Plan = [("DiT-S/4", 32, VARIANTS), ("DiT-S/2", 8, [DIT])]
CUDA: Plan = [
    *(("DiT-XL/2", 128, [one]) for one in (TF32, DIT, DIFFUSERS)),
    *(
        (f"DiT-{size}", 256, [BY_BLOCK])
        for size in ("XL/2", "L/2", "B/2", "S/2", "XL/4", "L/4", "B/4", "S/4")
    ),
    *(
        ("DiT-XL/2", 128, [one])
        for one in (FP8, BY_BLOCK, HALF, Variant("diffusers", "bf16"), Variant("diffusers", "tf32"))
    ),
]
TINY: Plan = [("DiT-S/8", 4, VARIANTS)]
"""Models, images a step, and what is measured in turns; what matters most comes first."""


class Diffusers(nn.Module):
    """diffusers' DiTTransformer2DModel of the same size, called as ours is."""

    def __init__(self, model: str):
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.model = DiTTransformer2DModel(**diffusers_config(NetworkSpec(model=model, **SHAPE)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As in `dit.models`."""
        return self.model(x, timestep=t.long(), class_labels=y).sample


def step_of(variant: Variant, model: str, batch: int, device: torch.device, folder: str) -> Step:
    """One training step as a function."""
    torch.manual_seed(0)
    if variant.whose == "dit":
        return trainer_step(variant, model, batch, device, folder)
    with device:
        network = create_model(model, **SHAPE) if variant.whose == "plain" else Diffusers(model)
    return peer_step(variant, network, batch, device)


def trainer_step(
    variant: Variant, model: str, batch: int, device: torch.device, folder: str
) -> Step:
    """This package's."""
    session = session_of(
        dict(
            model=model,
            batch=batch,
            precision=variant.precision,
            compile=variant.compiled == "whole",
            steps=10**6,
        ),
        Ranks(device=device),
        folder,
    )
    for block in session.state.network.blocks if variant.compiled == "blocks" else ():  # type: ignore[union-attr]
        block.compile()
    return stepper(session)


def peer_step(variant: Variant, network: nn.Module, batch: int, device: torch.device) -> Step:
    """The plainest that trains the same."""
    network.to(device).train()
    ema = EMA(network, 0.9999)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=None if variant.whose == "plain" else True)
    calls = torch.compile(network) if variant.compiled else network
    denoise = Denoiser(calls, DDPM("linear"), "eps", learn_sigma=True)
    precision = "fp32" if variant.precision == "tf32" else variant.precision
    x0, eps = torch.randn(2, batch, *(SHAPE["in_channels"], 32, 32), device=device)
    y, t = torch.randint(1000, (batch,), device=device), torch.randint(1, 1001, (batch,)).double()

    def step() -> None:
        with tf32(variant.precision == "tf32"), autocast(device, precision):
            loss = diffusion_loss(denoise, x0, y, t, eps)
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(network, 1)

    return step


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(
    model: str, batch: int, variants: list[Variant], rounds: int, device: torch.device
) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Seconds of a step, and on CUDA the peak of memory and the time of kernels, of variants that take turns."""
    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        torch.compiler.reset()  # else it takes another batch for one of a changing size, and holds so many and no more
        if cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        steps = {variant: step_of(variant, model, batch, device, folder) for variant in variants}
        first = {variant: seconds(step, device) for variant, step in steps.items()}
        calls = {variant: calls_of(step, device) for variant, step in steps.items()}
        took = [
            {variant: seconds(step, device, calls[variant]) for variant, step in steps.items()}
            for _ in range(rounds)
        ]
        for variant, step in steps.items():
            found = [turn[variant] for turn in took]
            median = statistics.median(found)
            yield (
                variant,
                {
                    "seconds": median,
                    "spread": (max(found) - min(found)) / median,
                    "first_step_s": first[variant],
                    "rounds": found,
                    **({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {}),
                    **({"kernels": kernels(step)} if cuda else {}),
                },
            )


def rows_of(
    plan: Plan, rounds: int, device: torch.device, best: dict[str, float], budget: float | None
) -> Iterator[dict[str, Any]]:
    """A row of the table for each variant of each model; ratios are to the plain step of the same model."""
    plain: dict[str, float] = {}
    for model, batch, variants in within(budget, plan, lambda part: ", ".join(names_of([part]))):
        flops = training_flops(NetworkSpec(model=model, **SHAPE))
        for variant, found in measure(model, batch, variants, rounds, device):
            speed = batch / found["seconds"]
            plain |= {model: speed} if variant.whose == "plain" else {}
            yield {
                "model": model,
                "batch": batch,
                "variant": variant.title,
                "img_per_s": speed,
                "ratio_to_plain": speed / plain[model] if model in plain else None,
                "mfu": speed * flops / best["bf16"],
                **found,
            }


def name_of(model: str, batch: int, variant: Variant) -> str:
    """A row's."""
    return f"{model} x{batch} {variant.title}"


def names_of(plan: Plan) -> list[str]:
    """All rows'."""
    return [name_of(model, batch, one) for model, batch, variants in plan for one in variants]


def possible(plan: Plan, batch: int | None, fp8: bool) -> Plan:
    """Of the plan, what can be done, in batches of that size if one is given."""
    return [
        (model, batch or usual, [one for one in variants if fp8 or one != FP8])
        for model, usual, variants in plan
    ]


def chosen(plan: Plan, patterns: list[re.Pattern[str]]) -> Plan:
    """Of the plan, what is asked for."""
    asked = [
        (model, batch, [one for one in variants if has(name_of(model, batch, one), patterns)])
        for model, batch, variants in plan
    ]
    return [part for part in asked if part[2]]


def tell(row: dict[str, Any]) -> str:
    """As a line of a Markdown table."""
    ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "–"
    peak = f"{row['peak_gib']:.1f}" if "peak_gib" in row else "–"
    return (
        f"| {row['model']} | {row['batch']} | {row['variant']} | {row['img_per_s']:.4g} | {ratio} | "
        f"{row['mfu']:.0%} | {peak} | {row['first_step_s']:.1f} | {row['spread']:.0%} |"
    )


HEAD = """| model | batch | variant | img/s | ratio to plain | MFU | peak GiB | first step, s | spread |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        type=pattern,
        default=[pattern("")],
        metavar="PATTERN",
        help="rows with one of these patterns in model, batch and variant, such as 'XL/2 x128 dit'; "
        "all unless given",
    )
    parser.add_argument("--batch", type=positive, help="images a step, instead of the table's")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--budget", type=float, help="seconds after which nothing further is begun")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="one small model in small batches, to see that all works",
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    able = possible(
        TINY if args.tiny else CUDA if device.type == "cuda" else CPU,
        args.batch,
        has_fp8(device) and find_spec("torchao") is not None,
    )
    plan = chosen(able, args.only)
    require_rows(parser, plan, names_of(able))
    best = ceilings(device)
    command = shlex.join(["python", "-m", "benchmarks.training_speed", *sys.argv[1:]])
    write = lambda rows, table: record(
        "training-speed", command, {"ceilings": best, "rows": rows}, table
    )  # noqa: E731
    rows_told(
        rows_of(plan, args.rounds, device, best, args.budget),
        tell,
        [told(best), "", HEAD],
        write if args.record else None,
    )


if __name__ == "__main__":
    main()
