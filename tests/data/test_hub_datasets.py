import io
import json

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

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
    """Where `datasets` keeps what it made of parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(count=COUNT, **columns):
    """Rows of an image, a class and a caption, but for other columns given as functions of the row's number."""
    made = {
        "image": lambda i: {"bytes": picture(i), "path": None},
        "label": lambda i: i % 3,
        "text": lambda i: f" caption {i % 4} ",
    } | columns
    features = Features(
        {"image": datasets.Image(), "label": ClassLabel(names=BIRDS), "text": Value("string")}
    )
    rows = {name: [of(i) for i in range(count)] for name, of in made.items()}
    return Dataset.from_dict(rows, features=None if columns else features)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same 23 rows in all the ways in which a data set lies on a disk; what --data names each by."""
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


WAYS = ["saved", "splits", "split", "parquet", "pattern", "repository", "hf"]


@pytest.mark.parametrize("way", WAYS)
def test_a_data_set_is_the_same_wherever_it_lies(places, way):
    images = load_images(places[way], 8)
    assert images.classes == BIRDS
    assert images.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert [images.open(i).read() for i in range(COUNT)] == [picture(i) for i in range(COUNT)]
    assert images[COUNT - 1].shape == (3, 8, 8)
    assert images.fingerprint == load_images(places["saved"], 8).fingerprint
    assert images.flips


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_gives_the_same_from_front_to_back(places, way):
    stream = load_stream(places[way], 8, Columns())
    assert stream.fingerprint == load_stream(places["saved"], 8, Columns()).fingerprint
    rows = list(stream.start())
    assert [row.open().read() for row in rows] == [picture(i) for i in range(COUNT)]
    assert [row.value for row in rows] == [i % 3 for i in range(COUNT)]
    assert rows[5].name == f"row 5 of {places[way]}"


@pytest.mark.parametrize("way", ["saved", "parquet"])
def test_a_stream_goes_on_from_any_row(places, way):
    stream = load_stream(places[way], 8, Columns())
    reading, positions = stream.start(), []
    for _ in range(COUNT):
        next(reading)
        positions.append(json.dumps(reading.position))
    for done, position in enumerate(positions, start=1):
        again = load_stream(places[way], 8, Columns()).start(json.loads(position))
        assert [row.name.split()[1] for row in again] == [str(i) for i in range(done, COUNT)]
        again = stream.start(json.loads(position))
        assert [row.open().read() for row in again] == [picture(i) for i in range(done, COUNT)]


def test_captions_are_kept(places):
    images = load_images(places["parquet"], 8, Columns(captions=True))
    assert [images.classes[label] for label in images.labels] == [
        f"caption {i % 4}" for i in range(COUNT)
    ]
    assert not images.flips
    rows = load_stream(places["parquet"], 8, Columns(captions=True)).start()
    assert [row.value for row in rows] == [f"caption {i % 4}" for i in range(COUNT)]


@pytest.mark.parametrize(
    "columns",
    [
        {
            "image": [picture(i) for i in range(4)],
            "label": [0, 2, 0, 1],
        },  # bytes, as other programs write them
        {
            "jpg": [{"bytes": picture(i), "path": "x"} for i in range(4)],
            "class": ["a", "c", "a", "b"],
        },
    ],
)
def test_parquet_files_of_other_programs(tmp_path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "1.parquet")
    images = load_images(str(tmp_path), 8)
    assert images.labels.tolist() == [0, 2, 0, 1]
    assert images.classes in (["0", "1", "2"], ["a", "b", "c"])
    assert images.open(3).read() == picture(3)
    rows = list(load_stream(str(tmp_path / "1.parquet"), 8, Columns()).start())
    assert rows[3].open().read() == picture(3)


def test_images_may_lie_in_files_that_a_data_set_points_to(tmp_path):
    (tmp_path / "1.png").write_bytes(picture(1))
    cell = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = pyarrow.array([{"bytes": None, "path": str(tmp_path / "1.png")}, None], cell)
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "rows.parquet")
    images = load_images(str(tmp_path / "rows.parquet"), 8)
    assert images.open(0).read() == picture(1)
    assert (images.classes, images.labels.tolist()) == ([], [0, 0])
    (tmp_path / "1.png").unlink()
    for index in (0, 1):
        with pytest.raises(UserError, match=rf"row {index} of .* can not be read as an image"):
            images[index]


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        (
            "hf:{parquet}:test",
            Columns(),
            "split test of .*parquet; expected one of its splits: train",
        ),
        ("hf:{saved}:train", Columns(), "which has no splits"),
        (
            "{parquet}",
            Columns(image="picture"),
            r"--image-column picture.*image \(PIL.*label \(int64\), text \(string\)",
        ),
        ("{parquet}", Columns(label="lable"), "--label-column lable.*did you mean label"),
        (
            "{parquet}",
            Columns(captions=True, label="label"),
            "--captions with column label of .* which holds classes",
        ),
    ],
)
def test_what_is_not_there_is_met_with_what_is(places, name, columns, message):
    for load in (load_images, load_stream):
        with pytest.raises(UserError, match=message):
            load(name.format(**places), 8, columns)


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        (
            {"label": lambda i: -1 if i == 3 else i},
            Columns(),
            r"class -1 of row 3 of .*expected a number from 0 to",
        ),
        ({"label": lambda i: None if i == 2 else i}, Columns(), r"class None of row 2 of"),
        ({"label": lambda i: i / 2}, Columns(), r"class 0\.5 of row 1 of|class 0\.0 of row 0"),
        (
            {"text": lambda i: "" if i == 4 else "x"},
            Columns(captions=True),
            r"caption '' of row 4 of",
        ),
        (
            {"more": lambda i: "y", "text": lambda i: "x", "other": lambda i: "z"},
            Columns(captions=True, label="label"),
            "caption 0 of row 0",
        ),
        ({"text": lambda i: i}, Columns(captions=True), "--captions and no column of texts"),
        ({"image": lambda i: i}, Columns(), r"has no images, but image \(int64\)"),
    ],
)
def test_a_bad_row_or_column_is_named(tmp_path, columns, wanted, message):
    table(5, **columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path / "saved"), 8, wanted)
    with pytest.raises(UserError, match=message):
        list(load_stream(str(tmp_path / "saved"), 8, wanted).start())


def test_several_columns_that_would_do_are_a_question(tmp_path):
    two = table(
        3,
        image=lambda i: picture(i),
        before=lambda i: picture(i + 10),
        text=lambda i: "x",
        alt=lambda i: f"alt {i}",
    )
    two.rename_columns({"image": "after", "text": "title"}).save_to_disk(tmp_path / "saved")
    data = str(tmp_path / "saved")
    with pytest.raises(
        UserError, match=r"several columns that fit: after, before; .*--image-column"
    ):
        load_images(data, 8)
    with pytest.raises(
        UserError, match=r"several columns that fit: title, alt; .*--label-column"
    ):
        load_images(data, 8, Columns(captions=True, image="after"))
    images = load_images(data, 8, Columns(captions=True, image="before", label="alt"))
    assert images.open(1).read() == picture(11)
    assert sorted(images.classes) == ["alt 0", "alt 1", "alt 2"]


def test_the_hub_out_of_reach_is_one_line(monkeypatch):
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
        with pytest.raises(
            UserError, match=rf"--data {data} can not be opened as a data set \(no network\)"
        ):
            load_images(data, 8)
        assert asked.pop() == (args, {"streaming": False})


# -- encoding ----------------------------------------------------------------------------------------------------


def settings(data, out, **more):
    return EncodeConfig(
        **(
            dict(data=data, out=out, vae="identity", image_size=8, shard_size=5, batch_size=3)
            | more
        )
    )


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".npy"}


@pytest.mark.parametrize("captions", [False, True])
def test_a_stream_is_encoded_as_the_data_set_it_is(places, tmp_path, captions):
    whole = encode(settings(places["saved"], tmp_path / "whole", captions=captions), Ranks())
    streamed = encode(
        settings(places["parquet"], tmp_path / "stream", captions=captions, streaming=True), Ranks()
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
def test_a_stream_without_classes_has_none_and_any_length(places, tmp_path, shard_size):
    bare = datasets.load_from_disk(places["saved"]).select_columns("image")
    bare.save_to_disk(tmp_path / "bare")
    cfg = settings(
        str(tmp_path / "bare"), tmp_path / "out", streaming=True, shard_size=shard_size, flip=False
    )
    for _ in range(2):  # the second time all is there
        store = LatentStore(encode(cfg, Ranks()))
        assert (store.classes, store.labels.tolist()) == ([], [0] * COUNT)
    assert len(list(cfg.out.glob("shard-*.npy"))) == -(-COUNT // shard_size)


def test_an_interrupted_stream_goes_on_and_makes_damaged_shards_anew(places, tmp_path):
    whole = contents(
        encode(settings(places["parquet"], tmp_path / "whole", streaming=True), Ranks())
    )
    cfg = settings(places["parquet"], tmp_path / "out", streaming=True)
    encode(cfg, Ranks())
    for name in ("shard-00001.npy", "shard-00003.json", "index.json", "labels.npy"):
        (cfg.out / name).unlink()
    kept = {k: (cfg.out / f"shard-0000{k}.npy").stat().st_mtime_ns for k in (0, 2, 4)}
    encode(cfg, Ranks())
    assert contents(cfg.out) == whole
    assert kept == {k: (cfg.out / f"shard-0000{k}.npy").stat().st_mtime_ns for k in kept}


def test_a_stream_that_breaks_off_keeps_its_shards(places, tmp_path, monkeypatch):
    cfg = settings(places["parquet"], tmp_path / "out", streaming=True)
    original = datasets.IterableDataset.__iter__

    def breaking(self):
        for number, row in enumerate(original(self)):
            if number == 17:
                raise ConnectionError("reset by peer")
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(datasets.IterableDataset, "__iter__", breaking)
        with pytest.raises(
            UserError, match=r"broke off before row 17 of .*reset by peer.*run dit encode again"
        ):
            encode(cfg, Ranks())
    assert len(list(cfg.out.glob("shard-*.json"))) == 3
    encode(cfg, Ranks())
    whole = encode(settings(places["parquet"], tmp_path / "whole", streaming=True), Ranks())
    assert contents(cfg.out) == contents(whole)


def test_unreadable_rows_are_named(places, tmp_path):
    broken = table(
        5, image=lambda i: {0: None, 3: picture(i)[:100]}.get(i, picture(i)), text=lambda i: "x"
    )
    broken.save_to_disk(tmp_path / "saved")
    with pytest.raises(
        UserError, match=r"2 of 5 images can not be read: row 0 of .*saved, row 3 of"
    ):
        encode(settings(str(tmp_path / "saved"), tmp_path / "out"), Ranks())
    with pytest.raises(UserError, match=r"row 0 of .*saved can not be read as an image"):
        encode(settings(str(tmp_path / "saved"), tmp_path / "out", streaming=True), Ranks())


def test_another_encoding_is_refused(places, tmp_path):
    cfg = settings(places["parquet"], tmp_path / "out", streaming=True)
    encode(cfg, Ranks())
    for change, message in [
        ({"streaming": False}, "count None, not 23|fingerprint"),
        ({"shard_size": 6}, "shard_size"),
        ({"captions": True}, "captions|flips|fingerprint"),
    ]:
        with pytest.raises(UserError, match=message):
            encode(
                settings(places["parquet"], tmp_path / "out", **({"streaming": True} | change)),
                Ranks(),
            )
    with pytest.raises(UserError, match=r"--streaming with --data digits"):
        load_stream("digits", 8, Columns())


def test_training_reads_a_data_set_as_it_is(places):
    config = TrainConfig(data=places["parquet"], vae="identity", image_size=8)
    source = build_source(config, load_autoencoder("identity"))
    assert source.classes == BIRDS
    assert source.read(np.array([3, 0]), np.array([False, True])).shape == (2, 6, 8, 8)
