"""Sampling img/s with classifier-free guidance on latents of 4x32x32, and the latency of one image, beside peers.

    python -m benchmarks.sampling_rate [--rounds 3] [--only PATTERN …] [--budget 150] [--tiny] [--record]

All rows take the package's samplers, guidance (scale 4) and noise, and a network with learned variance, as the
paper's. `plain` is ours in float32 (on CUDA in TF32), eager; `diffusers` is DiTTransformer2DModel with its weights in
bfloat16. 250 steps of DDPM are what the DiT paper reports; the few steps below are those that
`benchmarks.sampling_speed` finds as good on digits, for flow matching, whose network differs in its last layer alone.

All steps of a sampler cost alike, so of 250 a part is timed; few steps are timed whole. On a CPU one image stands for
all that are decoded. The decoder is of Stable Diffusion's size with random weights. A figure is the median over rounds,
decoding included.
"""

import argparse
import dataclasses
import gc
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.arguments import has, pattern, positive, require_rows
from benchmarks.budget import within
from benchmarks.ceilings import ceilings, seconds, tf32, told
from benchmarks.memory import run_of
from benchmarks.record import record, rows_told
from benchmarks.training_speed import Diffusers
from dit.build import build_network
from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, codec_of
from dit.models.registry import multiply_adds
from dit.sampling.generate import sample_latents
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.training.monitoring.previews import ema_run

LONG: dict[str, Any] = dict(sampler="ddpm", steps=250)
SHORT: dict[str, Any] = dict(sampler="dpmpp_2m", steps=16, spacing="cosine")
TIMED = {"cpu": 4, "cuda": 10}  # of the 250 steps
DECODED = {"cpu": 1, "cuda": 64}  # images at most, which stand for all


class Variant(NamedTuple):
    """One way to sample: whose network, in which precision, by which flags."""

    whose: str
    precision: str
    compile: bool
    flags: dict[str, Any]

    @property
    def title(self) -> str:
        """As in the table."""
        return f"{self.whose} {self.precision} {'compiled' if self.compile else 'eager'}"

    @property
    def whole(self) -> bool:
        """Whether both halves of the network's work are done in every step."""
        return not {"cfg_interval", "block_cache"} & set(self.flags)

    @property
    def how(self) -> str:
        """As one would type it."""
        return " ".join(
            f"--{name.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, tuple) else v}"
            for name, v in self.flags.items()
        )


def variants(cuda: bool) -> list[Variant]:
    """What matters most comes first."""
    return [
        Variant("plain", "tf32" if cuda else "fp32", False, LONG),
        Variant("dit", "bf16", True, LONG),
        *(
            Variant("dit", "bf16", True, {**SHORT, **more})
            for more in ({}, dict(cfg_interval=(0.0, 0.6)), dict(block_cache=2))
        ),
        Variant("diffusers", "bf16", True, LONG),
        Variant("dit", "bf16", False, LONG),
        Variant("diffusers", "bf16", False, LONG),
    ]


CPU, CUDA, TINY = (
    [(model, batch) for batch in batches]
    for model, *batches in (("DiT-S/4", 16, 1), ("DiT-XL/2", 64, 1), ("DiT-Ti/8", 2))
)
"""Models, and images at once."""


Part = tuple[str, int, Variant]


class HalfDiffusers(Diffusers):
    """As its pipeline runs it: weights and tokens in bfloat16."""

    def __init__(self, model: str):
        super().__init__(model)
        self.model.bfloat16()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # which its pipeline knows nothing of
            return super().forward(x.bfloat16(), t, y)


def to_sample(model: str, variant: Variant, decoder: Autoencoder, folder: str) -> LoadedRun:
    """A run with weights as they are at the start: arithmetic takes as long."""
    card, *_ = run_of(dict(model=model, batch=1), Ranks(device=decoder.device), folder)
    with decoder.device:
        network = (
            HalfDiffusers(model) if variant.whose == "diffusers" else build_network(card.network)
        )
    return ema_run(card, network.eval().requires_grad_(False), decoder)


def decoder_of(device: torch.device, tiny: bool) -> Autoencoder:
    """Of Stable Diffusion's size, 4x32x32 to 256 x 256 pixels."""
    from diffusers import AutoencoderKL

    widths = (32, 32, 32, 32) if tiny else (128, 256, 512, 512)
    network = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    one = torch.ones(4, 1, 1, device=device)
    codec = codec_of(network.to(device, memory_format=torch.channels_last))
    return Autoencoder(
        name="as Stable Diffusion's", codec=codec, factor=8, channels=4, shift=0 * one, scale=one
    )


# -- measuring -------------------------------------------------------------------------------------------------------


def sampling(run: LoadedRun, variant: Variant, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of all steps for a batch, of which some may have been timed, and of the first call."""
    precision: Any = "fp32" if variant.precision == "tf32" else variant.precision
    config = SamplerConfig(
        cfg_scale=4.0,
        precision=precision,
        compile=variant.compile,
        batch_size=batch,
        **variant.flags,
    )
    torch.compiler.reset()  # whose cache holds so many variants of one function, and no more
    plan = build_pipeline(run, config)
    timed = TIMED[run.device.type] if variant.flags is LONG else plan.steps
    part = dataclasses.replace(plan, times=plan.times[: timed + 1])
    indices = torch.arange(batch)
    with tf32(variant.precision == "tf32"):
        first, *took = [
            seconds(lambda: sample_latents(part, indices, indices), run.device)
            for _ in range(rounds + 1)
        ]
    return {
        "seconds": statistics.median(took) * plan.steps / timed,
        "first_s": first,
        "spread": (max(took) - min(took)) / statistics.median(took),
    }


def name_of(part: Part) -> str:
    """A row's."""
    model, batch, variant = part
    return f"{model} x{batch} {variant.title} {variant.how}"


def rows_of(
    parts: list[Part],
    rounds: int,
    device: torch.device,
    tiny: bool,
    best: float,
    budget: float | None,
) -> Iterator[dict[str, Any]]:
    """A row for each model, batch and variant; ratios are to the plain way of the same model and batch."""
    decoder, decode, plain = decoder_of(device, tiny), {}, {}
    for model, batch, variant in within(budget, parts, name_of):
        if batch not in decode:
            few = min(batch, DECODED[device.type])
            decoding = partial(decoder.decode, torch.randn(few, 4, 32, 32, device=device))
            took = [seconds(decoding, device) for _ in range(rounds + 1)]
            decode[batch] = statistics.median(took[1:]) * batch / few
        with tempfile.TemporaryDirectory() as folder:
            found = sampling(to_sample(model, variant, decoder, folder), variant, batch, rounds)
        gc.collect()
        total = found["seconds"] + decode[batch]
        plain |= {(model, batch): total} if variant.whose == "plain" else {}
        flops = 4 * multiply_adds(
            model, input_size=32, in_channels=4, num_classes=1000
        )  # of both halves
        mfu = batch * flops * variant.flags["steps"] / found["seconds"] / best
        yield {
            "model": model,
            "batch": batch,
            "variant": variant.title,
            "how": variant.how,
            "img_per_s": batch / total,
            "latency_s": total,
            "decode_s": decode[batch],
            "ratio_to_plain": plain[model, batch] / total if (model, batch) in plain else None,
            "mfu": mfu if variant.whole else None,
            **found,
        }


HEAD = """| model | batch | variant | sampling | img/s | s a batch | of it decoding | ratio to plain | MFU | spread |
|---|---|---|---|---|---|---|---|---|---|"""


def tell(row: dict[str, Any]) -> str:
    """As a line of a Markdown table."""
    ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "–"
    mfu = f"{row['mfu']:.0%}" if row["mfu"] else "–"
    return (
        f"| {row['model']} | {row['batch']} | {row['variant']} | `{row['how']}` | {row['img_per_s']:.4g} | "
        f"{row['latency_s']:.4g} | {row['decode_s']:.3g} | {ratio} | {mfu} | "
        f"{row['spread']:.0%} |"
    )


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        type=pattern,
        default=[pattern("")],
        metavar="PATTERN",
        help="rows with one of these patterns in their model, batch, variant and sampling, such as "
        "'XL/2 x64 dit'; all unless given",
    )
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--budget", type=float, help="seconds after which no further row is begun")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that all works")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = TINY if args.tiny else CUDA if device.type == "cuda" else CPU
    parts = [
        (model, batch, one) for one in variants(device.type == "cuda") for model, batch in plan
    ]
    wanted = [part for part in parts if has(name_of(part), args.only)]
    require_rows(parser, wanted, [name_of(part) for part in parts])
    best = ceilings(device)
    command = shlex.join(["python", "-m", "benchmarks.sampling_rate", *sys.argv[1:]])
    write = lambda rows, table: record(
        "sampling-rate", command, {"ceilings": best, "rows": rows}, table
    )  # noqa: E731
    rows_told(
        rows_of(wanted, args.rounds, device, args.tiny, best["bf16"], args.budget),
        tell,
        [told(best), "", HEAD],
        write if args.record else None,
    )


if __name__ == "__main__":
    main()
