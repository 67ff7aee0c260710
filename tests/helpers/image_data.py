"""Small image data sets for tests: pictures of noise or one colour, captions, tar shards."""

import io
import json
import tarfile

import numpy as np
import webdataset
from PIL import Image

CAPTIONS = [
    ("b/red.png", "a red square"),
    ("green.png", "a green square"),
    ("b/blue.png", "a red square"),
]


def noise_file(number, form="PNG"):
    """The bytes of an 8x8 image of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def paint(path, size=(40, 30), color=(10, 200, 30), mode="RGB", **save):
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **save)
    return path


def write_captioned(root, captions=CAPTIONS):
    """Write images of one colour each, and their captions."""
    for i, (name, _) in enumerate(captions):
        paint(root / name, (8, 8), (80 * i, 0, 255))
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in captions]
    (root / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return root


def write_tars(root, samples, maxcount=5):
    """Write shards with WebDataset's own writer."""
    root.mkdir(parents=True, exist_ok=True)
    pattern = str(root / "train-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=maxcount, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"part.of/{number:04d}", **sample})
    return root


def pack(file, members):
    """Write a tar of members (name, content) in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file
