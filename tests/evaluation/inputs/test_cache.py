"""The cache of features: hit by content alone, never wrongly, and no obstacle when it fails."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from helpers import forked
from helpers.evaluation import CPU, random_pixels, save_images

from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs import cache
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array, read_images


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    cache._warn.cache_clear()
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Network:
    """A network that counts its images."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        means = images.float().mean((2, 3))
        return Outputs(means, means[:, :2].contiguous(), means[:, 1:].contiguous())


def extractor(name="fake", checksum="abc", preprocessing="none"):
    return Extractor(Network(), name, "weights", checksum, preprocessing, CPU, (3, 2, 2))


def memory(name="memory"):
    return from_array(random_pixels(5), name, None)


def cached(images, *extractors, use=True, batch_size=2):
    title = "features of reference"
    return cache.extract_cached(images, extractors, batch_size, Ranks(), title, use)


def equal(a, b):
    assert a.digest == b.digest
    assert list(a.networks) == list(b.networks)
    for one, other in zip(a.networks.values(), b.networks.values(), strict=True):
        for layer in cache.LAYERS:
            assert torch.equal(getattr(one, layer), getattr(other, layer))
    return True


def test_second_call_runs_no_network(capsys):
    network = extractor()
    fresh = cached(memory(), network)
    assert equal(fresh, extract(memory(), [extractor()], 2, Ranks(), "features"))
    assert "cache" not in capsys.readouterr().err
    again = cached(memory("another name"), network, batch_size=3)
    assert equal(again, fresh)
    assert network.network.seen == 5
    assert "features of reference (fake): from the cache\n" in capsys.readouterr().err


def test_hit_after_the_folder_and_its_files_are_renamed(tmp_path):
    network, images = extractor(), save_images(tmp_path / "before", random_pixels(5))
    fresh = cached(read_images(images), network)
    images.rename(tmp_path / "after")
    for path in (tmp_path / "after").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    assert equal(cached(read_images(tmp_path / "after"), network), fresh)
    assert network.network.seen == 5


def test_miss_after_any_change(tmp_path):
    changed = random_pixels(5)
    changed[4, 7, 7, 2] ^= 1
    first = save_images(tmp_path / "a", random_pixels(5))
    second = save_images(tmp_path / "b", changed)
    sets = [read_images(first), read_images(second), read_images(first, 8), read_images(first, 4)]
    found = []
    for one in sets:
        network = extractor()
        found.append(cached(one, network))
        assert network.network.seen == 5
    assert found[0].digest != found[1].digest
    others = [extractor("x"), extractor(checksum="def"), extractor(preprocessing="resized")]
    for other in others:
        cached(sets[0], other)
        assert other.network.seen == 5


def test_other_libraries_miss(monkeypatch):
    cached(memory(), extractor())
    monkeypatch.setattr(cache, "library_versions", lambda *names: dict.fromkeys(names, "0"))
    network = extractor()
    cached(memory(), network)
    assert network.network.seen == 5


def test_only_missing_networks_are_computed():
    first, second = extractor("first"), extractor("second")
    cached(memory(), second)
    found = cached(memory(), first, second)
    assert (first.network.seen, second.network.seen) == (5, 5)
    assert equal(found, extract(memory(), [first, second], 2, Ranks(), "features"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_entry_is_computed_again(folder, damage):
    network, images = extractor(), memory()
    fresh = cached(images, network)
    (entry,) = folder.iterdir()
    content = entry.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    entry.write_bytes(
        {"cut": content[:-8], "flipped": flipped, "empty": b"", "text": b"text" * 99}[damage]
    )
    assert equal(cached(images, network), fresh)
    assert network.network.seen == 10
    assert equal(cached(images, network), fresh)
    assert network.network.seen == 10


def test_without_use_nothing_is_read_or_written(folder):
    network, images = extractor(), memory()
    cached(images, network, use=False)
    assert not folder.exists()
    cached(images, network)
    cached(images, network, use=False)
    assert network.network.seen == 15


def test_full_disk_costs_one_warning(folder, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        found = cached(memory(), extractor())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(found.networks["fake"]) == 5
    assert capsys.readouterr().err.count("warning: features cannot be kept in") == 1
    assert not list(folder.iterdir())


def test_where_the_cache_lies(monkeypatch):
    assert cache.cache_folder() == Path(os.environ["DIT_CACHE"]) / "features"
    monkeypatch.delenv("DIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_folder() == Path("/x/dit/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_folder() == Path("/h/.cache/dit/features")


def extract_three_times(ranks, folder):
    """Use a new cache, a full one, and one that rank 1 cannot read; record how many images ran."""
    os.environ["DIT_CACHE"] = str(folder / "cache")
    network, seen = extractor(), {}
    for title in ("fresh", "hit", "blind"):
        if title == "blind" and not ranks.main:
            cache._read = lambda path, remove: None
        found = cache.extract_cached(memory(), [network], 2, ranks, title, True)
        means = torch.from_numpy(random_pixels(5)).permute(0, 3, 1, 2).float().mean((2, 3))
        assert torch.equal(found.networks["fake"].values, means)
        seen[title] = network.network.seen
        network.network.seen = 0
    (folder / f"{ranks.rank}.json").write_text(json.dumps(seen))


def test_ranks_hit_together_or_not_at_all(tmp_path):
    forked.run(2, extract_three_times, tmp_path)
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert zero == {"fresh": 2, "hit": 0, "blind": 2}
    assert one == {"fresh": 3, "hit": 0, "blind": 3}
