"""A function of the user's that sees the latents after each step of sampling."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from dit.diffusion.process import Denoise, Prediction, Process
from dit.diffusion.samplers import Noise
from dit.sampling.pipeline import SamplingPipeline

StepCallback = Callable[[int, float, Tensor], Tensor | None]
"""(step, time at which it began, latents after it [B, C, h, w]) -> other latents, or None.

Times are those that the network takes, from 1000 (noise) to 0, as in diffusers.
"""


def with_step_callback(pipeline: SamplingPipeline, callback: StepCallback) -> SamplingPipeline:
    """Return a pipeline that calls `callback` after each step of each batch.

    The latents after a step are those that the sampler gives to the network at the start of the
    next. So no sampler needs to know of it.
    """
    # heun calls the denoiser twice in each step but the last
    calls_per_step = 2 if pipeline.settings.sampler == "heun" else 1
    began = pipeline.process.network_time(pipeline.times).tolist()

    def sampler(
        denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
    ) -> Tensor:
        calls = 0

        def watched(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
            nonlocal calls
            steps_done, part = divmod(calls, calls_per_step)
            calls += 1
            if steps_done and part == 0:
                replaced = callback(steps_done - 1, began[steps_done - 1], x_t)
                # in place: it is the sampler's own tensor, which it reads after this call
                if replaced is not None and replaced is not x_t:
                    x_t.copy_(replaced)
            return denoise(x_t, t, y)

        out = pipeline.sampler(watched, process, x, y, times, noise)
        replaced = callback(pipeline.steps - 1, began[-2], out)
        return out if replaced is None else out.copy_(replaced)

    return replace(pipeline, sampler=sampler)
