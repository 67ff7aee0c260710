"""The command `dit ema`."""

from dit.config import EmaConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.posthoc_ema import default_file, mixtures, write_mixture
from dit.utils.files import shell_quote


def ema(config: EmaConfig, ranks: Ranks) -> None:
    """The command `dit ema`."""
    if not ranks.main:
        return
    made = {
        config.out or default_file(config.run, mixture): mixture
        for mixture in mixtures(config.run, config.length, config.step)
    }
    for file in made:
        if file.exists():
            raise UserError(
                f"{file} is there already", "a new file", "use it, remove it, or pass --out FILE"
            )
    for file, mixture in made.items():
        write_mixture(mixture, file)
        print(f"{mixture}\n{file}", flush=True)
    print(f"next        python sample.py --run {shell_quote(file)}")
