"""Post-hoc EMA: averages are stored, resumed exactly, and computed within the printed error."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import PROPORTIONAL
from helpers import forked
from helpers.averages import step_weights
from safetensors.torch import load_file

from dit.cli import main
from dit.commands.ema import ema
from dit.commands.info import info
from dit.commands.train import train
from dit.config import EmaConfig, SamplerConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs import posthoc_ema as posthoc
from dit.runs.checkpoint_files import latest_checkpoint
from dit.runs.ema_profiles import gamma_of, inner_products
from dit.runs.posthoc_ema import FOLDER, file_name, find_snapshots, mixtures
from dit.runs.weights import read_header, read_weights, write_weights
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.sampling.protocol import protocol
from dit.training.ema import EMA, snapshot_every

STEPS = 48
TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=8,
    steps=STEPS,
    warmup=2,
    sample_every=0,
    ckpt_every=20,
    log_every=0,
    precision="fp32",
    ema_lengths=(0.1, 0.14, 0.2),
    ema_every=3,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small():
    """The smallest network there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", dict(depth=1, hidden_size=4, num_heads=1))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """A run (read it only), and its weights after every step, [steps, weights] in float64."""
    seen = []
    update = EMA.update

    def record_weights(self, network, step):
        seen.append(flat(network.state_dict()))
        update(self, network, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EMA, "update", record_weights)
        out = train(dataclasses.replace(TINY, out=tmp_path_factory.mktemp("run") / "run"), Ranks())
    return out, torch.stack(seen)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run with snapshots of two lengths, 0.1 and 0.2."""
    (tmp_path / "run" / FOLDER).mkdir(parents=True)
    for file in (trained[0] / FOLDER).glob("length-0.[12]-*"):
        (tmp_path / "run" / FOLDER / file.name).symlink_to(file)
    return tmp_path / "run"


def flat(state_dict: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state_dict[name].flatten() for name in sorted(state_dict)]).double()


def write_averages(run: Path, *lengths: float, **more: object) -> list[Path]:
    ema(EmaConfig(run=run, length=lengths, **more), Ranks())
    return sorted(run.glob("ema-length-*"))


# -- tracked and stored ----------------------------------------------------------------------------


@pytest.mark.portable
def test_snapshots_are_averages_of_the_weights_after_each_step(trained):
    run, trajectory = trained
    found = find_snapshots(run)
    assert [(s.length, s.step) for s in found] == [
        (n, 3 * i) for i in range(1, 17) for n in TINY.ema_lengths
    ]
    for snapshot in found:
        assert snapshot.file.name == file_name(snapshot.length, snapshot.step)
        weights = step_weights(gamma_of(snapshot.length), snapshot.step, STEPS)
        average = torch.tensor(weights) @ trajectory
        # float32: each step's update of an average rounds twice, by half an eps
        rounding = snapshot.step * 2**-23 * trajectory.abs().max()
        assert (flat(load_file(snapshot.file)) - average).abs().max() < rounding


def test_the_exponential_average_does_not_change(trained, tmp_path):
    config = dataclasses.replace(TINY, out=tmp_path / "run", ema_lengths=(), ema_every=None)
    run = train(config, Ranks())
    with_lengths, without = (
        load_file(latest_checkpoint(r) / "ema-0.999.safetensors") for r in (trained[0], run)
    )
    assert all(torch.equal(with_lengths[name], without[name]) for name in without)
    assert not (run / FOLDER).exists()
    (state,) = (latest_checkpoint(run) / "state").glob("*.safetensors")
    assert not [name for name in load_file(state) if name.startswith("ema-")]


def test_a_killed_run_has_the_same_snapshots(trained, tmp_path, monkeypatch):
    """Killed two snapshots after its checkpoint, which are removed like older leftovers."""
    asked = dataclasses.replace(TINY, out=tmp_path / "run", resume="auto")
    update = EMA.update

    def kill(self, network, step):
        if step == 33:
            raise KeyboardInterrupt
        update(self, network, step)

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", kill)
        with pytest.raises(KeyboardInterrupt):
            train(asked, Ranks())
    folder = tmp_path / "run" / FOLDER
    for file in (
        folder / file_name(0.1, 30),
        folder / f".{file_name(0.1, 33)}.123",
        folder / file_name(0.3, 21),
        tmp_path / "run" / f"ema-{file_name(0.1, 30)}",
    ):
        file.write_bytes(b"stale")
    train(asked, Ranks())
    whole, again = (
        {file.name: flat(load_file(file)) for file in f.glob(posthoc.ANY)}
        for f in (trained[0] / FOLDER, folder)
    )
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert posthoc.recorded_snapshots(tmp_path / "run").keys() == whole.keys()
    assert not list((tmp_path / "run").glob("ema-length-*"))


def train_small(ranks: Ranks, config: TrainConfig) -> None:
    SIZES["Ti"] = dict(depth=1, hidden_size=4, num_heads=1)
    torch.optim.AdamW = PROPORTIONAL
    train(config, ranks)


@pytest.mark.slow
@pytest.mark.portable
def test_ranks_with_shares_write_full_snapshots(tmp_path, monkeypatch):
    """Those of one process, up to the order of summation."""
    monkeypatch.setattr(torch.optim, "AdamW", PROPORTIONAL)
    config = dataclasses.replace(TINY, steps=4, lr=1.0, ema_lengths=(0.1,), compile=False)
    train(dataclasses.replace(config, out=tmp_path / "one"), Ranks())
    train(dataclasses.replace(config, out=tmp_path / "parts", grad_accum=4), Ranks())
    forked.run(2, train_small, dataclasses.replace(config, out=tmp_path / "two", parallel="fsdp"))
    one, parts, two = (find_snapshots(tmp_path / name) for name in ("one", "parts", "two"))
    assert [s.step for s in two] == [s.step for s in one] == [3, 4]
    for full, part, shared in zip(one, parts, two, strict=True):
        expected = flat(load_file(full.file))
        # what one process is off by that sums in another order
        rounding = (flat(load_file(part.file)) - expected).norm()
        assert rounding < 1e-6 * expected.norm()
        assert (flat(load_file(shared.file)) - expected).norm() < 4 * rounding


def test_lengths_stay_those_of_the_run_and_every_may_change(trained, tmp_path):
    asked = dataclasses.replace(TINY, out=tmp_path / "run", steps=6, cooldown=0.0)
    train(asked, Ranks())
    with pytest.raises(UserError, match=r"--ema-lengths 0.1 0.14 0.2 there, --ema-lengths 0.1 now"):
        train(dataclasses.replace(asked, resume="auto", steps=9, ema_lengths=(0.1,)), Ranks())
    train(dataclasses.replace(asked, resume="auto", steps=9, ema_every=1), Ranks())
    assert sorted({s.step for s in find_snapshots(tmp_path / "run")}) == [3, 6, 7, 8, 9]


def test_snapshots_come_a_32nd_of_the_steps_apart():
    assert snapshot_every(dataclasses.replace(TINY, ema_every=None), 6400) == 200
    assert snapshot_every(dataclasses.replace(TINY, ema_every=None), 20) == 1
    assert snapshot_every(dataclasses.replace(TINY, ema_every=7), 6400) == 7
    assert snapshot_every(TrainConfig(), 6400) == 0


def test_a_full_disk_leaves_no_partial_snapshot(tmp_path, monkeypatch):
    def full(file, *_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(posthoc, "write_weights", full)
    with pytest.raises(UserError, match=r"No space left.*--resume"):
        train(dataclasses.replace(TINY, out=tmp_path / "run", steps=3), Ranks())
    assert list((tmp_path / "run" / FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(ema_lengths=(0.3,)), "--ema-lengths 0.3"),
        (dict(ema_lengths=(0.0,)), "--ema-lengths 0"),
        (dict(ema_lengths=(float("nan"),)), "--ema-lengths nan"),
        (dict(ema_lengths=(0.05, 0.05)), "--ema-lengths 0.05 0.05"),
        (dict(ema_lengths=()), "--ema-every 3 without --ema-lengths"),
        (dict(ema_every=0), "--ema-every 0"),
    ],
)
def test_settings_without_meaning_are_refused(wrong, message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(TINY, **wrong)
    assert message in str(error.value)


# -- sums of snapshots -----------------------------------------------------------------------------


def test_a_length_is_that_of_tracking_it_within_the_printed_error(run, trained, capsys):
    (file,) = write_averages(run, 0.14)
    home, trajectory = trained
    (mixture,) = mixtures(run, [0.14])
    fit = f"length 0.14 at step 48: error of the fit {100 * mixture.error:.2g}%"
    assert f"{fit}, 32 snapshots of lengths 0.1, 0.2" in capsys.readouterr().out
    assert 1e-4 < mixture.error < 0.01
    reconstructed, tracked = (
        flat(load_file(file)),
        flat(load_file(home / FOLDER / file_name(0.14, STEPS))),
    )
    norm = inner_products(STEPS, gamma_of(0.14), STEPS, gamma_of(0.14)) ** 0.5
    spread = (trajectory - trajectory.mean(0)).norm(dim=0)
    assert ((reconstructed - tracked).abs() <= mixture.error * norm * spread + 1e-6).all()
    others = (flat(load_file(home / FOLDER / file_name(length, STEPS))) for length in (0.1, 0.2))
    assert all(
        (reconstructed - tracked).norm() < 0.01 * (other - tracked).norm() for other in others
    )


@pytest.mark.parametrize("step", [STEPS, 24])
def test_a_tracked_length_is_the_snapshot(run, step):
    files = write_averages(run, 0.2, 0.1, step=step)
    for file, length in zip(files, (0.1, 0.2), strict=True):
        ours, tracked = load_file(file), load_file(run / FOLDER / file_name(length, step))
        assert ours.keys() == tracked.keys()
        assert all(torch.allclose(ours[name], tracked[name], rtol=1e-6, atol=1e-8) for name in ours)
        assert read_header(file)[1] == step


def test_an_average_can_be_sampled_and_is_named(run):
    (file,) = write_averages(run, 0.14)
    weights = read_weights(file)
    assert (weights.card.ema_length, weights.card.average, weights.step) == (
        0.14,
        "length 0.14",
        STEPS,
    )
    assert weights.home == run
    loaded, setting = load_run(file, CPU), SamplerConfig(steps=2)
    assert protocol(build_pipeline(loaded, setting, [0]))["ema"] == "length 0.14"
    assert "length 0.14" in info(file)
    assert main(["sample", "--run", str(file), "--steps", "2", "--per-class", "1"]) == 0
    assert (
        len([*(run / "samples").glob("grid-step-0000048-ema-0.14-dpmpp_2m-2-cfg-1-seed-0-*.png")])
        == 1
    )


def test_info_counts_snapshots(trained, run):
    assert "lengths 0.1 0.14 0.2; 48 snapshots, the last at step 48" in info(trained[0])
    assert "averages" not in info(latest_checkpoint(trained[0]))


def test_one_tensor_of_one_file_at_a_time(run, monkeypatch):
    """Each is read when it is added, and never all of a file."""
    read, real = [], posthoc.safe_open

    class Spy:
        def __init__(self, file, framework):
            self.file, self.opened = file.name, real(file, framework=framework)

        def __enter__(self):
            self.opened.__enter__()
            return self

        def __exit__(self, *error):
            self.opened.__exit__(*error)

        def keys(self):
            return self.opened.keys()

        def get_tensor(self, name):
            read.append((name, self.file))
            return self.opened.get_tensor(name)

    monkeypatch.setattr(posthoc, "safe_open", Spy)
    (mixture,) = mixtures(run, [0.14])
    names = list(mixture.weights())
    assert [name for name, _ in read] == [name for name in names for _ in range(32)]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ("nowhere --ema-lengths 0.1", ["no snapshots of averages in nowhere/ema", "--ema-lengths"]),
        (
            "RUN --ema-lengths 0.01",
            ["length 0.01 at step 48", "error of the fit", "10% at most, which lengths from 0.0"],
        ),
        ("RUN --ema-lengths 0.1 --step 10", ["--step 10", "such as 6, 9, 12"]),
        ("RUN --ema-lengths 0.3", ["--ema-lengths 0.3", "below 0.2887"]),
        ("RUN --ema-lengths 0.1 0.15 --out x.safetensors", ["--out x.safetensors with 2 lengths"]),
        ("RUN --ema-lengths 0.1 --out x.pt", ["--out x.pt", ".safetensors"]),
        ("RUN", ["--ema-lengths"]),
    ],
)
def test_mistakes(run, argv, parts, capsys):
    assert main(["ema", *argv.replace("RUN", str(run)).split()]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for part in parts:
        assert part in printed
    assert not list(run.glob("ema-length-*"))


def test_nothing_is_overwritten(run, tmp_path):
    before = write_averages(run, 0.14)[0].stat()
    with pytest.raises(UserError, match="is there already"):
        write_averages(run, 0.15, 0.14)
    assert [file.stat() for file in run.glob("ema-length-*")] == [before]
    write_averages(run, 0.14, out=tmp_path / "more" / "x.safetensors")
    assert read_header(tmp_path / "more" / "x.safetensors")[0].ema_length == 0.14


@pytest.mark.parametrize("damage", ["cut", "network", "tensors"])
def test_a_snapshot_that_does_not_fit_is_named(run, damage):
    file = run / FOLDER / file_name(0.1, 24)
    content, (card, step), weights = file.read_bytes(), read_header(file), load_file(file)
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-9])
    elif damage == "network":
        other = dataclasses.replace(card.network, num_classes=3)
        write_weights(file, weights, dataclasses.replace(card, network=other), step)
    else:
        del weights["pos_embed"]
        write_weights(file, weights, card, step)
    with pytest.raises(UserError, match=file.name):
        write_averages(run, 0.14)
    assert not list(run.glob("ema-length-*"))
