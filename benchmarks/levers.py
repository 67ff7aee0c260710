"""Levers on the speed of a training step: each is pulled alone, and compared with the trainer's own step.

    python -m benchmarks.levers [--only NAME …] [--models DiT-XL/2 …] [--batch 128] [--rounds 5] [--budget SECONDS]
                                [--tiny] [--record]

The base is the trainer's own step in bf16, compiled: as a whole on a CPU, by block on CUDA, where compiling as a whole
takes minutes and is a lever of its own. A lever changes the session before its first step (its network, its
optimizer, its average), the way it is compiled, or what surrounds a step; `prediction` is what we expected of it before
we measured. All of that lives here: the package has no paths that only a benchmark takes.

Before a lever is timed it has to compute the same. From the same weights, none of which are zero, it takes the first
step on the same batch; then the loss, the gradients (AdamW's first moments, of up to a thousand places of every
parameter) and how far the EMA lags behind the weights have to be the base's, but for bf16's rounding (`TOLERANCE`). One
that computes something else is timed all the same, but not counted.

On a CPU base and levers take turns in every round, so that a noisy machine disturbs them alike; on CUDA one follows the
other, so that each has the memory to itself, and a round is two seconds of steps in a row. A ratio is the median over
rounds of the base's seconds by the lever's, on CUDA that of their medians.
"""

import argparse
import gc
import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.arguments import positive
from benchmarks.budget import within
from benchmarks.ceilings import calls_of, seconds, tf32
from benchmarks.memory import in_use, peak, session_of, stepper
from benchmarks.record import record, rows_told
from dit.build import build_loss
from dit.distributed.float8 import convert_to_float8, require_fp8
from dit.distributed.parallel import full_tensor, shard, wrap_ddp_and_compile
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.dit import SIZES, ZERO, Condition
from dit.models.registry import DIT_NAMES
from dit.training.session import TrainingSession

CPU, CUDA, TINY = {"DiT-S/4": 32}, {"DiT-XL/2": 128}, {"DiT-Ti/8": 4}
TINY_SIZE = dict(depth=2, hidden_size=96, num_heads=4)  # heads of 24, which no kernel likes
PLACES = 1000  # of a parameter, at most, whose gradients are compared
Call = Callable[..., Tensor]
Step = Callable[[], None]
Compile = Callable[[nn.Module, Ranks], Call]


class Useless(Exception):
    """A lever changes nothing here."""


# -- the network, before it is compiled ------------------------------------------------------------------------------


def attentions(session: TrainingSession) -> list[Any]:
    """Of all blocks."""
    return [block.attn for block in session.state.network.blocks]  # type: ignore[union-attr]


def attend(attn: Any, core: Call, width: int, x: Tensor) -> Tensor:
    """What timm's `Attention` does, with `core` at its heart, on heads that zeros widen; `attn` keeps its weights."""
    heads, more = attn.num_heads, width - attn.head_dim
    weight = functional.pad(
        attn.qkv.weight.unflatten(0, (-1, attn.head_dim)), (0, 0, 0, more)
    ).flatten(0, 1)
    bias = functional.pad(attn.qkv.bias.unflatten(0, (-1, attn.head_dim)), (0, more)).flatten()
    q, k, v = rearrange(
        functional.linear(x, weight, bias), "b t (three h d) -> three b h t d", three=3, h=heads
    )
    out = rearrange(core(q, k, v, scale=attn.scale), "b h t d -> b t (h d)")
    weight = functional.pad(attn.proj.weight.unflatten(1, (-1, attn.head_dim)), (0, more)).flatten(
        1
    )
    return functional.linear(out, weight, attn.proj.bias)


def unfused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention as plain products: softmax(q k^T scale) v."""
    return (q * scale @ k.mT).softmax(dim=-1) @ v


def pad_heads(widened: Callable[[int], int], session: TrainingSession) -> TrainingSession:
    """Heads of a width that kernels like better; in products with weights, so that no activation is copied."""
    for attn in attentions(session):
        width = widened(attn.head_dim)
        if width == attn.head_dim:
            raise Useless(f"heads of {width} need no padding")
        core = functional.scaled_dot_product_attention if attn.fused_attn else unfused
        attn.forward = partial(attend, attn, core, width)
    return session


def multiple_of_16(width: int) -> int:
    """The next."""
    return -(-width // 16) * 16


def power_of_two(width: int) -> int:
    """The next."""
    return 1 << (width - 1).bit_length()


def choose_core(fused: bool, session: TrainingSession) -> TrainingSession:
    """Fused attention, or plain products."""
    for attn in attentions(session):
        if attn.fused_attn == fused:
            raise Useless("it is the trainer's own")
        attn.fused_attn = fused
    return session


def use_flex(session: TrainingSession) -> TrainingSession:
    """FlexAttention without any modification."""
    for attn in attentions(session):
        attn.forward = partial(attend, attn, flex_attention, attn.head_dim)
    return session


def stack_modulations(session: TrainingSession) -> TrainingSession:
    """Shifts, scales and gates of all blocks from one product; to block i they go as the i-th of the condition's
    tokens, which adaLN-Zero leaves alone."""
    network: Any = session.state.network
    condition = network.condition

    def together(t: Tensor, y: Tensor) -> Condition:
        vector = condition(t, y).vector  # [B, D]
        last = [block.adaLN_modulation[1] for block in network.blocks]
        weight, bias = (
            torch.cat([linear.weight for linear in last]),
            torch.cat([linear.bias for linear in last]),
        )
        made = functional.linear(functional.silu(vector), weight, bias)
        return Condition(vector, rearrange(made, "b (n d) -> n b d", n=len(last)))

    network.condition = together
    for i, block in enumerate(network.blocks):
        block.forward = partial(hear, block.forward, i)
        block.adaLN_modulation.forward = ready
    return session


def hear(forward: Callable[[Tensor, Condition], Tensor], i: int, x: Tensor, c: Condition) -> Tensor:
    """A block's forward with its part of the stacked product."""
    return forward(x, c._replace(vector=c.tokens[i]))


def ready(made: Tensor) -> Tensor:
    """Shifts, scales and gates that have been made before."""
    return made


def patches_as_rows(session: TrainingSession) -> TrainingSession:
    """The patch convolution, whose stride is its width, as a product with rearranged patches."""
    embed: Any = session.state.network.x_embedder
    embed.forward = partial(embed_rows, embed.proj)
    return session


def embed_rows(proj: nn.Conv2d, x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, T, D]."""
    p, q = proj.kernel_size
    return functional.linear(
        rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q),
        proj.weight.flatten(1),
        proj.bias,
    )


def channels_last(session: TrainingSession) -> TrainingSession:
    """The image and the weight of the patch convolution with channels innermost."""
    embed: Any = session.state.network.x_embedder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    embed.forward = partial(embed_channels_last, embed.forward)
    return session


def embed_channels_last(forward: Call, x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, T, D]."""
    return forward(x.contiguous(memory_format=torch.channels_last))


def hold_bf16(session: TrainingSession) -> TrainingSession:
    """Weights that are rounded to bf16 once a step, with masters in float32: FSDP2 on one rank."""
    state, fixed = (
        session.state,
        {name for name, p in session.state.network.named_parameters() if not p.requires_grad},
    )
    for network in (state.network, state.ema.network):
        shard(network, fixed, session.ranks, session.config.precision)
    return optimize(session, torch.optim.AdamW, fused=True)


def tokens_in_bf16(session: TrainingSession) -> TrainingSession:
    """What blocks add to is rounded after each, as where nothing but bf16 is known."""
    network: Any = session.state.network
    network.tokens = partial(rounded, network.tokens)
    return session


def rounded(tokens: Call, x: Tensor) -> Tensor:
    """To bf16, which sums with bf16 keep."""
    return tokens(x).bfloat16()


def use_float8(session: TrainingSession) -> TrainingSession:
    """Products of the blocks in fp8."""
    require_fp8("fp8", session.ranks.device)
    convert_to_float8(session.state.network)
    return session


# -- optimizer and average -------------------------------------------------------------------------------------------


class Unguarded(torch.optim.AdamW):
    """Takes no notice of `found_inf`, with which the trainer leaves steps out, and which AdamW knows only fused."""

    found_inf = property(lambda self: None, lambda self, left_out: None)


def optimize(
    session: TrainingSession, kind: type[torch.optim.AdamW] = Unguarded, **how: bool
) -> TrainingSession:
    """AdamW of the same settings in another implementation."""
    trained = [p for p in session.state.network.parameters() if p.requires_grad]
    same = {
        name: session.state.optimizer.defaults[name]
        for name in ("lr", "betas", "eps", "weight_decay")
    }
    return replace(session, state=replace(session.state, optimizer=kind(trained, **same, **how)))


def average_one_by_one(session: TrainingSession) -> TrainingSession:
    """The EMA in a loop over parameters."""
    ema: Any = session.state.ema

    @torch.no_grad()
    def update(network: nn.Module, step: int) -> None:
        for average, weight in zip(ema.network.parameters(), network.parameters(), strict=True):
            if weight.requires_grad:
                average.lerp_(weight, 1 - ema.decay_at(step))

    ema.update = update
    return session


# -- compiling -------------------------------------------------------------------------------------------------------


def as_one(network: nn.Module, ranks: Ranks, **how: Any) -> Call:
    """Compiled as a whole, apart from the base and other levers: the compiler finds again what it has made by the code
    it made it of, and does not see all that a lever changes."""

    def call(*inputs: Tensor) -> Tensor:
        return network(*inputs)

    call.__code__ = call.__code__.replace()  # one of its own
    return torch.compile(call, **how)


def by_block(network: nn.Module, ranks: Ranks, **options: Any) -> Call:
    """Block by block: what is compiled for one serves all."""
    for block in network.blocks:  # type: ignore[union-attr]
        block.compile(options=options)
    return network


def usual(network: nn.Module, ranks: Ranks) -> Call:
    """As the base is."""
    return (by_block if ranks.device.type == "cuda" else as_one)(network, ranks)


as_trained = partial(
    wrap_ddp_and_compile, compiled=True
)  # what the trainer does; a network in shards it compiles block by block


@contextmanager
def next_graph() -> Iterator[None]:
    """Tell CUDA graphs that what the last step has made may go."""
    torch.compiler.cudagraph_mark_step_begin()
    yield


def uncompiled(network: nn.Module, ranks: Ranks) -> Call:
    """Eager."""
    return network


# -- levers ----------------------------------------------------------------------------------------------------------


class Tolerance(NamedTuple):
    """Largest differences from the base, as shares of it.

    The loss is a mean over all of an image's numbers and the lag a norm over all weights: each term may be off by a few
    roundings of bf16 (2^-9), but these have no common sign, so that the mean is nearer than a single one. Gradients are
    compared place by place, where nothing averages out: backward through the depth of the network some tens to hundreds
    of roundings add up as a walk does, to sqrt(them) 2^-9, a few percent at most (0.6% from fp32 to bf16 in the 12
    blocks of DiT-S/4). What computes something else is off by about 1.
    """

    loss: float = 2**-9
    gradient: float = 2**-4
    lag: float = 2**-9


TOLERANCE = Tolerance()
COARSE = Tolerance(
    loss=2**-7, gradient=2**-2, lag=2**-7
)  # rounds what every block adds to, once more in each
FP8 = Tolerance(
    loss=2**-5, gradient=0.7, lag=2**-5
)  # e4m3 rounds to 2^-4; gradients still have to point the same way


@dataclass(frozen=True)
class Lever:
    """Something to try, and what we expect of it."""

    name: str
    what: str
    prediction: str  # of the speed, before it was measured
    change: Callable[[TrainingSession], TrainingSession] = lambda session: session
    compiled: Compile = usual
    context: Callable[[], AbstractContextManager] = nullcontext  # of every step
    devices: tuple[str, ...] = ("cpu", "cuda")
    tolerance: Tolerance = TOLERANCE


def restricted(backend: SDPBackend) -> Callable[[], AbstractContextManager]:
    """Attention by this kernel alone."""
    return partial(sdpa_kernel, backend)


BASE = Lever("base", "the trainer's own step in bf16, compiled", "")
ONLY_CUDA: dict[str, Any] = dict(devices=("cuda",))
LEVERS = [  # those that promise most come first, and dear ones after cheap ones
    Lever("nothing", "the same again: what differs is noise", "0%"),
    Lever(
        "fp8",
        "products of the blocks in fp8",
        "+15 to +30%",
        use_float8,
        tolerance=FP8,
        **ONLY_CUDA,
    ),
    Lever(
        "persistent",
        "reductions that hold a whole row of 1,152 at once, where that is faster (multi_kernel)",
        "+4 to +7%",
        compiled=partial(by_block, **{"triton.multi_kernel": 1}),
        **ONLY_CUDA,
    ),
    Lever(
        "persistent-all",
        "they all do",
        "+3 to +7%",
        compiled=partial(by_block, **{"triton.multi_kernel": 2}),
        **ONLY_CUDA,
    ),
    Lever(
        "bf16-tokens",
        "tokens in bf16 between the blocks, as diffusers has them",
        "+4 to +5%",
        tokens_in_bf16,
        tolerance=COARSE,
        **ONLY_CUDA,
    ),
    Lever(
        "tuned-kernels",
        "max_autotune_pointwise, coordinate_descent_tuning: compiled code tuned on the device",
        "+2 to +5%",
        compiled=partial(by_block, max_autotune_pointwise=True, coordinate_descent_tuning=True),
        **ONLY_CUDA,
    ),
    Lever(
        "sdpa-cudnn",
        "fused attention by cuDNN alone",
        "0%, for it is what PyTorch takes",
        context=restricted(SDPBackend.CUDNN_ATTENTION),
        **ONLY_CUDA,
    ),
    Lever(
        "sdpa-flash",
        "fused attention by FlashAttention alone",
        "-3 to +4%",
        context=restricted(SDPBackend.FLASH_ATTENTION),
        **ONLY_CUDA,
    ),
    Lever(
        "cuda-graphs",
        "mode reduce-overhead",
        "0 to +1%",
        compiled=partial(as_one, mode="reduce-overhead"),
        context=next_graph,
        **ONLY_CUDA,
    ),
    Lever(
        "bf16-weights",
        "rounded once a step, masters in fp32: FSDP2 on one rank, compiled by block",
        "-3 to +1%",
        hold_bf16,
        as_trained,
    ),
    Lever(
        "heads-16",
        "heads padded to a multiple of 16 (72 to 80)",
        "-3 to +2%",
        partial(pad_heads, multiple_of_16),
    ),
    Lever("flex", "FlexAttention", "-5 to +1%", use_flex, **ONLY_CUDA),
    Lever(
        "adaln-once",
        "adaLN projections of all blocks in one product",
        "-1 to +1%",
        stack_modulations,
    ),
    Lever(
        "patches-linear",
        "patch embedding as a product with rearranged patches",
        "0 to +0.5%",
        patches_as_rows,
    ),
    Lever("channels-last", "image and patch embedding in channels_last", "0%", channels_last),
    Lever(
        "tf32",
        "TF32 for products that stay in fp32",
        "0%",
        context=partial(tf32, True),
        **ONLY_CUDA,
    ),
    Lever(
        "heads-128",
        "heads padded to a power of two (72 to 128)",
        "-10 to -4%",
        partial(pad_heads, power_of_two),
    ),
    Lever("whole", "compiled as a whole", "0 to +1.5%", compiled=as_trained, **ONLY_CUDA),
    Lever("blocks", "compiled block by block", "-1 to 0%", compiled=by_block, devices=("cpu",)),
    Lever(
        "max-autotune",
        "mode max-autotune-no-cudagraphs",
        "0 to +4%",
        compiled=partial(as_one, mode="max-autotune-no-cudagraphs"),
    ),
    Lever(
        "fused",
        "fused attention in bf16",
        "-30 to -5%",
        partial(choose_core, True),
        devices=("cpu",),
    ),
    Lever("adamw-foreach", "AdamW with foreach", "-4 to -1%", partial(optimize, foreach=True)),
    Lever(
        "adamw-loop",
        "AdamW in a loop over parameters",
        "-6 to -2%",
        partial(optimize, foreach=False),
    ),
    Lever("ema-loop", "EMA in a loop over parameters", "-1 to 0%", average_one_by_one),
    Lever(
        "sdpa-efficient",
        "fused attention by the memory-efficient kernel alone",
        "-4 to -1%",
        context=restricted(SDPBackend.EFFICIENT_ATTENTION),
        **ONLY_CUDA,
    ),
    Lever(
        "unfused",
        "attention as plain products, if the compiler leaves them plain",
        "-25 to -10%",
        partial(choose_core, False),
        **ONLY_CUDA,
    ),
    Lever(
        "sdpa-math",
        "scaled_dot_product_attention as plain products",
        "-30 to -10%",
        context=restricted(SDPBackend.MATH),
        **ONLY_CUDA,
    ),
    Lever("eager", "not compiled", "-35 to -15%", compiled=uncompiled),
]


# -- one lever -------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is trained, and on what."""

    model: str
    batch: int
    device: torch.device
    folder: str
    precision: str = "bf16"
    tiny: bool = False

    @property
    def title(self) -> str:
        """As in the table."""
        return f"{self.model} of 2 blocks" if self.tiny else self.model


class Evidence(NamedTuple):
    """Of what a first step computed."""

    loss: float
    gradient: dict[str, Tensor]  # at some places of every parameter
    lag: float  # norm of the weights less their EMA


def trial(lever: Lever, case: Case) -> TrainingSession:
    """A run that is about to start, with the lever pulled."""
    settings = dict(
        model=case.model, batch=case.batch, precision=case.precision, compile=False, steps=10**6
    )
    torch.manual_seed(0)  # of the latents
    with patch.dict(SIZES, {"Ti": TINY_SIZE} if case.tiny else {}):
        session = session_of(settings, Ranks(device=case.device), case.folder)
    leave_zero(session)
    session = lever.change(session)
    network: Any = lever.compiled(session.state.network, session.ranks)
    return replace(
        session, network=network, loss=build_loss(session.config, network, session.process)[0]
    )


@torch.no_grad()
def leave_zero(session: TrainingSession) -> None:
    """Other weights where fresh ones are zero: a fresh DiT says zero whatever its blocks compute."""
    torch.manual_seed(0)
    for name, parameter in session.state.network.named_parameters():
        if name.endswith(ZERO):
            nn.init.normal_(parameter, std=session.state.network.pos_embed.shape[-1] ** -0.5)  # type: ignore[union-attr]
    session.state.ema.network.load_state_dict(session.state.network.state_dict())


@torch.no_grad()
def evidence(session: TrainingSession) -> Evidence:
    """After the first step: its loss, gradients by AdamW's first moments, and what AdamW and EMA made of them."""
    trained = {name: p for name, p in session.state.network.named_parameters() if p.requires_grad}
    moments = {
        name: full_tensor(session.state.optimizer.state[p]["exp_avg"]).flatten()
        for name, p in trained.items()
    }
    places = {
        name: moment[:: -(-len(moment) // PLACES)].to("cpu", copy=True)
        for name, moment in moments.items()
    }
    pairs = zip(
        session.state.network.parameters(), session.state.ema.network.parameters(), strict=True
    )
    lags = [full_tensor(p - average).norm() for p, average in pairs if p.requires_grad]
    loss = session.state.means.compute_and_reset(session.ranks).get(
        "loss", math.nan
    )  # none where the step was left out
    return Evidence(loss, places, torch.stack(lags).norm().item())


def differences(found: Evidence, base: Evidence) -> dict[str, float]:
    """From the base, as shares of it; of gradients the parameter's that differ most."""
    gradients = [
        ((found.gradient[name] - own).norm() / own.norm()).item()
        for name, own in base.gradient.items()
        if own.any()
    ]
    return {
        "loss": abs(found.loss / base.loss - 1),
        "gradient": max(gradients),
        "lag": abs(found.lag / base.lag - 1),
    }


def verdict(found: dict[str, float], tolerance: Tolerance) -> str:
    """What differs by more than rounding, in words; nothing if all is well."""
    beyond = [
        f"{name} differs by {share:.2g}"
        for name, share in found.items()
        if not share <= getattr(tolerance, name)
    ]
    return ", ".join(beyond)


@dataclass
class Found:
    """What a lever did."""

    case: Case
    lever: Lever
    first: float = 0.0  # seconds of the first step
    evidence: Evidence | None = None
    note: str = ""  # why there is no figure of it
    calls: int = 1  # of a step, which are timed as one
    seconds: list[float] = field(default_factory=list)  # of a step, in each round


def begin(lever: Lever, case: Case) -> tuple[Step, Found]:
    """The lever's step, ready to be timed."""
    session = trial(lever, case)
    own = stepper(session)

    def step() -> None:
        with lever.context():
            own()

    first = seconds(step, case.device)
    found = Found(case, lever, first, evidence(session))
    found.calls = calls_of(step, case.device)
    return step, found


def attempt(lever: Lever, case: Case) -> tuple[Step | None, Found]:
    """Begin, or tell why that is not possible: kernels, compilers and memory all have their own errors."""
    try:
        return begin(lever, case)
    except (Useless, UserError) as error:
        return None, Found(case, lever, note=str(error))
    except Exception as error:
        if lever is BASE:
            raise
        return None, Found(
            case, lever, note=" ".join(f"{type(error).__name__}: {error}".split())[:120]
        )


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(
    cases: list[Case], levers: list[Lever], rounds: int, budget: float | None
) -> Iterator[dict[str, Any]]:
    """A row of the table for base and levers in each case, as far as there is time."""
    pairs = within(
        budget,
        [(case, lever) for case in cases for lever in (BASE, *levers)],
        lambda pair: pair[1].name,
    )
    base: Any = None
    for _, group in groupby(pairs, lambda pair: pair if pair[0].device.type == "cuda" else pair[0]):
        before = free()
        begun = [attempt(lever, case) for case, lever in group]
        for _ in range(rounds):
            for step, found in begun:
                if step:
                    found.seconds.append(seconds(step, found.case.device, found.calls))
        most = (
            {"peak_gib": (peak(torch.device("cuda")) - before) / 2**30}
            if torch.cuda.is_available()
            else {}
        )
        for _, found in begun:
            base = found if found.lever is BASE else base
            yield {**row_of(found, base), **most}
        del begun, step


def free() -> int:
    """Give back the memory of the lever before on CUDA; bytes that stay."""
    if not torch.cuda.is_available():
        return 0
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    return in_use(torch.device("cuda"))


def row_of(found: Found, base: Found) -> dict[str, Any]:
    """Speed beside the base's, unless the lever computed something else."""
    row = {
        "model": found.case.title,
        "batch": found.case.batch,
        "lever": found.lever.name,
        "what": found.lever.what,
        "prediction": found.lever.prediction,
        "note": found.note,
    }
    if not found.evidence or not base.evidence:
        return row
    apart, median = differences(found.evidence, base.evidence), statistics.median(found.seconds)
    note = verdict(apart, found.lever.tolerance)
    turns = zip(
        base.seconds, found.seconds, strict=True
    )  # one after the other on CUDA, where a round is no pair
    ratio = (
        statistics.median(base.seconds) / median
        if found.case.device.type == "cuda"
        else statistics.median(b / own for b, own in turns)
    )
    return {
        **row,
        "note": note,
        "img_per_s": found.case.batch / median,
        "ratio": None if note else ratio,
        "differences": {
            name: share if math.isfinite(share) else None for name, share in apart.items()
        },
        "seconds": median,
        "spread": (max(found.seconds) - min(found.seconds)) / median,
        "first_step_s": found.first,
    }


def tell(row: dict[str, Any]) -> str:
    """As a line of a Markdown table."""
    forms = {
        "img_per_s": ".4g",
        "ratio": ".3f",
        "peak_gib": ".1f",
        "first_step_s": ".1f",
        "spread": ".0%",
    }
    cells = [
        format(row[name], form) if row.get(name) is not None else "–"
        for name, form in forms.items()
    ]
    named = [row["model"], row["batch"], row["lever"], row["prediction"]]
    return f"| {' | '.join(map(str, [*named, *cells, row['note']]))} |"


HEAD = """| model | batch | lever | predicted | img/s | ratio to base | peak GiB | first step, s | spread | note |
|---|---|---|---|---|---|---|---|---|---|"""


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Measure, print and record."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    levers = [lever for lever in LEVERS if device.type in lever.devices]
    told = "\n".join(
        f"  {lever.name:<16}{lever.what}; predicted {lever.prediction}" for lever in levers
    )
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"levers on this device:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[lever.name for lever in levers],
        metavar="NAME",
        help="these levers; all unless given",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=DIT_NAMES,
        metavar="MODEL",
        help="DiTs to train; DiT-S/4 on a CPU, DiT-XL/2 on CUDA unless given",
    )
    parser.add_argument(
        "--batch", type=positive, help="images a step; 32 on a CPU, 128 on CUDA unless given"
    )
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument(
        "--budget",
        type=float,
        help="seconds after which no further lever is begun; "
        "the last one, and on a CPU all rounds, still follow",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="two small blocks in small batches, to see that all works",
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    [(model, batch)] = (TINY if args.tiny else CUDA if device.type == "cuda" else CPU).items()
    levers = [lever for lever in levers if args.only is None or lever.name in args.only]
    command = shlex.join(["python", "-m", "benchmarks.levers", *sys.argv[1:]])
    write = lambda rows, table: record("levers", command, {"rows": rows}, table)  # noqa: E731
    with one_rank(device), tempfile.TemporaryDirectory() as folder:
        cases = [
            Case(name, args.batch or batch, device, folder, tiny=args.tiny)
            for name in args.models or [model]
        ]
        rows_told(
            measure(cases, levers, args.rounds, args.budget),
            tell,
            [HEAD],
            write if args.record else None,
        )


if __name__ == "__main__":
    main()
