"""Images, folders of them, tar shards and tables: damaged, odd, unlabelled or mislabelled."""

import io
import zipfile

import numpy as np

from misuse.case import Case, Damage, refused, works
from misuse.damages import (
    array_image,
    copy,
    cut,
    encoded,
    fifo,
    flip,
    folder,
    image,
    link,
    remove,
    write,
)
from misuse.fixtures import CNN, TRAIN, parquet, tar

ENCODE = "encode --data images --out new --vae identity --image-size 8"
TRAINING = f"train --data images {TRAIN} --out new"
FIRST = "images/cat/0.png"
STATS = "stats --data images --extractor digits-cnn --image-size 8 --out new.npz"
EVALUATE = f"evaluate --samples samples --reference images --crop {CNN} --out new"
VAE = (
    "train-vae --data images --image-size 16 --channels 8 8 --steps 2 --batch-size 4 "
    "--extractor digits-cnn --out new"
)
READERS = (ENCODE, TRAINING, STATS, EVALUATE, VAE)


def shard(*members: tuple[str, bytes]) -> Damage:
    """Replace the tar shards by one with these members."""
    data = tar(dict(members))

    def apply(root):
        for file in (root / "tars").iterdir():
            file.unlink()
        (root / "tars" / "train-000.tar").write_bytes(data)

    return Damage(f"a tar of {[name for name, _ in members]} with {members[-1:]!r:.60}", apply)


def table(words: str, **columns: list[object]) -> Damage:
    """Replace the table by one with these columns."""
    return Damage(
        f"a table with {words}",
        lambda root: (root / "table" / "train-00000.parquet").write_bytes(parquet(**columns)),
    )


def zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


# -- damaged files ---------------------------------------------------------------------------------

DAMAGED = [
    *[refused(line, "0.png", cut(FIRST, 0.5)) for line in READERS],
    *[refused(line, "0.png", write(FIRST, b"<html>404</html>")) for line in READERS],
    refused(ENCODE, "0.png", cut(FIRST, 0)),
    refused(ENCODE, "0.png", cut(FIRST, 8)),
    refused(ENCODE, "0.png", flip(FIRST, 0.5)),
    refused(ENCODE, "0.png", write(FIRST, b"\x89PNG\r\n\x1a\n" + bytes(50))),
    refused(ENCODE, "0.png", write(FIRST, b"version https://git-lfs.github.com/spec/v1\n")),
    refused(ENCODE, "0.png", write(FIRST, zip_of("a"))),
    refused(ENCODE, "1.jpg", image("images/cat/1.jpg"), cut("images/cat/1.jpg", 0.7)),
    refused(ENCODE, "1.webp", image("images/cat/1.webp"), cut("images/cat/1.webp", 0.6)),
    refused(ENCODE, "1.gif", image("images/cat/1.gif"), cut("images/cat/1.gif", 0.6)),
    refused(ENCODE, "1.tif", image("images/cat/1.tif"), cut("images/cat/1.tif", 0.6)),
    refused(ENCODE, "1.bmp", image("images/cat/1.bmp"), cut("images/cat/1.bmp", 0.6)),
    refused(ENCODE, "0.png", remove(FIRST), link(FIRST, "gone.png")),
    refused(ENCODE, "broken", write("images/cat/broken.jpg", b"\xff\xd8\xff\xe0JFIF")),
    works(f"{ENCODE} --skip-damaged", "11 images", cut(FIRST, 0.5)),
    works(f"{TRAINING} --skip-damaged", "11 images", cut(FIRST, 0.5)),
]

SUFFIXES = ("jpg", "jpeg", "JPG", "jfif", "jpe", "webp", "gif", "bmp", "tif", "jp2", "ppm")
MODES = ("L png", "1 png", "P png", "RGBA png", "LA png", "CMYK jpg")
INTACT = [
    works(ENCODE, "13 images", image("images/cat/9.png", exif=b"no EXIF block")),
    works(ENCODE, "13 images", image("images/cat/9.webp", exif=b"no EXIF block")),
    works(ENCODE, "13 images", image("images/cat/9.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    works(TRAINING, "step 4/4", image("images/cat/9.png", exif=b"no EXIF block")),
    *[works(ENCODE, "13 images", image(f"images/cat/9.{suffix}")) for suffix in SUFFIXES],
    *[
        works(ENCODE, "13 images", image(f"images/cat/9.{m.split()[1]}", m.split()[0]))
        for m in MODES
    ],
    works(ENCODE, "13 images", image("images/cat/9.png", size=(1, 1))),
    works(ENCODE, "13 images", image("images/cat/9.png", size=(500, 1))),
    works(
        ENCODE,
        "13 images",
        array_image(
            "images/cat/9.png",
            lambda: np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16),
            "16 bits",
        ),
    ),
]

OTHER_PIXELS = [
    refused(line, "9.tif", array_image("images/cat/9.tif", values, words))
    for words, values in (
        ("float of 0..1", lambda: np.random.default_rng(0).random((16, 16), np.float32)),
        ("float of 0..65535", lambda: np.full((16, 16), 65535, np.float32)),
        ("signed integers", lambda: np.arange(-128, 128, dtype=np.int32).reshape(16, 16)),
    )
    for line in READERS
]

# -- folders ---------------------------------------------------------------------------------------

FOLDERS = [
    refused("encode --data empty --out new", "empty", folder("empty")),
    refused("train --data empty", "empty", folder("empty")),
    refused(STATS.replace("images", "empty"), "empty", folder("empty")),
    refused(EVALUATE.replace("images", "empty"), "empty", folder("empty")),
    refused(ENCODE, "directly", image("images/stray.png")),
    refused("encode --data notes --out new", "notes", write("notes/a.txt", "hello")),
    works(ENCODE, "13 images", image("images/cat/2024/1.png")),
    works(TRAINING, "13 images", image("images/cat/2024/1.png")),
    works(ENCODE, "13 images", image("images/n01/images/n01_0.JPEG", format="JPEG")),
    works(ENCODE, "1 file", write("images/cat/notes.txt", "x")),
    works(TRAINING, "1 file", write("images/cat/notes.txt", "x")),
    works(EVALUATE, "1 file", write("images/cat/notes.txt", "x")),
    works(ENCODE, "12 images", write("images/.DS_Store", "x"), write("images/cat/Thumbs.db", "x")),
    works(ENCODE, "12 images", write("images/__MACOSX/cat/._0.png", "x")),
    works(ENCODE, "12 images", fifo("images/cat/pipe.png")),
    works(TRAINING, "12 images", fifo("images/cat/pipe.png")),
    works(EVALUATE, "report", fifo("images/cat/pipe.png")),
    works(ENCODE, "empty", folder("images/empty")),
    works(ENCODE, "12 classes", *[copy("images/cat", f"images/{i}") for i in range(9)]),
    refused(
        "encode --data captions --captions --out new --vae identity --image-size 8",
        "99.png",
        write("captions/metadata.jsonl", '{"file_name": "99.png", "text": "a nine"}\n'),
    ),
]

METADATA = "captions/metadata.jsonl"
TEXT = f"train --data captions {TRAIN} --conditioning text --text-encoder digits --out new"
CAPTIONS = [
    refused(TEXT, "metadata.jsonl", remove(METADATA)),
    refused(TEXT, "metadata.jsonl", write(METADATA, "")),
    refused(TEXT, "line 1", write(METADATA, "{")),
    refused(TEXT, "line 1", write(METADATA, "[1, 2]\n")),
    refused(TEXT, "line 1", write(METADATA, '{"file_name": 3, "text": "a cat"}\n')),
    refused(TEXT, "line 1", write(METADATA, '{"file_name": "0.png", "text": 3}\n')),
    refused(TEXT, "line 1", write(METADATA, '{"file_name": "0.png", "text": " "}\n')),
    refused(TEXT, "line 1", write(METADATA, '{"file_name": "../flat/0.png"}\n')),
    refused(TEXT, "gone.png", write(METADATA, '{"file_name": "gone.png", "text": "a cat"}\n')),
    refused(TEXT, "metadata.jsonl", write(METADATA, b"\xff\xfe\x00")),
    refused(TEXT, "metadata.jsonl", write(METADATA, "[" * 100_000)),
    refused(TEXT, "metadata.jsonl", remove(METADATA), folder(METADATA)),
]

# -- tar shards ------------------------------------------------------------------------------------

TARS = "encode --data tars --out new --vae identity --image-size 8"
PNG = encoded()
PNGS: list[object] = [encoded(i) for i in range(4)]
SHARD = "tars/train-000.tar"
ZERO = ("0.png", PNG)
THREE = ("0.cls", b"3")

TAR_SHARDS = [
    works(TARS, "3 classes"),
    works(TARS, "6 classes", shard(ZERO, ("1.png", PNG), THREE, ("1.cls", b"5"))),
    works(
        TARS,
        "6 classes",
        shard(("a.v1.png", PNG), ("a.v1.cls", b"3"), ("b.v2.png", PNG), ("b.v2.cls", b"5")),
    ),
    works(TARS, "2 classes", shard(("cat/1.png", PNG), ("dog/1.png", PNG))),
    refused(TARS, "1.png in tars/train-000.tar has no .cls", shard(ZERO, THREE, ("1.png", PNG))),
    refused(TARS, "1.cls in tars/train-000.tar has no image", shard(ZERO, THREE, ("1.cls", b"2"))),
    refused(TARS, "0.png", shard(("0.png", PNG[:99]), THREE)),
    refused(TARS, "class '' of 0.png", shard(ZERO, ("0.cls", b""))),
    refused(
        TARS, "0.png in tars/train-000.tar has a .cls", shard(ZERO, ("0.cls", b"\xff\xfe\xfd"))
    ),
    refused(TARS, "cat", shard(ZERO, THREE, ("1.png", PNG), ("1.cls", b"cat"))),
    refused(TARS, "0.json", shard(ZERO, ("0.json", b"{"))),
    refused(TARS, "0.json", shard(ZERO, ("0.json", b"[" * 100_000))),
    refused(TARS, "--label-column", shard(ZERO, ("0.json", b'{"species": 3}'))),
    refused(f"{TARS} --label-column kind", "kind", shard(ZERO, ("0.json", b'{"a": 3}'))),
    refused(
        f"{TARS} --label-column label",
        "class [1] of 0.png",
        shard(ZERO, ("0.json", b'{"label": [1]}')),
    ),
    refused(f"{TARS} --image-column jpg", "jpg"),
    refused(f"{TARS} --label-column json", "json"),
    refused(f"{TARS} --captions", "caption"),
    refused(TARS, "0.png and 0.jpg in tars", shard(ZERO, ("0.jpg", PNG), THREE)),
    refused(TARS, "train-000.tar", shard(("README", b"hello"))),
    refused(TARS, "train-000.tar", shard()),
    refused(TARS, "train-000.tar", cut(SHARD, 0.5)),
    refused(TARS, "train-000.tar", cut(SHARD, 0)),
    refused(TARS, "train-000.tar", write(SHARD, b"<html>404</html>" * 100)),
    refused(TARS, "train-000.tar", write(SHARD, b"\x1f\x8b" + bytes(600))),
    refused(TARS, "train-000.tar", write(SHARD, zip_of("a.png"))),
    refused("encode --data 'tars/train-{000..0x}.tar' --out new", "train-{000..0x}.tar"),
    refused("encode --data 'tars/train-{000..999999999}.tar' --out new", "train-{000..999999999}"),
    refused("encode --data 'tars/train-{000..009}.tar' --out new", "train-002.tar"),
    refused("encode --data 'tars/*.zip' --out new", "*.zip"),
    refused("encode --data 'tars/[' --out new", "tars/["),
    refused(f"train --data tars {TRAIN} --out new", "0.png", shard(("0.png", PNG[:99]), THREE)),
]

# -- tables ----------------------------------------------------------------------------------------

TABLE = "encode --data table --out new --vae identity --image-size 8"
PARQUET = "table/train-00000.parquet"
TARGET = table("a target", image=PNGS, target=[0, 1, 0, 1])
TABLES = [
    works(TABLE, "3 classes"),
    refused(TABLE, "target", TARGET),
    refused(TABLE, "species", table("a species", image=PNGS, species=["a", "b", "a", "b"])),
    works(f"{TABLE} --label-column target", "2 classes", TARGET),
    works(f"{TABLE} --num-classes 0", "4 images", TARGET),
    refused(TABLE, "label", table("a null label", image=PNGS, label=[0, 1, None, 1])),
    refused(TABLE, "class -1 of row 0", table("labels of -1", image=PNGS, label=[-1, -1, -1, -1])),
    refused(TABLE, "label", table("lists of labels", image=PNGS, label=[[0], [1], [0, 1], [1]])),
    refused(TABLE, "label", table("fractions", image=PNGS, label=[0.5, 1.0, 0.0, 1.0])),
    refused(TABLE, "label", table("an empty label", image=PNGS, label=["a", "b", "", "b"])),
    refused(TABLE, "image", table("no images", label=[0, 1, 2])),
    refused(f"{TABLE} --image-column picture", "picture"),
    refused(f"{TABLE} --label-column kind", "kind"),
    refused(f"{TABLE} --captions", "caption"),
    refused(
        TABLE,
        "row 0 of table (its pixels",
        table("a damaged image", image=[PNG[:99], *PNGS[1:]], label=[0, 1, 0, 1]),
    ),
    refused(
        TABLE,
        "row 1 of table (it is empty)",
        table("an empty image", image=[PNG, b"", PNG, PNG], label=[0, 1, 0, 1]),
    ),
    refused(TABLE, "table", cut(PARQUET, 0.5)),
    refused(TABLE, "table", write(PARQUET, b"PAR1" + bytes(100) + b"PAR1")),
    refused(TABLE, "table", write(PARQUET, b"")),
    refused(TABLE, "table", write(PARQUET, b"<html>")),
    refused("encode --data hf:table:test --out new", "test"),
    refused("encode --data hf: --out new", "hf:"),
    refused("encode --data hf:a/b/c/d:e --out new", "hf:a/b/c/d:e"),
    refused("encode --data hf:no/such --streaming --out new", "no/such"),
]

CASES: list[Case] = [
    *DAMAGED,
    *INTACT,
    *OTHER_PIXELS,
    *FOLDERS,
    *CAPTIONS,
    *TAR_SHARDS,
    *TABLES,
]
