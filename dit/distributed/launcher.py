"""What torchrun tells each process through its environment. It needs no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dit.errors import UserError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What the ranks of a run need to find each other; one rank a machine needs no LOCAL_RANK."""


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that were started together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine
    local_world: int = 1
    restarts: bool = False  # whether torchrun waits outside and may restart ranks


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Return what the environment says; an empty variable is as good as none.

    Raises:
        UserError: Variables that contradict each other, as those left over from another job do.
    """
    given = {name: value for name, value in environ.items() if value.strip()}
    numbers = {name: _number(name, given[name]) for name in NUMBERS if name in given}
    restarts = "TORCHELASTIC_RUN_ID" in given
    world, rank = numbers.get("WORLD_SIZE", 1), numbers.get("RANK", 0)

    if world < 1 or rank >= world:
        count = given.get("WORLD_SIZE", "unset")
        raise _refusal(f"RANK={rank} with WORLD_SIZE {count}", "a rank below the number of ranks")
    if world > 1 or restarts:
        if missing := [name for name in NEEDED if name not in given]:
            raise _refusal(
                f"WORLD_SIZE={world} without {', '.join(missing)}",
                "all variables that torchrun sets, or none",
            )
    else:
        _refuse_srun(given)

    return Launch(
        rank,
        world,
        local_rank=numbers.get("LOCAL_RANK", 0),
        local_world=max(1, numbers.get("LOCAL_WORLD_SIZE", 1)),
        restarts=restarts,
    )


def rank_for_messages() -> int:
    """Return the rank, 0 where the environment makes no sense."""
    try:
        return read_launch().rank
    except UserError:
        return 0


def _number(name: str, value: str) -> int:
    # not int(): it takes 1_0, signs and digits of other scripts
    if not (value.strip().isascii() and value.strip().isdecimal()):
        raise _refusal(f"{name}={value} in the environment", "a number, 0 or more")
    return int(value)


def _refuse_srun(given: Mapping[str, str]) -> None:
    """Refuse tasks of one `srun` that would each do the same work alone."""
    # set in steps of srun only, not in the script of sbatch
    tasks = given.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        raise UserError(
            f"srun started {tasks} tasks without torchrun, each of which would do all the work",
            "one task per node, which starts torchrun",
            "see scripts/train.slurm, or unset SLURM_STEP_NUM_TASKS to run each task alone",
        )


def _refusal(given: str, expected: str) -> UserError:
    return UserError(
        given,
        expected,
        "start with `torchrun --nproc-per-node N`, or unset WORLD_SIZE and RANK to run alone",
    )
