"""The numbers of a logged training step."""

import torch

from dit.distributed.device import widest_float
from dit.training.cost.flops import Meter
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring.environment import peak_memory
from dit.training.monitoring.log import Stopwatch
from dit.training.monitoring.update_ratio import update_ratio
from dit.training.session import TrainingSession


def log_values(
    session: TrainingSession, step: int, watch: Stopwatch, meter: Meter
) -> dict[str, float]:
    """Return the numbers of the log: means since its last line; update and memory as of now."""
    # This waits for the device, so that the stopwatch counts all of its work.
    means = session.state.means.compute_and_reset(session.ranks)
    if session.config.align and not session.aligns(step):
        # the last window has steps without it, whose zeros are no losses
        del means["align"]
    lap = watch.lap(step - session.start)
    speed = session.config.global_batch_size * lap.steps_per_second

    # Each rank measures its own wait and memory: logged are their mean and their maximum.
    device = session.ranks.device
    measured = [[lap.waiting, peak_memory(device)]]
    mine = torch.tensor(measured, dtype=widest_float(device), device=device)
    waiting, memory = session.ranks.gather(mine).T
    return {
        **means,
        "lr": learning_rate(session.config, step - 1, session.steps),
        "update_ratio": update_ratio(session.state.optimizer).item(),
        "img_per_s": speed,
        "mfu": meter.utilisation(speed),
        "data_wait": waiting.mean().item(),
        "memory_gib": memory.max().item(),
    }
