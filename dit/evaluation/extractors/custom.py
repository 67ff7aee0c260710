"""Feature networks of the user's own, MODULE:CLASS, and those registered with torch-fidelity."""

import hashlib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dit.errors import UserError, did_you_mean
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.weights import is_torchscript, read_tensors, reason

TRIED = (64, 96)  # pixels; two sizes, because the number of features must not depend on it


def load_class(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """The network MODULE:CLASS, from the current directory or installed.

    CLASS is a FeatureExtractorBase of torch-fidelity, or a torch.nn.Module made without arguments (with `weights`,
    from that path alone) that maps uint8 [B, 3, H, W] to features [B, D] or (features, logits [B, K]). What it draws at
    random when it is made is the same every time. How it reads its weights is its own business.

    Raises:
        UserError: no such module or class, not a network, or it fails or gives something else on two images.
    """
    return _load(_find_class(name), name, weights, device)


def registered() -> Mapping[str, type[nn.Module]]:
    """The feature networks that torch-fidelity knows by name."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    return FEATURE_EXTRACTORS_REGISTRY


def load_registered(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """A network registered with torch-fidelity, with its layers for FID and IS.

    Raises:
        UserError: its weights can not be downloaded, are unsafe (torch-fidelity would run code in them) or others.
    """
    if weights is not None and not is_torchscript(weights):
        read_tensors(weights, f"file of weights of {name}")
    return _load(registered()[name], name, weights, device)


def _load(cls: type[nn.Module], name: str, weights: Path | None, device: torch.device) -> Extractor:
    network = _make(cls, name, weights).eval().requires_grad_(False)
    checksum = _checksum(network, cls)
    run = _checked(network.to(device), name)
    widths = _try(run, name, device)
    return Extractor(
        run,
        name,
        f"{name}'s own" if weights is None else weights.name,
        checksum,
        "its own",
        device,
        widths,
    )


def _checked(network: nn.Module, name: str) -> Callable[[Tensor], Outputs]:
    """The network, its outputs checked in every batch."""

    def run(images: Tensor) -> Outputs:
        outputs = network(images)
        layers = outputs if isinstance(outputs, tuple) else (outputs,)
        right = [
            isinstance(layer, Tensor) and layer.ndim == 2 and len(layer) == len(images)
            for layer in layers
        ]
        if len(layers) not in (1, 2) or not all(right):
            given = ", ".join(
                str(list(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in layers
            )
            raise UserError(
                f"--extractor {name} gives ({given}) for {len(images)} images",
                f"features [{len(images)}, D], or (features, logits [{len(images)}, K])",
                "correct its forward",
            )
        return Outputs(*layers)

    return run


@torch.no_grad()
def _try(run: Callable[[Tensor], Outputs], name: str, device: torch.device) -> tuple[int, int, int]:
    """The network's widths, from two images of each of two sizes."""
    found = []
    for size in TRIED:
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device)
        try:
            values, logits, _ = run(images)
        except UserError:
            raise
        except Exception as error:  # of a stranger's making
            raise UserError(
                f"--extractor {name} fails on images {list(images.shape)} ({reason(error)})",
                "features of uint8 images of any size",
                "resize them in its forward",
            ) from error
        found.append((values.shape[1], 0 if logits is None else logits.shape[1]))
    if found[0] != found[1]:
        given = " but ".join(
            f"{width} for images of {size} pixels" for width, size in zip(found, TRIED, strict=True)
        )
        raise UserError(
            f"--extractor {name} has features and logits of widths {given}",
            "the same for every size",
            "resize or pool in its forward",
        )
    return *found[0], 0


def _checksum(network: nn.Module, cls: type) -> str:
    """SHA-256 over names, shapes and bytes of what the network holds, and over its class and the file that has it."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(
            f"{name} {getattr(value, 'dtype', '')} {list(getattr(value, 'shape', []))}\n".encode()
        )
        if isinstance(value, Tensor):
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    with suppress(OSError, TypeError):  # a class made without a file has no source
        digest.update(cls.__qualname__.encode() + Path(inspect.getfile(cls)).read_bytes())
    return digest.hexdigest()


# -- making the network ------------------------------------------------------------------------------------------


def _make(cls: Any, name: str, weights: Path | None) -> nn.Module:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    file = () if weights is None else (str(weights),)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if not issubclass(cls, FeatureExtractorBase):
                return cls(*file)
            named = dict(zip(["feature_extractor_weights_path"], file, strict=False))
            return cls(name, _layers(cls), verbose=False, **named)
    except Exception as error:  # of a stranger's making
        source = "" if weights is None else f" from --weights {weights}"
        do = f"pass its weights as --weights {name}=FILE"
        raise UserError(
            f"--extractor {name} can not be made{source} ({reason(error)})",
            "a network that is made without arguments, or from a file of its weights",
            f"correct the class, or {do}" if ":" in name else f"fetch them elsewhere and {do}",
        ) from error


def _layers(cls: Any) -> list[str]:
    """The layers of a FeatureExtractorBase for FID and, if it is another, for IS."""
    features = cls.get_default_feature_layer_for_metric("fid")
    try:
        logits = cls.get_default_feature_layer_for_metric("isc")
    except Exception:  # each author has another way to say that there is none
        return [features]
    return [features] if logits in (None, features) else [features, logits]


def _find_class(name: str) -> type[nn.Module]:
    module_name, _, class_name = name.partition(":")
    module = _import(module_name, name)
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    classes = [
        k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)
    ]
    given = (
        f"has no class {class_name!r}"
        if found is None
        else f"has a {class_name!r} that is no such class"
    )
    raise UserError(
        f"--extractor {name}: {getattr(module, '__file__', module_name)} {given}",
        "a subclass of torch.nn.Module",
        did_you_mean(class_name, classes) if classes else "write one there",
    )


def _import(module: str, name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # to stay, for what the module may import later
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise _no_import(name, error) from error
        local = [m.name for m in pkgutil.iter_modules([here])]
        raise UserError(
            f"--extractor {name}: no module {module} here or installed",
            "MODULE:CLASS with MODULE as in `import MODULE`",
            did_you_mean(module, local) if local else "change to the folder that holds it",
        ) from error
    except (Exception, SystemExit) as error:  # whatever the file does when it is run
        raise _no_import(name, error) from error


def _no_import(name: str, error: BaseException) -> UserError:
    return UserError(
        f"--extractor {name}: importing the module fails ({reason(error)})",
        "a module that can be imported",
        "correct it",
    )
