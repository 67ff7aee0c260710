"""Out of memory, no compiler: one line with what was asked for and the flag that helps."""

import re

import numpy as np
import pytest
import torch

from dit.config import EvalConfig, InfoConfig, SampleConfig, TrainConfig, VaeConfig
from dit.distributed.shortage import (
    find_shortage,
    less_memory,
    next_grad_accum,
    shortages_as_user_errors,
)
from dit.errors import UserError

TIB_1000 = 10**15 // 8


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.zeros(TIB_1000, dtype=torch.float64),
        lambda: np.zeros(TIB_1000),
    ],
    ids=["torch", "numpy"],
)
def test_memory_that_does_not_exist_is_named(allocate, tmp_path):
    config = SampleConfig(run=tmp_path, batch_size=64)
    with pytest.raises(UserError) as error, shortages_as_user_errors(config):
        allocate()
    # 10^15 bytes are 931,323 GiB; NumPy rounds them to 909 TiB
    asked = re.match(r"out of memory: (93[01],\d{3}\.\d\d) GiB more were asked", error.value.given)
    assert asked
    assert error.value.expected.endswith("GiB of this machine")
    assert error.value.do == "pass --batch-size 32"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of "
                "139.81 GiB of which 1.00 MiB is free."
            ),
            "out of memory: 0.02 GiB more were asked for; expected less than the 139.81 GiB of "
            "this GPU; pass",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "less than this GPU has"),
        (MemoryError("std::bad_alloc"), "out of memory; expected less than the"),
        (MemoryError(), "out of memory; expected less than the"),
        (OSError(12, "Cannot allocate memory"), "out of memory; expected"),
        (MemoryError("Unable to allocate 2.00 EiB for an array"), "2,147,483,648.00 GiB more"),
        (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), "out of memory;"),
        (RuntimeError("can't start new thread"), "no more threads can be started; expected"),
    ],
)
def test_each_way_to_run_out_is_one_line(error, part):
    assert part in str(find_shortage(error, TrainConfig()))


def test_the_flags_divide_the_batch_of_all_ranks(monkeypatch):
    for name, value in dict(WORLD_SIZE="4", RANK="1", MASTER_ADDR="a", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    # 3 images a rank: 2 micro-batches would divide the 12 of all ranks, not those
    found = find_shortage(MemoryError(), TrainConfig(global_batch_size=12))
    assert found
    assert found.do.startswith("pass --grad-accum 3 or")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("memory"), ValueError()])
def test_other_errors_stay(error):
    with pytest.raises(type(error)), shortages_as_user_errors(TrainConfig()):
        raise error


def test_a_missing_compiler_says_no_compile():
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    found = find_shortage(InductorError(InvalidCxxCompiler(), None), TrainConfig())
    assert found
    assert found.given.startswith("torch.compile found no working compiler (")
    assert "No working C++ compiler found" in found.given
    assert found.do == "pass --no-compile, or install one"


@pytest.mark.parametrize(
    ("config", "do"),
    [
        (
            TrainConfig(global_batch_size=48, grad_accum=2),
            "pass --grad-accum 3 or --recompute full or a smaller --model",
        ),
        (TrainConfig(global_batch_size=1, recompute="full"), "pass a smaller --model"),
        (
            VaeConfig(out="o", batch_size=32),
            "pass --batch-size 16 or a smaller network or a smaller --image-size",
        ),
        (
            EvalConfig(run="r", num_samples=50),
            "pass --batch-size 32 or fewer --num-samples",
        ),
        (
            SampleConfig(run="r", image_size=4096, batch_size=1),
            "pass a smaller --image-size",
        ),
        (InfoConfig(path="p"), "use a machine with more memory"),
    ],
)
def test_the_flags_that_help_are_those_of_the_command(config, do):
    assert less_memory(config) == do


def test_the_next_number_of_micro_batches_divides_the_share_of_a_rank():
    config = TrainConfig(global_batch_size=40, grad_accum=2)
    assert next_grad_accum(config) == 4
    assert next_grad_accum(config, world=4) == 5
    assert next_grad_accum(config, at_least=6) == 8
    assert next_grad_accum(TrainConfig(global_batch_size=1)) is None
