"""Commands that read a folder of images say once, on rank 0, what they left out."""

import pytest
from helpers.image_data import paint, write_captioned

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.latents.load import build_source

NOTE = "note: 1 file left out in {} (1 .txt)\n"


@pytest.fixture
def photos(tmp_path):
    for name in ("cat/1.png", "cat/deep/2.png", "dog/3.png"):
        paint(tmp_path / "photos" / name, (8, 8))
    (tmp_path / "photos" / "dog" / "notes.txt").write_text("text")
    return tmp_path / "photos"


def test_encoding_and_training_tell_of_files_left_out(photos, tmp_path, capsys):
    cfg = EncodeConfig(
        data=str(photos), out=tmp_path / "latents", vae="identity", image_size=8, flip=False
    )
    encode(cfg, Ranks())
    assert capsys.readouterr().err.count(NOTE.format(photos)) == 1

    config = TrainConfig(data=str(photos), vae="identity", image_size=8)
    source = build_source(config, load_autoencoder("identity", "cpu"), Ranks())
    assert len(source.labels) == 3
    assert capsys.readouterr().err == NOTE.format(photos)


def test_only_rank_0_prints(capsys):
    Ranks(rank=1, world=1).say(["anything"])
    assert capsys.readouterr().err == ""


def test_images_without_a_caption_are_told(tmp_path):
    write_captioned(tmp_path)
    paint(tmp_path / "b" / "more.png", (8, 8))
    (tmp_path / "b" / "x.txt").write_text("text")
    images = load_images(str(tmp_path), 8, Columns(captions=True))
    where = tmp_path / "metadata.jsonl"
    assert images.notes == [f"1 image left out: not in {where} (the first is b/more.png)"]
