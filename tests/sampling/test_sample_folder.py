"""Folders of samples: layout, continuation, and what all ranks do when one fails."""

import csv
import dataclasses
import json
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import torchrun
from helpers import forked
from helpers.rank_threads import errors_on_two_ranks
from helpers.samples import CLASSES, QUICK, fill, largest_difference, pixels

from dit.distributed.ranks import Ranks
from dit.errors import NotFinite, UserError
from dit.sampling import sample_folder as module
from dit.sampling.generate import generate
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.sample_folder import sample_folder

CPU = torch.device("cpu")
DISK_FULL = "[Errno 28] No space left on device"


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run, CPU)


def fill_on_two_ranks(run: LoadedRun, out: Path, count: int) -> list[str]:
    """The error of each rank."""
    return errors_on_two_ranks(
        lambda ranks: sample_folder(run, QUICK, CLASSES, count, out, "png", ranks)
    )


def poison(monkeypatch: pytest.MonkeyPatch, image: int) -> None:
    """The batch with this image comes out as NaN."""

    def poisoned(pipeline, labels, indices):
        if image in indices:
            raise NotFinite(image, int(labels[indices == image]))
        return generate(pipeline, labels, indices)

    monkeypatch.setattr(module, "generate", poisoned)


def fill_disk(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """The batch that begins with this image cannot be written."""
    write = module.PngFolder.write

    def full(folder: module.PngFolder, indices: list[int], images: torch.Tensor) -> None:
        if indices[0] == first:
            raise OSError(28, "No space left on device")
        write(folder, indices, images)

    monkeypatch.setattr(module.PngFolder, "write", full)


# -- layout ----------------------------------------------------------------------------------------


def test_folder_of_pngs(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "new" / "folder", 5)
    names = [f"00000{i}.png" for i in range(5)]
    assert sorted(f.name for f in out.iterdir()) == [*names, "labels.csv", "samples.json"]
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert [row["file"] for row in rows] == names
    assert [row["label"] for row in rows] == ["3", "1", "4", "3", "1"]
    assert rows[0]["class"] == "3"
    labels = torch.tensor([3, 1, 4, 3, 1])
    direct = generate(build_pipeline(run, QUICK), labels, torch.arange(5))
    assert largest_difference(pixels(out), direct.permute(0, 2, 3, 1).int()) <= 1

    record = json.loads((out / "samples.json").read_text())
    expected = dict(
        num_samples=5,
        cfg_scale=2.0,
        seed=5,
        sampler="heun",
        steps=3,
        step=3,
        precision="fp32",
        classes=CLASSES,
        vae="identity",
        image_size=8,
        eta=None,
    )
    assert {key: record[key] for key in expected} == expected
    assert len(record["weights_sha256"]) == 64
    assert record["versions"]["torch"] == version("torch")


def test_npz_layout(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "out", 10, "npz")
    with np.load(out / "samples.npz") as archive:
        assert set(archive.files) == {"arr_0", "arr_1"}
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_0"].shape == (10, 8, 8, 3)
        assert archive["arr_1"].tolist() == [3, 1, 4, 3, 1, 4, 3, 1, 4, 3]
    assert sorted(f.name for f in out.iterdir()) == ["samples.json", "samples.npz"]
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "png", 10))) <= 1


# -- continuation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "npz"])
def test_an_interrupted_folder_continues(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
):
    made: list[int] = []

    def breaking(pipeline, labels, indices):
        if len(made) >= breaks_at:
            raise KeyboardInterrupt
        made.extend(indices.tolist())
        return generate(pipeline, labels, indices)

    monkeypatch.setattr(module, "generate", breaking)
    breaks_at, out = 8, tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fill(run, out, 14, format)
    assert made == list(range(8))
    assert not (out / "labels.csv").exists()

    before = {f: f.stat().st_mtime_ns for f in [*out.glob("*.png"), *out.glob("parts/*")]}
    breaks_at = 99
    fill(run, out, 14, format, dataclasses.replace(QUICK, batch_size=5))
    assert made == list(range(14))
    assert all(f.stat().st_mtime_ns == time for f, time in before.items() if f.exists())
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "all", 14, format))) <= 1

    made.clear()
    stamps = {f: f.stat().st_mtime_ns for f in out.iterdir() if f.name != "samples.json"}
    fill(run, out, 14, format)
    assert made == []
    assert all(f.stat().st_mtime_ns == time for f, time in stamps.items())

    breaks_at = 0
    with pytest.raises(KeyboardInterrupt):
        fill(run, out, 17, format)
    assert not (out / "labels.csv").exists(), "labels of 14 images beside a folder of 17"
    breaks_at = 99
    fill(run, out, 17, format)
    assert made == [14, 15, 16]
    assert len(pixels(out)) == 17


def test_damaged_images_are_made_again(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "out", 6)
    intact, time = pixels(out), (out / "000000.png").stat().st_mtime_ns
    (out / "000002.png").unlink()
    cut = out / "000004.png"
    cut.write_bytes(cut.read_bytes()[:-9])
    (out / ".000001.png.4711").write_bytes(b"half")
    fill(run, out, 6)
    assert not list(out.glob(".*"))
    assert (out / "000000.png").stat().st_mtime_ns == time
    assert largest_difference(pixels(out), intact) <= 1


def test_a_damaged_part_is_made_again(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        poison(patch, 9)
        with pytest.raises(NotFinite):
            fill(run, out, 10, "npz")
    part = out / "parts" / "part-000004.npz"
    part.write_bytes(part.read_bytes()[:-9])
    fill(run, out, 10, "npz", dataclasses.replace(QUICK, batch_size=3))
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "png", 10))) <= 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dict(cfg_scale=3.0), r"--cfg-scale 3 .* made with --cfg-scale 2;"),
        (dict(sampler="euler"), r"--sampler euler .* made with --sampler heun;"),
    ],
)
def test_other_settings_are_refused(run: LoadedRun, tmp_path: Path, change: dict, complaint: str):
    out = fill(run, tmp_path / "out", 2)
    before = pixels(out)
    with pytest.raises(UserError, match=complaint):
        fill(run, out, 4, config=dataclasses.replace(QUICK, **change))
    assert torch.equal(pixels(out), before)


def test_folders_of_something_else_are_refused(run: LoadedRun, tmp_path: Path, make_run):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(UserError, match=r"holds cat.jpg and no samples.json"):
        fill(run, tmp_path / "photos", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        fill(run, tmp_path / "file", 2)

    out = fill(run, tmp_path / "out", 4)
    with pytest.raises(UserError, match=r"--num-samples 2 .* already holds 4 images"):
        fill(run, out, 2)
    with pytest.raises(UserError, match=r"--format npz .* made with --format png;"):
        fill(run, out, 4, "npz")
    with pytest.raises(UserError, match="weights_sha256"):
        fill(load_run(make_run(step=4), CPU), out, 4)


# -- ranks -----------------------------------------------------------------------------------------


@pytest.mark.slow  # threads fill a folder together below
def test_two_ranks_make_the_same_images(run: LoadedRun, tiny_run: Path, tmp_path: Path):
    alone, both = fill(run, tmp_path / "alone", 7), tmp_path / "both"
    flags = "--sampler=heun --precision=fp32 --cfg-scale=2 --steps=3 --seed=5 --batch-size=3"
    asked = [*flags.split(), "--classes=3,1,4", "--num-samples=7"]
    torchrun("sample.py", "--run", tiny_run, "--out", both, *asked)
    assert (both / "labels.csv").read_text() == (alone / "labels.csv").read_text()
    assert largest_difference(pixels(both), pixels(alone)) <= 1
    one, two = (json.loads((folder / "samples.json").read_text()) for folder in (alone, both))
    assert one == two


def test_ranks_with_unequal_shares_wait_for_each_other(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "out", 20)
    for i in (1, 3, 5, 7, 9, 11, 12):  # six are of rank 1, in two batches
        (out / f"{i:06d}.png").unlink()
    assert fill_on_two_ranks(run, out, 20) == ["", ""]
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "all", 20))) <= 1
    assert (out / "labels.csv").exists()


def test_batches_are_no_larger_than_what_is_missing(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []

    def recording(run, config, classes):
        sizes.append(config.batch_size)
        return build_pipeline(run, config, classes)

    monkeypatch.setattr(module, "build_pipeline", recording)
    fill_on_two_ranks(run, tmp_path / "out", 5)
    for count in (6, 6, 30):
        fill(run, tmp_path / "out", count)
    assert sizes == [3, 3, 1, 1, 4]


def test_nan_on_one_rank_is_raised_on_both_and_good_images_stay(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, 5)  # in the first batch of rank 1
    assert fill_on_two_ranks(run, tmp_path / "out", 30) == [str(NotFinite(5, 4))] * 2
    assert sorted(int(f.stem) for f in (tmp_path / "out").glob("*.png")) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("first", "poisoned", "errors"),
    [
        (1, None, [DISK_FULL, DISK_FULL]),
        (9, None, [DISK_FULL, DISK_FULL]),
        (1, 8, [str(NotFinite(8, 4)), DISK_FULL]),
        (1, 9, [DISK_FULL, DISK_FULL]),
    ],
    ids=["in the middle", "in the last batch", "NaN on the other rank", "before a NaN of its own"],
)
def test_a_full_disk_on_one_rank_ends_both(
    first, poisoned, errors, run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        fill_disk(patch, first)
        if poisoned:
            poison(patch, poisoned)
        assert fill_on_two_ranks(run, tmp_path / "out", 14) == errors
    assert len(list(fill(run, tmp_path / "out", 14).glob("*.png"))) == 14


class Unmade(UserError):
    """Can be pickled but not made from its pickle."""

    def __init__(self) -> None:
        super().__init__("no", "yes", "ask again")


class Unsendable(OSError):
    """Holds what cannot be pickled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA out of memory"), "CUDA out of memory"),
        (Unmade(), "no; expected yes; ask again"),
        (Unsendable(28, "No space left on device"), DISK_FULL),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", ["generate", "finish"])
def test_any_error_on_one_rank_ends_both(
    where, error, message, run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module if where == "generate" else module.PngFolder, where, fail)
    assert fill_on_two_ranks(run, tmp_path / "out", 1) == [message, message]


def sample_where_rank_1_has_a_full_disk(ranks: Ranks, weights: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            sample_folder(load_run(weights, CPU), QUICK, CLASSES, 30, out, "png", ranks)


def test_a_full_disk_of_one_process_ends_both(tiny_run: Path, tmp_path: Path):
    forked.run(2, sample_where_rank_1_has_a_full_disk, tiny_run, tmp_path / "out")
