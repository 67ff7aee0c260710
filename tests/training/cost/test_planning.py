"""Planning: equations against closed forms, bytes against collectives, the table of --gpus."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers import forked
from helpers.collectives import Sent

from benchmarks.memory import session_of, stepper
from dit.cli import main
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost import cluster as clusters
from dit.training.cost.cluster import RING, START, TREE, Cluster
from dit.training.cost.memory import RESERVE, Layout, SimulatedStep
from dit.training.cost.planning import PlannedStep, build_columns, scaling_table
from dit.training.cost.step_time import Work, seconds, traffic
from dit.training.optimizer import optimizer_flops

SMALL = dict(depth=2, hidden_size=64, num_heads=2)
TINY = TrainConfig(model="DiT-Ti/4", global_batch_size=64, dry_run=True, gpus=(2,))
WORK = Work(parameters=10**9, blocks=40, flops=2e11)


def machine(gpus: int = 8, **changes: object) -> Cluster:
    cluster = Cluster(gpus, peak=1e15, memory=2**36, hbm=1e12, nvlink=400e9, network=40e9)
    return dataclasses.replace(cluster, **changes)


def planned(side: int = 8, frozen: int = 0, **changes: object) -> PlannedStep:
    config = dataclasses.replace(TINY, **changes)
    spec = NetworkSpec(
        model=config.model, input_size=side, in_channels=4, num_classes=1000, learn_sigma=True
    )
    return PlannedStep(ModelCard(config=config, network=spec, classes=[]), frozen=frozen)


def first_column(**changes: object):
    return next(iter(build_columns(planned(**changes))))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", SMALL)


# -- equations -------------------------------------------------------------------------------------


def test_rings_within_a_node_and_between():
    size = 8e9
    assert machine(1).gather(size) == machine(1).reduce(size) == 0
    near = START + 7 * RING["node"] + 7 / 8 * size / 400e9
    assert machine(8).gather(size) == pytest.approx(near)
    far = START + (64 - 8) * RING["node"] + 7 * RING["network"] + 63 / 64 * size / (8 * 40e9)
    assert machine(64).gather(size) == pytest.approx(far)


def test_trees_within_a_node_and_between():
    near = START + 14 * TREE["node"] + 7 / 4 * 8e9 / 400e9
    assert machine(8).reduce(8e9) == pytest.approx(near)
    far = START + 2 * (7 * TREE["node"] + 3 * TREE["network"])
    assert machine(64).reduce(0) == pytest.approx(far)


def test_a_step_of_one_gpu_is_work_over_speed():
    half = machine(1, efficiency=0.5)
    spent = seconds(WORK, half, "ddp", batch=4, accum=3)
    assert spent.compute == pytest.approx(3 * 4 * 3 * 2e11 / 0.5e15)
    assert spent.update == pytest.approx(52e9 / 1e12)
    assert (spent.communication, spent.exposed) == (0, 0)
    again = seconds(dataclasses.replace(WORK, again=1.0), half, "ddp", 4, 3)
    assert again.compute == pytest.approx(4 / 3 * spent.compute)
    muon = seconds(dataclasses.replace(WORK, optimizer=1e13), half, "ddp", 4, 3)
    assert muon.update == pytest.approx(spent.update + 1e13 / 0.5e15)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_much_work_hides_communication_and_little_does_not(parallel):
    busy, idle = (seconds(WORK, machine(64), parallel, batch, 1) for batch in (10_000, 1))
    assert busy.communication == pytest.approx(idle.communication)
    assert 0 < busy.exposed < 0.1 * busy.communication
    assert 0.5 * idle.communication < idle.exposed <= idle.communication
    serial = seconds(WORK, machine(64, overlap=False), parallel, 10_000, 1)
    assert serial.exposed == serial.communication == pytest.approx(busy.communication)


def test_fsdp_shares_the_update_and_gathers_for_every_micro_batch():
    ddp = seconds(WORK, machine(8), "ddp", 1, accum=1)
    fsdp, more = (seconds(WORK, machine(8), "fsdp", 1, accum) for accum in (1, 4))
    assert fsdp.update == pytest.approx(ddp.update / 8)
    # every rank does all of Muon's products
    muon = seconds(dataclasses.replace(WORK, optimizer=1e13), machine(8), "fsdp", 1, accum=1)
    assert muon.update == pytest.approx(fsdp.update + 1e13 / 0.4e15)
    gathers = 2 * WORK.blocks * machine(8).gather(2 * WORK.parameters / WORK.blocks)
    assert more.communication - fsdp.communication == pytest.approx(3 * gathers)


# -- bytes -----------------------------------------------------------------------------------------


def send(ranks: Ranks, out: Path, precision: str, accum: int) -> None:
    """Do a step with DDP and with FSDP2, and write down what rank 0 sends."""
    SIZES["Ti"] = SMALL
    sent_bytes = {}
    for way in ("ddp", "fsdp"):
        settings = dict(model="DiT-Ti/4", batch=2, precision=precision, grad_accum=accum)
        step = stepper(session_of({**settings, "parallel": way}, ranks, str(out / way)))
        step()  # DDP rebuilds its buckets after the first
        with Sent(ranks.world) as sent:
            step()
        sent_bytes[way] = sent.bytes
    if ranks.main:
        (out / "sent.json").write_text(json.dumps(sent_bytes))


@pytest.mark.parametrize(("world", "precision", "accum"), [(2, "fp32", 1), (4, "bf16", 2)])
def test_bytes_are_those_that_ranks_send(world, precision, accum, tmp_path, small):
    """DDP's exactly; FSDP2 gathers what lies outside the blocks once, for both passes."""
    forked.run(world, send, tmp_path, precision, accum)
    found = json.loads((tmp_path / "sent.json").read_text())
    plan = planned(side=32, precision=precision)
    parameters = plan.step.meta_network.named_parameters()
    trained = {name: p.numel() for name, p in parameters if p.requires_grad}
    outside = sum(size for name, size in trained.items() if not name.startswith("blocks."))
    assert plan.work.parameters == sum(trained.values())
    assert found["ddp"] == traffic(plan.work, world, "ddp", accum)
    kept = (world - 1) / world * outside * plan.work.width * accum
    assert found["fsdp"] == pytest.approx(traffic(plan.work, world, "fsdp", accum) - kept, rel=0.02)


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parallel", "recompute"), [("ddp", "none"), ("fsdp", "full")])
def test_memory_is_that_of_a_simulated_step(parallel, recompute, small):
    found = first_column(parallel=parallel, recompute=recompute, ema_lengths=(0.1,))
    cuda = torch.device("cuda")
    step = SimulatedStep(planned().card.network, cuda, True, recompute, averages=2)
    assert found.batch == 32
    assert found.memory == step.memory(32, Layout(parallel, world=2))


def test_micro_batches_shrink_until_they_fit(small, monkeypatch):
    def with_memory(size: float):
        monkeypatch.setitem(clusters.GPUS["h100"], "memory", size / (1 - RESERVE))
        return first_column(parallel="ddp", global_batch_size=128)

    states = first_column(parallel="ddp", global_batch_size=2).memory.total
    ample = first_column(parallel="ddp", global_batch_size=128)
    assert (ample.batch, ample.layout.grad_accum, ample.fits) == (64, 1, True)

    tight = with_memory(states + 0.6 * (ample.memory.total - states))
    assert (tight.batch, tight.layout.grad_accum, tight.fits) == (32, 2, True)
    assert 32 <= tight.most < 64

    hopeless = with_memory(0.5 * states)
    assert (hopeless.batch, hopeless.fits, hopeless.most) == (1, False, 0)


def test_the_table_has_what_was_computed(small):
    step = planned(gpus=(1, 8, 16), frozen=2**30)
    columns = list(build_columns(step))
    lines = scaling_table(step, 10**6).splitlines()[2:]
    rows = {line[:30].strip(): line[30:].split() for line in lines}
    assert rows["GPUs"] == ["1", "8", "8", "16", "16"]
    assert rows["parallel"] == ["ddp", "ddp", "fsdp", "ddp", "fsdp"]
    assert rows["images a GPU at once"] == ["64", "8", "8", "4", "4"]
    assert rows["GiB: frozen networks"] == ["1.00"] * 5
    assert rows["GiB in all"] == [f"{1 + c.memory.total / 2**30:.2f}" for c in columns]
    assert rows["ms a step"] == [f"{1e3 * c.seconds.step:.1f}" for c in columns]
    hours = [1e6 / c.speed * c.cluster.gpus / 3600 for c in columns]
    assert rows["GPU-hours for 1,000,000 images"] == [f"{h:.2g}" for h in hours]
    assert rows["fastest that fits"].count("*") == 3


@pytest.mark.parametrize(("model", "noted"), [("DiT-Ti/4", False), ("UNet-S", True)])
def test_blocks_of_other_sizes_are_noted(model, noted, small):
    line = scaling_table(planned(model=model), 1).splitlines()[0]
    assert line.endswith("; blocks taken as equal") == noted


def test_speed_and_share_of_the_peak_agree(small):
    found = first_column(parallel="fsdp")
    assert found.speed == pytest.approx(64 / found.seconds.step)
    assert found.mfu == pytest.approx(0.4 * found.seconds.compute / found.seconds.step)


def test_alignment_and_muon_take_time(small):
    plain = first_column(parallel="ddp")
    step = planned(parallel="ddp", optimizer="muon")
    step.alignment = 3 * plain.work.flops
    found = next(iter(build_columns(step)))
    assert found.seconds.compute == pytest.approx(2 * plain.seconds.compute)
    products = optimizer_flops(step.step.meta_network, step.card.config)
    assert found.seconds.update > plain.seconds.update
    assert found.work.optimizer == products > 0
    # work of the optimizer is not of the network's
    assert found.mfu == pytest.approx(0.4 * found.seconds.compute / found.seconds.step)


@pytest.mark.parametrize(("size", "billions"), [("1B", 1.0), ("3B", 3.0), ("7B", 7.0)])
def test_large_sizes_are_as_large_as_their_names(size, billions):
    work = planned(side=32, model=f"DiT-{size}/2").work
    assert work.parameters / 1e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(gpus=(12,), global_batch_size=24), "--gpus 12; expected 8 or fewer"),
        (dict(gpus=(3,)), "--batch-size 64 on --gpus 3"),
        (dict(gpus=(0,)), "--gpus 0;"),
        (dict(gpus=(8, 64), dry_run=False), "--gpus 8 64 without --dry-run"),
    ],
)
def test_mistakes_are_named(changes, named):
    with pytest.raises(UserError, match=re.escape(named)):
        list(build_columns(planned(**changes)))


@pytest.mark.parametrize(
    ("flags", "named"), [("--gpu a100", "--gpu a100 without --gpus"), ("--gpus", "--gpus")]
)
def test_flags_without_effect_are_refused(flags, named, capsys):
    assert main(["train", "--dry-run", *flags.split()]) == 2
    assert named in capsys.readouterr().err


# -- docs ------------------------------------------------------------------------------------------


def doc_tables() -> list[tuple[str, str]]:
    """Return the command for each table of docs/scaling.md, and the table."""
    page = (ROOT / "docs" / "scaling.md").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^python train\.py (.*--gpus [^#\n]*)", page, re.M)
    tables = re.findall(r"^### (DiT-\S+)\n\n```\n(.*?)\n```", page, re.M | re.S)
    return [(command.replace("DiT-XL/2", model), table) for model, table in tables]


@pytest.mark.slow
def test_tables_of_the_docs_are_what_the_commands_print(capsys):
    assert len(doc_tables()) == 4
    for command, table in doc_tables():
        assert main(["train", *shlex.split(command)]) == 0
        printed = capsys.readouterr().out
        lines = [line.rstrip() for line in printed.partition("\n\n")[2].splitlines()]
        assert lines == table.splitlines()
