"""Data is checked before the first step; what cannot be read later ends a run that is saved."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from helpers import forked
from helpers.image_data import noise_file
from helpers.training import TINY, differing, run, tensors

from dit.commands.encode import encode
from dit.commands.train import train
from dit.config import EncodeConfig
from dit.data.images import ImageFiles
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.runs.checkpoint_files import latest_checkpoint
from dit.training import batches, checked_data
from dit.training.checked_data import note_data, open_checked
from dit.training.checkpointing import Saver

pytestmark = pytest.mark.usefixtures("small_networks")

COUNT = 20
BROKEN = b"<html>404</html>"


@pytest.fixture
def data(tmp_path):
    """Twenty images in two classes."""
    for i in range(COUNT):
        file = tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise_file(i))
    return tmp_path / "data"


@pytest.fixture
def config(data):
    return dataclasses.replace(TINY, data=str(data), global_batch_size=4)


def note(out):
    return json.loads((out / "data.json").read_text())


def opened(config, last=None):
    return open_checked(config, load_autoencoder("identity"), Ranks(), last)


# -- before the first step -------------------------------------------------------------------------


def test_damaged_images_are_named_before_the_first_step(config, data, tmp_path):
    for name in ("a/04.png", "b/07.png"):
        (data / name).write_bytes(BROKEN)
    message = r"2 of 20 images cannot be read: .*a/04\.png, .*b/07\.png \(.*--skip-damaged"
    for dry_run in (False, True):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "run", config, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_damaged_labels_are_refused_before_the_first_step_and_by_a_dry_run(config, data, tmp_path):
    out = tmp_path / "latents"
    encode(EncodeConfig(data=str(data), out=out, vae="identity", image_size=8), Ranks())
    labels = np.load(out / "labels.npy")
    labels[3] = 7
    np.save(out / "labels.npy", labels)
    for dry_run in (False, True):
        with pytest.raises(UserError, match=r"labels\.npy holds labels 0 to 7; expected 0 to 1"):
            run(tmp_path / "run", config, data=str(out), dry_run=dry_run)


def test_skipped_images_are_left_out_and_the_header_counts_the_others(
    config, data, tmp_path, capsys
):
    for name in ("a/04.png", "b/07.png"):
        (data / name).write_bytes(BROKEN)
    out = run(tmp_path / "run", config, skip_damaged=True, steps=1)
    printed = capsys.readouterr()
    assert "left out: 2 damaged images: " in printed.err
    assert "18 images in 2 classes (9 each), 2 left out, flips on" in printed.out
    assert note(out)["images"] == 18
    assert note(out)["left_out"] == {str(data / "a/04.png"): 2, str(data / "b/07.png"): 13}


def test_left_out_images_move_no_other(config, data):
    (data / "a/00.png").write_bytes(BROKEN)
    source = opened(dataclasses.replace(config, skip_damaged=True))
    (data / "a/00.png").unlink()
    rest = opened(config)
    everything, flip = np.arange(COUNT - 1), np.zeros(COUNT - 1, bool)
    np.testing.assert_array_equal(source.labels, rest.labels)
    assert (source.read(everything, flip) == rest.read(everything, flip)).all()
    for one, other in zip(source.statistics(), rest.statistics(), strict=True):
        assert (one == other).all()


@pytest.fixture
def checks(monkeypatch):
    """The images that are checked."""
    checked = []
    damage = ImageFiles.damage

    def count(images, index):
        checked.append(index)
        return damage(images, index)

    monkeypatch.setattr(ImageFiles, "damage", count)
    return checked


def test_a_resumed_run_checks_again_only_what_changed(config, data, tmp_path, checks, capsys):
    (data / "a/00.png").write_bytes(BROKEN)
    config = dataclasses.replace(config, skip_damaged=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-0000002"
    first = opened(config)
    note_data(tmp_path / "run", first)
    assert sorted(checks) == list(range(COUNT))

    checks.clear()
    resumed = opened(config, checkpoint)
    assert checks == []
    assert resumed.left_out == [0]
    np.testing.assert_array_equal(resumed.labels, first.labels)
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"1 of 20 images cannot be read: .*a/00\.png"):
        opened(dataclasses.replace(config, skip_damaged=False), checkpoint)

    checks.clear()
    (data / "a/04.png").unlink()
    assert len(opened(config, checkpoint).labels) == COUNT - 2
    assert sorted(checks) == list(range(COUNT - 1))
    assert "18 images now, 19 when the run last trained" in capsys.readouterr().err


def test_an_image_replaced_after_its_check_is_checked_by_a_resumed_run(
    config, data, tmp_path, monkeypatch, checks
):
    check_images = checked_data.check_images

    def replace_after(*arguments):
        damaged = check_images(*arguments)
        (data / "a/04.png").write_bytes(noise_file(100))
        return damaged

    with monkeypatch.context() as patch:
        patch.setattr(checked_data, "check_images", replace_after)
        note_data(tmp_path / "run", opened(config))
    checks.clear()
    opened(config, tmp_path / "run" / "checkpoints" / "step-0000002")
    assert sorted(checks) == list(range(COUNT))


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", '{"stamp": 3}', '{"stamp": "", "images": "x", "left_out": {"a": null}}'],
)
def test_without_a_sound_note_images_are_checked(content, config, tmp_path, checks):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "data.json").write_text(content)
    source = opened(config, tmp_path / "run" / "checkpoints" / "step-0000002")
    assert len(source.labels) == len(checks) == COUNT


# -- later -----------------------------------------------------------------------------------------


def break_at(monkeypatch, position, harm):
    """Do harm to the data just before the batch at a position is read."""
    read = batches.read_batch

    def harmed(stream, at):
        if at == position:
            harm()
        return read(stream, at)

    monkeypatch.setattr(batches, "read_batch", harmed)


def test_a_file_that_becomes_unreadable_ends_a_run_that_is_saved(
    config, data, tmp_path, monkeypatch
):
    copy = shutil.copytree(data, tmp_path / "copy")
    break_at(monkeypatch, 4, lambda: [f.write_bytes(BROKEN) for f in data.rglob("*.png")])
    out = tmp_path / "run"
    message = r"\.png cannot be read .* step 4 is saved: continue with `--resume "
    with pytest.raises(UserError, match=message):
        run(out, config)
    assert latest_checkpoint(out).name == "step-0000004"

    monkeypatch.undo()
    run(out, config, resume=str(out), data=str(copy))
    undisturbed = run(tmp_path / "once", config, data=str(copy))
    newest = latest_checkpoint(out), latest_checkpoint(undisturbed)
    assert differing(*map(tensors, newest)) == []


def test_latents_that_become_unreadable_end_a_run_that_is_saved(
    config, data, tmp_path, monkeypatch
):
    latents = tmp_path / "latents"
    encode(EncodeConfig(data=str(data), out=latents, vae="identity", image_size=8), Ranks())
    break_at(monkeypatch, 3, lambda: os.truncate(latents / "shard-00000.npy", 200))
    message = r"shard-00000\.npy breaks off .* step 3 is saved: continue with `--resume "
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", config, data=str(latents))
    assert latest_checkpoint(tmp_path / "run").name == "step-0000003"


def test_before_the_first_step_there_is_nothing_to_save(config, data, tmp_path, monkeypatch):
    break_at(monkeypatch, 0, lambda: [f.write_bytes(BROKEN) for f in data.rglob("*.png")])
    with pytest.raises(UserError, match=r"\.png cannot be read .*delete it$"):
        run(tmp_path / "run", config)
    assert latest_checkpoint(tmp_path / "run") is None


def test_a_checkpoint_that_is_there_is_not_written_again(config, data, tmp_path, monkeypatch):
    break_at(monkeypatch, 4, lambda: [f.write_bytes(BROKEN) for f in data.rglob("*.png")])
    written = []
    save = Saver.save
    monkeypatch.setattr(Saver, "save", lambda *args: written.append(args[1]) or save(*args))
    with pytest.raises(UserError, match="step 4 is saved"):
        run(tmp_path / "run", config, ckpt_every=2)
    assert written == [2, 4]


def fail_on_one_rank(ranks, config):
    """The second rank cannot read its share of the fourth batch."""
    read = batches.read_batch

    def harmed(stream, at):
        if at == 3 and ranks.rank == 1:
            raise UserError("7.png cannot be read", "an image", "delete it")
        return read(stream, at)

    batches.read_batch = harmed
    with pytest.raises(UserError, match=r"7\.png cannot be read.*step 3 is saved"):
        train(config, ranks)


@pytest.mark.slow
def test_all_ranks_end_where_one_cannot_read(config, tmp_path):
    out = tmp_path / "run"
    forked.run(2, fail_on_one_rank, dataclasses.replace(config, out=out))
    assert latest_checkpoint(out).name == "step-0000003"
