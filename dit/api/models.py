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
OF_DIT = ("interval", "interval_smoothing", "time_scale", "time_endpoint", "mlp_norm_eps")
FAMILIES = {
    **dict.fromkeys(OF_DIT, "DiT"),
    "unet_attention": "UNet",
}
"""Arguments that only networks of one family have."""


@wraps(registry.create_model)
def create_model(name: str, **settings: Any) -> nn.Module:
    for one in settings:
        if one not in DEFAULTS:
            expected = f"one of {', '.join(DEFAULTS)}"
            raise UserError(
                f"argument {one!r} of create_model", expected, did_you_mean(one, DEFAULTS)
            )
    for one, family in FAMILIES.items():
        changed = settings.get(one, DEFAULTS[one]) != DEFAULTS[one]
        if changed and not name.startswith(f"{family}-"):
            given = f"{one}={settings[one]!r} with {name}"
            raise UserError(given, f"a {family}, the only network that has it", f"drop {one}")
    text, width = settings.get("conditioning") == "text", settings.get("text_width")
    if text != (width is not None):
        given = "conditioning='text' without text_width" if text else f"text_width={width!r}"
        do = "pass text_width" if text else "drop it, or pass conditioning='text'"
        raise UserError(given, "the width of text features with conditioning='text' only", do)
    with python_names({"image_size": "input_size"}):
        return registry.create_model(name, **settings)
