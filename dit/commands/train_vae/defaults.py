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
    resume, out = first_value(typed, "--resume"), first_value(typed, "--out")
    if resume is not None and (resume != "auto" or out is not None):
        from dit.commands.train_vae.resume import find_settings, settings_of

        folder = Path(str(out if resume == "auto" else resume))
        # auto: the machine may be another one, for which another image size would be chosen
        before = find_settings(folder) if resume == "auto" else settings_of(folder)
        if before:
            return dataclasses.replace(before, resume=resume, out=folder)

    data = first_value(typed, "--data")
    if data in (None, "digits") or out is None or "--image-size" in typed:
        return None
    from dit.distributed.device import choose_device
    from dit.latents.first_stage import suitable_size, typical_side

    gpu = choose_device(read_launch()).type == "cuda"
    size = suitable_size(typical_side(Path(data).expanduser()), 256 if gpu else 64)
    return VaeConfig(out=Path(out), image_size=size)
