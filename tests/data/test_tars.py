import io
import json
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
import webdataset
from helpers.image_data import noise_file, pack, write_tars

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


def labelled(number, **changes):
    values = {"label": number % 5, "caption": f"in json {number % 4}"}
    sample = {
        "png": noise_file(number),
        "cls": str(number % 3),
        "txt": f" a caption {number % 2}\n",
        "json": json.dumps(values).encode(),
    }
    return sample | changes


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), map(labelled, range(COUNT)))


def labels_of(images):
    return [images.classes[label] for label in images.labels]


@pytest.mark.parametrize("pattern", ["", "/train-{000..002}.tar", "/*.tar", "/train-00[0-2].tar"])
def test_samples_are_those_of_webdataset(tars, pattern):
    images = load_images(f"{tars}{pattern}", 8)
    files = [str(file) for file in sorted(tars.glob("*.tar"))]
    expected = list(webdataset.WebDataset(files, shardshuffle=False))
    assert len(images) == len(expected) == COUNT
    for index, sample in enumerate(expected):
        assert images.open(index).read() == sample["png"]
        assert images.labels[index] == int(sample["cls"])
        assert f"{sample['__key__']}.png" in images.name(index)
        assert torch.equal(images[index], read_pixels(partial(io.BytesIO, sample["png"]), "", 8))


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        (Columns(), lambda i: str(i % 3)),
        (Columns(label="label"), lambda i: str(i % 5)),
        (Columns(label="CLS"), lambda i: str(i % 3)),
        (Columns(captions=True), lambda i: f"a caption {i % 2}"),
        (Columns(captions=True, label="caption"), lambda i: f"in json {i % 4}"),
        (Columns(label="txt"), lambda i: f"a caption {i % 2}"),
    ],
)
def test_columns_choose_where_labels_come_from(tars, columns, label):
    images = load_images(str(tars), 8, columns)
    assert labels_of(images) == [label(i) for i in range(COUNT)]
    assert images.flips is not columns.captions


def test_json_suffices(tmp_path):
    samples = [{"jpg": noise_file(i, "JPEG"), "json": labelled(i)["json"]} for i in range(6)]
    tars = str(write_tars(tmp_path, samples))
    assert load_images(tars, 8).labels.tolist() == [0, 1, 2, 3, 4, 0]
    captions = load_images(tars, 8, Columns(captions=True)).classes
    assert sorted(captions) == [f"in json {i}" for i in range(4)]


def test_numbers_as_texts_in_json_sort_as_numbers(tmp_path):
    labels = ["10", "9", "100"]
    samples = [{"png": noise_file(0), "json": json.dumps({"label": label})} for label in labels]
    images = load_images(str(write_tars(tmp_path, samples)), 8)
    assert (images.classes, images.labels.tolist()) == (["9", "10", "100"], [1, 0, 2])


@pytest.mark.parametrize(
    ("labels", "names", "classes", "ids"),
    [
        ("20", "", ["0", "1", "2"], [2, 0]),
        ("20", "ant\nbee\ncat\ndog\n", ["ant", "bee", "cat", "dog"], [2, 0]),
        (["owl", "ibis"], "", ["ibis", "owl"], [1, 0]),
        (["dog", "1"], "ant\nbee\ncat\ndog\n", ["ant", "bee", "cat", "dog"], [3, 1]),
    ],
)
def test_classes_are_numbers_or_names(tmp_path, labels, names, classes, ids):
    samples = [{"png": noise_file(i), "cls": label} for i, label in enumerate(labels)]
    tars = write_tars(tmp_path, samples)
    if names:
        (tars / "classnames.txt").write_text(names)
    images = load_images(str(tars), 8)
    assert (images.classes, images.labels.tolist()) == (classes, ids)


def test_labels_that_are_no_text_are_refused(tmp_path):
    tars = write_tars(tmp_path, [{"png": noise_file(0), "cls": b"\xff\xfe"}])
    with pytest.raises(UserError, match=r"\.png in .* has a \.cls that is no text"):
        load_images(str(tars), 8)


def test_names_of_classes_may_have_a_byte_order_mark_and_are_utf_8(tmp_path):
    tars = write_tars(tmp_path, [{"png": noise_file(0), "cls": "1"}])
    file = tars / "classnames.txt"
    file.write_text("ant\nbee\n", encoding="utf-8-sig")
    assert load_images(str(tars), 8).classes == ["ant", "bee"]
    file.write_bytes(b"ant\ncaf\xe9\n")
    with pytest.raises(UserError, match=rf"{file} is missing or damaged .* in UTF-8"):
        load_images(str(tars), 8)


@pytest.mark.parametrize(
    ("json", "message"),
    [
        (b"[" * 100_000, r"\.json in .* is damaged \(it is nested too deeply\)"),
        (b"{not", r"\.json in .* is damaged \(no JSON"),
        (b"[1, 2]", r"\.png in .* has no \.cls, but json"),
        (b'\xef\xbb\xbf{"label": "owl"}', ""),
        (b'{"label": "owl", "score": NaN}', ""),
    ],
)
def test_labels_in_json(tmp_path, json, message):
    tars = write_tars(tmp_path, [{"png": noise_file(0), "json": json}])
    if message:
        with pytest.raises(UserError, match=message):
            load_images(str(tars), 8)
    else:
        assert load_images(str(tars), 8).classes == ["owl"]


@pytest.mark.parametrize("label", ["--5", "-1", "9" * 5000])
def test_a_label_that_is_no_class_is_named(tmp_path, label):
    tars = write_tars(tmp_path, [{"png": noise_file(0), "cls": label}])
    (tars / "classnames.txt").write_text("ant\nbee\n")
    with pytest.raises(
        UserError, match=r"class .* of .*\.png in .*; expected a number from 0 to 1"
    ):
        load_images(str(tars), 8)


def test_samples_without_image_are_skipped_and_images_without_label_have_no_class(tmp_path):
    samples = [{"txt": "about"}, {"png": noise_file(0)}, {"png": noise_file(1)}]
    images = load_images(str(write_tars(tmp_path, samples)), 8)
    assert (images.classes, images.labels.tolist()) == ([], [0, 0])
    assert images.open(0).read() == noise_file(0)


def test_fingerprint_depends_on_members_not_on_the_folder(tars, tmp_path):
    same = write_tars(tmp_path / "same", map(labelled, range(COUNT)))
    other = write_tars(tmp_path / "other", map(labelled, range(1, COUNT + 1)))
    first, second, third = (load_images(str(d), 8).fingerprint for d in (tars, same, other))
    assert first == second != third


def test_a_folder_of_images_may_contain_tars(tmp_path):
    write_tars(tmp_path, [labelled(0)])
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.png").write_bytes(noise_file(1))
    assert load_images(str(tmp_path), 8).classes == ["ant"]


# -- keys ------------------------------------------------------------------------------------------


def read_pack(tmp_path, members, columns=None):
    """Return the label of each image, by name, of members such as "1.png 1.cls=0"; check pixels."""
    pairs = [text.partition("=")[::2] for text in members.split()]
    contents = [(name, text or noise_file(i)) for i, (name, text) in enumerate(pairs)]
    images = load_images(str(pack(tmp_path / "a.tar", contents)), 8, columns)
    names = [images.name(i).split(" in ")[0] for i in range(len(images))]
    for i, name in enumerate(names):
        assert images.open(i).read() == dict(contents)[name]
    return dict(zip(names, labels_of(images), strict=True))


@pytest.mark.parametrize(
    ("members", "columns"),
    [
        ("1.png 2.png 1.cls=a 2.cls=b", None),  # as plain `tar` packs them
        ("1.cls=a 2.cls=b 1.png 2.png", None),
        ("x.v1.png x.v1.cls=a x.v2.png x.v2.cls=b", None),
        ("x.v1.png x.v2.png x.v1.cls=a x.v2.cls=b", None),
        ("s/x.1.5.png s/x.1.5.cls=a s/y.2.png s/y.2.cls=b", None),
        ("1.left.png 1.right.png=? 1.cls=a 2.left.png 2.cls=b", Columns(image="left.png")),
        ("x.v1.png x.v2.png x.v1.cls=a x.v2.cls=b", Columns(image="png")),
        ("1.PNG 1.cls=a 2.png 2.CLS=b", None),
        ("._1.png=? 1.png 1.cls=a .DS_Store=? 2.png 2.cls=b __MACOSX/._1.png=?", None),
        ("./1.png ./1.cls=a ./2.png ./2.cls=b", None),
        ("a/1.png b/1.png", None),  # folders, as of an ImageFolder
        ("all/a/1.png all/a/x/2.png all/b/1.png", None),
        ("a/1.png b/1.png", Columns(label="folder")),
    ],
)
def test_a_sample_is_its_key_wherever_its_files_lie(tmp_path, members, columns):
    labels = read_pack(tmp_path, members, columns)
    *first, last = [text for text in members.split() if "=" not in text]
    assert labels == dict.fromkeys(first, "a") | {last: "b"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("1.png 1.cls=0 2.png", r"2\.png in .*a\.tar has no \.cls; .*add it, or remove the image"),
        ("1.png 2.png 2.cls=0", r"1\.png in .* is an image alone, and 2\.png in .* has \.cls"),
        ("1.png 1.cls=0 2.cls=0", r"2\.cls in .*a\.tar has no image; .*remove the label"),
        ("1.png 1.cls=0 1.png", r"a\.tar has 1\.png and later 1\.png; expected each file once"),
        ("1.png 1.PNG 1.cls=0", r"a\.tar has 1\.png and later 1\.PNG; expected each file once"),
        ("x.v1.png x.v1.cls=0 x.v2.png", r"x\.v2\.png in .* has no \.cls"),
        ("x.1.png x.2.png", r"images of one sample.*--image-column 1\.png; or png, if each is"),
        ("1.png 1.txt=dog", r"no \.cls, but txt;.*column txt, --captions .*--num-classes 0"),
        ("1.png 1.species=3", r"no \.cls, but species; .*--label-column species, or --num-cl"),
        ('1.png 1.json={"species":3,"w":8}', r"no \.cls, but species, w; .*--label-column species"),
        ('1.png 1.json={"label":3} 2.png 2.json={"w":8}', r"2\.png in .* has no label in \.json"),
        (
            "n01440764.tar=x n01443537.tar=x",
            r"no images in .*, but 2 \.tar; .*unpack tars that are",
        ),
        (
            "train/a/1.png val/a/2.png",
            "the tars have the folders train, val; expected one data set",
        ),
        ("1.png a/2.png", r"images without a folder \(1\.png\) and in folders \(a/2\.png\)"),
    ],
)
def test_labels_that_would_be_lost_are_named(tmp_path, members, message):
    with pytest.raises(UserError, match=message) as caught:
        read_pack(tmp_path, members)
    assert "\n" not in str(caught.value)


def test_labels_are_ignored_where_no_classes_are_wanted(tmp_path):
    pack(tmp_path / "a.tar", [("1.png", noise_file(0)), ("1.txt", "dog"), ("2.txt", "cat")])
    for classes in ("none", "usual"):  # the latter does not ask
        images = load_images(str(tmp_path / "a.tar"), 8, Columns(classes=classes))
        assert (images.classes, images.labels.tolist()) == ([], [0])
        assert images.notes == ["1 file in the tars left out (1 .txt)"]


@pytest.mark.parametrize("members", ["1.png a/2.png", "train/1.png val/2.png"])
def test_folders_that_may_be_no_classes_are_none_where_classes_are_not_needed(tmp_path, members):
    pack(tmp_path / "a.tar", [(name, noise_file(0)) for name in members.split()])
    images = load_images(str(tmp_path / "a.tar"), 8, Columns(classes="usual"))
    assert (images.classes, images.labels.tolist()) == ([], [0, 0])


def test_links_are_the_files_that_they_point_to(tmp_path):
    pack(tmp_path / "a.tar", [("x/1.png", noise_file(0)), ("x/1.cls", "a"), ("x/2.cls", "b")])
    link = tarfile.TarInfo("x/2.png")
    for kind, target in ((tarfile.SYMTYPE, "1.png"), (tarfile.LNKTYPE, "x/1.png")):
        link.type, link.linkname = kind, target
        file = tmp_path / f"{kind.decode()}.tar"
        file.write_bytes((tmp_path / "a.tar").read_bytes())
        with tarfile.open(file, "a") as tar:
            tar.addfile(link)
        images = load_images(str(file), 8)
        assert labels_of(images) == ["a", "b"]
        assert images.open(1).read() == noise_file(0)
    link.linkname = "/elsewhere.png"
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(link)
    with pytest.raises(UserError, match=r"x/2\.png in .*a\.tar is a link to /elsewhere\.png"):
        load_images(str(tmp_path / "a.tar"), 8)


def test_what_is_left_out_is_counted(tmp_path):
    others = [("README", "x"), ("notes.txt", "x"), ("more.txt", "x")]
    pack(tmp_path / "a.tar", [*others, ("1.png", noise_file(0)), ("1.cls", "3")])
    assert load_images(str(tmp_path / "a.tar"), 8).notes == [
        "classes from .cls",
        "3 files in the tars left out (2 .txt, 1 without extension)",
    ]


# -- a tar for each class --------------------------------------------------------------------------


def write_class_tars(root, names, extra=()):
    for number, name in enumerate(names):
        pack(root / f"{name}.tar", [(f"{name}_{number}.png", noise_file(number)), *extra])
    return str(root)


@pytest.mark.parametrize("names", [["n01440764", "n01443537", "n02102040"], ["cat", "dog", "emu"]])
def test_tars_of_nothing_but_images_are_classes(tmp_path, names):
    images = load_images(write_class_tars(tmp_path, names), 8)
    assert (images.classes, images.labels.tolist()) == (names, [0, 1, 2])
    assert images.notes == ["classes from the names of the tars"]
    assert load_images(str(tmp_path), 8, Columns(classes="none")).classes == []


@pytest.mark.parametrize(
    ("names", "classes"),
    [(["train-000", "train-001"], ["train"]), (["cat-0", "cat-1", "dog-0"], ["cat", "dog"])],
)
def test_tars_are_classes_where_asked(tmp_path, names, classes):
    data = write_class_tars(tmp_path, names)
    assert load_images(data, 8, Columns(label="tar")).classes == classes


@pytest.mark.parametrize("in_folder", [False, True])
def test_numbered_shards_are_no_classes(tmp_path, in_folder):
    for name in ("a-000", "a-001"):
        pack(tmp_path / f"{name}.tar", [(f"{name}/1.png" if in_folder else "1.png", noise_file(0))])
    assert load_images(str(tmp_path), 8).classes == []


@pytest.mark.parametrize(
    ("names", "extra"), [(["train", "val"], []), (["cat", "dog"], [("cat_0.cls", "1")])]
)
def test_splits_and_data_sets_are_no_classes(tmp_path, names, extra):
    pack(tmp_path / f"{names[0]}.tar", [("cat_0.png", noise_file(0)), *extra])
    pack(tmp_path / f"{names[1]}.tar", [("cat_0.png", noise_file(1)), *extra])
    with pytest.raises(UserError, match=r"several kinds of tar shards: .*--label-column tar, if"):
        load_images(str(tmp_path), 8)


def test_tars_of_several_kinds_are_one_data_set_where_folders_or_names_are_classes(tmp_path):
    for tar in ("tc-cat", "tc-dog"):
        members = [(f"{name}/{tar}.png", noise_file(0)) for name in ("cat", "dog")]
        pack(tmp_path / f"{tar}-0.tar", members)
    with pytest.raises(UserError, match="several kinds of tar shards"):
        load_images(str(tmp_path), 8)
    images = load_images(str(tmp_path), 8, Columns(label="folder"))
    assert [images.classes[i] for i in images.labels] == ["cat", "dog", "cat", "dog"]
    assert load_images(str(tmp_path), 8, Columns(label="tar")).classes == ["tc-cat", "tc-dog"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tgz", "x.tar.ZST"])
def test_packed_files_are_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"is a file; .*; unpack it"):
        load_images(str(tmp_path / name), 8)


def test_classes_without_images_are_told_at_encode(tmp_path, capsys):
    samples = [labelled(i, cls=str(i % 2 + 1)) for i in range(4)]
    encode(encode_config(write_tars(tmp_path / "tars", samples), tmp_path / "out"), Ranks())
    assert "note: 1 class without images: 0\n" in capsys.readouterr().err


# -- mistakes --------------------------------------------------------------------------------------


def cut(content, blocks):
    return content[: int(512 * blocks)]


def compress(content):
    file = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as plain,
        tarfile.open(fileobj=file, mode="w:gz") as packed,
    ):
        for member in plain:
            packed.addfile(member, plain.extractfile(member))
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        partial(cut, blocks=16),  # between two members
        partial(cut, blocks=16.7),  # in a header
        partial(cut, blocks=17.1),  # in a file
        lambda content: content[:8200] + b"?" + content[8201:],  # a byte of a header
        compress,
        lambda content: b"no tar" * 1000,
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage):
    tars = write_tars(tmp_path, map(labelled, range(COUNT)))
    file = tars / "train-001.tar"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"train-001\.tar cannot be read as a tar"):
        load_images(str(tars), 8)


CAPTIONS = Columns(captions=True)


@pytest.mark.parametrize(
    ("samples", "columns", "message"),
    [
        (
            [labelled(0), {"png": noise_file(1)}],
            None,
            r"part\.of/0001\.png in .*000\.tar has no \.cls; .* for every image",
        ),
        ([labelled(0), labelled(1, cls="-1")], None, r"class -1 of part\.of/0001\.png"),
        (
            [labelled(0), labelled(1, cls="owl")],
            None,
            "classes are both numbers and names: 0, 'owl'",
        ),
        ([labelled(0, cls="12345678901")], None, "class 12345678901 .* 0 to 9999999, or a name"),
        ([labelled(0), labelled(1, txt=" ")], CAPTIONS, r"caption '' of part\.of/0001\.png"),
        ([{"png": noise_file(0), "cls": "1"}], CAPTIONS, "--captions and no such .* its members"),
        ([labelled(0)], Columns(label="clas"), "--label-column clas and .* or keys label, caption"),
        ([labelled(0, jpg=b"")], None, "are images of one sample.*--image-column"),
        ([labelled(0, json=b"{")], Columns(label="label"), r"0000\.json in '.*tar' is damaged"),
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
        (tmp_path, r"several kinds of tar shards: train-000\.tar, val-000\.tar; .*train-\*\.tar'"),
        (tars / "train-{000..005}.tar", r"3 of the 6 files of .* are missing: .*train-003\.tar, "),
        (tars / "val*.tar", "names no file"),
        (tars / "{a,b", "names no file"),
        (__file__, "is a file; .* pass a folder, or a file .tar or .parquet"),
    ]:
        with pytest.raises(UserError, match=message):
            load_images(str(data), 8)
    with pytest.raises(UserError, match="--label-column x with --data digits"):
        load_images("digits", 8, Columns(label="x"))


# -- in commands -----------------------------------------------------------------------------------


def encode_config(data, out, **settings):
    return EncodeConfig(data=str(data), out=out, vae="identity", image_size=8, **settings)


def test_encoded_latents_are_those_of_the_images(tars, tmp_path):
    cfg = encode_config(tars, tmp_path / "out", shard_size=4, batch_size=3)
    store, images = LatentStore(encode(cfg, Ranks())), load_images(str(tars), 8)
    np.testing.assert_array_equal(store.labels, images.labels)
    assert store.classes == images.classes
    pixels = torch.stack([images[i] for i in range(COUNT)])
    for flip, expected in ((False, pixels), (True, pixels.flip(-1))):
        moments = store.read(np.arange(COUNT), np.full(COUNT, flip)).float()[:, :3]
        assert torch.equal(((moments + 1) * 127.5).round(), expected.float())


def test_latents_without_classes_are_encoded_where_asked(tars, tmp_path, capsys):
    store = LatentStore(encode(encode_config(tars, tmp_path / "a", num_classes=0), Ranks()))
    assert (store.classes, store.labels.tolist()) == ([], [0] * COUNT)
    assert "note:" not in capsys.readouterr().err
    encode(encode_config(tars, tmp_path / "b"), Ranks())
    assert "note: classes from .cls\n" in capsys.readouterr().err
    for settings, message in [
        ({"num_classes": 3}, "--num-classes 3; expected 0, or no --num-classes"),
        ({"num_classes": 0, "label_column": "txt"}, "--label-column txt with --num-classes 0"),
        ({"num_classes": 0, "captions": True}, "--captions with --num-classes 0"),
    ]:
        with pytest.raises(UserError, match=message):
            encode_config(tars, tmp_path / "c", **settings)


def test_unreadable_members_are_named_before_anything_is_written(tmp_path):
    samples = [labelled(i) for i in range(COUNT)]
    for i in (2, 7):
        samples[i]["png"] = noise_file(i)[:100]
    tars = write_tars(tmp_path / "tars", samples)
    cfg = encode_config(tars, tmp_path / "out")
    names = r"part\.of/0002\.png in .*train-000\.tar, part\.of/0007\.png in .*train-001\.tar"
    with pytest.raises(UserError, match=rf"2 of 13 images cannot be read: {names}"):
        encode(cfg, Ranks())
    assert [path.name for path in cfg.out.iterdir()] == [".lock"]
    with pytest.raises(UserError, match=r"0007\.png in .*001\.tar cannot be read as an image"):
        load_images(str(tars), 8)[7]


def test_tars_can_be_a_reference(tars):
    reference = find_reference(str(tars), (8, 8), crop=False)
    images = load_images(str(tars), 8)
    pixels = torch.stack([images[i] for i in range(COUNT)])
    assert torch.equal(reference.images.stack(range(COUNT)), pixels)
    assert reference.images.labels == [str(i % 3) for i in range(COUNT)]
    with pytest.raises(UserError, match=r"--data .* without --image-size"):
        stats(StatsConfig(data=str(tars), out=tars / "x.npz"), Ranks())
