"""Training: exact resume after a kill, clean stops, and faults that lose nothing."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import Command, torchrun
from safetensors.torch import load_file, save_file
from test_autoencoder import save_tiny

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import WEIGHTS
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoints import (
    checkpoint_step,
    checkpoints,
    find_weights,
    latest_checkpoint,
    verify_checkpoint,
)
from dit.runs.metrics import read_metrics
from dit.runs.posthoc_ema import find_snapshots
from dit.sampling.load import load_run
from dit.training.batches import read_batch
from dit.training.ema import EMA
from dit.training.lr_schedule import learning_rate, total_steps
from dit.training.monitoring.metrics import MetricsLog
from dit.training.prepare import prepare
from dit.training.running_means import RunningMeans
from dit.training.session import TrainingSession
from dit.utils.files import sha256, write_atomically, write_json

pytestmark = pytest.mark.usefixtures("small_networks")
TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=6,
    warmup=2,
    sample_every=0,
    ckpt_every=0,
    log_every=2,
    precision="fp32",
)
FLAGS = [
    "--model",
    "DiT-Ti/4",
    "--vae",
    "identity",
    "--image-size",
    "8",
    "--global-batch-size",
    "16",
    "--sample-every",
    "0",
    "--log-every",
    "3",
]


def start(*flags: object) -> Command:
    return Command("train", *FLAGS, *flags)


def run(*flags: object) -> tuple[int | None, str, str]:
    return start(*flags).end()


def error_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def wait_for(path: Path, command: Command) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert command.process.is_alive(), command.end()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)


def all_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{f.parent.name}:{k}": v
        for f in checkpoint.rglob("*.safetensors")
        for k, v in load_file(f).items()
    }


def assert_same_run(a: Path, b: Path) -> None:
    left, right = all_tensors(latest_checkpoint(a)), all_tensors(latest_checkpoint(b))
    assert left.keys() == right.keys()
    assert {"network", "ema", "optimizer"} <= {k.split(":")[1].split(".")[0] for k in left}
    assert [k for k in left if not torch.equal(left[k], right[k])] == []
    logs = [
        [(m["step"], m["loss"], m["grad_norm"]) for m in read_metrics(r / "metrics.jsonl")]
        for r in (a, b)
    ]
    assert logs[0] == logs[1]
    assert logs[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 100 steps that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = run("--steps", 100, "--ckpt-every", 10, "--keep", 5, "--out", out)
    assert code == 0, err
    return out


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(whole, tmp_path):
    out = tmp_path / "run"
    flags = ("--steps", 100, "--ckpt-every", 10, "--keep", 5, "--out", out, "--resume", "auto")
    command = start(*flags)
    wait_for(out / "checkpoints" / "step-0000010", command)
    command.process.kill()
    assert command.end()[0] == -signal.SIGKILL
    assert 10 <= checkpoint_step(latest_checkpoint(out)) < 100
    code, _, err = run(*flags)
    assert code == 0, err
    assert_same_run(whole, out)


@pytest.mark.slow
def test_resuming_by_name_takes_the_settings_of_the_run(tmp_path):
    out = tmp_path / "run"
    assert run("--steps", 10, "--ckpt-every", 10, "--out", out, "--cooldown", 0)[0] == 0
    code, _, err = Command("train", "--resume", out, "--steps", 12).end()
    assert code == 0, err
    assert latest_checkpoint(out).name == "step-0000012"
    assert [m["step"] for m in read_metrics(out / "metrics.jsonl")] == [3, 6, 9, 10, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_cleanly(number, tmp_path):
    out = tmp_path / "run"
    command = start("--steps", 100_000, "--ckpt-every", 0, "--log-every", 10_000, "--out", out)
    wait_for(out / "tensorboard", command)
    time.sleep(0.5)
    os.kill(command.process.pid, number)
    code, text, err = command.end()
    assert code == 0, err
    assert f"--resume {out}" in text
    verify_checkpoint(latest_checkpoint(out))


def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    out = tmp_path / "run"
    flags = (
        "--ckpt-every",
        2,
        "--warmup",
        0,
        "--cooldown",
        0,
        "--clip",
        0,
        "--steps",
        60,
        "--out",
        out,
    )
    code, _, err = run("--lr", "1e36", "--on-divergence", "stop", *flags)
    assert code == 2
    message = error_line(err)
    bad = int(message.split("at step ")[1].split(";")[0])
    good = latest_checkpoint(out)
    assert str(good) in message if good else "no checkpoint was written" in message
    assert all(int(c.name.removeprefix("step-")) < bad for c in checkpoints(out))
    assert all(t.isfinite().all() for c in checkpoints(out) for t in all_tensors(c).values())


def test_full_disk_leaves_the_previous_checkpoint(tmp_path):
    out = tmp_path / "run"
    assert run("--steps", 4, "--out", out)[0] == 0
    code, _, err = Command("train", "--resume", out, "--steps", 8, limit=2**17).end()
    assert code == 2, err
    assert f"{out}/checkpoints/step-0000004 is intact" in error_line(err)
    assert [c.name for c in checkpoints(out)] == ["step-0000004"]
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-0000004"]
    verify_checkpoint(latest_checkpoint(out))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_checkpoint_is_named(damage, tmp_path):
    out = train(dataclasses.replace(TINY, out=tmp_path / "run"), Ranks())
    file = next(latest_checkpoint(out).glob("state/*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    changed = {"truncated": bytes(content[:-100]), "flipped": bytes(content)}.get(damage)
    file.unlink() if changed is None else file.write_bytes(changed)
    with pytest.raises(UserError, match=file.name):
        train(dataclasses.replace(TINY, out=out, resume=str(out), steps=8), Ranks())


def test_existing_run_needs_resume_and_the_same_configuration(tmp_path):
    first = dataclasses.replace(TINY, out=tmp_path / "run")
    train(first, Ranks())
    before = sorted(p for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="--resume"):
        train(first, Ranks())
    with pytest.raises(UserError, match=r"lr 0.004 there, 0.001 now"):
        train(dataclasses.replace(first, lr=1e-3, resume="auto"), Ranks())
    with pytest.raises(UserError, match=r"seed 0 there, 1 now"):
        train(dataclasses.replace(first, seed=1, resume=str(first.out)), Ranks())
    assert sorted(p for p in (tmp_path / "run").rglob("*")) == before


def test_resuming_by_name_may_change_the_optimisation(tmp_path, capsys):
    out = train(dataclasses.replace(TINY, out=tmp_path / "run"), Ranks())
    (out / "config.json").unlink()
    (out / "machine.json").write_text("")
    (out / "checkpoints" / "step-0000007").mkdir()
    again = dataclasses.replace(TINY, out=out, resume=str(out), steps=8, lr=1e-3)
    train(again, Ranks())
    said = capsys.readouterr()
    assert "changed     steps 6 before, 8 now; lr 0.004 before, 0.001 now\n" in said.out
    for warning in (
        "config.json is missing or damaged; restored from step-0000006",
        "step-0000007 has no meta.json",
        "machine.json is damaged",
    ):
        assert said.err.count(warning) == 1
    assert latest_checkpoint(out).name == "step-0000008"
    assert ModelCard.read(out).config.lr == 1e-3
    (out / "config.json").unlink()
    train(again, Ranks())
    assert ModelCard.read(out).config.lr == 1e-3
    values = ModelCard.read(out).to_json()
    write_json(out / "config.json", {**values, "config": {**values["config"], "seed": 1}})
    with pytest.raises(
        UserError, match=r"config.json is not that of step-0000008 \(seed 0 before, 1 now\)"
    ):
        train(dataclasses.replace(again, seed=1, steps=9), Ranks())


def test_one_process_a_run_directory(tmp_path):
    with Ranks().alone_in(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        train(dataclasses.replace(TINY, out=tmp_path / "run"), Ranks())


@pytest.mark.parametrize("wrong", [dict(resume="auto"), dict(resume="one", out=Path("other"))])
def test_resume_and_out_must_agree(wrong):
    with pytest.raises(UserError, match="--out"):
        train(dataclasses.replace(TINY, **wrong), Ranks())


def test_a_run_without_checkpoint_starts_again(tmp_path):
    out = tmp_path / "run"
    train(dataclasses.replace(TINY, out=out, steps=2), Ranks())
    shutil.rmtree(out / "checkpoints")
    (out / "samples").mkdir()
    (out / "samples" / "step-0000900.png").write_bytes(b"stale")
    (out / "metrics.jsonl").write_text('{"step": 900, "loss": 1.0}\n')
    train(dataclasses.replace(TINY, out=out), Ranks())
    assert [m["step"] for m in read_metrics(out / "metrics.jsonl")] == [2, 4, 6]
    assert not (out / "samples" / "step-0000900.png").exists()


@pytest.mark.parametrize(
    "wrong", [dict(model="DiT-X/4"), dict(model="DiT-Ti/8", image_size=12), dict(init=Path("no"))]
)
def test_a_mistake_leaves_no_run_directory(wrong, tmp_path):
    with pytest.raises(UserError):
        train(dataclasses.replace(TINY, out=tmp_path / "run", **wrong), Ranks())
    assert not (tmp_path / "run").exists()


def test_resume_from_nothing(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        train(
            dataclasses.replace(TINY, out=tmp_path / "run", resume=str(tmp_path / "run")), Ranks()
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("world", "grad_accum", "said"), [(3, 1, "16 on 3 ranks with"), (1, 5, "16 on 1 rank with")]
)
def test_batch_that_ranks_do_not_divide(world, grad_accum, said):
    with pytest.raises(UserError, match=f"--global-batch-size {said}"):
        train(dataclasses.replace(TINY, grad_accum=grad_accum), Ranks(world=world))


def test_dry_run_writes_nothing(tmp_path, capsys):
    train(dataclasses.replace(TINY, out=tmp_path / "run", dry_run=True), Ranks())
    printed = capsys.readouterr().out
    for words in ("parameters", "multiply-adds", "GiB", "4 tokens", "1,797 images", "lr 0.004"):
        assert words in printed
    assert not (tmp_path / "run").exists()


def test_keep_removes_the_oldest(tmp_path):
    out = train(dataclasses.replace(TINY, out=tmp_path / "run", ckpt_every=2, keep=2), Ranks())
    assert [c.name for c in checkpoints(out)] == ["step-0000004", "step-0000006"]


def test_never_means_never(tmp_path):
    out = train(dataclasses.replace(TINY, out=tmp_path / "run", log_every=0), Ranks())
    assert read_metrics(out / "metrics.jsonl") == []
    assert not (out / "samples").exists()


def test_previews_and_strip(tmp_path):
    out = train(dataclasses.replace(TINY, out=tmp_path / "run", steps=4, sample_every=2), Ranks())
    names = {p.name for p in (out / "samples").iterdir()}
    assert names == {"step-0000002.png", "step-0000004.png", "strip.png", "strip.gif"}


def a_session(tmp_path: Path, ranks: Ranks | None = None, **changes: object) -> TrainingSession:
    from dit.encoders.autoencoder import load_autoencoder
    from dit.latents.load import build_source
    from dit.training.card import build_card

    config = dataclasses.replace(TINY, out=tmp_path / "session", **changes)
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    return prepare(build_card(config, source), source, autoencoder, ranks or Ranks())


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path):
    runs = [
        train(dataclasses.replace(TINY, out=tmp_path / str(n), grad_accum=n, steps=3), Ranks())
        for n in (1, 4)
    ]
    a, b = (all_tensors(latest_checkpoint(r)) for r in runs)
    worst = max((a[k] - b[k]).abs().max().item() for k in a if "exp_avg" in k or "grad" in k)
    assert worst < 1e-5


def test_ranks_see_the_same_batch_as_one(tmp_path):
    session = a_session(tmp_path)
    whole = read_batch(session.stream, 3)
    streams = [dataclasses.replace(session.stream, ranks=Ranks(rank, 4)) for rank in range(4)]
    parts = [read_batch(stream, 3) for stream in streams]
    for i, name in enumerate(whole._fields):
        assert torch.equal(torch.cat([p[i] for p in parts]), whole[i]), name
    assert not torch.equal(whole.t, read_batch(session.stream, 4).t)


def test_labels_are_dropped_as_often_as_asked(tmp_path):
    session = a_session(tmp_path, label_dropout=0.3, global_batch_size=256)
    dropped = (
        torch.cat([read_batch(session.stream, s).labels == 10 for s in range(40)]).float().mean()
    )
    assert abs(dropped - 0.3) < 0.015


def test_digits_are_never_flipped(tmp_path):
    assert not a_session(tmp_path).source.flips


def test_a_run_starts_from_the_weights_of_another_with_other_classes(tmp_path):
    first = train(dataclasses.replace(TINY, out=tmp_path / "first", num_classes=12), Ranks())
    session = a_session(tmp_path, init=first)
    ours, theirs = session.state.network.state_dict(), load_file(find_weights(first))
    table = "y_embedder.embedding_table.weight"
    assert [k for k in ours if k != table and not torch.equal(ours[k], theirs[k])] == []
    assert ours[table].shape[0] == 11
    assert torch.equal(ours[table][10], theirs[table][12])
    with pytest.raises(
        UserError, match=r"--init .* has a network of model DiT-Ti/4, not DiT-Ti/2; expected"
    ):
        a_session(tmp_path / "other", init=first, model="DiT-Ti/2")


def test_an_autoencoder_is_found_from_anywhere_and_no_other_takes_its_place(tmp_path, monkeypatch):
    save_tiny(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(TINY, vae="vae", image_size=16, steps=2, out=tmp_path / "run")
    train(config, Ranks())
    monkeypatch.chdir("/")
    loaded = load_run(config.out, torch.device("cpu"))
    assert (
        loaded.card.vae_sha256 == sha256(tmp_path / "vae" / WEIGHTS) == loaded.autoencoder.checksum
    )
    again = dataclasses.replace(config, resume="auto", steps=4)
    (tmp_path / "vae").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"--vae .* is not a folder; .* was trained with it; .* \(ln -s NOW"
    ):
        load_run(config.out, torch.device("cpu"))
    weights = load_file(save_tiny(tmp_path / "vae") / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "vae" / WEIGHTS)
    for attempt in (
        lambda: load_run(config.out, torch.device("cpu")),
        lambda: train(dataclasses.replace(again, vae=str(tmp_path / "vae")), Ranks()),
    ):
        with pytest.raises(
            UserError, match=r"--vae .* with SHA-256 .* expected .*was trained with; put"
        ):
            attempt()
    train(dataclasses.replace(again, vae=str(tmp_path / "moved")), Ranks())
    assert load_run(config.out, torch.device("cpu")).card.config.vae == str(tmp_path / "moved")


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    config = dataclasses.replace(TINY, steps=1, out=tmp_path / "a run")
    train(config, Ranks())
    before = {file: file.read_bytes() for file in config.out.glob("*.json*")}
    capsys.readouterr()
    train(dataclasses.replace(config, resume=str(config.out), lr=2.0), Ranks())
    assert "all 1 steps were done before" in (said := capsys.readouterr().out)
    assert "such as --steps 2" in said
    assert f"dit report '{config.out}'\n" in said
    assert said.endswith(f"python sample.py --run '{config.out}'\n")
    assert {file: file.read_bytes() for file in config.out.glob("*.json*")} == before


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/proc/x", "--out /proc/x can not be written to"),
        ("file/x", "--out file/x lies in .*file, a file"),
        ("file", "--out file is a file"),
        ("images", "--out images is no run and holds other files, as a.png"),
        ("vae", "--out vae is no run and holds other files, as config.json"),
    ],
)
def test_a_place_where_no_run_can_be_is_refused(tmp_path, monkeypatch, place, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: path != Path("/proc"))
    for file in ("file", "images/a.png", "vae/config.json"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("{}")
    monkeypatch.setattr(
        "dit.training.inputs.load_autoencoder", None
    )  # told before anything is loaded
    for dry_run in (False, True):
        with pytest.raises(UserError, match=said):
            train(dataclasses.replace(TINY, out=Path(place), dry_run=dry_run), Ranks())
    assert sum(file.is_file() for file in tmp_path.rglob("*")) == 3


@pytest.mark.slow
def test_two_ranks_train_and_resume(tmp_path):
    out = tmp_path / "run"
    for steps in (4, 8):
        torchrun(
            "train.py",
            *FLAGS,
            "--out",
            out,
            "--resume",
            "auto",
            "--ckpt-every",
            4,
            "--cooldown",
            0,
            "--steps",
            steps,
            "--ema-lengths",
            0.1,
            "--ema-every",
            3,
        )
    assert latest_checkpoint(out).name == "step-0000008"
    assert [snapshot.step for snapshot in find_snapshots(out)] == [3, 4, 6, 8]
    verify_checkpoint(latest_checkpoint(out))
    losses = [m["loss"] for m in read_metrics(out / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_loss_falls(tmp_path):
    out = train(dataclasses.replace(TINY, out=tmp_path / "run", steps=60, log_every=20), Ranks())
    losses = [m["loss"] for m in read_metrics(out / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


def test_learned_variance_trains(tmp_path):
    out = train(
        dataclasses.replace(
            TINY,
            out=tmp_path / "run",
            process="linear",
            objective="eps",
            learn_sigma=True,
            min_snr_gamma=5.0,
        ),
        Ranks(),
    )
    assert {"mse", "vb"} <= read_metrics(out / "metrics.jsonl")[-1].keys()


def test_ema_follows_with_warm_up():
    network = torch.nn.Linear(2, 2)
    ema = EMA(network, 0.5)
    with torch.no_grad():
        start = network.weight.clone()
        network.weight.add_(1)
    ema.update(network, step=1)
    assert torch.allclose(ema.network.weight, start + (1 - 2 / 11))
    for _ in range(20):
        ema.update(network, step=1000)
    assert torch.allclose(ema.network.weight, network.weight, atol=1e-5)


def test_learning_rate_rises_holds_and_falls():
    config = dataclasses.replace(TINY, lr=1.0, warmup=10, cooldown=0.5)
    rates = [learning_rate(config, s, 100) for s in range(100)]
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[15:45] == [1.0] * 30
    assert all(a > b for a, b in zip(rates[50:], rates[51:], strict=False))
    assert 0 < rates[-1] < 0.03
    constant = dataclasses.replace(config, cooldown=0.0, warmup=0)
    assert {learning_rate(constant, s, 100) for s in range(100)} == {1.0}


def test_epochs_become_steps():
    assert total_steps(dataclasses.replace(TINY, epochs=2.0), 100) == 13


def test_window_means_the_steps_that_were_taken():
    window = RunningMeans(("loss",), torch.device("cpu"))
    for value, left_out in [(1.0, 0.0), (float("nan"), 1.0), (3.0, 0.0)]:
        window.add([torch.tensor(value)], torch.tensor(left_out))
    assert window.compute_and_reset(Ranks()) == {"loss": 2.0}
    assert window.compute_and_reset(Ranks()) == {}


def test_metrics_lines_cut_short_are_left_out(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert [m["step"] for m in read_metrics(file)] == [1]
    file.write_text('{"step": 1}\n{"step": 2}')
    assert [m["step"] for m in read_metrics(file)] == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = object.__new__(MetricsLog)
    log.file = tmp_path / "metrics.jsonl"
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        log.event(1, {})
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*config\.json'"),
        write_atomically(tmp_path / "config.json"),
        open("/dev/full", "w") as full,
    ):
        full.write("{}")


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "lo#####1}',
        b"\xff\xfe{}",
        bytes(9),
        b"12",
        b"",
        b"\r{}",
        b'{"loss": 1}',
        b'{"step": "2"}',
    ],
)
def test_a_damaged_line_of_metrics_is_named_and_costs_no_other(line, tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    whole = [b'{"step": %d, "loss": 0.5}\n' % step for step in range(1, 6)]
    file.write_bytes(b"".join([whole[0], line + b"\n", *whole[2:]]))
    MetricsLog(tmp_path, start=4)
    assert file.read_bytes() == b"".join([whole[0], *whole[2:4]])
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{file}, line 2, is damaged" in said
