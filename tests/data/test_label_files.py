import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.image_data import paint

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.data.images import ImageFolder
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source

NAMES = ["a 1.png", "b.png", "c.jpg"]
LABELS = ["cat", "dog", "cat"]


def write_images(folder, names=NAMES):
    for number, name in enumerate(names):
        paint(folder / name, (8, 8), (80 * number, 0, 255))
    return folder


def write_metadata(folder, rows):
    lines = [json.dumps({"file_name": name, **row}) for name, row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("key", ["label", "class"])
def test_labels_of_a_metadata_file_are_classes(tmp_path, below, key):
    write_images(tmp_path / below)
    names = [f"{below}/{name}".strip("/") for name in NAMES]
    rows = [{key: label, "text": "x"} for label in LABELS]
    write_metadata(tmp_path, zip(names, rows, strict=True))
    images = load_images(str(tmp_path), 8)
    assert images.classes == ["cat", "dog"]
    assert images.flips
    assert [images.classes[label] for label in images.labels] == LABELS
    assert images.name(1) == str(tmp_path / names[1])
    assert images.notes == [f"classes from {key} in {tmp_path}/metadata.jsonl"]
    assert load_images(str(tmp_path), 8, Columns(classes="none")).labels.tolist() == [0, 0, 0]


def test_labels_of_a_metadata_file_may_be_numbers_and_of_another_key(tmp_path):
    rows = [{"kind": 2}, {"kind": 0}, {"kind": 2}]
    write_metadata(write_images(tmp_path), zip(NAMES, rows, strict=True))
    with pytest.raises(UserError, match=r"has no label, but kind; .* pass --label-column kind, or"):
        load_images(str(tmp_path), 8)
    images = load_images(str(tmp_path), 8, Columns(label="kind"))
    assert images.classes == ["0", "1", "2"]
    assert images.labels.tolist() == [2, 0, 2]
    with pytest.raises(UserError, match="has no other, but kind"):
        load_images(str(tmp_path), 8, Columns(label="other"))


def test_other_labels_of_a_metadata_file_are_another_data_set(tmp_path):
    prints = []
    for labels in (LABELS, LABELS[::-1], ["dog", "cat", "dog"]):
        rows = [{"label": label} for label in labels]
        write_metadata(write_images(tmp_path), zip(NAMES, rows, strict=True))
        prints.append(load_images(str(tmp_path), 8).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": None}, "class None of b.png"),
        ({"label": ["cat"]}, "one class for each image"),
        ({"other": 1}, "line 2: no label, but file_name, other"),
    ],
)
def test_a_metadata_file_without_a_label_for_each_image_is_refused(tmp_path, row, message):
    rows = [{"label": "cat"}, row, {"label": "cat"}]
    write_metadata(write_images(tmp_path), zip(NAMES, rows, strict=True))
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path), 8)


def test_captions_are_not_dropped_without_a_word(tmp_path):
    rows = [{"text": "a cat"}] * 3
    write_metadata(write_images(tmp_path), zip(NAMES, rows, strict=True))
    with pytest.raises(UserError, match=r"but text; .*--captions for texts, or --num-classes 0"):
        load_images(str(tmp_path), 8)
    assert load_images(str(tmp_path), 8, Columns(classes="none")).classes == []
    assert load_images(str(tmp_path), 8, Columns(captions=True)).classes == ["a cat"]


# -- other files -----------------------------------------------------------------------------------

TABLES = {
    "labels.csv": "file,label\na 1.png,cat\nb.png,dog\nc.jpg,cat\n",
    "metadata.csv": '\ufeffid,file_name,Species\n1,"a 1.png",cat\n2,b.png,dog\n3,c.jpg,cat\n',
    "trees.tsv": "photos/a 1.png\tcat\nphotos/b.png\tdog\nphotos/c.jpg\tcat\n",
    "list.txt": "a 1.png;cat\nb.png;dog\nc.jpg;cat\n",
}


@pytest.mark.parametrize("place", [".", "photos", "photos/images"])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_labels_is_refused_with_a_command_that_makes_classes(tmp_path, table, place):
    root = tmp_path / "photos"
    folder = write_images(root / "images" if place == "photos/images" else root)
    file = tmp_path / place / table
    file.write_text(TABLES[table], encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_images(str(root), 8)
    given, _, do = str(caught.value).split("; ", 2)
    assert given == f"{file} lists images of {root}: labels in it are not read"
    assert load_images(str(root), 8, Columns(classes="none")).labels.tolist() == [0, 0, 0]

    command = do.partition("by: ")[2]
    assert command.startswith("python -c ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert f"--data {root}-classes " in do
    made = load_images(f"{root}-classes", 8)
    assert made.classes == ["cat", "dog"]
    assert made.labels.tolist() == [0, 0, 1]
    direct = ImageFolder(root, 8)
    expected = [direct.path(i) for i in range(3)]
    assert (
        {made.path(i).resolve() for i in range(3)}
        == {*expected}
        == {*folder.glob("* 1.png"), *folder.glob("[bc].*")}
    )


def test_a_table_may_leave_out_the_extension(tmp_path):
    root = write_images(tmp_path / "train", ["1.png", "2.png"])
    (tmp_path / "trainLabels.csv").write_text("id,label\n1,frog\n2,truck\n")
    with pytest.raises(UserError) as caught:
        load_images(str(root), 8)
    command = str(caught.value).partition("by: ")[2]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    made = load_images(f"{root}-classes", 8)
    assert made.classes == ["frog", "truck"]
    assert np.array_equal([made[0][0, 0, 0], made[1][0, 0, 0]], [0, 80])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("b.txt", "a dog", "b.txt lies beside b.png: .* `tar --sort=name -C"),
        ("c.cls", "1", "c.cls lies beside c.jpg"),
        ("coco.json", '{"images": [{"file_name": "b.png"}]}', "coco.json lists images of"),
        (
            "all.jsonl",
            '{"image": "x/b.png", "y": 3}',
            "all.jsonl lists images of .*move the images",
        ),
    ],
)
def test_other_files_with_labels_are_named(tmp_path, file, text, message):
    (write_images(tmp_path) / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path), 8)
    assert load_images(str(tmp_path), 8, Columns(classes="none")).classes == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.txt", "Photos by A. N. Other, such as b.png,\nof cats\nand dogs.\nHere,\nall\n"),
        ("names.txt", "a 1.png\nb.png\nc.jpg\n"),
        ("log.csv", "step,loss\n1,0.5\n2,0.4\n"),
        ("config.json", '{"image_size": 8}'),
    ],
)
def test_other_files_without_labels_are_left_out(tmp_path, file, text):
    (write_images(tmp_path) / file).write_text(text)
    images = load_images(str(tmp_path), 8)
    assert images.classes == []
    assert "1 file left out" in images.notes[0]


def test_tables_beside_class_folders_do_no_harm(tmp_path):
    write_images(tmp_path / "cat", ["a.png"])
    write_images(tmp_path / "dog", ["b.png"])
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\nb.png,dog\n")
    assert load_images(str(tmp_path), 8).classes == ["cat", "dog"]


# -- the bundled autoencoder -----------------------------------------------------------------------


@pytest.mark.parametrize(("vae", "notes"), [("digits", 1), ("tiny", 0), ("identity", 0)])
def test_the_autoencoder_of_digits_is_told_of_with_other_images(tmp_path, capsys, vae, notes):
    write_images(tmp_path / "images")
    sizes = dict(vae=vae, image_size=32)
    encode(EncodeConfig(data=str(tmp_path / "images"), out=tmp_path / "out", **sizes), Ranks())
    autoencoder = load_autoencoder(vae)
    for data in (str(tmp_path / "images"), "digits"):
        build_source(TrainConfig(data=data, **sizes), autoencoder, Ranks())
    # of encode and of training on images, not on digits
    assert capsys.readouterr().err.count("trained on gray digits alone") == 2 * notes
