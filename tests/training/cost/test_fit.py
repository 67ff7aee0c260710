"""What does not fit into memory is refused before it is built, with what would fit."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.device import free_main_memory
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.training.cost import fit

SMALL = dict(vae="identity", image_size=8, model="DiT-Ti/4")
MIB = 2**20


class Fits(Exception):
    """Raised in place of building the networks."""


@pytest.fixture
def memory(monkeypatch):
    """Set the free memory; nothing is built."""

    def stop(*_):
        raise Fits

    monkeypatch.setattr("dit.training.run_training.prepare", stop)
    return lambda size: monkeypatch.setattr(fit, "free_memory", lambda device: int(size))


def refused(**settings) -> UserError:
    with pytest.raises(UserError) as error:
        train(TrainConfig(**SMALL | settings), Ranks())
    return error.value


def test_weights_that_do_not_fit_name_the_largest_model_that_does(memory, tmp_path):
    memory(16 * 2**30)
    found = refused(model="DiT-7B/1", out=tmp_path / "run")
    # 6.8 billion parameters, five times in float32
    assert re.match(r"--model DiT-7B/1 needs 12[5-9]\.\d\d GiB for weights, gradients", found.given)
    assert found.expected == "at most the 16.00 GiB that are free on this machine"
    assert found.do.startswith("pass --model DiT-XL/1, whose weights fit, or share it among more")
    assert not (tmp_path / "run").exists()


def test_the_model_that_is_named_fits(memory):
    memory(16 * 2**30)
    with pytest.raises(Fits):
        train(TrainConfig(**SMALL | dict(model="DiT-XL/1", global_batch_size=1)), Ranks())


def test_a_batch_that_does_not_fit_names_micro_batches_that_do(memory):
    # the weights of DiT-Ti take 5 x 28 MiB, an image about 0.3 MiB
    memory(200 * MIB)
    found = refused(global_batch_size=4096)
    assert re.match(r"a step with 4096 images at once needs about \d+\.\d\d GiB", found.given)
    accum, batch, most = map(
        int, re.findall(r"--grad-accum (\d+) for (\d+) images at once \((\d+) would", found.do)[0]
    )
    assert accum * batch == 4096
    assert batch <= most < 2 * batch
    with pytest.raises(Fits):
        train(TrainConfig(**SMALL, global_batch_size=4096, grad_accum=accum), Ranks())
    refused(global_batch_size=4096, grad_accum=accum // 4)


def test_a_step_that_fits_is_not_counted(memory, monkeypatch):
    memory(16 * 2**30)
    monkeypatch.setattr(fit, "memory", None)
    with pytest.raises(Fits):
        train(TrainConfig(**SMALL), Ranks())


def test_one_image_a_rank_is_not_divided():
    card = SimpleNamespace(config=TrainConfig(global_batch_size=8))
    inputs: Any = SimpleNamespace(card=card)
    plan: Any = SimpleNamespace(micro_batch=4)
    advice = fit._smaller_step(inputs, plan, world=2, least=100, need=400, limit=50)
    assert advice == "pass --recompute full or a smaller --model"


def test_models_are_listed_from_small_to_large():
    widths = [SIZES[name]["hidden_size"] * SIZES[name]["depth"] for name in SIZES]
    assert widths == sorted(widths)


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    meminfo = "MemTotal: 9000 kB\nMemAvailable:   3000 kB\nSwapFree:  500 kB\nHugePages_Total: 0\n"
    (tmp_path / "proc/meminfo").write_text(meminfo)
    assert free_main_memory(tmp_path) == 3500 * 1024

    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    (tmp_path / "sys/fs/cgroup/job").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("1048576\n")
    assert free_main_memory(tmp_path) == 1048576
