"""Weights and batches that do not fit into memory are refused before they are read or computed."""

import dataclasses
import re

import pytest

from dit.commands.encode import encode
from dit.commands.sample import sample
from dit.commands.train_vae.command import train_vae
from dit.config import EncodeConfig, SampleConfig, VaeConfig
from dit.distributed import device
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling import load

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
    monkeypatch.setattr(device, "free_memory", lambda device: 64 * 8192)
    flags = dict(run=tiny_run, num_samples=100, steps=1, precision="fp32", out=tmp_path / "out")
    found = refused(**flags, batch_size=65)
    assert found.given.startswith("65 images at once need more than 0.00 GiB")
    assert found.do == "pass --batch-size 16"
    assert refused(**flags, batch_size=33, cfg_scale=2).do == "pass --batch-size 8"
    sample(SampleConfig(**flags, batch_size=64), Ranks())
    assert len(list((tmp_path / "out").glob("*.png"))) == 100


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (encode, EncodeConfig(data="digits", out="o", batch_size=10**6, image_size=32)),
        (train_vae, VaeConfig(out="o", batch_size=10**6)),
    ],
)
def test_batches_of_other_commands(command, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda device: 2**26)
    with pytest.raises(UserError) as error:
        command(dataclasses.replace(flags, out=tmp_path / "o"), Ranks())
    # both have 16 channels at 32 px; digits are 1,797
    shown, batch = {encode: ("1,797", 117), train_vae: ("1,000,000", 64)}[command]
    assert error.value.given.startswith(f"{shown} images at once need more than")
    assert error.value.do == f"pass --batch-size {batch}"
    assert not (tmp_path / "o").exists()


def test_wide_autoencoders_are_refused_before_they_are_built(tmp_path):
    with pytest.raises(UserError) as error:
        train_vae(VaeConfig(out=tmp_path / "o", channels=(16, 16384, 16384), batch_size=1), Ranks())
    assert error.value.given.startswith("--channels 16 16384 16384 needs ")
    assert float(error.value.given.split()[5]) > 200


def test_no_batch_is_larger_than_the_images_that_are_left(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda device: 64 * 8192)
    flags = dict(run=tiny_run, num_samples=20, steps=1, out=tmp_path / "out")
    sample(SampleConfig(**flags, batch_size=10**6), Ranks())
    assert len(list((tmp_path / "out").glob("*.png"))) == 20
