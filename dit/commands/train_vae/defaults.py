"""Defaults of the flags of `dit train-vae`; torch is imported only where a folder is looked at."""

import dataclasses
from pathlib import Path

from dit.config import VaeConfig
from dit.distributed.launcher import read_launch
from dit.training.defaults import Typed, first_value


def default_settings(typed: Typed) -> VaeConfig | None:
    """Return the defaults of `dit train-vae`: of the training to --resume, or a size that suits.

    Raises:
        UserError: --resume names a folder without a training.
    """
    resume = first_value(typed, "--resume")
    if resume not in (None, "auto"):
        from dit.commands.train_vae.resume import settings_of

        folder = Path(str(resume))
        return dataclasses.replace(settings_of(folder), resume=str(resume), out=folder)

    data, out = first_value(typed, "--data"), first_value(typed, "--out")
    if data in (None, "digits") or out is None or "--image-size" in typed:
        return None
    from dit.distributed.device import choose_device
    from dit.latents.first_stage import suitable_size, typical_side

    gpu = choose_device(read_launch()).type == "cuda"
    size = suitable_size(typical_side(Path(data).expanduser()), 256 if gpu else 64)
    return VaeConfig(out=Path(out), image_size=size)
