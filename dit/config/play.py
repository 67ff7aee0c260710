"""Flags of `dit play`, the page in a browser."""

from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from dit.config.sampling import SAMPLER_RANGES, SamplerConfig
from dit.config.validation import SAMPLING_STEPS, Range, require_values

PLAY_RANGES: dict[tuple[str, ...], Range] = {
    **SAMPLER_RANGES,
    ("port",): (lambda v: v is None or 0 < v < 65_536, "a port from 1 to 65,535"),
}


@dataclass(frozen=True, kw_only=True)
class PlayConfig(SamplerConfig):
    """Play with a trained run in a browser: sample, interpolate, inpaint, vary, see attention."""

    # -- page ------------------------------------------------------------------------------------
    run: Positional[Path]
    """Run directory, checkpoint directory, file of EMA weights (.safetensors), folder of
    `dit export` or of a DiT of diffusers, or OWNER/NAME of the Hugging Face hub."""
    host: str = "127.0.0.1"
    """Address to listen at: the default is reached from this machine only, 0.0.0.0 from the whole
    network. There is no password."""
    port: int | None = None
    """Port of the page; unless given, the first free one from 7860."""
    share: bool = False
    """Open a public link through gradio's servers. Whoever knows it can use the page."""

    # -- guidance --------------------------------------------------------------------------------
    cfg_scale: float | None = None  # type: ignore[assignment]
    """Scale of guidance that the page starts with; 1: none. Unless given, that of the run's
    previews: 1.5 where guidance can lead away from a null class or --guide, else 1."""

    def __post_init__(self) -> None:
        if self.cfg_scale is None:
            # that of the run is not known yet; the other flags are checked as with guidance
            replace(self, cfg_scale=2.0)
            return
        require_values(self, PLAY_RANGES, steps=SAMPLING_STEPS)
        super().__post_init__()
