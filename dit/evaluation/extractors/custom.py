"""Feature networks of the user's own, MODULE:CLASS, and those registered with torch-fidelity."""

import hashlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.weights import is_torchscript, read_tensors
from dit.utils.imports import import_class, reason

TRIED = 64  # pixels a side of the images that a network is tried on


def load_class(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Return the network MODULE:CLASS, from the current directory or installed.

    CLASS is a FeatureExtractorBase of torch-fidelity, or a torch.nn.Module without arguments (with
    `weights`: from that path alone) that maps uint8 [B, 3, H, W] to features [B, D] or (features,
    logits [B, K]). It reads its weights itself.
    """
    return _load(import_class("--extractor", name, "a network", nn.Module), name, weights, device)


def registered() -> Mapping[str, type[nn.Module]]:
    """Return the feature networks registered with torch-fidelity, by name."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    return FEATURE_EXTRACTORS_REGISTRY


def load_registered(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Return a network registered with torch-fidelity, with its layers for FID and IS."""
    # torch-fidelity would run code that a pickle holds.
    if weights is not None and not is_torchscript(weights):
        read_tensors(weights, f"file of weights of {name}")
    return _load(registered()[name], name, weights, device)


def _load(cls: type[nn.Module], name: str, weights: Path | None, device: torch.device) -> Extractor:
    network = _make(cls, name, weights).eval().requires_grad_(False)
    checksum = _checksum(network, cls)
    network.to(device)

    images = torch.zeros(2, 3, TRIED, TRIED, dtype=torch.uint8, device=device)
    try:
        with torch.no_grad():
            outputs = network(images)
    except Exception as error:  # the user's code can fail in any way
        raise UserError(
            f"--extractor {name} fails on images {list(images.shape)} ({reason(error)})",
            "features of uint8 images of any size",
            "resize them in its forward",
        ) from error
    values, logits, _ = _check(outputs, len(images), name)
    classes = 0 if logits is None else logits.shape[1]
    widths = (values.shape[1], classes, 0)

    def run(images: Tensor) -> Outputs:
        return _check(network(images), len(images), name, widths)

    weights_name = f"{name}'s own" if weights is None else weights.name
    return Extractor(run, name, weights_name, checksum, "its own", device, widths)


def _check(
    outputs: Any, count: int, name: str, widths: tuple[int, int, int] | None = None
) -> Outputs:
    """Refuse outputs that are not [count, D], or [count, D] and [count, K], of these widths."""
    layers = outputs if isinstance(outputs, tuple) else (outputs,)
    shapes = [list(x.shape) if isinstance(x, Tensor) else [type(x).__name__] for x in layers]
    right = len(layers) <= 2 and all(len(shape) == 2 and shape[0] == count for shape in shapes)
    if right and widths:
        right = (*(shape[1] for shape in shapes), 0, 0)[:3] == widths
    if not right:
        features, logits, _ = widths or ("D", "K", 0)
        raise UserError(
            f"--extractor {name} gives {', '.join(map(str, shapes))} for {count} images",
            f"features [{count}, {features}], or (features, logits [{count}, {logits}])",
            "correct its forward; the number of features must not depend on the images' size",
        )
    return Outputs(*layers)


def _checksum(network: nn.Module, cls: type) -> str:
    """Return a SHA-256 over the network's state, its class and the source file of the class."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        dtype = getattr(value, "dtype", "")
        shape = list(getattr(value, "shape", []))
        digest.update(f"{name} {dtype} {shape}\n".encode())
        if isinstance(value, Tensor):
            values = value.detach().cpu().contiguous()
            data = values.flatten().view(torch.uint8)
            digest.update(data.numpy().tobytes())
    with suppress(OSError, TypeError):  # a class made without a file has no source
        source = Path(inspect.getfile(cls)).read_bytes()
        digest.update(cls.__qualname__.encode() + source)
    return digest.hexdigest()


def _make(cls: Any, name: str, weights: Path | None) -> nn.Module:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    file = [] if weights is None else [str(weights)]
    try:
        # Random weights are the same every time, and the caller's random state stays.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if not issubclass(cls, FeatureExtractorBase):
                return cls(*file)
            named = {} if weights is None else {"feature_extractor_weights_path": str(weights)}
            return cls(name, _layers(cls), verbose=False, **named)
    except Exception as error:  # the user's code can fail in any way
        source = "" if weights is None else f" from --weights {weights}"
        raise UserError(
            f"--extractor {name} cannot be created{source} ({reason(error)})",
            "a network that is created without arguments, or from a file of its weights",
            f"correct the class, or pass its weights as --weights {name}=FILE",
        ) from error


def _layers(cls: Any) -> list[str]:
    """Return the layers of a FeatureExtractorBase for FID and, if it is another, for IS."""
    features = cls.get_default_feature_layer_for_metric("fid")
    try:
        logits = cls.get_default_feature_layer_for_metric("isc")
    except Exception:  # each author has another way to say that there is none
        return [features]
    return [features] if logits in (None, features) else [features, logits]
