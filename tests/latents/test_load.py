"""Which latents a configuration trains on, and the ids of their classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.image_data import paint

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source, keep_class_order
from dit.latents.on_the_fly import MemoryLatents
from dit.training.build_card import build_card


@pytest.mark.parametrize(
    ("ours", "theirs", "labels"),
    [
        (["1", "2", "10"], ["1", "10", "2"], [0, 2, 1]),  # of a run of an earlier version
        (["1", "2", "10"], ["1", "2", "10"], [0, 1, 2]),
        (["a", "b", "c"], ["a", "b", "d"], [0, 1, 2]),  # other classes are refused elsewhere
        (["a", "a", "b"], ["b", "a", "a"], [0, 1, 2]),  # nobody knows which a is which
    ],
)
def test_a_run_keeps_the_ids_of_its_classes(ours, theirs, labels):
    source = MemoryLatents(torch.zeros(3, 1, 2, 2, 2), np.array([0, 1, 2]), ours)
    keep_class_order(source, theirs)
    assert source.labels.tolist() == labels
    assert sorted(source.classes) == sorted(ours)


def test_stored_labels_that_are_no_classes_are_refused_by_all_who_open_them(folders, tmp_path):
    out = tmp_path / "latents"
    encode(EncodeConfig(data=folders.data, out=out, vae="identity", image_size=8), Ranks())
    labels = np.load(out / "labels.npy")
    labels[3] = 12
    np.save(out / "labels.npy", labels)
    with pytest.raises(UserError, match=r"labels\.npy holds labels 0 to 12; expected 0 to 11"):
        build_source(replace(folders, data=str(out)), load_autoencoder("identity"))


@pytest.fixture
def folders(tmp_path):
    """Classes 0 ... 11, of which number n has n % 2 + 1 images."""
    for number in range(12):
        for image in range(number % 2 + 1):
            paint(tmp_path / "data" / str(number) / f"{image}.png", (8, 8), (number, 0, 0))
    return TrainConfig(data=str(tmp_path / "data"), vae="identity", image_size=8, num_classes=13)


def test_folders_of_numbers_have_their_numbers_as_ids(folders):
    source = build_source(folders, load_autoencoder("identity"))
    assert source.classes == [str(i) for i in range(12)]
    moments = source.read(np.arange(18), np.zeros(18, bool))
    red = ((moments[:, 0, 0, 0] + 1) * 127.5).round()
    assert red.tolist() == source.labels.tolist()
    # the order of images stays that of earlier versions, so that their latents can be continued
    text_order = sorted(range(12), key=str)
    assert red.tolist() == [n for n in text_order for _ in range(n % 2 + 1)]


def test_a_card_counts_the_images_of_each_class(folders):
    source = build_source(folders, load_autoencoder("identity"))
    card = build_card(folders, source)
    assert card.class_counts == [1, 2] * 6
    source.labels = np.ones_like(source.labels)
    assert build_card(folders, source).ids == [1]
    assert build_card(replace(folders, num_classes=0), source).class_counts is None


def test_columns_are_for_data_that_has_some(folders):
    with pytest.raises(UserError, match=r"--label-column x with --data .*drop --label-column"):
        build_source(replace(folders, label_column="x"), load_autoencoder("identity"))
    with pytest.raises(UserError, match="--label-column x with --num-classes 0"):
        replace(folders, label_column="x", num_classes=0)
