"""The variables of torchrun: all, none, or one clear line."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from helpers import forked

from dit.distributed import ranks as ranks_module
from dit.distributed.launcher import Launch, read_launch
from dit.errors import UserError

ROOT = Path(__file__).parent.parent.parent
MEETING_POINT = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, Launch()),
        (dict(WORLD_SIZE="", RANK=" "), Launch()),
        (dict(WORLD_SIZE="1"), Launch()),
        (dict(RANK="0"), Launch()),
        (dict(WORLD_SIZE="1", RANK="0", **MEETING_POINT), Launch()),
        # one rank a machine, as operators of Kubernetes start them
        (dict(WORLD_SIZE="2", RANK="1", **MEETING_POINT), Launch(1, 2)),
        (
            dict(
                WORLD_SIZE="8",
                RANK="5",
                LOCAL_RANK="1",
                LOCAL_WORLD_SIZE="4",
                TORCHELASTIC_RUN_ID="x",
                **MEETING_POINT,
            ),
            Launch(5, 8, 1, 4, restarts=True),
        ),
        # a script of sbatch, whose steps are other processes
        (dict(SLURM_NTASKS="4", SLURM_PROCID="0"), Launch()),
    ],
)
def test_all_variables_or_none_are_read(environ, launch):
    assert read_launch(environ) == launch


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        (dict(WORLD_SIZE="2"), "WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT;"),
        (dict(WORLD_SIZE="2", RANK="0"), "WORLD_SIZE=2 without MASTER_ADDR, MASTER_PORT;"),
        (dict(WORLD_SIZE="two"), "WORLD_SIZE=two in the environment; expected a number, 0 or more"),
        (dict(WORLD_SIZE="-1"), "WORLD_SIZE=-1 in the environment"),
        (dict(WORLD_SIZE="0"), "RANK=0 with WORLD_SIZE 0"),
        (dict(RANK="1"), "RANK=1 with WORLD_SIZE unset; expected a rank below the number of ranks"),
        (dict(WORLD_SIZE="2", RANK="2", **MEETING_POINT), "RANK=2 with WORLD_SIZE 2"),
        (dict(LOCAL_RANK="1e3"), "LOCAL_RANK=1e3"),
        (dict(SLURM_STEP_NUM_TASKS="4"), "srun started 4 tasks without torchrun"),
    ],
)
def test_variables_left_over_are_named(environ, part):
    with pytest.raises(UserError) as error:
        read_launch(environ)
    assert part in str(error.value)
    if "SLURM" not in part and "srun" not in part:
        assert error.value.do.startswith("start with `torchrun --nproc-per-node N`, or unset")


def test_a_command_says_it_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "dit", "info", "x"],
        env={"WORLD_SIZE": "2", "RANK": "x"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: RANK=x in the environment; expected a number")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_the_others_ends(rank, monkeypatch):
    port = str(forked.free_port())
    variables = dict(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks_module, "MEETING", timedelta(seconds=1))
    with pytest.raises(UserError) as error, ranks_module.ranks():
        raise AssertionError("this rank is alone")
    assert f"rank {rank} did not meet the other ranks at 127.0.0.1:{port}" in str(error.value)
    assert error.value.expected.startswith("all 2 ranks within")
