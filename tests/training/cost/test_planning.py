"""Scaling on paper: equations against closed forms, bytes against those of collectives, the table of `dit plan`."""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from benchmarks import forked
from benchmarks.memory import session_of
from benchmarks.scaling import Sent
from dit.cli import main
from dit.config import PlanConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.dit import SIZES
from dit.runs.card import NetworkSpec
from dit.training.batches import read_batch
from dit.training.cost.cluster import RING, START, TREE, Cluster
from dit.training.cost.memory import estimate
from dit.training.cost.planning import RESERVE, Planned, columns, describe, planned
from dit.training.cost.step_time import Work, seconds, traffic
from dit.training.trainer import take_step

SMALL = dict(depth=2, hidden_size=64, num_heads=2)
TINY = PlanConfig(model="DiT-Ti/4", image_size=64, gpus=(2,), global_batch_size=64)
WORK = Work(parameters=10**9, blocks=40, flops=2e11)


def machine(gpus: int = 8, **changes: object) -> Cluster:
    return dataclasses.replace(
        Cluster(gpus, peak=1e15, memory=2**36, hbm=1e12, nvlink=400e9, network=40e9), **changes
    )


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", SMALL)


# -- equations -------------------------------------------------------------------------------------------------------


def test_rings_within_a_node_and_between():
    size = 8e9
    assert machine(1).gather(size) == machine(1).reduce(size) == 0
    assert machine(8).gather(size) == pytest.approx(START + 7 * RING["node"] + 7 / 8 * size / 400e9)
    assert machine(8).reduce(size) == pytest.approx(
        START + 14 * TREE["node"] + 7 / 4 * size / 400e9
    )
    far = START + (64 - 8) * RING["node"] + 7 * RING["network"] + 63 / 64 * size / (8 * 40e9)
    assert machine(64).gather(size) == pytest.approx(far)
    assert machine(64).reduce(0) == pytest.approx(
        START + 2 * (7 * TREE["node"] + 3 * TREE["network"])
    )


def test_a_step_of_one_gpu_is_work_over_speed():
    spent = seconds(WORK, machine(1, efficiency=0.5), "ddp", batch=4, accum=3)
    assert spent.compute == pytest.approx(3 * 4 * 3 * 2e11 / 0.5e15)
    assert spent.update == pytest.approx(52e9 / 1e12)
    assert (spent.communication, spent.exposed) == (0, 0)
    again = seconds(dataclasses.replace(WORK, again=1.0), machine(1, efficiency=0.5), "ddp", 4, 3)
    assert again.compute == pytest.approx(4 / 3 * spent.compute)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_much_work_hides_communication_and_little_does_not(parallel):
    busy, idle = (seconds(WORK, machine(64), parallel, batch, 1) for batch in (10_000, 1))
    assert busy.communication == pytest.approx(idle.communication)
    assert 0 < busy.exposed < 0.1 * busy.communication
    assert 0.5 * idle.communication < idle.exposed <= idle.communication
    open_ = seconds(WORK, machine(64, overlap=False), parallel, 10_000, 1)
    assert open_.exposed == open_.communication == pytest.approx(busy.communication)


def test_fsdp_shares_the_update_and_gathers_for_every_micro_batch():
    ddp, fsdp, more = (
        seconds(WORK, machine(8), way, 1, accum)
        for way, accum in (("ddp", 1), ("fsdp", 1), ("fsdp", 4))
    )
    assert fsdp.update == pytest.approx(ddp.update / 8)
    gathers = 2 * WORK.blocks * machine(8).gather(2 * WORK.parameters / WORK.blocks)
    assert more.communication - fsdp.communication == pytest.approx(3 * gathers)


# -- bytes -----------------------------------------------------------------------------------------------------------


def send(ranks: Ranks, out: Path, precision: str, accum: int) -> None:
    """A step of every way; what rank 0 sends."""
    SIZES["Ti"] = SMALL
    found = {}
    for way in ("ddp", "fsdp"):
        settings = dict(
            model="DiT-Ti/4", batch=2, precision=precision, parallel=way, grad_accum=accum
        )
        session = session_of(settings, ranks, str(out / way))
        for step in (1, 2):  # DDP makes its buckets anew after the first
            batch = read_batch(session.stream, step - 1)
            with Sent(ranks.world) as sent:
                take_step(session, batch, step)
        found[way] = sent.bytes
    if ranks.main:
        (out / "sent.json").write_text(json.dumps(found))


@pytest.mark.parametrize(("world", "precision", "accum"), [(2, "fp32", 1), (4, "bf16", 2)])
def test_bytes_are_those_that_ranks_send(world, precision, accum, tmp_path, small):
    """DDP's exactly; FSDP2 keeps what lies outside the blocks from the forward to the backward pass."""
    forked.run(world, send, tmp_path, precision, accum)
    found = json.loads((tmp_path / "sent.json").read_text())
    step = planned(dataclasses.replace(TINY, image_size=256)).step
    trained = {name: p.numel() for name, p in step.blank.named_parameters() if p.requires_grad}
    outside = sum(size for name, size in trained.items() if not name.startswith("blocks."))
    work = Work(sum(trained.values()), 2, 0, width=4 if precision == "fp32" else 2)
    assert found["ddp"] == traffic(work, world, "ddp", accum)
    kept = (world - 1) / world * outside * work.width * accum
    assert found["fsdp"] == pytest.approx(traffic(work, world, "fsdp", accum) - kept, rel=0.02)


# -- the plan --------------------------------------------------------------------------------------------------------


def the_column(**changes):
    config = dataclasses.replace(TINY, **changes)
    return next(iter(columns(config, planned(config))))


def test_memory_is_what_dry_run_tells(small):
    spec = NetworkSpec(
        model="DiT-Ti/4", input_size=8, in_channels=4, num_classes=1000, learn_sigma=True
    )
    for parallel, recompute in (("ddp", "none"), ("fsdp", "full")):
        found = the_column(parallel=parallel, recompute=recompute, averages=2)
        assert found.batch == 32
        assert found.memory == estimate(
            spec,
            32,
            torch.device("cuda"),
            "bf16",
            recompute=recompute,
            averages=2,
            parallel=parallel,
            world=2,
        )


def test_batches_are_cut_until_they_fit(small):
    whole = the_column(parallel="ddp", global_batch_size=128)
    assert (whole.batch, whole.layout.grad_accum, whole.fits) == (64, 1, True)
    states = the_column(parallel="ddp", global_batch_size=2).memory.total
    budget = (states + 0.6 * (whole.memory.total - states)) / (1 - RESERVE) / 2**30
    tight = the_column(parallel="ddp", global_batch_size=128, memory=budget)
    assert (tight.batch, tight.layout.grad_accum, tight.fits) == (32, 2, True)
    assert 32 <= tight.most < 64
    hopeless = the_column(parallel="ddp", global_batch_size=128, memory=0.5 * states / 2**30)
    assert (hopeless.batch, hopeless.fits, hopeless.most) == (1, False, 0)


def test_the_table_says_what_was_reckoned(small):
    config = dataclasses.replace(TINY, gpus=(1, 8, 16), images=1e6)
    lines = describe(config).splitlines()
    rows = {line[:28].strip(): line[28:].split() for line in lines[4:]}
    shown = list(columns(config, planned(config)))
    assert rows["GPUs"] == ["1", "8", "8", "16", "16"]
    assert rows["parallel"] == ["ddp", "ddp", "fsdp", "ddp", "fsdp"]
    assert rows["images a GPU at once"] == ["64", "8", "8", "4", "4"]
    assert rows["step"] == [f"{1e3 * c.seconds.step:.1f}" for c in shown]
    assert rows["GPU-hours for 1e+06 images"] == [
        f"{1e6 / c.speed * c.cluster.gpus / 3600:,.0f}" for c in shown
    ]
    assert rows["quickest that fits"].count("*") == 3


def test_speed_and_share_of_the_peak_hang_together(small):
    found = the_column(parallel="fsdp", efficiency=0.25)
    assert found.speed == pytest.approx(64 / found.seconds.step)
    assert found.mfu == pytest.approx(0.25 * found.seconds.compute / found.seconds.step)


def test_depth_width_and_heads_make_other_networks():
    network: Planned = planned(PlanConfig(model="DiT-S/2", depth=3, width=96, heads=4))
    assert len(network.step.blank.blocks) == network.work.blocks == 3
    assert network.step.blank.pos_embed.shape == (1, 256, 96)


@pytest.mark.parametrize(("size", "billions"), [("1B", 1.0), ("3B", 3.0), ("7B", 7.0)])
def test_large_sizes_are_as_large_as_their_names(size, billions):
    assert planned(PlanConfig(model=f"DiT-{size}/2")).parameters / 1e9 == pytest.approx(
        billions, rel=0.05
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(gpus=(12,), global_batch_size=24), "--gpus 12 with --gpus-per-node 8"),
        (dict(gpus=(3,)), "--global-batch-size 64 on --gpus 3"),
        (dict(model="UNet-S"), "'UNet-S'"),
        (dict(width=100, heads=16), "--width 100 with --heads 16"),
        (dict(image_size=100), "--image-size 100"),
    ],
)
def test_mistakes_are_named(changes, named):
    with pytest.raises(UserError, match=re.escape(named)):
        describe(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(
    "changes",
    [dict(gpus=()), dict(gpus=(0,)), dict(efficiency=40), dict(memory=-1.0), dict(images=math.inf)],
)
def test_impossible_flags_are_refused(changes):
    with pytest.raises(UserError):
        dataclasses.replace(TINY, **changes)


# -- docs ------------------------------------------------------------------------------------------------------------


def tables() -> list[tuple[str, str]]:
    """Commands of docs/scaling.md, and what it says that they print."""
    blocks = re.findall(
        r"```\n\$ dit (plan [^\n]*)\n(.*?)\n```", (ROOT / "docs" / "scaling.md").read_text(), re.S
    )
    return [(command, text) for command, text in blocks]


@pytest.mark.slow
def test_tables_of_the_docs_are_what_the_commands_print(capsys):
    assert len(tables()) == 4
    for command, text in tables():
        assert main(shlex.split(command)) == 0
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == text.splitlines()
