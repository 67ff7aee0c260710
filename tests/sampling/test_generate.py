import copy
import csv
import dataclasses
import json
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Copies
from PIL import Image
from tqdm import tqdm

from benchmarks import forked
from dit.commands.sample import sample
from dit.config import SampleConfig, SamplerConfig
from dit.distributed.ranks import Ranks
from dit.errors import NotFinite, UserError
from dit.evaluation.samples import settings_key
from dit.sampling import folder as module
from dit.sampling.folder import progress_callback, sample_folder, sampling_bar
from dit.sampling.generate import ImageNoise, generate, sample_grid, sample_latents
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import SamplingPipeline, build_pipeline

CPU, ALONE = torch.device("cpu"), Ranks()
ROOT = Path(__file__).parents[2]
QUICK = SamplerConfig(
    sampler="heun", precision="fp32", steps=3, cfg_scale=2.0, seed=5, batch_size=4
)


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run, CPU)


def planned(run: LoadedRun, config: SamplerConfig) -> SamplingPipeline:
    return build_pipeline(run, config)


def fill(
    run: LoadedRun, out: Path, count: int, format: str = "png", config: SamplerConfig = QUICK
) -> Path:
    return sample_folder(run, config, [3, 1, 4], count, out, format, ALONE)


def pixels(folder: Path) -> torch.Tensor:
    """The images of a folder in order, [N, S, S, 3] as integers that can be subtracted."""
    if (folder / "samples.npz").exists():
        return torch.from_numpy(np.load(folder / "samples.npz")["arr_0"]).int()
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(f))).int() for f in sorted(folder.glob("*.png"))]
    )


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# -- noise and tensors ---------------------------------------------------------------------------------------------


def test_noise_of_an_image_depends_on_seed_and_index_alone():
    many = ImageNoise(7, range(1000), (3, 4, 4), CPU)
    few = ImageNoise(7, torch.tensor([41, 3]), (3, 4, 4), CPU)
    first, second = many(), many()
    assert torch.equal(few(), first[[41, 3]])
    assert torch.equal(few(), second[[41, 3]])
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert not torch.equal(first, ImageNoise(8, range(1000), (3, 4, 4), CPU)())
    assert len(first.flatten(1).unique(dim=0)) == 1000
    assert first.mean().abs() < 0.02
    assert abs(first.std() - 1) < 0.02


@pytest.mark.portable
@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_images_do_not_depend_on_batch_size(run: LoadedRun, sampler: str):
    config = dataclasses.replace(QUICK, sampler=sampler)
    labels, indices = torch.arange(7) % 3, torch.arange(7)
    plan = planned(run, config)
    together = sample_latents(run, plan, config, labels, indices)
    alone = torch.cat(
        [sample_latents(run, plan, config, labels[i : i + 1], indices[i : i + 1]) for i in range(7)]
    )
    assert largest_difference(together, alone) < 1e-4
    assert together[0].sub(together[3]).abs().max() > 0.1, "two images of a class are the same"
    images = [
        generate(run, plan, dataclasses.replace(config, batch_size=b), labels, indices)
        for b in (1, 4, 7)
    ]
    assert images[0].dtype == torch.uint8
    assert images[0].shape == (7, 3, 8, 8)
    assert largest_difference(images[0].int(), images[1].int()) <= 1
    assert largest_difference(images[0].int(), images[2].int()) <= 1


def test_class_and_seed_change_the_image(run: LoadedRun):
    plan, zero = planned(run, QUICK), torch.zeros(1, dtype=torch.long)
    latents = sample_latents(run, plan, QUICK, zero, zero)
    assert largest_difference(latents, sample_latents(run, plan, QUICK, zero + 1, zero)) > 1e-2
    other = dataclasses.replace(QUICK, seed=6)
    assert largest_difference(latents, sample_latents(run, plan, other, zero, zero)) > 1e-2


@pytest.mark.parametrize(("sampler", "calls"), [("heun", 5), ("ddpm", 3)])
def test_progress_is_told_by_network_calls(run: LoadedRun, sampler: str, calls: int):
    config, told = dataclasses.replace(QUICK, sampler=sampler), []
    plan = planned(run, config)
    images = [
        generate(run, p, config, torch.arange(6), torch.arange(6))
        for p in (plan, plan.counting(told.append))
    ]
    assert told == pytest.approx([4 / calls] * calls + [2 / calls] * calls)
    assert torch.equal(*images)


def test_a_bar_moves_within_a_batch_and_ends_with_all_images(
    tiny_run: Path, tmp_path: Path, capfd, monkeypatch
):
    monkeypatch.setattr(module, "tqdm", lambda **options: tqdm(**options | dict(mininterval=0)))
    for flags in (dict(per_class=1), dict(num_samples=10, out=tmp_path / "out")):
        sample(SampleConfig(run=tiny_run, steps=4, **flags), ALONE)
        counts = re.findall(r"([\d.]+)/10 img", capfd.readouterr().err)
        assert counts[0] == "0.0"
        assert counts[-1] == "10.0"
        assert {"2.5", "5.0", "7.5"} < {*counts}


def test_a_batch_sends_its_noise_and_labels_alone(run: LoadedRun, monkeypatch: pytest.MonkeyPatch):
    """A tensor on the meta device has no values, so that whatever asked for one would fail."""
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # it knows no such device
    config = dataclasses.replace(QUICK, sampler="ddpm")
    denoise = dataclasses.replace(
        run.denoise, network=copy.deepcopy(run.denoise.network).to("meta")
    )
    away = dataclasses.replace(run, denoise=denoise, device=torch.device("meta"))
    plan = planned(away, config)
    with Copies() as copies:
        made = sample_latents(away, plan, config, torch.arange(2), torch.arange(2))
    assert made.device.type == "meta"
    noise, labels = (2, 3, 8, 8), (2,)
    assert [tuple(copied.shape) for copied in copies.found] == [noise, labels, noise, noise]


def test_nan_names_the_image(run: LoadedRun):
    plan = planned(run, QUICK)

    def poisoned(denoise, process, x, y, times, noise):
        x = plan.sampler(denoise, process, x, y, times, noise)
        return torch.where((y == 7).view(-1, 1, 1, 1), torch.nan, x)

    with pytest.raises(UserError, match=r"image 25 \(class 7\) came out as NaN.*--precision fp32"):
        generate(
            run,
            dataclasses.replace(plan, sampler=poisoned),
            QUICK,
            torch.tensor([1, 2, 3, 4, 5, 7]),
            torch.arange(20, 26),
        )


def test_the_error_of_nan_goes_from_rank_to_rank():
    error = pickle.loads(pickle.dumps(NotFinite(25, 7)))
    assert (str(error), error.image) == (str(NotFinite(25, 7)), 25)


def test_grid_has_each_class_in_turn(run: LoadedRun):
    images, labels = sample_grid(run, planned(run, QUICK), QUICK, [4, 2], 3)
    assert labels.tolist() == [4, 4, 4, 2, 2, 2]
    assert images.shape == (6, 3, 8, 8)


# -- folders -------------------------------------------------------------------------------------------------------


def test_folder_of_pngs(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "new" / "folder", 5)
    assert sorted(f.name for f in out.iterdir()) == [
        *(f"00000{i}.png" for i in range(5)),
        "labels.csv",
        "samples.json",
    ]
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert [row["file"] for row in rows] == [f"00000{i}.png" for i in range(5)]
    assert [row["label"] for row in rows] == ["3", "1", "4", "3", "1"]
    assert rows[0]["class"] == "3"
    direct = generate(
        run, planned(run, QUICK), QUICK, torch.tensor([3, 1, 4, 3, 1]), torch.arange(5)
    )
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
        classes=[3, 1, 4],
        vae="identity",
        image_size=8,
        eta=None,
    )
    assert {key: record[key] for key in expected} == expected
    assert len(record["weights_sha256"]) == 64
    assert record["versions"]["torch"] == version("torch")


@pytest.mark.parametrize("format", ["png", "npz"])
def test_interrupted_folder_continues(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
):
    made: list[int] = []

    def breaking(run, plan, config, labels, indices):
        if len(made) >= breaks_at:
            raise KeyboardInterrupt
        made.extend(indices.tolist())
        return generate(run, plan, config, labels, indices)

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
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "whole", 14, format))) <= 1
    made.clear()
    stamps = {f: f.stat().st_mtime_ns for f in out.iterdir() if f.name != "samples.json"}
    fill(run, out, 14, format)
    assert made == []
    assert all(f.stat().st_mtime_ns == time for f, time in stamps.items())
    breaks_at = 0
    with pytest.raises(KeyboardInterrupt):
        fill(run, out, 17, format)  # more of them
    assert not (out / "labels.csv").exists(), "labels of 14 images beside a folder of 17"
    breaks_at = 99
    fill(run, out, 17, format)
    assert made == [14, 15, 16]
    assert len(pixels(out)) == 17


def poison(monkeypatch: pytest.MonkeyPatch, image: int) -> None:
    """Images are made as ever, but the batch with this one."""

    def poisoned(run, plan, config, labels, indices):
        if image in indices:
            raise NotFinite(image, int(labels[indices == image]))
        return generate(run, plan, config, labels, indices)

    monkeypatch.setattr(module, "generate", poisoned)


def test_nan_ends_a_folder_at_once_and_keeps_what_is_good(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, 5)
    with pytest.raises(NotFinite, match=r"image 5 \(class 4\)"):
        fill(run, tmp_path / "out", 14)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        *(f"00000{i}.png" for i in range(4)),
        "samples.json",
    ]


@dataclasses.dataclass(frozen=True)
class Twin(Ranks):
    """One of two ranks, each a thread, that meet and exchange as processes do."""

    box: dict = dataclasses.field(default_factory=dict)
    meeting: threading.Barrier = dataclasses.field(
        default_factory=lambda: threading.Barrier(2, timeout=30)
    )

    def barrier(self) -> None:
        self.meeting.wait()

    def share(self, value: Any) -> Any:
        return self.collect(value)[0]

    def collect(self, value: Any) -> list[Any]:
        self.box[self.rank] = pickle.dumps(value)
        self.meeting.wait()
        both = [pickle.loads(self.box[0]), pickle.loads(self.box[1])]
        self.meeting.wait()
        return both


def on_two_ranks(run: LoadedRun, out: Path, count: int) -> list[str]:
    """What `sample_folder` raised on each."""
    first = Twin(0, 2)

    def work(ranks: Ranks) -> str:
        try:
            sample_folder(run, QUICK, [3, 1, 4], count, out, "png", ranks)
        except Exception as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, (first, dataclasses.replace(first, rank=1))))


def test_nan_on_one_rank_is_raised_on_all_of_them(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, 5)  # in the first batch of rank 1
    assert on_two_ranks(run, tmp_path / "out", 30) == [str(NotFinite(5, 4))] * 2
    assert sorted(int(f.stem) for f in (tmp_path / "out").glob("*.png")) == [0, 2, 4, 6]


def fill_disk(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """No batch that begins with this image can be written."""
    write = module.PngFolder.write

    def full(folder: module.PngFolder, indices: list[int], images: torch.Tensor) -> None:
        if indices[0] == first:
            raise OSError(28, "No space left on device")
        write(folder, indices, images)

    monkeypatch.setattr(module.PngFolder, "write", full)


@pytest.mark.parametrize("first", [0, 12], ids=["in the middle", "in the last batch"])
def test_files_that_can_not_be_written_beside_the_next_batch_end_the_work(
    first, run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill_disk(monkeypatch, first)
    with pytest.raises(OSError, match="No space left"):
        fill(run, tmp_path / "out", 14)
    monkeypatch.undo()
    assert len(list(fill(run, tmp_path / "out", 14).glob("*.png"))) == 14


FULL = "[Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("first", "spoilt", "told"),
    [
        (1, None, [FULL, FULL]),
        (9, None, [FULL, FULL]),
        (1, 8, [str(NotFinite(8, 4)), FULL]),
        (1, 9, [FULL, FULL]),
    ],
    ids=[
        "in the middle",
        "in the last batch",
        "beside a NaN of the other rank",
        "before a NaN of its own",
    ],
)
def test_files_that_one_rank_can_not_write_end_the_work_of_all(
    first, spoilt, told, run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill_disk(monkeypatch, first)
    if spoilt:
        poison(monkeypatch, spoilt)
    assert on_two_ranks(run, tmp_path / "out", 14) == told


class Odd(UserError):
    """Can be pickled but not made again."""

    def __init__(self) -> None:
        super().__init__("no", "yes", "ask again")


class Stuck(OSError):
    """Holds what can not be pickled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("CUDA out of memory"), "CUDA out of memory"),
        (Odd(), "no; expected yes; ask again"),
        (Stuck(28, "No space left on device"), FULL),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", ["generate", "finish"])
def test_whatever_fails_on_one_rank_ends_all(
    where, error, told, run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(
        *((module, "generate") if where == "generate" else (module.PngFolder, "finish")), fail
    )
    assert on_two_ranks(run, tmp_path / "out", 1) == [told, told]


def sample_where_rank_1_has_no_space(ranks: Ranks, weights: Path, out: Path) -> None:
    run = load_run(weights, CPU)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            sample_folder(run, QUICK, [3, 1, 4], 30, out, "png", ranks)


def test_processes_end_alike_where_one_can_not_write(tiny_run: Path, tmp_path: Path):
    forked.run(2, sample_where_rank_1_has_no_space, tiny_run, tmp_path / "out")


def test_ranks_with_unequal_shares_wait_for_each_other(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "out", 20)
    for i in (1, 3, 5, 7, 9, 11, 12):  # six are of rank 1, in two batches
        (out / f"{i:06d}.png").unlink()
    assert on_two_ranks(run, out, 20) == ["", ""]
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "whole", 20))) <= 1
    assert (out / "labels.csv").exists()


def test_batches_are_no_larger_than_what_is_missing(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    monkeypatch.setattr(
        module,
        "build_sampling",
        lambda run, config: (sizes.append(config.batch_size), build_pipeline(run, config))[1],
    )
    on_two_ranks(run, tmp_path / "out", 5)
    for count in (6, 6, 30):
        fill(run, tmp_path / "out", count)
    assert sizes == [3, 3, 1, 1, 4]


def test_damaged_images_are_made_again(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "out", 6)
    whole, good = pixels(out), (out / "000000.png").stat().st_mtime_ns
    (out / "000002.png").unlink()
    cut = out / "000004.png"
    cut.write_bytes(cut.read_bytes()[:-9])
    (out / ".000001.png.4711").write_bytes(b"half")
    fill(run, out, 6)
    assert not list(out.glob(".*"))
    assert (out / "000000.png").stat().st_mtime_ns == good
    assert largest_difference(pixels(out), whole) <= 1


def test_npz_layout(run: LoadedRun, tmp_path: Path):
    out = fill(run, tmp_path / "out", 10, "npz")
    with np.load(out / "samples.npz") as archive:
        assert set(archive.files) == {"arr_0", "arr_1"}
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_0"].shape == (10, 8, 8, 3)
        assert archive["arr_1"].tolist() == [3, 1, 4, 3, 1, 4, 3, 1, 4, 3]
    assert sorted(f.name for f in out.iterdir()) == ["samples.json", "samples.npz"]
    assert largest_difference(pixels(out), pixels(fill(run, tmp_path / "png", 10))) <= 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dict(cfg_scale=3.0), r"cfg_scale 3.0 .* made with 2.0"),
        (dict(seed=6), r"seed 6 .* made with 5"),
        (dict(steps=4), r"steps 4 .* made with 3"),
        (dict(sampler="euler"), r'sampler "euler" .* made with "heun"'),
    ],
)
def test_other_settings_are_refused(run: LoadedRun, tmp_path: Path, change: dict, complaint: str):
    out = fill(run, tmp_path / "out", 2)
    before = pixels(out)
    with pytest.raises(UserError, match=complaint):
        fill(run, out, 4, config=dataclasses.replace(QUICK, **change))
    assert torch.equal(pixels(out), before)


def test_other_weights_are_refused(run: LoadedRun, tmp_path: Path, make_run):
    out = fill(run, tmp_path / "out", 2)
    other = load_run(make_run(step=4), CPU)
    with pytest.raises(UserError, match="weights_sha256"):
        fill(other, out, 4)


def test_folders_that_are_not_ours(run: LoadedRun, tmp_path: Path):
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
    with pytest.raises(UserError, match=r'format "npz" .* made with "png"'):
        fill(run, out, 4, "npz")


def test_two_ranks_make_the_same_images(run: LoadedRun, tiny_run: Path, tmp_path: Path):
    alone, both = fill(run, tmp_path / "alone", 7), tmp_path / "both"
    flags = [
        "--sampler=heun",
        "--precision=fp32",
        "--cfg-scale=2",
        "--steps=3",
        "--seed=5",
        "--batch-size=3",
        "--classes=3,1,4",
        "--num-samples=7",
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--",
    ]
    done = subprocess.run(
        [*torchrun, "sample.py", "--run", tiny_run, "--out", both, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7 images in") == 1
    assert (both / "labels.csv").read_text() == (alone / "labels.csv").read_text()
    assert largest_difference(pixels(both), pixels(alone)) <= 1
    one, two = (json.loads((folder / "samples.json").read_text()) for folder in (alone, both))
    assert one == two


# -- what the user asks for ----------------------------------------------------------------------------------------


def test_grid_goes_to_the_run(make_run, capsys: pytest.CaptureFixture[str]):
    home = make_run()
    out = sample(SampleConfig(run=home, steps=2, classes="0,7", per_class=3, cfg_scale=4), ALONE)
    assert out.parent == home / "samples"
    assert out.match("grid-step-0000003-dpmpp_2m-2-cfg-4-seed-0-??????.png")
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > picture.height > 16
    assert sample(SampleConfig(run=home, steps=2, per_class=1, out=home / "my.png"), ALONE).exists()


def test_grids_are_named_by_what_changes_them(tiny_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dit.commands.sample._write_grid", lambda *args: None)

    def name(**flags) -> str:
        return sample(
            SampleConfig(**{**dict(run=tiny_run, steps=2, cfg_scale=2.0), **flags}), ALONE
        ).name

    changes = (
        dict(steps=3),
        dict(sampler="euler"),
        dict(sampler="ddim"),
        dict(sampler="ddim", eta=1.0),
        dict(cfg_interval=(0.1, 0.8)),
        dict(cfg_channels=2),
        dict(sampler="ddpm", variance="large"),
        dict(sampler="ddpm"),
        dict(classes="0,7"),
        dict(classes="7,0"),
        dict(per_class=3),
        dict(seed=1),
        dict(cfg_scale=1.0),
        dict(image_size=16),
    )
    assert len({name(), *(name(**change) for change in changes)}) == 1 + len(changes)
    assert name() == name(sampler="dpmpp_2m", batch_size=3, classes="0,1,2,3,4,5,6,7,8,9")


def test_the_bar_does_not_pass_its_end():
    """As it would on a rank that makes more images than the others."""
    bar = sampling_bar(5, 0, ALONE)
    bar.mininterval = 0
    move = progress_callback(bar, 2)
    for _ in range(20):
        move(0.3)
    assert (bar.n, bar.total) == (5, 5)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (dict(num_samples=3), "--num-samples without --out"),
        (
            dict(num_samples=3, out=Path("grid.png")),
            "--out grid.png with --num-samples; expected a folder",
        ),
        (dict(num_samples=0, out=Path("x")), "--num-samples 0"),
        (dict(out=Path("folder")), "a .png file for the grid"),
        (dict(per_class=0), "--per-class 0"),
        (
            dict(per_class=3, num_samples=3, out=Path("x")),
            "--per-class 3 with --num-samples 3; expected a grid",
        ),
        (dict(format="npz"), "--format npz without --num-samples; expected many images"),
        (dict(variance="small"), "--variance small with --sampler dpmpp_2m; expected ddpm"),
        (
            dict(out=Path("/proc/x.png")),
            "--out /proc/x.png can not be written .* a .png file in a writable place",
        ),
        (dict(out=Path("/proc/x"), num_samples=3), "--out /proc/x can not be made"),
        (dict(classes="0,10"), "class ids from 0 to 9"),
        (dict(run=Path("nowhere")), "no checkpoint in nowhere"),
    ],
)
def test_flags_that_do_not_fit(tiny_run: Path, flags: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        sample(SampleConfig(**{"run": tiny_run, **flags}), ALONE)


# -- spacing of times ------------------------------------------------------------------------------------------------


def test_spacing_is_part_of_what_images_are_made_with(run: LoadedRun, tmp_path: Path):
    cosine = dataclasses.replace(QUICK, spacing="cosine")
    plans = [planned(run, config) for config in (QUICK, cosine)]
    assert not torch.equal(plans[0].times, plans[1].times)
    assert settings_key(run, QUICK, 4) != settings_key(run, cosine, 4)
    assert settings_key(run, QUICK, 4) == settings_key(
        run, dataclasses.replace(QUICK, compile=False, batch_size=1), 4
    )
    fill(run, tmp_path / "out", 2, config=cosine)
    with pytest.raises(UserError, match=r"spacing null .* \"cosine\""):
        fill(run, tmp_path / "out", 2)


def test_steps_of_a_ddpm_have_times_of_their_own(make_run):
    run = load_run(make_run(process="linear", objective="eps", time_sampling="uniform"), CPU)
    planned(run, SamplerConfig(steps=70, spacing="cosine"))
    with pytest.raises(UserError, match="--spacing cosine with --steps 80"):
        planned(
            run,
            SamplerConfig(
                steps=80, spacing="cosine", cfg_scale=2.0, guide=Path("not looked for yet")
            ),
        )
