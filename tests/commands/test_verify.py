import json
import shutil

import pytest

from dit.cli import main
from dit.commands.encode import encode
from dit.commands.info import info
from dit.config import EncodeConfig
from dit.distributed.ranks import Ranks
from dit.runs import posthoc_ema as posthoc
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_weights

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return encode(
        EncodeConfig(
            data="digits",
            out=tmp_path_factory.mktemp("latents"),
            vae="identity",
            image_size=8,
            shard_size=600,
        ),
        Ranks(),
    )


def test_intact_latents(finished, capsys):
    assert main(["verify", str(finished)]) == 0
    assert (
        capsys.readouterr().out
        == f"intact   {finished}: 3 shards with 1,797 images, and their labels\n"
    )


def test_damaged_files_are_named(finished, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    with (out / "shard-00001.npy").open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    (out / "shard-00002.npy").unlink()
    assert main(["verify", str(out)]) == 2
    said = capsys.readouterr()
    assert [line.split("  ")[1:3] for line in said.out.splitlines()] == [
        [str(out / "shard-00001.npy"), "600 images"],
        [str(out / "shard-00002.npy"), "597 images"],
    ]
    assert "2 files of" in said.err
    assert "shard-00001.npy, shard-00002.npy" in said.err
    assert "--skip-damaged" in said.err


def test_other_folders(finished, tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "is not a folder of latents" in capsys.readouterr().err
    unfinished = shutil.copytree(finished, tmp_path / "unfinished")
    (unfinished / "index.json").unlink()
    assert main(["verify", str(unfinished)]) == 2
    assert "are unfinished" in capsys.readouterr().err


def test_damaged_checkpoints_of_a_run_are_named(make_run, capsys):
    run = make_run()
    assert main(["verify", str(run)]) == 0
    assert "intact" in capsys.readouterr().out
    weights = next(run.rglob("ema-*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["verify", str(run)]) == 2
    said = capsys.readouterr()
    assert weights.name in said.out
    assert "error: damaged in " in said.err
    assert "step-0000003" in said.err


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_damaged_snapshots_of_a_run_are_named(damage, make_run, capsys):
    run = make_run()
    weights = read_weights(find_weights(run))
    for step in (1, 2, 3):
        posthoc.write_snapshot(run, weights.state_dict, weights.card, 0.1, step)
    (run / posthoc.FOLDER / "length-0.1-step-0000003 (copy).safetensors").write_bytes(b"not ours")
    posthoc.drop_after(run, 2)
    first, second = sorted(snapshot.file for snapshot in posthoc.find_snapshots(run))
    assert main(["verify", str(run)]) == 0
    assert f"intact   {second}\n" in capsys.readouterr().out
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.unlink() if damage == "missing" else first.write_bytes(content)
    assert main(["verify", str(run)]) == 2
    said = capsys.readouterr()
    assert f"damaged  {first}: " in said.out
    assert f"damaged in {run}: {first.name}; " in said.err


def test_a_checkpoint_alone_is_not_verified(make_run, capsys):
    run = make_run()
    (run / "best").symlink_to("checkpoints/step-0000003")
    for path in (run / "checkpoints" / "step-0000003", run / "best"):
        for command in (["verify", str(path)], ["train", "--resume", str(path)]):
            assert main(command) == 2
            assert f"a checkpoint of the run {run}; expected " in capsys.readouterr().err


def test_a_checkpoint_without_meta_is_named(make_run, capsys):
    run = make_run()
    (run / "checkpoints" / "step-0000004").mkdir()
    (run / "checkpoints" / ".step-0000005").mkdir()  # as a kill leaves it
    assert main(["verify", str(run)]) == 2
    said = capsys.readouterr()
    assert "step-0000004 has no meta.json and is not counted" in said.out
    assert "step-0000005" not in said.out + said.err
    assert "step-0000004  " in info(run)


@pytest.mark.parametrize(
    ("key", "value", "code"), [("seed", 7, 2), ("ema", 0.5, 2), ("lr", 0.5, 0), (None, 0, 2)]
)
def test_the_configuration_is_compared_with_that_of_the_checkpoint(
    make_run, key, value, code, capsys
):
    run = make_run()
    card = json.loads((run / "config.json").read_text())
    if key:
        old, card["config"][key] = card["config"][key], value
    (run / "config.json").write_text(json.dumps(card) if key else "{")
    assert main(["verify", str(run)]) == code
    said = capsys.readouterr()
    assert (
        f"{key} {old} before, {value} now" in said.out
        if key
        else "config.json is missing or damaged" in said.out
    )
    assert f"--resume {run}" in said.out or code == 0
