"""Ranks killed at any moment and restarted end as an undisturbed run does, bit for bit."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from helpers import forked, restarts
from helpers.kills import (
    RUN,
    disturb,
    everything,
    killed,
    parts,
    pruning,
    sealing,
    train_small,
    writing,
)

from dit.runs.checkpoint_files import checkpoint_step, latest_checkpoint
from dit.runs.logs import read_metrics


def assert_same(whole: Path, other: Path) -> None:
    assert {name.split(":")[1].split(".")[0] for name in everything(whole)} >= {
        "network",
        "ema",
        "optimizer",
        "guard",
        "window",
    }
    assert [part for part, same in parts(whole, other).items() if not same] == []
    left = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, other)]
    assert left[0] == left[1], "kills leave nothing behind"


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_three_kills_leave_no_trace(parallel, tmp_path):
    config = dataclasses.replace(RUN, steps=30, parallel=parallel, out=tmp_path / "run")
    chosen = [(writing, 0.0), (sealing, 0.0), (pruning, 0.0)]
    assert disturb(config, chosen) == len(chosen)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    forked.run(2, train_small, whole)
    assert_same(whole.out, config.out)


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path):
    assert killed(tmp_path, (2, "ddp"), 30) >= 25
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_torchrun_restarts_the_run_of_the_command(tmp_path):
    """Without --resume auto; a second command is refused, however often torchrun starts it."""
    undisturbed, killed = (
        restarts.launch(tmp_path / name, "--steps", 200, restarts=1) for name in ("whole", "killed")
    )
    restarts.wait(lambda: latest_checkpoint(tmp_path / "killed"), killed)
    os.kill(restarts.process_of(1, killed.pid), signal.SIGKILL)
    printed, _ = killed.communicate(timeout=240)
    undisturbed.communicate(timeout=240)
    assert (undisturbed.returncode, killed.returncode) == (0, 0), printed
    assert printed.count("error: rank 0 of 2 lost another rank in step ") == 1
    assert "Traceback" not in printed
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert restarts.starts(tmp_path / "killed")[1] >= 20
    again = restarts.launch(tmp_path / "killed", "--steps", 220, restarts=1)
    printed, _ = again.communicate(timeout=240)
    assert printed.count("has checkpoints; expected a new directory") >= 2
    assert restarts.done(tmp_path / "killed") == 200


@pytest.mark.slow
def test_two_nodes_join_again_after_one_has_failed(tmp_path):
    """Each launcher counts its own restarts: one lost its rank, the other its peer."""
    out = tmp_path / "run"
    script, port = restarts.ROOT / "scripts" / "two_nodes.sh", str(forked.free_port())
    nodes = restarts.begin([script], out, "--steps", 200, PORT=port)
    restarts.wait(lambda: latest_checkpoint(out), nodes)
    os.kill(restarts.process_of(1, nodes.pid), signal.SIGKILL)
    printed, _ = nodes.communicate(timeout=300)
    assert nodes.returncode == 0, printed
    assert len(restarts.starts(out)) == 2
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [*range(1, 201)]


SLURM = {
    "srun": 'shift; exec "$@"',
    "scontrol": '[ "$1" = show ] && echo localhost || echo "$@" > "$ASKED"',
}


@pytest.mark.slow
def test_a_slurm_job_saves_and_requeues(tmp_path):
    for name, does in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    out, script = tmp_path / "run", restarts.ROOT / "scripts" / "train.slurm"
    job = restarts.begin(
        ["bash", script],
        out,
        "--steps",
        10**5,
        SLURM_SUBMIT_DIR=str(restarts.ROOT),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_NUM_NODES="1",
        SLURM_JOB_ID="7",
        SLURM_JOB_NODELIST="localhost",
        RANKS_PER_NODE="2",
        ADDRESS="127.0.0.1",
        PORT=str(forked.free_port()),
        ASKED=str(tmp_path / "asked"),
    )
    restarts.wait(lambda: restarts.done(out) >= 5, job)
    job.terminate()
    printed, _ = job.communicate(timeout=100)
    assert job.returncode == 0, printed
    assert f"continue with: python train.py --resume {out}" in printed
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert checkpoint_step(latest_checkpoint(out)) >= restarts.done(out)
