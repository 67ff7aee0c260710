"""Folders of latents: damaged indexes, shards, labels, and what does not fit them."""

import numpy as np

from misuse.case import Case, refused, works
from misuse.damages import (
    DELETE,
    array,
    change_array,
    cut,
    edit,
    flip,
    folder,
    image,
    link,
    remove,
    write,
)
from misuse.fixtures import TRAIN

INDEX, LABELS, SHARD = "latents/index.json", "latents/labels.npy", "latents/shard-00001.npy"
NOTE = "latents/shard-00001.json"
READ = f"train --data latents {TRAIN} --out new"
AGAIN = "encode --data images --vae identity --image-size 8 --shard-size 5 --out latents"
REWRITTEN = ("latents/*",)


def indexed(keys: str, value: object, says: str = "index.json") -> Case:
    """Describe a training on latents whose index has a wrong value."""
    return refused(READ, says, edit(INDEX, keys, value))


INDEXES = [
    refused(READ, "index.json", write(INDEX, "")),
    refused(READ, "index.json", write(INDEX, "[]")),
    refused(READ, "index.json", write(INDEX, "null")),
    refused(READ, "index.json", write(INDEX, "{")),
    refused(READ, "index.json", write(INDEX, b"\xff\xfe")),
    refused(READ, "index.json", write(INDEX, "[" * 100_000)),
    refused(READ, "index.json", cut(INDEX, 0.5)),
    refused(READ, "latents", remove(INDEX)),
    refused(READ, "latents", remove(INDEX), folder(INDEX)),
    indexed("shape", "3x8x8"),
    indexed("shape", [3, 8]),
    indexed("shape", [3, 8, -8]),
    indexed("shape", [3, 8, 10**18], "shard-00000.npy"),
    indexed("shape", DELETE),
    indexed("classes", 3),
    indexed("classes", [1, 2, 3]),
    indexed("classes", ["cat"], "labels"),
    indexed("count", "12"),
    indexed("count", -12),
    indexed("count", 10**18, "latents"),
    indexed("count", 11, "latents"),
    indexed("mean", [0.0]),
    indexed("mean", ["a", "b", "c"]),
    indexed("mean", [float("nan")] * 3),
    indexed("std", [-1.0, 1.0, 1.0]),
    indexed("std", None),
    indexed("flips", "yes"),
    indexed("image_size", "8"),
    indexed("image_size", 0),
    indexed("vae", 3),
    indexed("vae", "digits", "vae"),
    indexed("shards", {}),
    indexed("shards", [], "latents"),
    indexed("shards", [3]),
    indexed("shards/0/file", 3),
    indexed("shards/0/file", "../../etc/passwd", "../../etc/passwd"),
    indexed("shards/0/file", "shard-00009.npy", "shard-00009.npy"),
    indexed("shards/0/count", "5"),
    indexed("shards/0/count", -5),
    indexed("shards/0/count", 6, "shard-00000.npy"),
    indexed("shards/0/sha256", 3),
    indexed("captions", "no"),
]

SHARDS = [
    refused(READ, "shard-00001.npy", remove(SHARD)),
    refused(READ, "shard-00001.npy", cut(SHARD, 0.7)),
    refused(READ, "shard-00001.npy", cut(SHARD, 0)),
    refused(READ, "shard-00001.npy", write(SHARD, b"<html>" * 500)),
    refused(READ, "shard-00001.npy", change_array(SHARD, lambda a: a.astype(np.float32), "float")),
    refused(READ, "shard-00001.npy", change_array(SHARD, lambda a: a[:3], "3 images")),
    refused(READ, "shard-00001.npy", change_array(SHARD, lambda a: a[:, :1], "no mirrors")),
    refused(READ, "shard-00001.npy", remove(SHARD), folder(SHARD)),
    refused(READ, "shard-00001.npy", link(SHARD, "gone")),
    refused(
        READ,
        "shard-00001.npy",
        change_array(SHARD, lambda a: a.view(np.int16), "integers of the same size"),
    ),
    refused(
        READ,
        "shard-00001.npy",
        change_array(SHARD, lambda a: np.asfortranarray(a), "another order"),
    ),
    works(f"{READ} --skip-damaged", "shard-00001.npy", flip(SHARD)),
    works(f"{READ} --skip-damaged", "shard-00001.npy", cut(SHARD, 0.5)),
    refused(f"{READ} --skip-damaged", "latents", remove("latents/shard-*.npy")),
    refused("info latents", "shard-00001.npy", flip(SHARD)),
    refused("info latents", "shard-00001.npy", cut(SHARD, 0.5)),
    refused("info latents", "index.json", edit(INDEX, "count", "12")),
    refused("info latents", "labels.npy", remove(LABELS)),
]

SHARDS += [
    refused(f"{READ} --latent-norm data", "latents", edit(INDEX, "std", [0.0, 0.0, 0.0])),
]

LABEL_FILES = [
    refused(READ, "labels.npy", remove(LABELS)),
    refused(READ, "labels.npy", cut(LABELS, 0.5)),
    refused(READ, "labels.npy", change_array(LABELS, lambda a: a + 7, "labels 7 to 9")),
    refused(READ, "labels.npy", change_array(LABELS, lambda a: a - 1, "labels of -1")),
    refused(READ, "labels.npy", change_array(LABELS, lambda a: a[:5], "5 labels")),
    refused(READ, "labels.npy", change_array(LABELS, lambda a: a.astype(float), "fractions")),
    refused(READ, "labels.npy", change_array(LABELS, lambda a: a[:, None], "two axes")),
    refused(READ, "labels.npy", array(LABELS, lambda: np.array([{}] * 12), "objects")),
    refused(
        f"{READ} --dry-run", "labels.npy", change_array(LABELS, lambda a: a + 7, "labels 7 to 9")
    ),
]

STALE = [
    works(
        AGAIN, "12 images in 3 classes", image("images/cat/0.png", size=(30, 30)), changes=REWRITTEN
    ),
    works(AGAIN, "12 images in 3 classes", remove(SHARD), changes=REWRITTEN),
    works(AGAIN, "12 images in 3 classes", cut(SHARD, 0.5), changes=REWRITTEN),
    works(AGAIN, "12 images in 3 classes", remove(INDEX), changes=REWRITTEN),
    refused(
        AGAIN,
        "latents",
        *[
            image(f"images/{c}/{i}.png", size=(30, 30))
            for c in ("cat", "dog", "owl")
            for i in range(4)
        ],
    ),
    refused(AGAIN, "encoding.json", write("latents/encoding.json", "{")),
    refused(AGAIN, "encoding.json", write("latents/encoding.json", "[]")),
    refused(AGAIN, "encoding.json", edit("latents/encoding.json", "count", "12")),
    works(AGAIN, "12 images in 3 classes", edit(NOTE, "count", "5"), changes=REWRITTEN),
    refused(AGAIN, "latents", edit("latents/encoding.json", "shard_size", 0)),
    refused(f"{AGAIN} --shard-size 4", "latents"),
    refused(f"{AGAIN} --no-flip", "latents"),
]

MISFITS = [
    refused(READ.replace("--image-size 8", "--image-size 16"), "was encoded with --image-size 8"),
    refused(READ.replace("--vae identity", "--vae digits"), "identity"),
    refused(f"{READ} --num-classes 2", "--num-classes 2"),
    refused(f"{READ} --conditioning text --text-encoder digits", "latents"),
]

CASES: list[Case] = [*INDEXES, *SHARDS, *LABEL_FILES, *STALE, *MISFITS]
