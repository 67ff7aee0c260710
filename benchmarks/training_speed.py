"""Training img/s on stored latents of 4x32x32, of this package's trainer and of peers in one run.

    python -m benchmarks.training_speed [--rounds 5] [--only PATTERN …] [--batch 32] [--budget 240]
        [--tiny] [--record]

- `dit` is the trainer's own step: a batch from memory, sampled latents, times, dropped labels,
  forward, hybrid loss with learned variance, backward, clipping, AdamW, EMA.
- The peers' step is the plainest that trains the same: its latents are given, and it does not clip.
- `plain` is that step with our network, as the original release trains: float32 (on CUDA with
  products in TF32, as its authors advise), eager, AdamW with its default implementation.
- `diffusers` is DiTTransformer2DModel.
- `modern` has the blocks of `--block modern`, `tokens` their conditioning by tokens.

bf16 is left out on CPUs that do not multiply it faster. On a CPU all variants of a model take turns
in every round, so that other work on the machine disturbs them alike. On a GPU one follows the
other, so that each has the memory to itself, and a round is two seconds of steps in a row. Each
figure is the median over rounds. MFU is relative to the fastest large matrix product measured in
the same run; it counts six FLOPs for each multiply-add of the forward pass of our network, which
has modern blocks in rows of modern ones. On CUDA the file also has the time of kernels by kind.
"""

import gc
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.arguments import positive_int, table_parser
from benchmarks.ceilings import (
    calls_per_timing,
    fastest_products,
    measure_ceilings,
    seconds,
    tf32,
)
from benchmarks.kernels import kernels
from benchmarks.memory import session_of, stepper
from benchmarks.rows import matches, print_rows, require_rows, within_budget
from dit.build import count_multiply_adds
from dit.diffusion.objective import diffusion_loss
from dit.diffusion.process import DDPM, Denoiser
from dit.distributed.device import autocast, fast_bf16
from dit.distributed.float8 import has_fp8
from dit.distributed.ranks import Ranks
from dit.models.registry import create_model
from dit.runs.card import NetworkSpec
from dit.runs.formats.diffusers import diffusers_config
from dit.training.ema import EMA

SHAPE: dict[str, Any] = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
COMPILED = {"": "eager", "full": "compiled", "blocks": "compiled by block"}
Step = Callable[[], None]


class Variant(NamedTuple):
    """A way to train: whose step, in which arithmetic, and how it is compiled."""

    whose: str
    precision: str  # fp32, tf32 (products of fp32 on CUDA), bf16, fp8
    compiled: str = ""  # a key of COMPILED
    block: str = "plain"
    conditioning: str = "adaln-zero"

    @property
    def title(self) -> str:
        words = [self.whose, self.precision, COMPILED[self.compiled]]
        if self.block != "plain":
            words.insert(1, self.block)
        if self.conditioning != "adaln-zero":
            words.insert(2, self.conditioning)
        return " ".join(words)

    @property
    def network(self) -> dict[str, str]:
        """Settings of the network."""
        return {"block": self.block, "conditioning": self.conditioning}

    def modern(self, **changes: str) -> "Variant":
        """Return the same with modern blocks."""
        return self._replace(block="modern", **changes)


Plan = list[tuple[str, int, list[Variant]]]
DIT = Variant("dit", "bf16", "full")
DIT_EAGER = Variant("dit", "bf16")
BY_BLOCK = Variant("dit", "bf16", "blocks")
FP8 = Variant("dit", "fp8", "blocks")
TF32 = Variant("plain", "tf32")
DIFFUSERS = Variant("diffusers", "bf16", "full")
DIFFUSERS_EAGER = Variant("diffusers", "bf16")
DIFFUSERS_TF32 = Variant("diffusers", "tf32")
FP32 = [
    Variant("plain", "fp32"),
    Variant("dit", "fp32"),
    Variant("dit", "fp32").modern(),
    Variant("dit", "fp32").modern(conditioning="tokens"),
    Variant("diffusers", "fp32"),
]
FP32_COMPILED = [
    Variant("dit", "fp32", "full"),
    Variant("dit", "fp32", "full").modern(),
    Variant("diffusers", "fp32", "full"),
]
BF16 = [
    DIT_EAGER,
    DIT_EAGER.modern(),
    DIT,
    DIT.modern(),
    DIT.modern(conditioning="tokens"),
    DIFFUSERS_EAGER,
    DIFFUSERS,
]

CPU: Plan = [("DiT-S/4", 32, [*FP32, *BF16]), ("DiT-S/2", 8, [DIT])]
CPU_FP32: Plan = [("DiT-S/4", 32, [*FP32, *FP32_COMPILED])]
CUDA: Plan = [
    *(("DiT-XL/2", 128, [variant]) for variant in (TF32, DIT, DIFFUSERS, DIT.modern())),
    ("DiT-XL/2", 256, [BY_BLOCK]),
    ("DiT-XL/2", 256, [BY_BLOCK.modern()]),
    ("DiT-XL/2", 256, [BY_BLOCK.modern(conditioning="tokens")]),
    *((f"DiT-{size}", 256, [BY_BLOCK]) for size in ("L/2", "B/2", "S/2")),
    *((f"DiT-{size}", 256, [BY_BLOCK]) for size in ("XL/4", "L/4", "B/4", "S/4")),
    *(("DiT-XL/2", 128, [variant]) for variant in (FP8, BY_BLOCK, DIT_EAGER)),
    *(("DiT-XL/2", 128, [variant]) for variant in (DIFFUSERS_EAGER, DIFFUSERS_TF32)),
]
TINY: Plan = [  # diffusers eager: compiling it whole takes minutes on a CPU
    (
        "DiT-S/8",
        4,
        [*FP32, DIT_EAGER, BY_BLOCK, BY_BLOCK.modern(conditioning="tokens"), DIFFUSERS_EAGER],
    )
]
"""Models, images a step, and the variants that take turns; the most important first."""


class Diffusers(nn.Module):
    """diffusers' DiTTransformer2DModel of the same size, with the interface of our networks."""

    def __init__(self, model: str):
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.model = DiTTransformer2DModel(**diffusers_config(NetworkSpec(model=model, **SHAPE)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model(x, timestep=t.long(), class_labels=y).sample


def build_step(variant: Variant, model: str, batch: int, device: torch.device, folder: str) -> Step:
    """Return a function that takes one training step."""
    torch.manual_seed(0)
    if variant.whose == "dit":
        return trainer_step(variant, model, batch, device, folder)
    with device:
        if variant.whose == "plain":
            network: nn.Module = create_model(model, **SHAPE, **variant.network)
        else:
            network = Diffusers(model)
    return peer_step(variant, network, batch, device)


def trainer_step(
    variant: Variant, model: str, batch: int, device: torch.device, folder: str
) -> Step:
    settings = dict(
        model=model,
        batch=batch,
        precision=variant.precision,
        compile=variant.compiled == "full",
        steps=10**6,
        **variant.network,
    )
    session = session_of(settings, Ranks(device=device), folder)
    if variant.compiled == "blocks":
        for block in session.state.network.blocks:  # type: ignore[union-attr]
            block.compile()
    return stepper(session)


def peer_step(variant: Variant, network: nn.Module, batch: int, device: torch.device) -> Step:
    network.to(device).train()
    ema = EMA(network, 0.9999)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=None if variant.whose == "plain" else True)
    forward = torch.compile(network) if variant.compiled else network
    denoise = Denoiser(forward, DDPM("linear"), "eps", learn_sigma=True)
    precision = "fp32" if variant.precision == "tf32" else variant.precision

    x0, eps = torch.randn(2, batch, *(SHAPE["in_channels"], 32, 32), device=device)
    y = torch.randint(1000, (batch,), device=device)
    t = torch.randint(1, 1001, (batch,)).double()

    def step() -> None:
        with tf32(variant.precision == "tf32"), autocast(device, precision):
            loss = diffusion_loss(denoise, x0, y, t, eps)
            loss.mean.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(network, 1)

    return step


# -- measuring -----------------------------------------------------------------------------------


def measure(
    model: str, batch: int, variants: list[Variant], rounds: int, device: torch.device
) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Yield the seconds of a step of each variant; they take turns.

    On CUDA also the peak of memory and the time of kernels.
    """
    # the compiler takes another batch size for a dynamic one, and its cache is limited
    torch.compiler.reset()
    cuda = device.type == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    with tempfile.TemporaryDirectory() as folder:
        steps = {variant: build_step(variant, model, batch, device, folder) for variant in variants}
        first = {variant: seconds(step, device) for variant, step in steps.items()}
        calls = {variant: calls_per_timing(step, device) for variant, step in steps.items()}
        took: dict[Variant, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, step in steps.items():
                took[variant].append(seconds(step, device, calls[variant]))

        for variant, step in steps.items():
            times = took[variant]
            median = statistics.median(times)
            figures = {
                "seconds": median,
                "spread": (max(times) - min(times)) / median,
                "first_step_s": first[variant],
                "rounds": times,
            }
            if cuda:
                figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
                figures["kernels"] = kernels(step)
            yield variant, figures


def measure_rows(
    plan: Plan, rounds: int, device: torch.device, best: float, budget: float | None
) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each variant of each model.

    Ratios are to the plain step of the same model; `best` is the device's FLOP/s.
    """
    plain: dict[str, float] = {}
    parts = within_budget(budget, plan, lambda part: ", ".join(row_names([part])))
    for model, batch, variants in parts:
        for variant, figures in measure(model, batch, variants, rounds, device):
            # a forward and a backward pass, for every variant
            flops = 6 * count_multiply_adds(NetworkSpec(model=model, **SHAPE, **variant.network))
            speed = batch / figures["seconds"]
            if variant.whose == "plain":
                plain[model] = speed
            yield {
                "model": model,
                "batch": batch,
                "variant": variant.title,
                "img_per_s": speed,
                "ratio_to_plain": speed / plain[model] if model in plain else None,
                "mfu": speed * flops / best,
                **figures,
            }


def row_name(model: str, batch: int, variant: Variant) -> str:
    return f"{model} x{batch} {variant.title}"


def row_names(plan: Plan) -> list[str]:
    return [row_name(model, batch, one) for model, batch, variants in plan for one in variants]


def supported(plan: Plan, batch: int | None, fp8: bool) -> Plan:
    """Return the plan in batches of that size, if one is given, and without fp8 if need be."""
    return [
        (model, batch or usual, [variant for variant in variants if fp8 or variant != FP8])
        for model, usual, variants in plan
    ]


def select(plan: Plan, patterns: list[re.Pattern[str]]) -> Plan:
    """Return the rows of the plan whose name matches."""
    selected = []
    for model, batch, variants in plan:
        matching = [v for v in variants if matches(row_name(model, batch, v), patterns)]
        if matching:
            selected.append((model, batch, matching))
    return selected


HEADER = (
    "| model | batch | variant | img/s | ratio to plain | MFU | peak GiB | first step, s "
    "| spread |\n|---|---|---|---|---|---|---|---|---|"
)


def format_row(row: dict[str, Any]) -> str:
    ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "–"
    peak = f"{row['peak_gib']:.1f}" if "peak_gib" in row else "–"
    return (
        f"| {row['model']} | {row['batch']} | {row['variant']} | {row['img_per_s']:.4g} "
        f"| {ratio} | {row['mfu']:.0%} | {peak} | {row['first_step_s']:.1f} "
        f"| {row['spread']:.0%} |"
    )


def main() -> None:
    """Measure, print and record."""
    parser = table_parser(__doc__, rounds=5)
    parser.add_argument("--batch", type=positive_int, help="images a step, instead of the table's")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        plan = CUDA
    else:
        plan = CPU if fast_bf16(device) else CPU_FP32
    if args.tiny:
        plan = TINY
    fp8 = has_fp8(device) and find_spec("torchao") is not None
    possible = supported(plan, args.batch, fp8)
    selected = select(possible, args.only)
    require_rows(parser, selected, row_names(possible))

    best = measure_ceilings(device)
    rows = measure_rows(selected, args.rounds, device, fastest_products(best), args.budget)
    print_rows("training-speed", best, HEADER, rows, format_row, args.record)


if __name__ == "__main__":
    main()
