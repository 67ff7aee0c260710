import json
from dataclasses import replace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers.image_data import noise_file

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.data.labels import Columns
from dit.data.sources import load_images, load_stream
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.latents.store import LatentStore

COUNT = 23
BIRDS = ["owl", "ibis", "heron"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Keep the cache of `datasets` out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def table(count=COUNT, **columns):
    """Rows of an image, a class and a caption; other columns are functions of the row's number."""
    values = {
        "image": lambda i: {"bytes": noise_file(i), "path": None},
        "label": lambda i: i % 3,
        "text": lambda i: f" caption {i % 4} ",
    } | columns
    features = Features(
        {"image": datasets.Image(), "label": ClassLabel(names=BIRDS), "text": Value("string")}
    )
    rows = {name: [of(i) for i in range(count)] for name, of in values.items()}
    return Dataset.from_dict(rows, features=None if columns else features)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Store the same 23 rows in all forms; return --data of each."""
    root = tmp_path_factory.mktemp("datasets")
    whole = table()
    whole.save_to_disk(root / "saved", num_shards=3)
    DatasetDict(train=whole, test=table(2)).save_to_disk(root / "splits")
    for folder, prefix in ((root / "parquet", ""), (root / "repository" / "data", "train-")):
        folder.mkdir(parents=True)
        for part, (start, stop) in enumerate([(0, 9), (9, 10), (10, COUNT)]):
            whole.select(range(start, stop)).to_parquet(
                folder / f"{prefix}{part}.parquet", batch_size=4
            )
    return {
        "saved": str(root / "saved"),
        "splits": str(root / "splits"),
        "split": f"hf:{root / 'splits'}:train",
        "parquet": str(root / "parquet"),
        "pattern": str(root / "parquet" / "*.parquet"),
        "repository": str(root / "repository"),
        "hf": f"hf:{root / 'repository'}:train",
    }


FORMS = ["saved", "splits", "split", "parquet", "pattern", "repository", "hf"]


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_the_same_in_all_forms(forms, form):
    images = load_images(forms[form], 8)
    assert images.classes == BIRDS
    assert images.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert [images.open(i).read() for i in range(COUNT)] == [noise_file(i) for i in range(COUNT)]
    assert images[COUNT - 1].shape == (3, 8, 8)
    assert images.fingerprint == load_images(forms["saved"], 8).fingerprint
    assert images.flips


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_has_the_same_rows_in_order(forms, form):
    stream = load_stream(forms[form], 8, Columns())
    assert stream.fingerprint == load_stream(forms["saved"], 8, Columns()).fingerprint
    rows = list(stream.start())
    assert [row.open().read() for row in rows] == [noise_file(i) for i in range(COUNT)]
    assert [row.value for row in rows] == [i % 3 for i in range(COUNT)]
    assert rows[5].name == f"row 5 of {forms[form]}"


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_stream_continues_from_any_row(forms, form):
    stream = load_stream(forms[form], 8, Columns())
    reading, positions = stream.start(), []
    for _ in range(COUNT):
        next(reading)
        positions.append(json.dumps(reading.position))
    for done, position in enumerate(positions, start=1):
        again = load_stream(forms[form], 8, Columns()).start(json.loads(position))
        assert [row.name.split()[1] for row in again] == [str(i) for i in range(done, COUNT)]
        again = stream.start(json.loads(position))
        assert [row.open().read() for row in again] == [noise_file(i) for i in range(done, COUNT)]


def test_captions_are_kept(forms):
    images = load_images(forms["parquet"], 8, Columns(captions=True))
    expected = [f"caption {i % 4}" for i in range(COUNT)]
    assert [images.classes[label] for label in images.labels] == expected
    assert not images.flips
    rows = load_stream(forms["parquet"], 8, Columns(captions=True)).start()
    assert [row.value for row in rows] == expected


@pytest.mark.parametrize(
    ("image", "label", "values"),
    [("image", "label", [0, 2, 0, 1]), ("jpg", "class", ["a", "c", "a", "b"])],
)
def test_parquet_files_of_other_programs(tmp_path, image, label, values):
    cells = [noise_file(i) for i in range(4)]
    if image == "jpg":
        cells = [{"bytes": cell, "path": "x"} for cell in cells]
    columns = {image: cells, label: values}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "1.parquet")
    images = load_images(str(tmp_path), 8)
    assert images.labels.tolist() == [0, 2, 0, 1]
    assert images.classes in (["0", "1", "2"], ["a", "b", "c"])
    assert images.open(3).read() == noise_file(3)
    rows = list(load_stream(str(tmp_path / "1.parquet"), 8, Columns()).start())
    assert rows[3].open().read() == noise_file(3)


def test_cells_may_have_paths_of_images(tmp_path):
    (tmp_path / "1.png").write_bytes(noise_file(1))
    cell = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = pyarrow.array([{"bytes": None, "path": str(tmp_path / "1.png")}, None], cell)
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "rows.parquet")
    images = load_images(str(tmp_path / "rows.parquet"), 8)
    assert images.open(0).read() == noise_file(1)
    assert (images.classes, images.labels.tolist()) == ([], [0, 0])
    (tmp_path / "1.png").unlink()
    for index in (0, 1):
        with pytest.raises(UserError, match=rf"row {index} of .* cannot be read as an image"):
            images[index]


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("hf:{parquet}:test", Columns(), "split test of .*; expected one of its splits: train"),
        ("hf:{saved}:train", Columns(), "which has no splits"),
        (
            "{parquet}",
            Columns(image="picture"),
            r"--image-column picture.*image \(PIL.*label \(int64\), text \(string\)",
        ),
        ("{parquet}", Columns(label="lable"), "--label-column lable.*did you mean label"),
        ("{parquet}", Columns(True, label="label"), "column label of .* which holds classes"),
    ],
)
def test_missing_splits_and_columns_are_named_with_those_that_exist(forms, name, columns, message):
    for load in (load_images, load_stream):
        with pytest.raises(UserError, match=message):
            load(name.format(**forms), 8, columns)


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"label": lambda i: i - 4 * (i == 3)}, Columns(), r"class -1 of row 3 .* a number from 0"),
        ({"label": lambda i: None if i == 2 else i}, Columns(), r"class None of row 2 of"),
        ({"label": lambda i: [i, 4]}, Columns(), r"class \[0, 4\] of row 0 .*: one class for each"),
        ({"label": lambda i: float("nan")}, Columns(), r"class nan of row 0"),
        ({"label": lambda i: i / 2}, Columns(), r"class 0\.5 of row 1 of|class 0\.0 of row 0"),
        ({"text": lambda i: "x" * (i != 4)}, Columns(True), r"caption '' of row 4 of"),
        ({"text": lambda i: "x"}, Columns(True, label="label"), "caption 0 of row 0"),
        ({"text": lambda i: i}, Columns(True), "--captions and no column of texts"),
        ({"image": lambda i: i}, Columns(), r"has no images, but image \(int64\)"),
    ],
)
def test_a_bad_row_or_column_is_named(tmp_path, columns, wanted, message):
    table(5, **columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path / "saved"), 8, wanted)
    with pytest.raises(UserError, match=message):
        list(load_stream(str(tmp_path / "saved"), 8, wanted).start())


@pytest.mark.parametrize(
    ("value", "classes", "labels"),
    [
        (lambda i: str(i), [str(i) for i in range(12)], list(range(12))),  # 10 after 9, not after 1
        (lambda i: float(i % 3), ["0", "1", "2"], [i % 3 for i in range(12)]),
        (lambda i: i % 2 == 0, ["0", "1"], [1, 0] * 6),
    ],
)
def test_labels_of_other_types_are_classes(tmp_path, value, classes, labels):
    table(12, label=value).save_to_disk(tmp_path / "saved")
    images = load_images(str(tmp_path / "saved"), 8)
    assert (images.classes, images.labels.tolist()) == (classes, labels)


@pytest.mark.parametrize("load", [load_images, load_stream])
def test_columns_that_may_hold_classes_are_named(tmp_path, load):
    other = table(6, label=lambda i: f"{i}.png", text=lambda i: i % 3)
    other.rename_columns({"label": "path", "text": "target"}).save_to_disk(tmp_path / "saved")
    data = str(tmp_path / "saved")
    message = (
        r"saved has no column label or class, but target, path; expected the one that holds the "
        r"classes, .*; pass --label-column target, --captions for texts, or --num-classes 0 for no"
    )
    with pytest.raises(UserError, match=message):
        load(data, 8, Columns())
    assert load(data, 8, Columns(label="target")).notes == ["classes from column target"]
    for classes in ("none", "usual"):
        opened = load(data, 8, Columns(classes=classes))
        assert (opened.table if load is load_stream else opened._table).label is None


def test_the_chosen_column_is_told(tmp_path):
    names = Features(
        {"image": datasets.Image()}
        | dict.fromkeys(("coarse_label", "fine_label"), ClassLabel(names=["a", "b"]))
    )
    rows = {
        "image": [{"bytes": noise_file(0), "path": None}],
        "coarse_label": [0],
        "fine_label": [1],
    }
    Dataset.from_dict(rows, features=names).save_to_disk(tmp_path / "saved")
    images = load_images(str(tmp_path / "saved"), 8)
    assert images.notes == ["classes from column fine_label, not coarse_label"]
    assert images.labels.tolist() == [1]


def test_one_of_several_fitting_columns_must_be_chosen(tmp_path):
    two = table(
        3,
        image=lambda i: noise_file(i),
        before=lambda i: noise_file(i + 10),
        text=lambda i: "x",
        alt=lambda i: f"alt {i}",
    )
    two.rename_columns({"image": "after", "text": "title"}).save_to_disk(tmp_path / "saved")
    data = str(tmp_path / "saved")
    with pytest.raises(UserError, match=r"columns that fit: after, before; .*--image-column"):
        load_images(data, 8)
    with pytest.raises(UserError, match=r"columns that fit: title, alt; .*--label-column"):
        load_images(data, 8, Columns(captions=True, image="after"))
    images = load_images(data, 8, Columns(captions=True, image="before", label="alt"))
    assert images.open(1).read() == noise_file(11)
    assert sorted(images.classes) == ["alt 0", "alt 1", "alt 2"]


def test_an_unreachable_hub_gives_one_line(monkeypatch):
    asked = []

    def unreachable(*args, **settings):
        asked.append((args, settings))
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for data, args in [
        ("hf:owner/name", ("owner/name",)),
        ("hf:owner/name:test", ("owner/name",)),
        ("hf:owner/name/config:test", ("owner/name", "config")),
        ("hf:name", ("name",)),
    ]:
        with pytest.raises(UserError, match=rf"{data} cannot be opened .*\(no network\)"):
            load_images(data, 8)
        assert asked.pop() == (args, {"streaming": False})


# -- encoding --------------------------------------------------------------------------------------


def encode_config(data, out, **changes):
    sizes = dict(image_size=8, shard_size=5, batch_size=3)
    return EncodeConfig(data=data, out=out, vae="identity", **(sizes | changes))


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".npy"}


@pytest.mark.parametrize("captions", [False, True])
def test_an_encoded_stream_equals_the_data_set_with_random_access(forms, tmp_path, captions):
    whole = encode(encode_config(forms["saved"], tmp_path / "whole", captions=captions), Ranks())
    streamed = encode(
        encode_config(forms["parquet"], tmp_path / "stream", captions=captions, streaming=True),
        Ranks(),
    )
    assert contents(streamed) == contents(whole)
    ours, theirs = LatentStore(streamed), LatentStore(whole)
    assert (ours.classes, ours.flips, ours.captions) == (
        theirs.classes,
        theirs.flips,
        theirs.captions,
    )
    assert [a.tolist() for a in ours.statistics()] == [a.tolist() for a in theirs.statistics()]


@pytest.mark.parametrize("shard_size", [5, COUNT, 100])
def test_a_stream_may_have_no_classes_and_any_length(forms, tmp_path, shard_size):
    bare = datasets.load_from_disk(forms["saved"]).select_columns("image")
    bare.save_to_disk(tmp_path / "bare")
    cfg = encode_config(
        str(tmp_path / "bare"), tmp_path / "out", streaming=True, shard_size=shard_size, flip=False
    )
    for _ in range(2):  # the second time it is complete
        store = LatentStore(encode(cfg, Ranks()))
        assert (store.classes, store.labels.tolist()) == ([], [0] * COUNT)
    assert len(list(cfg.out.glob("shard-*.npy"))) == -(-COUNT // shard_size)


def test_a_rerun_replaces_missing_shards_of_a_stream(forms, tmp_path):
    whole = contents(
        encode(encode_config(forms["parquet"], tmp_path / "whole", streaming=True), Ranks())
    )
    cfg = encode_config(forms["parquet"], tmp_path / "out", streaming=True)
    encode(cfg, Ranks())
    for name in ("shard-00001.npy", "shard-00003.json", "index.json", "labels.npy"):
        (cfg.out / name).unlink()
    kept = {k: (cfg.out / f"shard-0000{k}.npy").stat().st_mtime_ns for k in (0, 2, 4)}
    encode(cfg, Ranks())
    assert contents(cfg.out) == whole
    assert kept == {k: (cfg.out / f"shard-0000{k}.npy").stat().st_mtime_ns for k in kept}


def test_a_stream_that_breaks_off_keeps_its_shards(forms, tmp_path, monkeypatch):
    cfg = encode_config(forms["parquet"], tmp_path / "out", streaming=True)
    original = datasets.IterableDataset.__iter__

    def breaking(self):
        for number, row in enumerate(original(self)):
            if number == 17:
                raise ConnectionError("reset by peer")
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(datasets.IterableDataset, "__iter__", breaking)
        message = r"broke off before row 17 of .*reset by peer.*run dit encode again"
        with pytest.raises(UserError, match=message):
            encode(cfg, Ranks())
    assert len(list(cfg.out.glob("shard-*.json"))) == 3
    encode(cfg, Ranks())
    whole = encode(encode_config(forms["parquet"], tmp_path / "whole", streaming=True), Ranks())
    assert contents(cfg.out) == contents(whole)


def test_unreadable_rows_are_named(forms, tmp_path):
    cells = {i: noise_file(i) for i in range(5)} | {0: None, 3: noise_file(3)[:100]}
    broken = table(5, image=cells.get, text=lambda i: "x")
    broken.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"2 of 5 images cannot be read: row 0 .*, row 3 of"):
        encode(encode_config(str(tmp_path / "saved"), tmp_path / "out"), Ranks())
    with pytest.raises(UserError, match=r"row 0 of .*saved cannot be read as an image"):
        encode(encode_config(str(tmp_path / "saved"), tmp_path / "out", streaming=True), Ranks())


def test_another_encoding_is_refused(forms, tmp_path):
    cfg = encode_config(forms["parquet"], tmp_path / "out", streaming=True)
    encode(cfg, Ranks())
    for change, message in [
        ({"streaming": False}, "count None, not 23|fingerprint"),
        ({"shard_size": 6}, "shard_size"),
        ({"captions": True}, "captions|flips|fingerprint"),
    ]:
        with pytest.raises(UserError, match=message):
            encode(replace(cfg, **change), Ranks())
    with pytest.raises(UserError, match=r"--streaming with --data digits"):
        load_stream("digits", 8, Columns())


def test_training_reads_a_data_set_without_encoding(forms):
    config = TrainConfig(data=forms["parquet"], vae="identity", image_size=8)
    source = build_source(config, load_autoencoder("identity"))
    assert source.classes == BIRDS
    assert source.read(np.array([3, 0]), np.array([False, True])).shape == (2, 6, 8, 8)
