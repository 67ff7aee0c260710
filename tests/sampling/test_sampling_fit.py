"""Weights and batches that do not fit into memory are refused before they are read or computed."""

import re

import pytest

from dit.commands.sample import sample
from dit.config import SampleConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling import fit, load

pytestmark = pytest.mark.usefixtures("small_networks")


def refused(**flags) -> UserError:
    with pytest.raises(UserError) as error:
        sample(SampleConfig(**flags), Ranks())
    return error.value


def test_weights_larger_than_the_memory_are_not_read(tiny_run, monkeypatch):
    monkeypatch.setattr(load, "free_main_memory", lambda: 1000)
    monkeypatch.setattr(load, "read_weights", lambda file: pytest.fail("read"))
    assert re.search(r"safetensors takes 0\.\d\d GiB", refused(run=tiny_run).given)


def test_a_batch_larger_than_the_memory_names_one_that_fits(tiny_run, tmp_path, monkeypatch):
    # four tokens of 256 values in float32, before and after the nonlinearity: 8 KiB an image
    monkeypatch.setattr(fit, "free_memory", lambda device: 64 * 8192)
    flags = dict(run=tiny_run, num_samples=100, steps=1, precision="fp32", out=tmp_path / "out")
    found = refused(**flags, batch_size=65)
    assert found.given.startswith("--batch-size 65 needs more than")
    assert found.do == "pass --batch-size 16"
    assert refused(**flags, batch_size=33, cfg_scale=2).do == "pass --batch-size 8"
    sample(SampleConfig(**flags, batch_size=64), Ranks())
    assert len(list((tmp_path / "out").glob("*.png"))) == 100


def test_no_batch_is_larger_than_the_images_that_are_left(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "free_memory", lambda device: 64 * 8192)
    flags = dict(run=tiny_run, num_samples=20, steps=1, out=tmp_path / "out")
    sample(SampleConfig(**flags, batch_size=10**6), Ranks())
    assert len(list((tmp_path / "out").glob("*.png"))) == 20
