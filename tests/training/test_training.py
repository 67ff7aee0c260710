"""Training: exact resume after a kill, clean stops, and faults that lose nothing."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import Command, torchrun
from helpers.autoencoders import save_tiny
from helpers.training import TINY, a_session, differing, logged, resume, run, tensors
from safetensors.torch import load_file, save_file

from dit.commands.train import train
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import WEIGHTS
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import (
    checkpoint_step,
    checkpoints,
    find_weights,
    latest_checkpoint,
    verify_checkpoint,
)
from dit.runs.logs import read_metrics
from dit.runs.posthoc_ema import find_snapshots
from dit.sampling.load import load_run
from dit.training.batches import read_batch
from dit.training.checks import check_and_find_checkpoint
from dit.training.lr_schedule import learning_rate, note_warmup, total_steps, warmup_steps
from dit.training.monitoring.log import MetricsLog
from dit.training.running_means import RunningMeans
from dit.utils.files import sha256, write_atomically, write_json

pytestmark = pytest.mark.usefixtures("small_networks")
FLAGS = shlex.split(
    "--model DiT-Ti/4 --vae identity --image-size 8 --batch-size 16 --sample-every 0 --log-every 3"
)
CPU = torch.device("cpu")


# -- the command -----------------------------------------------------------------------------------


def start(*flags: object) -> Command:
    return Command("train", *FLAGS, *flags)


def command(*flags: object) -> None:
    code, _, err = start(*flags).end()
    assert code == 0, err


def wait_for(path: Path, command: Command) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert command.process.is_alive(), command.end()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tmp_path):
    flags = ("--steps", 100, "--ckpt-every", 10, "--keep", 5)
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    command(*flags, "--out", undisturbed)
    killed = start(*flags, "--out", out, "--resume", "auto")
    wait_for(out / "checkpoints" / "step-0000010", killed)
    killed.process.kill()
    assert killed.end()[0] == -signal.SIGKILL
    assert 10 <= checkpoint_step(latest_checkpoint(out)) < 100

    command(*flags, "--out", out, "--resume", "auto")
    left, right = (tensors(latest_checkpoint(folder)) for folder in (undisturbed, out))
    assert {"network", "ema", "optimizer"} <= {k.split(":")[1].split(".")[0] for k in left}
    assert differing(left, right) == []
    log = logged(out, "step", "loss", "grad_norm")
    assert log == logged(undisturbed, "step", "loss", "grad_norm")
    assert len(log) == 34


@pytest.mark.slow
def test_resuming_by_name_takes_the_settings_of_the_run(tmp_path):
    out = tmp_path / "run"
    command("--steps", 10, "--ckpt-every", 10, "--out", out, "--cooldown", 0)
    code, _, err = Command("train", "--resume", out, "--steps", 12).end()
    assert code == 0, err
    assert latest_checkpoint(out).name == "step-0000012"
    assert logged(out, "step") == [(3,), (6,), (9,), (10,), (12,)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_cleanly(number, tmp_path):
    out = tmp_path / "run"
    running = start("--steps", 100_000, "--ckpt-every", 0, "--log-every", 10_000, "--out", out)
    wait_for(out / "tensorboard", running)
    time.sleep(0.5)
    os.kill(running.process.pid, number)
    code, text, err = running.end()
    assert code == 0, err
    assert f"--resume {out}" in text
    verify_checkpoint(latest_checkpoint(out))


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    out = tmp_path / "run"
    flags = ("--lr", "1e36", "--warmup", 0, "--cooldown", 0, "--clip", 0, "--steps", 60)
    stop = ("--on-divergence", "stop", "--ckpt-every", 1, "--keep", 60, "--out", out)
    code, _, err = start(*flags, *stop).end()
    assert code == 2
    (message,) = [line for line in err.splitlines() if line.startswith("error: ")]
    bad = int(re.search(r"at step (\d+)", message)[1])
    last = latest_checkpoint(out)
    assert last
    assert str(last) in message
    assert checkpoint_step(last) < bad
    weights = [load_file(find_weights(checkpoint)) for checkpoint in checkpoints(out)]
    assert all(tensor.isfinite().all() for tensors in weights for tensor in tensors.values())


def test_weights_that_end_infinite_are_not_written(tmp_path):
    flags = dict(out=tmp_path / "run", warmup=0, cooldown=0)
    overflow = dict(steps=2, lr=1e38, weight_decay=10.0, ckpt_every=0)
    with pytest.raises(UserError, match=r"NaN or infinite .*not written: start again with a lower"):
        run(**flags, **{**overflow, "steps": 1})
    good = latest_checkpoint(run(**flags, steps=1))
    with pytest.raises(UserError, match=rf"step-0000002 has NaN .*continue from {good}, which is"):
        run(**flags, **overflow, resume=str(tmp_path / "run"))
    assert checkpoints(tmp_path / "run") == [good]
    assert verify_checkpoint(good)["step"] == 1


def test_checkpoints_at_multiples_are_kept_beside_the_newest(tmp_path):
    out = run(tmp_path / "run", steps=12, ckpt_every=2, keep=2, keep_every=4)
    assert [checkpoint_step(checkpoint) for checkpoint in checkpoints(out)] == [4, 8, 10, 12]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    out = tmp_path / "run"
    command("--steps", 4, "--out", out)
    code, _, err = Command("train", "--resume", out, "--steps", 8, limit=2**17).end()
    assert code == 2, err
    (message,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "Traceback" not in err
    assert f"{out}/checkpoints/step-0000004 is intact" in message
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000004"]
    verify_checkpoint(latest_checkpoint(out))


@pytest.mark.slow
def test_two_ranks_train_and_resume(tmp_path):
    out = tmp_path / "run"
    flags = shlex.split("--resume auto --ckpt-every 4 --cooldown 0 --ema-lengths 0.1 --ema-every 3")
    for steps in (4, 8):
        torchrun("train.py", *FLAGS, *flags, "--out", out, "--steps", steps)
    assert latest_checkpoint(out).name == "step-0000008"
    assert [snapshot.step for snapshot in find_snapshots(out)] == [3, 4, 6, 8]
    verify_checkpoint(latest_checkpoint(out))
    losses = logged(out, "loss")
    assert losses[-1] < losses[0]


# -- run directories -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    out = run(tmp_path / "run")
    file = next(latest_checkpoint(out).glob("state/*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    changed = {"truncated": bytes(content[:-100]), "flipped": bytes(content)}.get(damage)
    file.unlink() if changed is None else file.write_bytes(changed)
    with pytest.raises(UserError, match=file.name):
        resume(out, steps=8)


def test_an_existing_run_needs_resume_and_the_same_configuration(tmp_path):
    out = run(tmp_path / "run")
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match="--resume"):
        run(out)
    with pytest.raises(UserError, match=r"--lr 0.004 there, --lr 0.001 now"):
        resume(out, lr=1e-3)
    with pytest.raises(UserError, match=r"--seed 0 there, --seed 1 now"):
        run(out, seed=1, resume=str(out))
    assert sorted(out.rglob("*")) == before


def test_resuming_by_name_may_change_the_optimisation(tmp_path, capsys):
    out = run(tmp_path / "run")
    (out / "config.json").unlink()
    (out / "machine.json").write_text("")
    (out / "checkpoints" / "step-0000007").mkdir()
    again = dataclasses.replace(TINY, resume=str(out), steps=8, lr=1e-3)
    run(out, again)
    printed = capsys.readouterr()
    assert (
        "changed     --steps 6 before, --steps 8 now; --lr 0.004 before, --lr 0.001 now\n"
        in printed.out
    )
    for warning in (
        "config.json is missing or damaged; restored from step-0000006",
        "step-0000007 has no meta.json",
        "machine.json is missing or damaged",
    ):
        assert printed.err.count(warning) == 1
    assert latest_checkpoint(out).name == "step-0000008"
    assert ModelCard.read(out).config.lr == 1e-3

    (out / "config.json").unlink()
    run(out, again)
    assert ModelCard.read(out).config.lr == 1e-3

    values = ModelCard.read(out).to_json()
    write_json(out / "config.json", {**values, "config": {**values["config"], "seed": 1}})
    changed = r"config.json is not that of step-0000008 \(--seed 0 before, --seed 1 now\)"
    with pytest.raises(UserError, match=changed):
        run(out, again, seed=1, steps=9)


def test_one_process_a_run_directory(tmp_path):
    with Ranks().lock_folder(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        run(tmp_path / "run")


def test_a_run_without_checkpoint_starts_again(tmp_path):
    out = run(tmp_path / "run", steps=2)
    shutil.rmtree(out / "checkpoints")
    (out / "samples").mkdir()
    (out / "samples" / "step-0000900.png").write_bytes(b"stale")
    (out / "metrics.jsonl").write_text('{"step": 900, "loss": 1.0}\n')
    run(out)
    assert logged(out, "step") == [(2,), (4,), (6,)]
    assert not (out / "samples" / "step-0000900.png").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(model="DiT-X/4"), "DiT-X/4"),
        (dict(model="DiT-Ti/8", image_size=12), "multiple of 8"),
        (dict(init=Path("no")), "no"),
        (dict(resume="RUN"), "no checkpoint"),
        (dict(resume="one"), "--out"),
        (dict(resume="auto", out=None), "--out"),
        (dict(grad_accum=5), "--batch-size 16 on 1 rank with"),
        (dict(block="plain-rope"), "plain has no rope: drop -rope"),
    ],
)
def test_a_mistake_leaves_no_run_directory(wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(TINY, **{"out": Path("RUN"), **wrong}), Ranks())
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_ranks_do_not_divide():
    with pytest.raises(UserError, match="--batch-size 16 on 3 ranks with"):
        check_and_find_checkpoint(TINY, Ranks(world=3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(init=Path("nope")), "no checkpoint in nope"),
        (dict(init=Path("text.md")), "text.md"),
        (dict(align="/nope"), "--align /nope is not a folder; .*; check the path"),
        (dict(align="selfie"), r"--align selfie is not a folder; .*; did you mean self\?"),
        (dict(align="."), "--align . has no config.json"),
        (
            dict(conditioning="text", text_encoder="nope", num_classes=None),
            "--text-encoder nope is not a folder",
        ),
    ],
)
def test_networks_that_are_not_there_are_named_before_data_are_read(
    wrong, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("text.md").write_text("no weights")
    config = dataclasses.replace(TINY, out=Path("RUN"), **wrong)
    with pytest.raises(UserError, match=message):
        check_and_find_checkpoint(config, Ranks())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/proc/x", "--out /proc/x cannot be written to"),
        ("file/x", "--out file/x lies in .*file, a file"),
        ("file", "--out file is a file"),
        ("images", "--out images holds a.png and no config.json of a run"),
        ("vae", "--out vae holds config.json and no config.json of a run"),
    ],
)
def test_a_place_where_no_run_can_be_is_refused(tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: path != Path("/proc"))
    for file in ("file", "images/a.png", "vae/config.json"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("{}")
    monkeypatch.setattr("dit.training.inputs.load_autoencoder", None)  # nothing is loaded before
    for dry_run in (False, True):
        with pytest.raises(UserError, match=message):
            run(Path(place), dry_run=dry_run)
    assert sum(file.is_file() for file in tmp_path.rglob("*")) == 3


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(dataclasses.replace(TINY, dry_run=True), Ranks())
    train(dataclasses.replace(TINY, out=tmp_path / "run", dry_run=True), Ranks())
    printed = capsys.readouterr().out
    for words in ("parameters", "multiply-adds", "GiB", "4 tokens", "1,797 images", "lr 0.004"):
        assert words in printed
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_stays_unchanged(tmp_path, capsys):
    config = dataclasses.replace(TINY, steps=1, out=tmp_path / "a run")
    train(config, Ranks())
    before = {file: file.read_bytes() for file in config.out.glob("*.json*")}
    capsys.readouterr()
    train(dataclasses.replace(config, resume=str(config.out), lr=2.0), Ranks())
    assert "all 1 steps were done before: nothing was" in (printed := capsys.readouterr().out)
    assert "such as --steps 2" in printed
    assert f"dit report '{config.out}'\n" in printed
    assert printed.endswith(f"dit sample --run '{config.out}' --cfg-scale 1.5\n")
    assert {file: file.read_bytes() for file in config.out.glob("*.json*")} == before

    (config.out / "config.json").write_text("{")
    train(dataclasses.replace(config, resume=str(config.out)), Ranks())
    assert (config.out / "config.json").read_bytes() == before[config.out / "config.json"]
    printed = capsys.readouterr()
    assert "config.json is missing or damaged; restored" in printed.err
    assert "unchanged" not in printed.out


def test_events_every_0_steps_never_happen(tmp_path):
    out = run(tmp_path / "run", log_every=0)
    assert read_metrics(out / "metrics.jsonl") == []
    assert not (out / "samples").exists()


# -- what a run trains on --------------------------------------------------------------------------


def test_ranks_read_the_same_batch_as_one(tmp_path):
    stream = a_session(tmp_path).stream
    full = read_batch(stream, 3)
    ranks = [dataclasses.replace(stream, ranks=Ranks(rank, 4)) for rank in range(4)]
    parts = [read_batch(one, 3) for one in ranks]
    for i, name in enumerate(full._fields):
        assert torch.equal(torch.cat([part[i] for part in parts]), full[i]), name
    assert not torch.equal(full.t, read_batch(stream, 4).t)


def test_labels_are_dropped_as_often_as_asked(tmp_path):
    stream = a_session(tmp_path, label_dropout=0.3, global_batch_size=256).stream
    labels = torch.cat([read_batch(stream, position).labels for position in range(40)])
    assert abs((labels == 10).float().mean() - 0.3) < 0.015


def test_digits_are_never_flipped(tmp_path):
    assert not a_session(tmp_path).stream.source.flips


def test_a_run_starts_from_the_weights_of_another_with_other_classes(tmp_path):
    first = run(tmp_path / "first", num_classes=12)
    session = a_session(tmp_path, init=first)
    ours, theirs = session.state.network.state_dict(), load_file(find_weights(first))
    table = "y_embedder.embedding_table.weight"
    assert [k for k in ours if k != table and not torch.equal(ours[k], theirs[k])] == []
    assert ours[table].shape[0] == 11
    assert torch.equal(ours[table][10], theirs[table][12])
    other = r"--init .* has a network of model DiT-Ti/4, not DiT-Ti/2; expected"
    with pytest.raises(UserError, match=other):
        a_session(tmp_path / "other", init=first, model="DiT-Ti/2")


def test_an_autoencoder_is_found_from_anywhere_and_no_other_replaces_it(tmp_path, monkeypatch):
    save_tiny(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    settings = dict(vae="vae", image_size=16, steps=2)
    out = run(tmp_path / "run", **settings)
    monkeypatch.chdir("/")
    loaded = load_run(out, CPU)
    checksum = sha256(tmp_path / "vae" / WEIGHTS)
    assert loaded.card.vae_sha256 == checksum == loaded.autoencoder.checksum

    settings["steps"] = 4
    (tmp_path / "vae").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"--vae .* is not a folder; .*; .* \(ln -s NOW"):
        load_run(out, CPU)

    weights = load_file(save_tiny(tmp_path / "vae") / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "vae" / WEIGHTS)
    other = r"--vae .* with SHA-256 .* expected .*was trained with; put"
    with pytest.raises(UserError, match=other):
        load_run(out, CPU)
    with pytest.raises(UserError, match=other):
        resume(out, **{**settings, "vae": str(tmp_path / "vae")})
    resume(out, **{**settings, "vae": str(tmp_path / "moved")})
    assert load_run(out, CPU).card.config.vae == str(tmp_path / "moved")


# -- schedules and the log -------------------------------------------------------------------------


def test_a_learned_variance_logs_both_terms_of_its_loss(tmp_path):
    settings = dict(process="linear", objective="eps", learn_sigma=True, min_snr_gamma=5.0)
    out = run(tmp_path / "run", **settings)
    assert {"mse", "vb"} <= read_metrics(out / "metrics.jsonl")[-1].keys()


def test_learning_rate_rises_holds_and_falls():
    config = dataclasses.replace(TINY, lr=1.0, warmup=10, cooldown=0.5)
    rates = [learning_rate(config, s, 100) for s in range(100)]
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[15:45] == [1.0] * 30
    assert all(a > b for a, b in zip(rates[50:], rates[51:], strict=False))
    assert 0 < rates[-1] < 0.03
    constant = dataclasses.replace(config, cooldown=0.0, warmup=0)
    assert {learning_rate(constant, s, 100) for s in range(100)} == {1.0}


@pytest.mark.parametrize("cooldown", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 60, 560, 100_000])
def test_the_usual_warmup_ends_before_the_cooldown(steps, cooldown):
    config = dataclasses.replace(TINY, warmup=None, cooldown=cooldown)
    warmup = warmup_steps(config, steps)
    assert warmup <= (1 - cooldown) * steps
    assert note_warmup(config, steps) == []
    if cooldown == 0.5:
        assert warmup == {1: 0, 5: 0, 60: 6, 560: 50, 100_000: 1000}[steps]


def test_a_warmup_that_lasts_too_long_is_told():
    config = dataclasses.replace(TINY, warmup=50, cooldown=0.5, lr=4e-3)
    assert note_warmup(config, 100) == []
    (note,) = note_warmup(config, 60)
    # the rates that the network sees
    peak = max(learning_rate(config, step, 60) for step in range(60))
    assert peak < 4e-3
    assert "--warmup 50 lasts longer than the 30 steps until the cool-down begins" in note
    assert f"reaches {peak:.2g}, not 0.004" in note
    (note,) = note_warmup(dataclasses.replace(config, cooldown=0.0), 20)
    assert "the 20 steps until the run ends: the learning rate reaches 0.0016" in note


def test_epochs_become_steps():
    assert total_steps(dataclasses.replace(TINY, epochs=2.0), 100) == 13


def test_running_means_are_of_the_steps_that_were_taken():
    means = RunningMeans(("loss",), CPU, t_end=1.0)
    for value, skipped in [(1.0, 0.0), (float("nan"), 1.0), (3.0, 0.0)]:
        means.add([torch.tensor(value)], torch.tensor(skipped))
    assert means.compute_and_reset(Ranks()) == {"loss": 2.0}
    assert means.compute_and_reset(Ranks()) == {}


def test_an_incomplete_last_line_of_metrics_is_dropped(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(file)] == [1]
    file.write_text('{"step": 1}\n{"step": 2}')
    assert [line["step"] for line in read_metrics(file)] == [1, 2]
    assert capsys.readouterr().err == ""


DAMAGED = [b'{"step": 2, "lo#####1}', b"\xff\xfe{}", bytes(9), b"12", b"", b"\r{}", b'{"loss": 1}']


@pytest.mark.parametrize("line", [*DAMAGED, b'{"step": "2"}'])
def test_a_damaged_line_of_metrics_is_named_and_costs_no_other(line, tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d, "loss": 0.5}\n' % step for step in range(1, 6)]
    file.write_bytes(b"".join([lines[0], line + b"\n", *lines[2:]]))
    MetricsLog(tmp_path, start=4)
    assert file.read_bytes() == b"".join([lines[0], *lines[2:4]])
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{file}, line 2, is damaged" in warning


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
