"""Ranks: whatever their number, and whether they share the state or not, they learn the same."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PROPORTIONAL, write_run
from helpers import forked
from helpers.kills import parts
from helpers.training import logged
from safetensors.torch import load_file

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.parallel import full_tensor
from dit.distributed.ranks import Ranks
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import find_weights, latest_checkpoint, verify_checkpoint
from dit.runs.logs import read_metrics

SMALL = dict(depth=2, hidden_size=64, num_heads=2)
TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=4,
    warmup=0,
    lr=1.0,
    cooldown=0,
    sample_every=0,
    ckpt_every=2,
    keep=9,
    log_every=1,
    precision="fp32",
    compile=False,
)
ALIGNED = dataclasses.replace(TINY, align="self", align_until=0.5, inner_head=True)
DEEPER = SMALL | dict(depth=3)  # with a middle block, which tokens skip
LEVERS = dataclasses.replace(
    TINY,
    block="modern",
    conditioning="tokens",
    optimizer="muon",
    route=0.5,
    steps=3,
    lr=1e-3,
    ckpt_every=0,
)
LAYOUTS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp")]


def train_small(ranks: Ranks, config: TrainConfig) -> None:
    SIZES["Ti"] = SMALL
    torch.optim.AdamW = PROPORTIONAL
    train(config, ranks)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", SMALL)
    monkeypatch.setattr(torch.optim, "AdamW", PROPORTIONAL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training in every layout, and by one process in four micro-batches."""
    root, before = tmp_path_factory.mktemp("layouts"), SIZES["Ti"]
    SIZES["Ti"] = SMALL
    weights = write_run(root / "weights")
    SIZES["Ti"] = before
    for world, parallel in LAYOUTS:
        config = dataclasses.replace(
            TINY, out=root / f"{world}-{parallel}", parallel=parallel, init=weights
        )
        forked.run(world, train_small, config)
    forked.run(
        1,
        train_small,
        dataclasses.replace(TINY, out=root / "1-in-parts", init=weights, grad_accum=4),
    )
    return root


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_weights(run))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the root of the sum of squared differences."""
    assert a.keys() == b.keys()
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in a) ** 0.5


@pytest.mark.portable
@pytest.mark.parametrize("layout", ["2-ddp", "2-fsdp", "4-fsdp"])
def test_any_layout_learns_what_one_process_learns(runs, layout):
    assert_learnt_the_same(runs, runs / layout)


def assert_learnt_the_same(runs: Path, run: Path) -> None:
    """As one process, in every step."""
    one = weights_of(runs / "1-ddp")
    moved = distance(one, weights_of(runs / "weights"))
    # One process that sums its gradients in another order differs by the same rounding. Norms over
    # so many weights hardly depend on chance.
    rounding = distance(one, weights_of(runs / "1-in-parts"))
    assert 0 < rounding < 1e-5 * moved
    assert distance(one, weights_of(run)) < 4 * rounding
    (loss, norm), (expected_loss, expected_norm) = (
        zip(
            *((line["loss"], line["grad_norm"]) for line in read_metrics(each / "metrics.jsonl")),
            strict=True,
        )
        for each in (run, runs / "1-ddp")
    )
    assert loss == pytest.approx(expected_loss, rel=1e-5)  # 84 eps of float32
    assert norm == pytest.approx(expected_norm, rel=1e-5)


@pytest.fixture(scope="module")
def aligned_runs(tmp_path_factory):
    """A training with --align and --inner-head, by one process, and in four micro-batches."""
    root, before = tmp_path_factory.mktemp("aligned"), SIZES["Ti"]
    SIZES["Ti"] = SMALL
    write_run(root / "weights", inner_head=True)
    SIZES["Ti"] = before
    for name, grad_accum in (("1-ddp", 1), ("1-in-parts", 4)):
        config = dataclasses.replace(
            ALIGNED, out=root / name, init=root / "weights", grad_accum=grad_accum
        )
        forked.run(1, train_small, config)
    return root


@pytest.mark.portable
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_with_alignment_learn_what_one_process_learns(aligned_runs, parallel, tmp_path):
    config = dataclasses.replace(
        ALIGNED, out=tmp_path / "run", init=aligned_runs / "weights", parallel=parallel
    )
    forked.run(2, train_small, config)
    assert_learnt_the_same(aligned_runs, config.out)


@pytest.fixture(scope="module")
def one_with_levers(tmp_path_factory):
    """A training with Muon and routing by one process, from weights that are not zero."""
    root, before = tmp_path_factory.mktemp("levers"), SIZES["Ti"]
    SIZES["Ti"] = DEEPER
    weights = write_run(root / "weights", block="modern", conditioning="tokens")
    SIZES["Ti"] = before
    config = dataclasses.replace(LEVERS, out=root / "one", init=weights)
    forked.run(1, train_levers, config)
    return config


def train_levers(ranks: Ranks, config: TrainConfig) -> None:
    """Train; at the end all ranks have the same weights."""
    from dit.training import trainer

    def check(loop):
        done = run(loop)
        parameters = loop.session.state.network.parameters()
        mine = torch.cat([full_tensor(p.detach()).flatten() for p in parameters])
        assert all(torch.equal(row, mine) for row in ranks.gather(mine[None]))
        return done

    SIZES["Ti"] = DEEPER
    run, trainer.Loop.run = trainer.Loop.run, check
    train(config, ranks)


@pytest.mark.portable
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_with_muon_and_routing_learn_what_one_process_learns(
    one_with_levers, parallel, tmp_path
):
    """In two micro-batches a rank, with all of the activations recomputed."""
    config = dataclasses.replace(
        one_with_levers,
        out=tmp_path / "run",
        parallel=parallel,
        grad_accum=2,
        recompute="full",
    )
    forked.run(2, train_levers, config)
    found, expected = (logged(run.out, "loss", "grad_norm") for run in (config, one_with_levers))
    assert len(expected) == 3
    for mine, others in zip(found, expected, strict=True):
        assert mine == pytest.approx(others, rel=1e-5)

    one, start = weights_of(one_with_levers.out), weights_of(one_with_levers.init)
    # rounding is 4e-6 of the way; Muon makes whole steps of the smallest matrices' rounding too
    assert distance(one, weights_of(config.out)) < 1e-4 * distance(one, start)


def train_compiled(ranks: Ranks, config: TrainConfig, backend: str) -> None:
    torch.compile = partial(torch.compile, backend=backend)
    train_small(ranks, config)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] > 0, "not compiled"


@pytest.mark.portable
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_ranks_learn_what_one_process_learns(runs, parallel, backend, tmp_path):
    config = dataclasses.replace(
        TINY,
        out=tmp_path / "run",
        parallel=parallel,
        init=runs / "weights",
        compile=True,
        grad_accum=2,
    )
    forked.run(2, train_compiled, config, backend)
    assert_learnt_the_same(runs, config.out)


@pytest.mark.portable
def test_shares_in_bf16_stray_no_further_than_one_process_in_bf16(runs, small, tmp_path):
    """Both differ from float32 by rounding, whose norm varies by chance: hence the factor 2."""
    config = dataclasses.replace(TINY, precision="bf16", init=runs / "weights", parallel="fsdp")
    one, two = (dataclasses.replace(config, out=tmp_path / str(world)) for world in (1, 2))
    train(one, Ranks())
    forked.run(2, train_small, two)
    exact = weights_of(runs / "1-ddp")
    rounding, shared = (distance(weights_of(run.out), exact) for run in (one, two))
    print(rounding, shared, distance(exact, weights_of(runs / "weights")))
    assert 0 < shared < 2 * rounding


@pytest.mark.portable
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("4-fsdp", (1, "ddp")),
        ("1-ddp", (2, "fsdp")),
        pytest.param("2-fsdp", (4, "fsdp"), marks=pytest.mark.slow),
        pytest.param("4-fsdp", (2, "ddp"), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_in_any_layout(runs, before, after, tmp_path):
    out, (world, parallel) = tmp_path / "run", after
    shutil.copytree(runs / before, out)
    shutil.rmtree(latest_checkpoint(out))  # go on from the middle
    assert verify_checkpoint(latest_checkpoint(out))["step"] == 2
    config = dataclasses.replace(
        TINY, out=out, parallel=parallel, resume="auto", init=runs / "weights"
    )
    forked.run(world, train_small, config)
    assert_learnt_the_same(runs, out)
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4]


def test_three_ranks_that_go_on_sum_in_the_same_order(tmp_path):
    config = dataclasses.replace(TINY, global_batch_size=12, out=tmp_path / "whole")
    forked.run(3, train_small, config)
    halves = dataclasses.replace(config, out=tmp_path / "halves", resume="auto")
    shutil.copytree(config.out, halves.out)
    shutil.rmtree(latest_checkpoint(halves.out))  # go on from the middle
    forked.run(3, train_small, halves)
    assert [name for name, same in parts(config.out, halves.out).items() if not same] == []


def test_shares_are_shares(tmp_path):
    forked.run(2, check_shares, tmp_path)


def check_shares(ranks: Ranks, root: Path) -> None:
    """On each rank: half of the weights, of AdamW's moments and of the EMA; previews need all.

    They share because one of them has too little memory for all of it.
    """
    from torch.distributed.tensor import DTensor

    from dit.training import trainer
    from dit.training.cost import ddp_or_fsdp as layout

    SIZES["Ti"] = SMALL
    seen = []

    def keep(loop):
        seen.append(loop.session)
        return run(loop)

    run, trainer.Loop.run = trainer.Loop.run, keep
    layout.available_memory = lambda device: (2**40, 2**10)[ranks.rank]
    train(dataclasses.replace(TINY, out=root / "run", precision="bf16", sample_every=4), ranks)
    state = seen[0].state
    named = dict(state.network.named_parameters())
    for values in (named, dict(state.ema.network.named_parameters())):
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else 0 for p in values.values())
        total = sum(p.numel() for name, p in values.items() if name != "pos_embed")
        assert held < 0.51 * total
        assert {p.dtype for p in values.values()} == {torch.float32}
    moments = [
        m
        for values in state.optimizer.state.values()
        for name, m in values.items()
        if name != "step"
    ]
    assert all(isinstance(m, DTensor) for m in moments)
    assert json.loads((root / "run" / "machine.json").read_text())[0]["parallel"] == "fsdp"
    layout.available_memory = lambda device: (2**40, 2**30)[ranks.rank]
    assert layout.choose(seen[0].card, seen[0].autoencoder, None, ranks).parallel == "ddp"
    if ranks.main:
        assert (root / "run" / "samples" / "step-0000004.png").exists()


def test_one_rank_needs_no_shares(small, tmp_path):
    a, b = (
        train(dataclasses.replace(TINY, out=tmp_path / kind, parallel=kind, steps=2), Ranks())
        for kind in ("ddp", "fsdp")
    )
    assert distance(weights_of(a), weights_of(b)) == 0
