"""Diffusion Transformers: train, sample and evaluate image models on VAE latents.

>>> import dit
>>> pipe = dit.Pipeline.from_pretrained("runs/000-digits-DiT-Ti-2")      # doctest: +SKIP
>>> pipe(["7", 3], guidance_scale=2.0).images[0].save("seven.png")       # doctest: +SKIP
"""

import importlib

from dit.utils.package import __version__, refuse_other_package

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take time

if TYPE_CHECKING:
    from dit.api.evaluate import Scores, evaluate
    from dit.api.pipeline import Pipeline, PipelineOutput
    from dit.api.train import Run, train
    from dit.config import TrainConfig
    from dit.errors import UserError
    from dit.models.registry import create_model, list_models

refuse_other_package()

__all__ = [
    "Pipeline",
    "PipelineOutput",
    "Run",
    "Scores",
    "TrainConfig",
    "UserError",
    "__version__",
    "create_model",
    "evaluate",
    "list_models",
    "train",
]

_MODULES = {
    "Pipeline": "dit.api.pipeline",
    "PipelineOutput": "dit.api.pipeline",
    "Run": "dit.api.train",
    "Scores": "dit.api.evaluate",
    "TrainConfig": "dit.config",
    "UserError": "dit.errors",
    "create_model": "dit.api.models",
    "evaluate": "dit.api.evaluate",
    "list_models": "dit.models.registry",
    "train": "dit.api.train",
}
"""Where each name is defined: imported when it is first used, so that `import dit` is quick."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'dit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
