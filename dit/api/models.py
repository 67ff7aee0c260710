"""Networks by name from Python: arguments that no network of this name takes are refused."""

import inspect
from functools import wraps
from typing import Any

from torch import nn

from dit.errors import UserError, did_you_mean
from dit.models import registry
from dit.sampling.python_arguments import python_names

DEFAULTS = {
    name: argument.default
    for name, argument in inspect.signature(registry.create_model).parameters.items()
    if name != "name"
}
ONLY_DIT = ("interval", "time_scale", "time_endpoint", "mlp_norm_eps")


@wraps(registry.create_model)
def create_model(name: str, **settings: Any) -> nn.Module:
    for one in settings:
        if one not in DEFAULTS:
            expected = f"one of {', '.join(DEFAULTS)}"
            raise UserError(
                f"argument {one!r} of create_model", expected, did_you_mean(one, DEFAULTS)
            )
    changed = [one for one in ONLY_DIT if settings.get(one, DEFAULTS[one]) != DEFAULTS[one]]
    if changed and not name.startswith("DiT-"):
        given = f"{changed[0]}={settings[changed[0]]!r} with {name}"
        raise UserError(given, "a DiT, the only network that has it", f"drop {changed[0]}")
    text, width = settings.get("conditioning") == "text", settings.get("text_width")
    if text != (width is not None):
        given = "conditioning='text' without text_width" if text else f"text_width={width!r}"
        do = "pass text_width" if text else "drop it, or pass conditioning='text'"
        raise UserError(given, "the width of text features with conditioning='text' only", do)
    with python_names({"image_size": "input_size"}):
        return registry.create_model(name, **settings)
