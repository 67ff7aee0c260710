"""Encoding killed in the middle of a shard is finished to the same bytes, for every source."""

import io
import json
import time

import datasets
import numpy as np
import pytest
import webdataset
from helpers import forked
from PIL import Image

from dit.commands.encode import encode
from dit.config import EncodeConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.errors import UserError
from dit.latents.store import LatentStore

COUNT = 22


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same images in a folder, in tar shards and in parquet files."""
    root = tmp_path_factory.mktemp("data")
    for name in ("folder", "tars", "parquet"):
        (root / name).mkdir()
    files = []
    for number in range(COUNT):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
        (root / "folder" / f"{number:02d}.png").write_bytes(files[-1])
    with webdataset.ShardWriter(str(root / "tars" / "%03d.tar"), maxcount=5, verbose=0) as writer:
        for number, file in enumerate(files):
            writer.write({"__key__": f"{number:02d}", "png": file})
    rows = datasets.Dataset.from_dict({"image": files})
    for part in range(2):
        rows.shard(2, part, contiguous=True).to_parquet(
            root / "parquet" / f"{part}.parquet", batch_size=4
        )
    return root


def settings(data, out, streaming):
    return EncodeConfig(
        data=str(data),
        out=out,
        streaming=streaming,
        vae="identity",
        image_size=8,
        batch_size=2,
        shard_size=6,
    )


def contents(out):
    """Bytes of arrays, and entries of files but the position in a stream, which may differ."""
    arrays = {path.name: path.read_bytes() for path in out.glob("*.npy")}
    entries = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    for file in entries.values():
        file.pop("position", None)
    return arrays | entries


def encode_slowly(config):
    """From the 17th image on."""
    quick, calls = Autoencoder.encode, []

    def slow(self, images):
        calls.append(len(images))
        time.sleep(0 if sum(calls) < 16 else 0.3)
        return quick(self, images)

    Autoencoder.encode = slow
    encode(config, Ranks())


def kill_in_shard(number, config):
    """Encode in another process, and end that in the middle of a shard."""
    process = forked.CONTEXT.Process(target=encode_slowly, args=(config,))
    process.start()
    begun, deadline = config.out / f"shard-{number:05d}.npy.tmp", time.monotonic() + 100
    while not begun.exists() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert begun.exists()


@pytest.mark.parametrize(
    ("name", "streaming"),
    [("folder", False), ("tars", False), ("parquet", False), ("parquet", True)],
)
def test_a_killed_encoding_is_finished_to_the_same_bytes(sources, tmp_path, name, streaming):
    expected = encode(settings(sources / name, tmp_path / "expected", streaming), Ranks())
    out = tmp_path / "killed"
    kill_in_shard(1, settings(sources / name, out, streaming))
    with pytest.raises(UserError, match="run dit encode again to finish"):
        LatentStore(out)
    before = (out / "shard-00000.npy").stat().st_mtime_ns
    encode(settings(sources / name, out, streaming), Ranks())
    assert contents(out) == contents(expected)
    assert (out / "shard-00000.npy").stat().st_mtime_ns == before
    assert not list(out.glob("*.tmp"))


def encode_on_ranks(ranks, config):
    encode(config, ranks)


def test_two_ranks_share_a_stream(sources, tmp_path):
    expected = encode(settings(sources / "parquet", tmp_path / "expected", True), Ranks())
    two = settings(sources / "parquet", tmp_path / "two", True)
    forked.run(2, encode_on_ranks, two)
    assert contents(two.out) == contents(expected)
