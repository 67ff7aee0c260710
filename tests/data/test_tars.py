import io
import json
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from dit.commands.encode import encode
from dit.commands.stats import stats
from dit.config import EncodeConfig, StatsConfig
from dit.data.image_files import read_pixels
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.references import find_reference
from dit.latents.store import LatentStore

COUNT = 13


def picture(number, form="PNG"):
    """An image file of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_tars(root, samples, maxcount=5):
    """Shards as people make them."""
    root.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(
        str(root / "train-%03d.tar"), maxcount=maxcount, verbose=0
    ) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"part.of/{number:04d}", **sample})
    return root


def labelled(number):
    told = {"label": number % 5, "caption": f"in json {number % 4}"}
    return {
        "png": picture(number),
        "cls": str(number % 3),
        "txt": f" a caption {number % 2}\n",
        "json": json.dumps(told).encode(),
    }


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), map(labelled, range(COUNT)))


@pytest.mark.parametrize("pattern", ["", "/train-{000..002}.tar", "/*.tar", "/train-00[0-2].tar"])
def test_samples_are_webdatasets(tars, pattern):
    images = load_images(f"{tars}{pattern}", 8)
    oracle = list(
        webdataset.WebDataset(
            [str(file) for file in sorted(tars.glob("*.tar"))], shardshuffle=False
        )
    )
    assert len(images) == len(oracle) == COUNT
    for index, sample in enumerate(oracle):
        assert images.open(index).read() == sample["png"]
        assert images.labels[index] == int(sample["cls"])
        assert f"{sample['__key__']}.png" in images.name(index)
        assert torch.equal(images[index], read_pixels(partial(io.BytesIO, sample["png"]), "", 8))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(), lambda i: str(i % 3)),
        (Columns(label="label"), lambda i: str(i % 5)),
        (Columns(label="CLS"), lambda i: str(i % 3)),
        (Columns(captions=True), lambda i: f"a caption {i % 2}"),
        (Columns(captions=True, label="caption"), lambda i: f"in json {i % 4}"),
        (Columns(label="txt"), lambda i: f"a caption {i % 2}"),
    ],
)
def test_classes_and_captions_come_from_where_they_are_asked_for(tars, columns, said):
    images = load_images(str(tars), 8, columns)
    assert [images.classes[label] for label in images.labels] == [said(i) for i in range(COUNT)]
    assert images.flips is not columns.captions


def test_json_alone_will_do(tmp_path):
    samples = [{"jpg": picture(i, "JPEG"), "json": labelled(i)["json"]} for i in range(6)]
    tars = write_tars(tmp_path, samples)
    assert load_images(str(tars), 8).labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert sorted(load_images(str(tars), 8, Columns(captions=True)).classes) == [
        f"in json {i}" for i in range(4)
    ]


def test_names_of_classes(tmp_path):
    tars = write_tars(tmp_path / "numbers", ({"png": picture(i), "cls": str(i)} for i in (2, 0)))
    assert load_images(str(tars), 8).classes == ["0", "1", "2"]
    (tars / "classnames.txt").write_text("ant\nbee\ncat\ndog\n")
    images = load_images(str(tars), 8)
    assert (images.classes, images.labels.tolist()) == (["ant", "bee", "cat", "dog"], [2, 0])
    named = write_tars(
        tmp_path / "names",
        ({"png": picture(i), "cls": name} for i, name in enumerate(["owl", "ibis"])),
    )
    images = load_images(str(named), 8)
    assert (images.classes, images.labels.tolist()) == (["ibis", "owl"], [1, 0])


def test_samples_without_image_are_left_out_and_images_without_class_have_none(tmp_path):
    tars = write_tars(tmp_path, [{"txt": "about"}, {"png": picture(0)}, {"png": picture(1)}])
    images = load_images(str(tars), 8)
    assert (images.classes, images.labels.tolist()) == ([], [0, 0])
    assert images.open(0).read() == picture(0)


def test_fingerprint_is_that_of_the_members_wherever_they_lie(tars, tmp_path):
    here = load_images(str(tars), 8).fingerprint
    there = write_tars(tmp_path / "same", map(labelled, range(COUNT)))
    assert load_images(str(there), 8).fingerprint == here
    other = write_tars(tmp_path / "other", map(labelled, range(1, COUNT + 1)))
    assert load_images(str(other), 8).fingerprint != here


def test_folders_of_images_may_have_tars_beside(tmp_path):
    write_tars(tmp_path, [labelled(0)])
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.png").write_bytes(picture(1))
    assert load_images(str(tmp_path), 8).classes == ["ant"]


def cut(file, blocks):
    file.write_bytes(file.read_bytes()[: int(512 * blocks)])


def compress(file):
    with tarfile.open(file) as plain, tarfile.open(file.with_suffix(".gz"), "w:gz") as packed:
        for member in plain:
            packed.addfile(member, plain.extractfile(member))
    file.with_suffix(".gz").replace(file)


@pytest.mark.parametrize(
    "spoil",
    [
        partial(cut, blocks=16),  # between two members
        partial(cut, blocks=16.7),  # in a header
        partial(cut, blocks=17.1),  # in a file
        lambda file: file.write_bytes(
            file.read_bytes()[:8200] + b"?" + file.read_bytes()[8201:]
        ),  # of a header
        compress,
        lambda file: file.write_bytes(b"no tar" * 1000),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, spoil):
    tars = write_tars(tmp_path, map(labelled, range(COUNT)))
    spoil(tars / "train-001.tar")
    with pytest.raises(UserError, match=r"train-001\.tar can not be read as a tar"):
        load_images(str(tars), 8)


@pytest.mark.parametrize(
    ("samples", "columns", "message"),
    [
        (
            [labelled(0), {"png": picture(1)}],
            Columns(),
            r"class None of part\.of/0001\.png in .*train-000\.tar",
        ),
        ([labelled(0), labelled(1) | {"cls": "-1"}], Columns(), r"class -1 of part\.of/0001\.png"),
        (
            [labelled(0), labelled(1) | {"cls": "owl"}],
            Columns(),
            "classes are both numbers and names",
        ),
        (
            [labelled(0) | {"cls": "12345678901"}],
            Columns(),
            "class 12345678901 of .* from 0 to 9999999, or a name",
        ),
        (
            [labelled(0), labelled(1) | {"txt": " "}],
            Columns(captions=True),
            r"caption '' of part\.of/0001\.png",
        ),
        (
            [{"png": picture(0), "cls": "1"}],
            Columns(captions=True),
            r"--captions and no such thing.*one of its members",
        ),
        (
            [labelled(0)],
            Columns(label="clas"),
            "--label-column clas and no such thing .* or keys label, caption",
        ),
        (
            [labelled(0) | {"jpg": picture(0, "JPEG")}],
            Columns(),
            "are images of one sample.*--image-column",
        ),
        (
            [labelled(0) | {"json": b"{"}],
            Columns(label="label"),
            r"0000\.json in '.*train-000\.tar' is damaged",
        ),
        ([labelled(0)], Columns(image="jpg"), r"no images in .*train-000\.tar"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, samples, columns, message):
    tars = write_tars(tmp_path, samples)
    with pytest.raises(UserError, match=message) as caught:
        load_images(str(tars), 8, columns)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tars, tmp_path):
    write_tars(tmp_path, [labelled(0)])
    (tmp_path / "val-000.tar").write_bytes((tmp_path / "train-000.tar").read_bytes())
    for data, message in [
        (
            tmp_path,
            r"several kinds of tar shards: train-000\.tar, val-000\.tar; .*'.*train-\*\.tar'",
        ),
        (tars / "train-{000..005}.tar", r"train-003\.tar can not be read as a tar"),
        (tars / "val*.tar", "names no file"),
        (tars / "{a,b", "names no file"),
        (__file__, "is a file; .* pass a folder, or a file .tar or .parquet"),
    ]:
        with pytest.raises(UserError, match=message):
            load_images(str(data), 8)
    with pytest.raises(UserError, match=r"--label-column x with --data digits"):
        load_images("digits", 8, Columns(label="x"))


def test_encoded_tars_are_those_of_the_images(tars, tmp_path):
    cfg = EncodeConfig(
        data=str(tars),
        out=tmp_path / "out",
        vae="identity",
        image_size=8,
        shard_size=4,
        batch_size=3,
    )
    store, images = LatentStore(encode(cfg, Ranks())), load_images(str(tars), 8)
    np.testing.assert_array_equal(store.labels, images.labels)
    assert store.classes == images.classes
    for flip in (False, True):
        moments = store.read(np.arange(COUNT), np.full(COUNT, flip)).float()[:, :3]
        pixels = torch.stack([images[i] for i in range(COUNT)])
        assert torch.equal(
            ((moments + 1) * 127.5).round(), (pixels.flip(-1) if flip else pixels).float()
        )


def test_unreadable_members_are_named_before_anything_is_written(tmp_path):
    samples = [
        labelled(i) | ({"png": picture(i)[:100]} if i in (2, 7) else {}) for i in range(COUNT)
    ]
    tars = write_tars(tmp_path / "tars", samples)
    cfg = EncodeConfig(data=str(tars), out=tmp_path / "out", vae="identity", image_size=8)
    with pytest.raises(
        UserError,
        match=r"2 of 13 images can not be read: part\.of/0002\.png in .*train-000\.tar, "
        r"part\.of/0007\.png in .*train-001\.tar",
    ):
        encode(cfg, Ranks())
    assert [path.name for path in cfg.out.iterdir()] == [".lock"]
    with pytest.raises(
        UserError, match=r"part\.of/0007\.png in .*train-001\.tar can not be read as an image"
    ):
        load_images(str(tars), 8)[7]


def test_samples_are_scored_against_tars(tars):
    reference = find_reference(str(tars), (8, 8), crop=False)
    images = load_images(str(tars), 8)
    assert torch.equal(
        reference.images.stack(range(COUNT)), torch.stack([images[i] for i in range(COUNT)])
    )
    assert reference.images.labels == [str(i % 3) for i in range(COUNT)]
    with pytest.raises(UserError, match=r"--data .* without --image-size"):
        stats(StatsConfig(data=str(tars), out=tars / "x.npz"), Ranks())
