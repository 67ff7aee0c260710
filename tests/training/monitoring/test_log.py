"""The log: loss by time, updates, waiting, speed; the same after a resume and over ranks."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import forked
from helpers.runs import TINIEST, TINY, train_run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dit.distributed.ranks import Ranks
from dit.models.sizes import SIZES
from dit.runs.logs import MACHINE, read_metrics
from dit.training import checkpointing as checkpoint
from dit.training.monitoring import log as metrics_log
from dit.training.monitoring.log import Stopwatch, score_tag, tag
from dit.training.monitoring.update_ratio import update_ratio
from dit.training.running_means import BUCKETS, RunningMeans

WALL_CLOCK = {"img_per_s", "mfu", "data_wait", "memory_gib"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """DiT-Ti is smaller in this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", TINIEST)
        yield


def exact(run: Path) -> list[dict[str, float]]:
    """Return the log without what is measured by a clock."""
    return [
        {name: value for name, value in line.items() if name not in WALL_CLOCK}
        for line in read_metrics(run / "metrics.jsonl")
    ]


# -- sums ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_end", [1.0, 1000.0])
def test_losses_fall_into_the_bucket_of_their_time(t_end):
    window = RunningMeans(("loss",), CPU, t_end)
    taken, skipped = torch.zeros(()), torch.ones(())
    times = t_end * torch.tensor([0.0, 0.19, 0.2, 0.99, 1.0]).double()
    window.add([torch.tensor(1.0)], taken)
    window.add_losses(times, torch.tensor([1.0, 3.0, 5.0, 7.0, 11.0]), taken)
    window.add_losses(times, torch.full((5,), float("nan")), skipped)
    assert window.compute_and_reset(Ranks()) == {
        "loss": 1.0,
        BUCKETS[0]: 2.0,
        BUCKETS[1]: 5.0,
        BUCKETS[4]: 9.0,
    }
    window.add([torch.tensor(2.0)], taken)
    assert window.compute_and_reset(Ranks()) == {"loss": 2.0}


def test_losses_by_time_add_up_to_the_loss(tmp_path, monkeypatch):
    seen = []
    add = RunningMeans.add_losses
    monkeypatch.setattr(
        RunningMeans, "add_losses", lambda *given: (seen.append(given[1:3]), add(*given))
    )
    run = train_run(TINY, grad_accum=2, log_every=8, out=tmp_path / "run")
    (line,) = read_metrics(run / "metrics.jsonl")
    times, losses = (torch.cat(parts).double() for parts in zip(*seen, strict=True))
    assert line["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    for low, name in enumerate(BUCKETS):
        here = (times * 5 >= low) & (times * 5 < low + 1)
        assert line[name] == pytest.approx(losses[here].mean().item(), rel=1e-9)
    assert 0 < line["mfu"] < 1
    assert 0 <= line["data_wait"] < 1
    assert 0.05 < line["memory_gib"] < 100
    (start,) = json.loads((run / MACHINE).read_text())
    assert line["mfu"] == pytest.approx(
        line["img_per_s"] * start["flops_per_image"] / start["peak_flops_per_rank"]
    )


@pytest.mark.parametrize(("process", "objective"), [("flow", "v"), ("linear", "eps")])
def test_a_partial_mean_survives_a_checkpoint(process, objective, tmp_path):
    """After a kill at step 6 the mean that step 8 logs is half summed."""
    config = dataclasses.replace(
        TINY, ckpt_every=2, keep=9, resume="auto", process=process, objective=objective
    )
    straight = train_run(config, out=tmp_path / "straight")
    again = train_run(config, out=tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "step-0000008")
    train_run(config, out=again)
    assert exact(again) == exact(straight)
    assert {"update_ratio", *BUCKETS} <= exact(again)[-1].keys()
    assert [start["step"] for start in json.loads((again / MACHINE).read_text())] == [0, 6]


def test_checkpoints_without_losses_by_time_are_resumed(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, resume="auto", out=tmp_path / "run")
    all_tensors = checkpoint.State.tensors

    def tensors_without_times(self):
        return {k: v for k, v in all_tensors(self).items() if k != "window.by_time"}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.State, "tensors", tensors_without_times)
        train_run(config, steps=2, ckpt_every=2, log_every=3)
    run = train_run(config, steps=4, log_every=4)
    assert set(BUCKETS) & read_metrics(run / "metrics.jsonl")[-1].keys()


def ratio(mesh):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    if mesh:
        fully_shard(network, mesh=mesh)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=0.1, fused=True)
    network(torch.randn(6, 7)).square().sum().backward()
    optimizer.step()
    return update_ratio(optimizer).item()


def log_on_ranks(ranks, folder):
    window, taken = RunningMeans(("loss",), ranks.device, 1.0), torch.zeros(())
    window.add([torch.tensor(1.0 + ranks.rank)], taken)
    times = torch.tensor([0.1, 0.3 + 0.4 * ranks.rank]).double()
    window.add_losses(times, torch.tensor([1.0, 2.0]) + ranks.rank, taken)
    window.average_over_ranks(ranks)  # as a checkpoint does
    window.add_losses(torch.tensor([0.1, 0.1]).double(), torch.tensor([6.0, 6.0]), taken)
    sharded = ratio(init_device_mesh("cpu", (2,)))
    (folder / f"{ranks.rank}").write_text(
        json.dumps([window.compute_and_reset(ranks), ratio(None), sharded])
    )


def test_ranks_add_up_losses_by_time_and_shares_of_weights(tmp_path):
    forked.run(2, log_on_ranks, tmp_path)
    expected = {"loss": 1.5, BUCKETS[0]: (1 + 2 + 4 * 6) / 6, BUCKETS[1]: 2.0, BUCKETS[3]: 3.0}
    for rank in range(2):
        means, whole, sharded = json.loads((tmp_path / str(rank)).read_text())
        assert means == expected
        assert sharded == pytest.approx(whole, rel=1e-5)
        assert whole > 0.01


# -- the update ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_ratio_is_that_of_the_weights_before_and_after(decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).double()
    optimizer = torch.optim.AdamW(
        network.parameters(), 0.01, (0.9, 0.95), weight_decay=decay, fused=True
    )
    for step in range(4):
        before = copy.deepcopy(network)
        network(torch.randn(6, 7).double()).square().sum().backward()
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
        old, new = (
            torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (before, network)
        )
        assert update_ratio(optimizer).item() == pytest.approx(
            ((new - old).norm() / new.norm()).item(), rel=1e-9
        )


def test_a_skipped_step_moves_nothing():
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, fused=True)
    optimizer.found_inf = torch.ones(())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert update_ratio(optimizer) == 0


# -- clocks ----------------------------------------------------------------------------------------


def test_the_stopwatch_separates_waiting_from_working(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now[0])

    def batches():
        for seconds in (1.0, 3.0):
            now[0] += seconds
            yield seconds

    watch = Stopwatch()
    for _ in watch.waiting(batches()):
        now[0] += 6.0
    with watch.paused():
        now[0] += 100.0
    assert watch.lap(2) == (2 / 16, 4 / 16)
    now[0] += 1.0
    assert watch.lap(5) == (3.0, 0.0)


def test_tags_are_in_groups():
    names = ("loss", BUCKETS[0], "vb", "grad_norm", "update_ratio", "mfu")
    assert [tag(name) for name in names] == [
        "train/loss",
        "train/loss_by_time/0.0-0.2",
        "train/vb",
        "optim/grad_norm",
        "optim/update_ratio",
        "speed/mfu",
    ]
    assert score_tag("FD(digits-cnn)") == "eval/FD[digits-cnn]"
