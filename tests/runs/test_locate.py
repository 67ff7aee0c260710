"""--run OWNER/NAME: a network of the hub, found at one place for all commands."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from helpers.exports import CPU

from dit.cli import main
from dit.errors import UserError
from dit.export.diffusers import export_diffusers
from dit.runs.locate import locate_run
from dit.sampling.load import load_run
from dit.utils.hub import is_hub_name

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def hub(make_run, tmp_path, monkeypatch):
    """A hub with one network, me/cats, and a working folder with nothing in it."""
    snapshot = tmp_path / "hub" / "models--me--cats" / "snapshots" / "0123abcd"
    asked = []

    def download(name, *, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        if name != "me/cats":
            raise OSError("no such repository")
        return str(snapshot)

    export_diffusers(load_run(make_run(), CPU), snapshot)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return snapshot, asked


def test_what_is_here_stays_as_it_is_named(hub, monkeypatch):
    snapshot, asked = hub
    Path("me").mkdir()
    for name in (".", "me", "me/cats", "nothing", "a/b/c", "../x/y", "x/y.safetensors"):
        assert locate_run(name) == Path(name)
    assert locate_run(snapshot) == snapshot
    assert not asked


def test_names_of_the_hub_are_told_from_paths():
    assert is_hub_name("facebook/DiT-XL-2-256")
    assert is_hub_name("me/dit-v1.5")
    for name in ("photos", "runs/a/b", "./a/b", "/a/b", "~/b", "a/b.pt", "a/", "/b", "a b/c"):
        assert not is_hub_name(name)


def test_all_commands_take_a_network_of_the_hub(hub, capsys):
    snapshot, asked = hub
    grid = ["--steps", "1", "--per-class", "1"]
    assert main(["sample", "--run", "me/cats", *grid]) == 0
    assert {name for name, _ in asked} == {"me/cats"}
    assert not any(pattern.endswith(".bin") for _, patterns in asked for pattern in patterns)
    # what is written goes here, not into the hub's cache
    (picture,) = Path("runs/me--cats/samples").glob("grid-*.png")
    assert str(picture) in capsys.readouterr().out
    assert not (snapshot / "samples").exists()

    flags = ["--num-images", "1", "--times", "2", "--steps", "1"]
    assert main(["show", "backward", "me/cats", *flags]) == 0
    assert main(["info", "me/cats"]) == 0
    assert (
        "weights            transformer/diffusion_pytorch_model.safetensors"
        in capsys.readouterr().out
    )
    assert main(["export", "me/cats", "--out", "mine"]) == 0
    assert Path("mine/model.safetensors").is_file()
    assert main(["sample", "--run", "mine", "--guide", "me/cats", "--cfg-scale", "2", *grid]) == 0


def test_a_hub_out_of_reach_is_one_line(hub, capsys):
    assert main(["sample", "--run", "me/dogs"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--run me/dogs is neither a local folder nor available from the hub" in error
    assert main(["sample", "--run", "me/cats", "--cfg-scale", "2", "--guide", "me/dogs"]) == 2
    assert "--guide me/dogs is neither" in capsys.readouterr().err
    # in a folder that is here, it is a wrong path
    Path("runs").mkdir()
    assert main(["sample", "--run", "runs/dogs"]) == 2
    assert "no checkpoint in runs/dogs, which is not there" in capsys.readouterr().err


def test_pickled_weights_are_downloaded_only_where_there_are_no_others(hub):
    snapshot, asked = hub
    shutil.rmtree(snapshot / "transformer")
    locate_run("me/cats")
    assert [any(p.endswith(".bin") for p in patterns) for _, patterns in asked] == [False, True]
    with pytest.raises(UserError, match="no checkpoint"):
        load_run(locate_run("me/cats"), CPU)
