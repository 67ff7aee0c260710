import fcntl
import gc
import json
import os
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import forked
from PIL import Image

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.data.images import ImageFolder
from dit.data.sample_order import batch_indices
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents import store
from dit.latents.load import build_source
from dit.latents.moments import MomentSums, decode_batches
from dit.latents.on_the_fly import MemoryLatents, OnlineLatents
from dit.latents.shards import holds_latents
from dit.latents.store import Damage, LatentStore, find_damaged_shards

COUNT = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 smooth images of two classes."""
    root = tmp_path_factory.mktemp("data")
    for name in ("ant", "bee"):
        (root / name).mkdir()
        for i in range(COUNT // 2):
            rng = np.random.default_rng([i, len(name), ord(name[0])])
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            large = small.resize((32, 32), Image.Resampling.BICUBIC)
            large.save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def autoencoder():
    return load_autoencoder("digits")


def encode_config(data, out):
    return EncodeConfig(
        data=str(data), out=out, vae="digits", image_size=32, batch_size=4, shard_size=6
    )


@pytest.fixture
def cfg(data, tmp_path):
    return encode_config(data, tmp_path / "latents")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return encode(encode_config(data, tmp_path_factory.mktemp("finished")), Ranks())


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the finished latents, to damage."""
    return shutil.copytree(finished, tmp_path / "copy")


def everything(source, flip):
    return source.read(np.arange(COUNT), np.full(COUNT, flip)).float()


@pytest.mark.parametrize("flip", [False, True])
def test_stored_moments_are_those_of_the_image_or_its_mirror(finished, data, autoencoder, flip):
    images = torch.stack([ImageFolder(data, 32)[i] for i in range(COUNT)])
    direct = autoencoder.encode(images.flip(-1) if flip else images)
    stored = everything(LatentStore(finished), flip)
    torch.testing.assert_close(stored, direct, rtol=1e-3, atol=1e-4)  # float16 keeps 11 bits


def test_samples_can_be_read_in_any_order(finished, autoencoder):
    latents = LatentStore(finished)
    parts = [np.load(finished / f"shard-0000{k}.npy") for k in range(4)]
    stored = torch.from_numpy(np.concatenate(parts))
    indices = np.random.default_rng(0).integers(0, COUNT, 50)
    flip = np.random.default_rng(1).random(50) < 0.5
    moments = latents.read(indices, flip)
    assert moments.dtype == torch.float16  # as on the disk; the device converts it
    assert torch.equal(moments, stored[torch.from_numpy(indices), torch.from_numpy(flip).long()])
    noise = torch.randn(50, *latents.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(autoencoder.draw(moments, noise), autoencoder.draw(moments.float(), noise))


def test_store_describes_itself(finished, autoencoder):
    latents = LatentStore(finished)
    assert holds_latents(finished)
    assert latents.shape == (4, 8, 8)
    assert latents.classes == ["ant", "bee"]
    np.testing.assert_array_equal(latents.labels, [0] * 10 + [1] * 10)
    assert latents.flips is True
    assert (latents.vae, latents.image_size) == ("digits", 32)
    assert latents.checksum == autoencoder.checksum


@pytest.mark.portable
def test_sources_agree(finished, data, autoencoder):
    images = ImageFolder(data, 32)
    sources = [
        LatentStore(finished),
        MemoryLatents.encode(images, autoencoder, True, batch_size=7),
        OnlineLatents(images, autoencoder, True),
    ]
    indices, flip = np.array([3, 19, 0, 3]), np.array([True, False, False, False])
    stored, *others = [source.read(indices, flip).float() for source in sources]
    for other in others:
        torch.testing.assert_close(stored, other, rtol=1e-3, atol=1e-4)
    expected = sources[0].statistics()
    for source in sources[1:]:
        assert source.shape == (4, 8, 8)
        torch.testing.assert_close(source.statistics(), expected, rtol=1e-3, atol=1e-4)


def test_latents_of_few_images_are_kept_and_depend_on_no_batch(data, autoencoder, monkeypatch):
    """Missing images are read together, by threads; each is encoded by itself."""
    encoded: list[int] = []
    encode = type(autoencoder).encode

    def counted(self, images):
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(autoencoder), "encode", counted)
    source = OnlineLatents(ImageFolder(data, 32), autoencoder, True)
    reads: list[int] = []
    positions = source.positions
    source.positions = lambda indices: reads.append(len(indices)) or positions(indices)

    one = source.read(np.array([3]), np.array([True]))
    many = source.read(np.array([5, 3, 3, 5]), np.array([False, True, False, False]))
    assert torch.equal(many[1], one[0])
    assert torch.equal(many[0], many[3])
    assert (encoded, reads) == ([1, 1, 1], [1, 2])


def test_pixels_depend_on_no_batch_and_are_taken_together(data, monkeypatch):
    pixels = load_autoencoder("identity")
    taken: list[int] = []
    encode = type(pixels).encode

    def counted(self, images):
        taken.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(pixels), "encode", counted)
    source = OnlineLatents(ImageFolder(data, 32), pixels, True)
    source.read(np.array([5, 3, 9]), np.zeros(3, bool))
    assert taken == [3]


def test_mirrored_images_are_encoded_though_none_are_kept(data, autoencoder):
    source = OnlineLatents(ImageFolder(data, 32), autoencoder, False)
    both = source.read(np.array([3, 3]), np.array([False, True]))
    assert not torch.equal(*both)


def test_statistics_are_those_of_sampled_latents():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 3.0])[:, None, None]
    mean = torch.randn(500, 2, 4, 4, generator=generator) * scale + 5
    std = torch.rand(500, 2, 4, 4, generator=generator)
    drawn = mean + std * torch.randn(500, 2, 4, 4, generator=generator)
    measured = MomentSums.of(torch.cat([mean, std], 1)).statistics()
    torch.testing.assert_close(measured[0], drawn.mean((0, 2, 3)), atol=0.03, rtol=0)
    torch.testing.assert_close(measured[1], drawn.std((0, 2, 3)), atol=0.03, rtol=0)


def test_without_flips_one_view_is_stored(cfg):
    latents = LatentStore(encode(replace(cfg, flip=False), Ranks()))
    assert latents.flips is False
    assert np.load(cfg.out / "shard-00000.npy", mmap_mode="r").shape == (6, 1, 8, 8, 8)


def test_a_rerun_replaces_only_missing_and_damaged_shards(out, cfg):
    intact = everything(LatentStore(out), True)
    (out / "shard-00001.npy").unlink()
    flip_a_bit(out / "shard-00002.npy")
    (out / "index.json").unlink()

    def times():
        return [(out / f"shard-0000{k}.npy").stat().st_mtime_ns for k in (0, 2, 3)]

    before = times()
    encode(replace(cfg, out=out), Ranks())
    assert [new != old for new, old in zip(times(), before, strict=True)] == [False, True, False]
    assert torch.equal(everything(LatentStore(out), True), intact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 16}, "image_size 32, not 16"),
        ({"flip": False}, "flips True, not False"),
        ({"vae": "identity"}, "vae digits, not identity|checksum"),
        ({"shard_size": 7}, "shard_size 6, not 7"),
        ({"data": "digits"}, "count 20, not 1797|flips"),
    ],
)
def test_another_encoding_is_refused(finished, data, change, message):
    same = encode_config(data, finished)
    before = (finished / "index.json").read_bytes()
    with pytest.raises(UserError, match=message):
        encode(replace(same, **change), Ranks())
    assert (finished / "index.json").read_bytes() == before


def test_damage_is_named(out):
    shard = out / "shard-00002.npy"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"shard-00002\.npy is missing or damaged"):
        LatentStore(out)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00002\.npy is missing or damaged"):
        LatentStore(out)
    shard.write_bytes((out / "shard-00003.npy").read_bytes())
    with pytest.raises(UserError, match=r"shard-00002\.npy holds float16 \[2, 2, 8, 8, 8\]"):
        LatentStore(out)
    with pytest.raises(UserError, match="is not a folder of latents"):
        LatentStore(out / "none")


@pytest.mark.parametrize(
    ("change", "holds"),
    [(lambda a: a.view(np.int16), "int16 "), (np.asfortranarray, r"float16 .* in Fortran's order")],
)
def test_a_shard_of_the_right_size_that_holds_something_else_is_named(out, change, holds):
    shard = out / "shard-00002.npy"
    content = np.load(shard)
    np.save(shard, change(content))
    assert shard.stat().st_size == 128 + content.nbytes
    with pytest.raises(UserError, match=rf"shard-00002\.npy holds {holds}"):
        LatentStore(out)


def test_too_little_disk_space_is_refused(cfg, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="latents need"):
        encode(cfg, Ranks())


def test_unreadable_images_are_named_before_anything_is_written(cfg, data, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(data, root)
    Image.open(root / "ant" / "0.png").resize((200, 200)).save(root / "bee" / "cut.jpg")
    for name in ("ant/3.png", "bee/8.png", "bee/cut.jpg"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) * 2 // 3])
    (root / "bee" / "9.png").write_bytes(b"no image")
    cfg = replace(cfg, data=str(root))
    message = r"4 of 21 images .*ant/3\.png, .*8\.png .*9\.png .*cut\.jpg .* or delete"
    with pytest.raises(UserError, match=message):
        encode(cfg, Ranks())
    assert [path.name for path in cfg.out.iterdir()] == [".lock"]
    for name in ("ant/3.png", "bee/8.png", "bee/9.png", "bee/cut.jpg"):
        (root / name).unlink()
    assert len(LatentStore(encode(cfg, Ranks())).labels) == 17


@pytest.mark.parametrize("kind", ["folder", "digits"])
def test_no_classes_are_stored_if_none_are_asked_for(cfg, kind, capsys):
    cfg = replace(cfg, num_classes=0)
    if kind == "digits":
        cfg = replace(cfg, data="digits", vae="identity", image_size=8)
    latents = LatentStore(encode(cfg, Ranks()))
    assert latents.classes == []
    assert not latents.labels.any()
    assert "images without classes: latents" in capsys.readouterr().out


def test_a_folder_of_something_else_is_refused(cfg, data, tmp_path):
    (tmp_path / "file").touch()
    for out, message in [
        (data, "a folder of images"),
        (tmp_path / "file", "is a file"),
        (data / "ant" / "latents", "a folder of images"),
    ]:
        with pytest.raises(UserError, match=f"{message}.*choose another --out"):
            encode(replace(cfg, out=out), Ranks())
    assert sorted(path.name for path in data.iterdir()) == ["ant", "bee"]


def test_bad_settings_leave_no_folder(cfg):
    for name in ("image_size", "batch_size", "shard_size"):
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"{flag} 0; expected (a number|numbers) above 0"):
            replace(cfg, **{name: 0})
    with pytest.raises(UserError, match="--image-size 33"):
        encode(replace(cfg, image_size=33), Ranks())
    assert not cfg.out.exists()


def test_encode_prints_the_next_command(cfg, capsys):
    for _ in range(2):  # the second time it is complete
        encode(cfg, Ranks())
        assert capsys.readouterr().out == (
            f"20 images in 2 classes: latents 4 x 8 x 8 in {cfg.out}; next: "
            f"dit train --data {cfg.out}\n"
        )


def test_two_processes_can_not_encode_into_one_folder(cfg):
    cfg.out.mkdir()
    with (cfg.out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is at work in"):
            encode(cfg, Ranks())
    encode(cfg, Ranks())


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON"])
def test_damaged_json_is_named_and_replaced(finished, data, out, content):
    for name in ("shard-00000.json", "index.json"):
        (out / name).write_text(content)
    with pytest.raises(
        UserError, match=r"index\.json is missing or damaged .*run dit encode again"
    ):
        LatentStore(out)
    cfg = encode_config(data, out)
    encode(cfg, Ranks())
    assert torch.equal(everything(LatentStore(out), True), everything(LatentStore(finished), True))
    (out / "encoding.json").write_text(content)
    with pytest.raises(UserError, match="choose another --out"):
        encode(cfg, Ranks())


def test_labels_beyond_the_classes_are_refused(out, monkeypatch):
    LatentStore(out).check_labels()
    np.save(out / "labels.npy", np.arange(COUNT) % 2 + (np.arange(COUNT) == 13))
    latents = LatentStore(out)  # reads no label: there may be billions
    monkeypatch.setattr(store, "LABELS_AT_ONCE", 6)
    with pytest.raises(UserError, match=r"labels\.npy holds labels 0 to 2; expected 0 to 1"):
        latents.check_labels()


# -- damage ----------------------------------------------------------------------------------------


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def test_damaged_shards_have_another_checksum(out):
    assert find_damaged_shards(out) == []
    flip_a_bit(out / "shard-00001.npy")
    LatentStore(out)  # does not detect a flipped bit
    (out / "shard-00003.npy").unlink()
    flip_a_bit(out / "labels.npy")
    damaged = {damage.file: damage for damage in find_damaged_shards(out)}
    assert damaged.keys() == {"shard-00001.npy", "shard-00003.npy", "labels.npy"}
    assert damaged["shard-00003.npy"] == Damage("shard-00003.npy", 2, "missing")
    assert "SHA-256" in damaged["shard-00001.npy"].reason
    message = r"shard-00003\.npy is missing .*run dit encode again.*--skip-damaged"
    with pytest.raises(UserError, match=message):
        LatentStore(out)


@pytest.mark.parametrize(
    "skipped",
    [
        ["shard-00000.npy"],
        ["shard-00001.npy"],
        ["shard-00003.npy"],
        ["shard-00002.npy", "shard-00000.npy"],
    ],
)
def test_skipped_shards_leave_the_other_images(finished, out, skipped):
    for name in skipped:
        (out / name).unlink()
    every, rest = LatentStore(finished), LatentStore(out, skipped)
    kept = np.array([i for i in range(COUNT) if f"shard-{i // 6:05d}.npy" not in skipped])
    np.testing.assert_array_equal(rest.labels, every.labels[kept])
    for flip in (False, True):
        flips = np.full(len(kept), flip)
        assert torch.equal(rest.read(np.arange(len(kept)), flips), every.read(kept, flips))
    with pytest.raises(UserError, match=r"all shards of .* are damaged"):
        LatentStore(out, [f"shard-0000{k}.npy" for k in range(4)])


def open_shards():
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum("shard-" in os.readlink(link) for link in links if os.path.islink(link))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_no_more_shards_are_open_than_allowed(finished, monkeypatch):
    latents = LatentStore(finished)
    expected = everything(latents, True)
    monkeypatch.setattr(store, "MAX_OPEN", 2)
    del latents
    gc.collect()
    before, few = open_shards(), LatentStore(finished)
    shuffled = np.random.default_rng(0).permutation(COUNT)
    assert torch.equal(few.read(shuffled, np.full(COUNT, True)).float(), expected[shuffled])
    assert open_shards() - before <= 2
    del few
    gc.collect()
    assert open_shards() == before


@pytest.mark.parametrize(("allowed", "most"), [(64, 16), (1024, 256), (3, 1), (-1, 256)])
def test_shards_take_a_quarter_of_the_files_that_may_be_open(allowed, most, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (allowed, allowed))
    assert store.most_open_files() == most


def test_a_shard_that_is_gone_is_named(out):
    latents = LatentStore(out)
    (out / "shard-00000.npy").unlink()
    with pytest.raises(UserError, match=r"shard-00000\.npy cannot be opened \(No such file"):
        latents.read(np.arange(6), np.zeros(6, bool))


def test_a_shard_that_shrinks_while_it_is_read_is_named(out):
    latents = LatentStore(out)
    os.truncate(out / "shard-00000.npy", 5000)
    with pytest.raises(UserError, match=r"shard-00000\.npy breaks off before byte"):
        latents.read(np.arange(6), np.zeros(6, bool))


def test_a_disk_that_fails_is_named(finished, monkeypatch):
    latents = LatentStore(finished)

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    message = r"shard-00000\.npy cannot be read before byte .*\(Input/output error\)"
    with pytest.raises(UserError, match=message):
        latents.read(np.arange(1), np.zeros(1, bool))


def test_a_billion_latents_need_no_memory(finished, tmp_path):
    # sparse files: a store of 10^9 images that need no disk space
    size = 10**9
    index = json.loads((finished / "index.json").read_text())
    names = [f"shard-{k:05d}.npy" for k in range(4)]
    index |= {
        "count": size,
        "shape": [1, 1, 1],
        "mean": [0.0],
        "std": [1.0],
        "flips": False,
        "shard_size": size // 4,
        "shards": [{"file": name, "count": size // 4, "sha256": ""} for name in names],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    shard = ("<f2", (size // 4, 1, 2, 1, 1))
    arrays = {"labels.npy": ("<i8", (size,)), **dict.fromkeys(names, shard)}
    for name, (dtype, shape) in arrays.items():
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        with (tmp_path / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + np.dtype(dtype).itemsize * int(np.prod(shape)))
    tracemalloc.start()
    latents = LatentStore(tmp_path)
    for step in (0, 123_456, size // 256 - 1):
        indices = batch_indices(step, len(latents.labels), 256, seed=0)
        assert latents.read(indices, np.zeros(256, bool)).abs().sum() == 0
        assert latents.labels[indices].sum() == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_an_autoencoder_without_weights_is_named_so(out):
    config = TrainConfig(data=str(out), image_size=32, vae="identity")
    message = r"encoded by digits \(SHA-256 .{8}\), not by --vae identity \(no weights\)"
    with pytest.raises(UserError, match=message):
        build_source(config, load_autoencoder("identity"))


def test_training_can_skip_damaged_shards(out, autoencoder, capsys):
    config = TrainConfig(data=str(out), image_size=32, skip_damaged=True)
    assert len(build_source(config, autoencoder).labels) == COUNT
    assert "skipped" not in capsys.readouterr().err
    flip_a_bit(out / "shard-00001.npy")
    (out / "shard-00003.npy").unlink()
    source = build_source(config, autoencoder)
    np.testing.assert_array_equal(source.labels, [0] * 6 + [1] * 6)
    printed = capsys.readouterr().err
    assert "skipped: shard-00003.npy, 2 images (missing)" in printed
    assert "skipped in all: 2 damaged shards with 8 images" in printed
    flip_a_bit(out / "labels.npy")
    with pytest.raises(UserError, match=r"labels\.npy is damaged"):
        build_source(config, autoencoder)
    with pytest.raises(UserError, match="--skip-damaged with --data digits"):
        build_source(replace(config, data="digits"), autoencoder)


def encode_on_ranks(ranks, config):
    encode(config, ranks)


@pytest.mark.portable
def test_two_ranks_make_the_same_store(cfg, finished):
    forked.run(2, encode_on_ranks, cfg)
    one, two = LatentStore(finished), LatentStore(cfg.out)
    for flip in (False, True):
        torch.testing.assert_close(
            everything(one, flip), everything(two, flip), rtol=1e-3, atol=1e-5
        )
    torch.testing.assert_close(one.statistics(), two.statistics(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.labels, two.labels)


def test_decode_batches_keeps_order(data):
    images = ImageFolder(data, 32)
    batches = list(decode_batches(images, np.arange(3, 14), 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert torch.equal(torch.cat(batches), torch.stack([images[i] for i in range(3, 14)]))
