"""Memory of a step: counted on tensors without data, it is that of the same step on real ones."""

import copy

import numpy as np
import pytest
import torch
from helpers.step_memory import CPU, step_memory
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.memory import session_of, stepper
from dit.build import build_network
from dit.distributed.device import available_memory, main_memory
from dit.distributed.ranks import Ranks
from dit.models.registry import count_parameters, zero_inputs
from dit.runs.card import NetworkSpec
from dit.training.cost.ddp_or_fsdp import memory
from dit.training.cost.memory import (
    PARTS,
    Layout,
    Ledger,
    SimulatedStep,
    record_existing,
    shard_bytes,
)

pytestmark = pytest.mark.usefixtures("small_networks")


def spec(model="DiT-Ti/2", **changes):
    shape = dict(input_size=16, in_channels=3, num_classes=10, learn_sigma=False)
    return NetworkSpec(model=model, **{**shape, **changes})


# -- the count -------------------------------------------------------------------------------------


def measured(session):
    """Return the bytes of each part at the peak of a real step, without the EMA."""
    step = stepper(session)
    step()  # AdamW creates its moments
    ledger = Ledger()
    trained = nn.ModuleList(session.state.trained.values())
    record_existing(ledger, trained, session.state.optimizer, [])
    with ledger:
        step()
    return max(ledger.rows, key=sum)


@pytest.mark.parametrize(
    "settings",
    [
        dict(precision="fp32"),
        dict(precision="bf16"),
        dict(precision="bf16", recompute="selective"),
        dict(precision="bf16", recompute="full"),
        dict(precision="bf16", batch=8, grad_accum=4),
        dict(precision="fp32", batch=16, grad_accum=2, recompute="full"),
        dict(precision="bf16", conditioning="cross-attention"),
        dict(precision="bf16", conditioning="adaln-single"),
        dict(precision="bf16", align="self", inner_head=True, align_until=1.0),
        dict(precision="bf16", optimizer="muon", weight_decay=0.1),
        dict(precision="bf16", route=0.5),
        dict(precision="bf16", block="modern", conditioning="tokens"),
        dict(precision="bf16", objective="meanflow"),
        dict(precision="fp32", model="UNet-S", batch=4),
        dict(precision="bf16", model="Classifier-Ti/2", label_dropout=0.0),
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_a_step_without_data_needs_what_the_trainer_needs(settings, tmp_path):
    """But for the loss, which is simpler here."""
    flow = dict(process="flow", objective="v", time_sampling="logit-normal", learn_sigma=False)
    settings = {**flow, "model": "DiT-Ti/2", "batch": 32, **settings}
    session = session_of(settings, Ranks(), str(tmp_path), side=16)
    need = memory(session.card, Ranks(), "ddp", 0)
    assert need.averages == 4 * count_parameters(session.state.network)
    assert need.total - need.averages == pytest.approx(sum(measured(session)), rel=0.03)


def test_the_ledger_agrees_with_torch():
    """`MemTracker` takes no weights without gradients: here the positions have one too."""
    network = build_network(spec()).requires_grad_(True)
    inputs = zero_inputs("DiT-Ti/2", 8, 0, **spec().sizes)
    peaks = []
    for tracker in (Ledger(), MemTracker()):
        trained = copy.deepcopy(network)
        optimizer = torch.optim.AdamW(trained.parameters(), fused=True)
        if isinstance(tracker, Ledger):
            record_existing(tracker, trained, optimizer, inputs)
        else:
            tracker.track_external(trained, optimizer, *inputs)
        with tracker:
            trained(*inputs).square().mean().backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
        peaks.append(
            max(map(sum, tracker.rows))
            if isinstance(tracker, Ledger)
            else tracker.get_tracker_snapshot("peak")[CPU]["Total"]
        )
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-6)


def test_a_storage_is_counted_once_and_until_it_is_gone():
    ledger = Ledger()
    with ledger:
        a = torch.zeros(100)
        b = a[10:].view(9, 10)
        assert ledger.rows[-1][PARTS.index("activations")] == 400
        del a
        c = torch.zeros(1)
        assert ledger.rows[-1][PARTS.index("activations")] == 404
        del b
        ledger.part = "temporaries"
        d = c + 1
    assert ledger.rows[-1] == [0, 0, 0, 0, 4, 4]
    del d


# -- what follows from it --------------------------------------------------------------------------


def test_recomputing_and_bf16_need_less():
    def total(**settings):
        return step_memory(spec(), 64, Layout(grad_accum=2), **settings).total

    none, selective, full = (total(recompute=mode) for mode in ("none", "selective", "full"))
    assert none > 1.2 * selective > 1.2 * full
    assert total(bf16=True) < 0.8 * none


def test_ddp_keeps_buckets_and_fsdp_shares_what_stays():
    alone = step_memory(spec(), 8)
    assert step_memory(spec(), 8, Layout("fsdp", 1)) == alone
    ddp = step_memory(spec(), 8, Layout("ddp", 8))
    weights = 4 * sum(p.numel() for p in build_network(spec()).parameters() if p.requires_grad)
    assert ddp.gradients == weights > alone.gradients
    kept = ("weights", "averages", "optimizer", "copies", "exchange")
    assert [getattr(ddp, part) for part in kept] == [getattr(alone, part) for part in kept]

    fsdp = step_memory(spec(), 8, Layout("fsdp", 8))
    share = shard_bytes(build_network(spec()), 8)
    assert (fsdp.weights, fsdp.averages) == (share, share)
    assert fsdp.optimizer == int(alone.optimizer * share / alone.weights)
    assert fsdp.exchange > 0


@pytest.mark.parametrize("world", [1, 3, 8])
def test_shares_are_those_of_fsdp(world):
    """The first rank's, split as by `torch.chunk`; frozen positions stay full."""
    network = build_network(spec())
    parts = [p.chunk(world)[0] if p.requires_grad else p for p in network.parameters()]
    assert shard_bytes(network, world) == 4 * sum(p.numel() for p in parts)


def test_storages_grow_in_proportion_to_the_batch():
    """So that the peak of any batch follows from those of two."""
    step = SimulatedStep(spec(), CPU, bf16=True)
    two, three, six = (step.timeline(batch, Layout("ddp", 2)) for batch in (2, 3, 6))
    assert np.array_equal(six, two + 4 * (three - two))
    assert step.peak(six, Layout("ddp", 2)) == step.memory(6, Layout("ddp", 2))


# -- what there is ---------------------------------------------------------------------------------

LIMIT = 10**6  # bytes, less than any machine has


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/", "memory.max"),  # a container that sees its own group only
        ("4:memory:/\n0::/", "memory/memory.limit_in_bytes"),
        (
            "9:name=systemd:/\n4:memory:/docker/a\n0::/",
            "memory/memory.limit_in_bytes",
        ),  # named as the host names it
        ("0::/slurm/job_7/task", "slurm/job_7/memory.max"),  # a job's, around that of its task
    ],
)
def test_a_container_or_a_job_may_have_less_memory_than_the_machine(
    groups, file, tmp_path, monkeypatch
):
    machine, group = main_memory(tmp_path), tmp_path / "sys/fs/cgroup" / file
    for path, text in ((tmp_path / "proc/self/cgroup", groups), (group, f"{LIMIT}\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert main_memory(tmp_path) == LIMIT < machine
    for no_limit in ("max", str(2**63 - 4096)):
        group.write_text(no_limit)
        assert main_memory(tmp_path) == machine
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_memory(CPU) == main_memory() // 2
