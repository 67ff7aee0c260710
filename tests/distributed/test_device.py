"""Which device computes, and devices without float64, with fakes of them."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit.config import TrainConfig
from dit.diffusion.meanflow import IntervalFlow
from dit.diffusion.process import DDPM, Flow
from dit.distributed import device as devices
from dit.distributed.device import (
    choose_device,
    compute_precision,
    widest_float,
    with_float64,
)
from dit.distributed.launcher import Launch
from dit.errors import UserError
from dit.training.alignment import SelfTeacher
from dit.training.build_loss import build_meanflow
from dit.training.running_means import RunningMeans
from dit.training.spike_guard import SpikeGuard

ALONE, TWO = Launch(), Launch(world=2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def has(*kinds: str) -> None:
        cuda = SimpleNamespace(
            is_available=lambda: "cuda" in kinds,
            device_count=lambda: 1,
            set_device=lambda device: None,
        )
        mps = SimpleNamespace(is_available=lambda: "mps" in kinds)
        monkeypatch.setattr(devices.torch, "cuda", cuda)
        monkeypatch.setattr(devices.torch.backends, "mps", mps)

    return has


@pytest.mark.parametrize(
    ("kinds", "launch", "asked", "chosen"),
    [
        ((), ALONE, "", "cpu"),
        (("mps",), ALONE, "", "mps"),
        (("mps",), TWO, "", "cpu"),
        (("cuda",), ALONE, "", "cuda:0"),
        (("cuda", "mps"), ALONE, " ", "cuda:0"),
        (("cuda", "mps"), ALONE, "mps", "mps"),
        (("cuda",), ALONE, "cpu", "cpu"),
        (("mps",), ALONE, "cpu", "cpu"),
    ],
)
def test_the_device_is_the_best_there_is(machine, kinds, launch, asked, chosen):
    machine(*kinds)
    assert choose_device(launch, {"DIT_DEVICE": asked}) == torch.device(chosen)


@pytest.mark.parametrize(
    ("kinds", "launch", "asked", "there"),
    [
        ((), ALONE, "cuda", "cpu, which"),
        (("mps",), ALONE, "tpu", "mps or cpu, which"),
        (("mps",), TWO, "mps", "cpu, which"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine, kinds, launch, asked, there):
    machine(*kinds)
    with pytest.raises(UserError, match=f"DIT_DEVICE={asked} in the environment; expected {there}"):
        choose_device(launch, {"DIT_DEVICE": asked})


def test_ranks_need_a_gpu_each(machine):
    machine("cuda")
    with pytest.raises(UserError, match="rank 1 of this machine, which has 1 GPUs"):
        choose_device(Launch(rank=1, world=2, local_rank=1), {})


def test_apples_gpu_takes_bf16_where_asked_for():
    mps = torch.device("mps")
    assert compute_precision(mps, "auto") == "fp32"
    assert compute_precision(mps, "bf16") == "bf16"


def test_sums_are_in_float64_where_it_exists():
    assert widest_float(torch.device("cpu")) == torch.float64
    assert widest_float(torch.device("mps")) == torch.float32
    assert with_float64(torch.device("mps")) == torch.device("cpu")
    assert with_float64(torch.device("cpu")) == torch.device("cpu")


class NoFloat64(TorchDispatchMode):
    """Fails where an operation makes a float64 tensor on `meta`, which stands for MPS here."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, func
        return made


def test_what_training_sums_needs_no_float64(monkeypatch):
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"meta"})
    meta = torch.device("meta")
    with NoFloat64():
        means, guard = RunningMeans(["loss", "norm"], meta, 1.0), SpikeGuard(10.0, meta)
        loss = torch.zeros((), device=meta)
        skipped = guard.update(1, loss, loss)
        means.add((loss, loss), skipped)
        means.add_losses(torch.rand(4, dtype=torch.float64), torch.zeros(4, device=meta), skipped)


def test_the_check_for_float64_can_fail():
    with NoFloat64(), pytest.raises(AssertionError):
        torch.zeros(2, device="meta").double()


def test_times_of_losses_need_no_float64(monkeypatch):
    """Random numbers are on the CPU here: `meta` has none to give back."""
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"meta"})
    x0, eps = torch.zeros(2, 4, 3, 8, 8, device="meta")
    y = torch.zeros(4, dtype=torch.long, device="meta")
    t, uniforms = torch.rand(4, dtype=torch.float64), torch.rand(4, 1)

    config = TrainConfig(objective="meanflow")
    loss, _ = build_meanflow(config, lambda x, t, y: x, lambda x, *_: x, IntervalFlow(), 10)
    teachers = [SelfTeacher(lambda x, t, y: x, process) for process in (Flow(), DDPM())]
    with NoFloat64():
        assert loss(x0, y, t, eps, uniforms).each.shape == (4,)
        for teacher in teachers:
            assert teacher(x0, y, t, eps, uniforms).shape == x0.shape
