"""The command `dit ema`: EMAs of any length from the snapshots of a run."""

import os

from dit.config import EmaConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.posthoc_ema import default_file, mixtures, write_mixture
from dit.runs.weights import read_header
from dit.training.monitoring.previews import sample_command
from dit.utils.outputs import require_writable_file


def ema(config: EmaConfig, ranks: Ranks) -> None:
    """Write the averages that --ema-lengths asks for; refuse files that exist."""
    if not ranks.main:
        return
    outputs = {}
    for mixture in mixtures(config.run, config.length, config.step):
        file = config.out or default_file(config.run, mixture)
        if os.path.lexists(file):
            do = "use it, remove it, or pass --out FILE"
            raise UserError(f"{file} is there already", "a new file", do)
        require_writable_file(file, ".safetensors")
        outputs[file] = mixture

    for file, mixture in outputs.items():
        write_mixture(mixture, file)
        print(f"{mixture}\n{file}", flush=True)
    print(f"next        {sample_command(file, read_header(file)[0])}")
