"""Images that change between two runs of `dit encode`, and damaged images that are left out."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import forked
from helpers.image_data import noise_file, write_tars

from dit.commands.encode import encode
from dit.config import EncodeConfig
from dit.data.images import ImageFolder
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.latents.store import LatentStore

COUNT, SHARD = 10, 4
NAMES = [f"{'ab'[i // 5]}/{i}.bmp" for i in range(COUNT)]


def bitmap(number):
    """An image of noise; all are of the same size in bytes."""
    return noise_file(number, "BMP")


@pytest.fixture
def data(tmp_path):
    """Ten images in the classes a and b: shards of four, four and two."""
    for i, name in enumerate(NAMES):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bitmap(i))
    return tmp_path / "data"


@pytest.fixture
def cfg(data, tmp_path):
    out = tmp_path / "latents"
    settings = {"vae": "identity", "image_size": 8, "shard_size": SHARD, "flip": False}
    return EncodeConfig(data=str(data), out=out, **settings)


def times(out):
    return [file.stat().st_mtime_ns for file in sorted(out.glob("shard-*.npy"))]


def pixels(out):
    """The mean of the moments of all latents, [N, 3, 8, 8]."""
    latents = LatentStore(out)
    count = len(latents.labels)
    return latents.read(np.arange(count), np.zeros(count, bool))[:, :3].float()


def expected_pixels(data):
    images = ImageFolder(data, 8)
    values = torch.stack([images[i] for i in range(len(images))])
    return (values / 127.5 - 1).half().float()


def rerun(cfg):
    """Encode again; return which shards were written again."""
    before = times(cfg.out)
    encode(cfg, Ranks())
    return [new != old for new, old in zip(times(cfg.out), before, strict=True)]


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_image_replaced_under_its_name_is_encoded_again(cfg, data, capsys):
    encode(cfg, Ranks())
    assert rerun(cfg) == [False, False, False]
    assert "changed" not in capsys.readouterr().out

    (data / NAMES[5]).write_bytes(bitmap(100))
    assert rerun(cfg) == [False, True, False]
    assert torch.equal(pixels(cfg.out), expected_pixels(data))
    # the file has the size of the one before
    printed = capsys.readouterr().out
    assert "the images changed (same names): 2 of 3 finished shards stay" in printed
    assert rerun(cfg) == [False, False, False]


def test_copied_images_with_new_times_are_the_same(cfg, data, tmp_path):
    encode(cfg, Ranks())
    copy = shutil.copytree(data, tmp_path / "copy")
    for name in NAMES:
        os.utime(copy / name, ns=(1, 1))
    assert rerun(replace(cfg, data=str(copy))) == [False, False, False]


def test_a_renamed_class_changes_the_index_alone(cfg, data):
    encode(cfg, Ranks())
    (data / "b").rename(data / "c")
    assert rerun(cfg) == [False, False, False]
    assert LatentStore(cfg.out).classes == ["a", "c"]


@pytest.mark.parametrize("unfinished", [True, False])
def test_encoding_goes_on_after_an_image_is_deleted_or_added(cfg, data, unfinished, capsys):
    encode(cfg, Ranks())
    if unfinished:
        (cfg.out / "index.json").unlink()
    (data / NAMES[6]).unlink()
    (data / NAMES[9]).unlink()
    encode(cfg, Ranks())
    assert torch.equal(pixels(cfg.out), expected_pixels(data))
    np.testing.assert_array_equal(LatentStore(cfg.out).labels, [0] * 5 + [1] * 3)
    # the last shard is gone with its images
    assert len(times(cfg.out)) == 2
    assert "(10 then, 8 now): 1 of 3 finished shards stay" in capsys.readouterr().out

    (data / "b" / "x.bmp").write_bytes(bitmap(200))
    encode(cfg, Ranks())
    assert torch.equal(pixels(cfg.out), expected_pixels(data))
    assert "(8 then, 9 now): 2 of 2 finished shards stay" in capsys.readouterr().out


def test_other_images_of_the_same_names_are_refused_and_nothing_is_lost(cfg, data, tmp_path):
    encode(cfg, Ranks())
    before = times(cfg.out)
    other = shutil.copytree(data, tmp_path / "other")
    for i, name in enumerate(NAMES):
        (other / name).write_bytes(bitmap(100 + i))
    message = r"images changed .* \(same names\).*choose another --out, or delete .* start again"
    with pytest.raises(UserError, match=message):
        encode(replace(cfg, data=str(other)), Ranks())
    assert times(cfg.out) == before
    assert len(LatentStore(cfg.out).labels) == COUNT


@pytest.mark.parametrize("change", ["one more", "one less", "others"])
def test_data_of_one_shard_is_encoded_again_after_a_change(cfg, data, change, monkeypatch, capsys):
    cfg = replace(cfg, shard_size=100)
    encode(cfg, Ranks())
    if change == "one more":
        (data / "a" / "x.bmp").write_bytes(bitmap(200))
    elif change == "one less":
        (data / NAMES[0]).unlink()
    else:
        for i, name in enumerate(NAMES):
            (data / name).write_bytes(bitmap(100 + i))
    # from another folder the same data has another name
    monkeypatch.chdir(data)
    encode(replace(cfg, data="../data"), Ranks())
    assert "0 of 1 finished shards stay" in capsys.readouterr().out
    assert torch.equal(pixels(cfg.out), expected_pixels(data))


def test_latents_that_do_not_say_where_their_images_were_go_on(cfg, data):
    encode(cfg, Ranks())
    for file in (cfg.out / "encoding.json", cfg.out / "index.json"):
        stored = json.loads(file.read_text())
        del stored["data"]
        file.write_text(json.dumps(stored))
    assert rerun(cfg) == [False, False, False]
    assert len(LatentStore(cfg.out).labels) == COUNT


def test_an_interrupted_rerun_leaves_no_index_of_other_shards(cfg, data, monkeypatch):
    encode(cfg, Ranks())
    (data / NAMES[5]).write_bytes(bitmap(100))

    monkeypatch.setattr("dit.commands.encode._write_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        encode(cfg, Ranks())
    with pytest.raises(UserError, match="are unfinished"):
        LatentStore(cfg.out)
    monkeypatch.undo()
    assert rerun(cfg) == [False, True, False]


def test_before_the_first_shard_any_images_will_do(cfg, data, monkeypatch):
    def fail(*_):
        raise UserError("0.png cannot be read", "an image", "delete it")

    monkeypatch.setattr("dit.commands.encode._write_images", fail)
    with pytest.raises(UserError, match="delete it"):
        encode(cfg, Ranks())
    monkeypatch.undo()
    (data / NAMES[0]).unlink()
    encode(cfg, Ranks())
    assert torch.equal(pixels(cfg.out), expected_pixels(data))


def without_stamps(out):
    """Make notes those of an earlier version."""
    for file in out.glob("shard-*.json"):
        note = json.loads(file.read_text())
        del note["stamp"], note["content"]
        file.write_text(json.dumps(note))


def test_latents_of_an_earlier_version_are_known_by_names(cfg, data, monkeypatch):
    encode(cfg, Ranks())
    without_stamps(cfg.out)
    (data / NAMES[5]).write_bytes(bitmap(100))
    assert rerun(cfg) == [False, False, False]
    (cfg.out / "shard-00001.npy").unlink()
    encode(cfg, Ranks())
    assert torch.equal(pixels(cfg.out), expected_pixels(data))

    (data / NAMES[9]).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("dit.commands.encode._write_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode(cfg, Ranks())
    # shard 1 has a stamp of its own; the others are of the names before the interruption
    encode(cfg, Ranks())
    assert torch.equal(pixels(cfg.out), expected_pixels(data))


def test_a_replaced_tar_is_noticed(cfg, tmp_path):
    samples = [{"png": noise_file(i), "cls": str(i % 2)} for i in range(COUNT)]
    write_tars(tmp_path / "tars", samples)
    cfg = replace(cfg, data=str(tmp_path / "tars"))
    encode(cfg, Ranks())
    assert rerun(cfg) == [False, False, False]

    samples[9]["png"] = noise_file(1009)
    write_tars(tmp_path / "tars", samples)
    assert rerun(cfg) == [False, False, True]


# -- damaged images --------------------------------------------------------------------------------


def damage(data, *indices):
    for index in indices:
        (data / NAMES[index]).write_bytes(b"<html>404</html>")


def test_skipped_images_keep_the_others_their_classes_and_their_shards(cfg, data, capsys):
    damage(data, 0, 5)
    with pytest.raises(UserError, match=r"2 of 10 images .*a/0\.bmp.*b/5\.bmp.*--skip-damaged"):
        encode(cfg, Ranks())
    assert [path.name for path in cfg.out.iterdir()] == [".lock"]

    cfg = replace(cfg, skip_damaged=True)
    encode(cfg, Ranks())
    printed = capsys.readouterr().out
    listing = cfg.out / "skipped.txt"
    assert f"left out: 2 damaged images, listed in {listing}" in printed
    assert "8 images in 2 classes" in printed
    assert listing.read_text().splitlines() == [str(data / NAMES[0]), str(data / NAMES[5])]
    np.testing.assert_array_equal(LatentStore(cfg.out).labels, [0] * 4 + [1] * 4)
    assert rerun(cfg) == [False, False, False]

    for index in (0, 5):
        (data / NAMES[index]).unlink()
    assert torch.equal(pixels(cfg.out), expected_pixels(data))


def test_skipped_images_are_listed_by_their_names_on_the_disk(cfg, data):
    name = os.fsdecode(b"caf\xe9.bmp")
    (data / "a" / name).write_bytes(b"")
    encode(replace(cfg, skip_damaged=True), Ranks())
    assert (cfg.out / "skipped.txt").read_bytes() == os.fsencode(data / "a" / name) + b"\n"


def test_a_mended_image_is_taken_in_again(cfg, data):
    damage(data, 5)
    encode(replace(cfg, skip_damaged=True), Ranks())
    (data / NAMES[5]).write_bytes(bitmap(5))
    assert rerun(cfg) == [False, True, False]
    assert torch.equal(pixels(cfg.out), expected_pixels(data))
    assert not (cfg.out / "skipped.txt").exists()


def test_a_mended_image_is_taken_in_though_it_is_of_the_only_shard(cfg, data):
    cfg = replace(cfg, shard_size=COUNT)
    damage(data, 5)
    encode(replace(cfg, skip_damaged=True), Ranks())
    (data / NAMES[5]).write_bytes(bitmap(5))
    assert rerun(cfg) == [True]
    assert torch.equal(pixels(cfg.out), expected_pixels(data))


def test_a_class_of_damaged_images_keeps_its_place(cfg, data):
    damage(data, *range(5))
    encode(replace(cfg, skip_damaged=True), Ranks())
    latents = LatentStore(cfg.out)
    assert latents.classes == ["a", "b"]
    np.testing.assert_array_equal(latents.labels, [1] * 5)
    # the first shard is empty
    assert torch.isfinite(torch.stack(latents.statistics())).all()
    assert len(pixels(cfg.out)) == 5


def test_no_image_left_is_refused(cfg, data):
    damage(data, *range(COUNT))
    with pytest.raises(UserError, match=r"10 of 10 images cannot be read: .* \(.*\), …;"):
        encode(replace(cfg, skip_damaged=True), Ranks())


def test_streams_have_no_damaged_images_to_skip(cfg):
    with pytest.raises(UserError, match="--skip-damaged with --streaming"):
        replace(cfg, streaming=True, skip_damaged=True)


def encode_on_ranks(ranks, config):
    encode(config, ranks)


def test_two_ranks_leave_out_the_same(cfg, data):
    damage(data, 1, 9)
    cfg = replace(cfg, skip_damaged=True)
    forked.run(2, encode_on_ranks, cfg)
    two = cfg.out.rename(cfg.out.with_name("two"))
    encode(cfg, Ranks())
    assert torch.equal(pixels(two), pixels(cfg.out))
    np.testing.assert_array_equal(LatentStore(two).labels, LatentStore(cfg.out).labels)
    assert (two / "skipped.txt").read_text() == (cfg.out / "skipped.txt").read_text()
