"""Hardware and versions of a run, recorded at each of its starts."""

from datetime import datetime, timezone

import torch

from dit.distributed.device import compute_precision, device_kind, library_versions
from dit.runs.logs import MACHINE, read_starts
from dit.training.cost.flops import Meter
from dit.training.session import TrainingSession
from dit.utils.files import write_json
from dit.utils.system import peak_process_memory


def record_start(session: TrainingSession, meter: Meter) -> None:
    """Append this start to machine.json; later ones, whose steps are done again, are dropped."""
    ranks = session.ranks
    start = {
        "step": session.start,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_kind(ranks.device),
        "ranks": ranks.world,
        "parallel": session.plan.parallel.parallel if ranks.world > 1 else None,
        "threads": torch.get_num_threads(),
        "arithmetic": compute_precision(ranks.device, session.config.precision),
        "flops_per_image": meter.flops,
        "peak_flops_per_rank": meter.peak.flops,
        "peak_by": meter.peak.source,
        "versions": library_versions("dit", "torch", "timm", "diffusers"),
    }
    starts = read_starts(session.run)
    earlier = [other for other in starts if other["step"] < session.start]
    write_json(session.run / MACHINE, [*earlier, start])


def peak_memory(device: torch.device) -> float:
    """Return the GiB that this process had at most so far: of a GPU, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_process_memory() / 2**30
