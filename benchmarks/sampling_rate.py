"""Sampling img/s with classifier-free guidance on latents of 4x32x32, compared with peers.

    python -m benchmarks.sampling_rate [--rounds 3] [--only PATTERN …] [--budget 150] [--tiny]
        [--record]

It also gives the latency of one image. All rows use the package's samplers, guidance (scale 4) and
noise, and a network with learned variance, as in the DiT paper.

- `plain` is our network in float32 (on CUDA in TF32), eager.
- `diffusers` is DiTTransformer2DModel with weights in bfloat16.
- 250 steps of DDPM are what the DiT paper reports. The rows with few steps use the settings that
  `benchmarks.sampling_speed` found as good on digits. It did so for flow matching, whose network
  differs only in its last layer.

All steps of a sampler cost the same, so only some of the 250 steps are timed. Short samplers are
timed completely. On a CPU one image is decoded, and its time counts for every image. The decoder
has Stable Diffusion's size and random weights. Each figure is the median over rounds and includes
decoding.
"""

import dataclasses
import gc
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.arguments import table_parser
from benchmarks.ceilings import fastest_products, measure_ceilings, seconds, tf32
from benchmarks.memory import run_of
from benchmarks.rows import matches, print_rows, require_rows, within_budget
from benchmarks.training_speed import Diffusers
from dit.build import build_network
from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, build_codec
from dit.models.registry import multiply_adds
from dit.sampling.generate import sample_latents
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.training.monitoring.previews import ema_run

LONG: dict[str, Any] = dict(sampler="ddpm", steps=250)
SHORT: dict[str, Any] = dict(sampler="dpmpp_2m", steps=16, spacing="cosine")
TIMED_STEPS = {"cpu": 4, "cuda": 10}  # of the 250
DECODED_IMAGES = {"cpu": 1, "cuda": 64}  # at most; the time of the others follows from it
WIDTHS = {"tiny": (32, 32, 32, 32), "full": (128, 256, 512, 512)}  # of the decoder


class Variant(NamedTuple):
    """A way to sample: whose network, in which precision, with which flags."""

    whose: str
    precision: str
    compile: bool
    flags: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.whose} {self.precision} {'compiled' if self.compile else 'eager'}"

    @property
    def full_guidance(self) -> bool:
        """Whether every step computes the network with and without the class."""
        return not {"cfg_interval", "block_cache"} & set(self.flags)

    @property
    def typed_flags(self) -> str:
        """The flags as a user would type them."""
        words = []
        for name, value in self.flags.items():
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return " ".join(words)


def variants(cuda: bool) -> list[Variant]:
    """Return all variants, the most important first."""
    return [
        Variant("plain", "tf32" if cuda else "fp32", False, LONG),
        Variant("dit", "bf16", True, LONG),
        Variant("dit", "bf16", True, SHORT),
        Variant("dit", "bf16", True, {**SHORT, "cfg_interval": (0.0, 0.6)}),
        Variant("dit", "bf16", True, {**SHORT, "block_cache": 2}),
        Variant("diffusers", "bf16", True, LONG),
        Variant("dit", "bf16", False, LONG),
        Variant("diffusers", "bf16", False, LONG),
    ]


CPU = [("DiT-S/4", 16), ("DiT-S/4", 1)]
CUDA = [("DiT-XL/2", 64), ("DiT-XL/2", 1)]
TINY = [("DiT-Ti/8", 2)]
"""Models, and images at once."""

Part = tuple[str, int, Variant]


class HalfDiffusers(Diffusers):
    """DiTTransformer2DModel as its pipeline runs it: weights and tokens in bfloat16."""

    def __init__(self, model: str):
        super().__init__(model)
        self.model.bfloat16()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        # its pipeline does not use autocast
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.bfloat16(), t, y)


def untrained_run(model: str, variant: Variant, decoder: Autoencoder, folder: str) -> LoadedRun:
    """Return a run with initial weights; the arithmetic takes as long as with trained ones."""
    card, *_ = run_of(dict(model=model, batch=1), Ranks(device=decoder.device), folder)
    with decoder.device:
        if variant.whose == "diffusers":
            network = HalfDiffusers(model)
        else:
            network = build_network(card.network)
    return ema_run(card, network.eval().requires_grad_(False), decoder)


def build_decoder(device: torch.device, tiny: bool) -> Autoencoder:
    """Return a decoder of Stable Diffusion's size, 4x32x32 to 256 x 256 pixels."""
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=WIDTHS["tiny" if tiny else "full"],
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    one = torch.ones(4, 1, 1, device=device)
    codec = build_codec(network.to(device, memory_format=torch.channels_last))
    return Autoencoder(
        name="as Stable Diffusion's", codec=codec, factor=8, channels=4, shift=0 * one, scale=one
    )


# -- measuring -----------------------------------------------------------------------------------


def time_sampling(run: LoadedRun, variant: Variant, batch: int, rounds: int) -> dict[str, float]:
    """Return seconds of all steps for a batch, and of the first call, which compiles."""
    precision: Any = "fp32" if variant.precision == "tf32" else variant.precision
    config = SamplerConfig(
        cfg_scale=4.0,
        precision=precision,
        compile=variant.compile,
        batch_size=batch,
        **variant.flags,
    )

    # the compiler's cache holds a limited number of variants of one function
    torch.compiler.reset()
    plan = build_pipeline(run, config)
    timed = TIMED_STEPS[run.device.type] if variant.flags is LONG else plan.steps
    part = dataclasses.replace(plan, times=plan.times[: timed + 1])
    indices = torch.arange(batch)
    with tf32(variant.precision == "tf32"):
        first, *took = [
            seconds(lambda: sample_latents(part, indices, indices), run.device)
            for _ in range(rounds + 1)
        ]

    median = statistics.median(took)
    return {
        "seconds": median * plan.steps / timed,
        "first_s": first,
        "spread": (max(took) - min(took)) / median,
    }


def time_decoding(decoder: Autoencoder, batch: int, rounds: int) -> float:
    """Return seconds of decoding a batch, extrapolated from a few images."""
    few = min(batch, DECODED_IMAGES[decoder.device.type])
    latents = torch.randn(few, 4, 32, 32, device=decoder.device)
    took = [seconds(partial(decoder.decode, latents), decoder.device) for _ in range(rounds + 1)]
    # the first is a warm-up
    return statistics.median(took[1:]) * batch / few


def row_name(part: Part) -> str:
    model, batch, variant = part
    return f"{model} x{batch} {variant.title} {variant.typed_flags}"


def measure_rows(
    parts: list[Part], rounds: int, decoder: Autoencoder, best: float, budget: float | None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each model, batch and variant.

    Ratios are to the plain variant of the same model and batch; `best` is the device's FLOP/s.
    """
    decode: dict[int, float] = {}
    plain: dict[tuple[str, int], float] = {}
    for model, batch, variant in within_budget(budget, parts, row_name):
        if batch not in decode:
            decode[batch] = time_decoding(decoder, batch, rounds)
        with tempfile.TemporaryDirectory() as folder:
            run = untrained_run(model, variant, decoder, folder)
            timing = time_sampling(run, variant, batch, rounds)
        # free this network before the next is created
        del run
        gc.collect()

        total = timing["seconds"] + decode[batch]
        if variant.whose == "plain":
            plain[model, batch] = total
        # two FLOPs a multiply-add, with and without the class
        flops = 4 * multiply_adds(model, input_size=32, in_channels=4, num_classes=1000)
        mfu = batch * flops * variant.flags["steps"] / timing["seconds"] / best
        yield {
            "model": model,
            "batch": batch,
            "variant": variant.title,
            "how": variant.typed_flags,
            "img_per_s": batch / total,
            "latency_s": total,
            "decode_s": decode[batch],
            "ratio_to_plain": plain[model, batch] / total if (model, batch) in plain else None,
            "mfu": mfu if variant.full_guidance else None,
            **timing,
        }


HEADER = (
    "| model | batch | variant | sampling | img/s | s a batch | of it decoding "
    "| ratio to plain | MFU | spread |\n|---|---|---|---|---|---|---|---|---|---|"
)


def format_row(row: dict[str, Any]) -> str:
    ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "–"
    mfu = f"{row['mfu']:.0%}" if row["mfu"] else "–"
    return (
        f"| {row['model']} | {row['batch']} | {row['variant']} | `{row['how']}` "
        f"| {row['img_per_s']:.4g} | {row['latency_s']:.4g} | {row['decode_s']:.3g} "
        f"| {ratio} | {mfu} | {row['spread']:.0%} |"
    )


def main() -> None:
    """Measure, print and record."""
    parser = table_parser(__doc__, rounds=3)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = CUDA if device.type == "cuda" else CPU
    if args.tiny:
        sizes = TINY
    parts = [
        (model, batch, variant)
        for variant in variants(device.type == "cuda")
        for model, batch in sizes
    ]
    chosen = [part for part in parts if matches(row_name(part), args.only)]
    require_rows(parser, chosen, [row_name(part) for part in parts])

    best = measure_ceilings(device)
    decoder = build_decoder(device, args.tiny)
    rows = measure_rows(chosen, args.rounds, decoder, fastest_products(best), args.budget)
    print_rows("sampling-rate", best, HEADER, rows, format_row, args.record)


if __name__ == "__main__":
    main()
