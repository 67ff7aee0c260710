"""Feature networks by name: Inception, DINOv2, the one for digits, the user's, torch-fidelity's."""

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from dit.errors import UserError, did_you_mean
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.custom import load_class, load_registered, registered
from dit.evaluation.extractors.dinov2 import DINOV2, load_dinov2
from dit.evaluation.extractors.inception import INCEPTION, load_inception
from dit.utils.files import sha256

DIGITS_CNN = "digits-cnn"
LOADERS = {"inception": load_inception, "dinov2": load_dinov2}
ALIASES = {INCEPTION: "inception", DINOV2: "dinov2"}  # names in reports: names of flags


def load_extractors(
    names: Sequence[str], weights: Sequence[str], device: torch.device
) -> list[Extractor]:
    """Return feature networks by name, with their weights verified.

    Args:
        names: `inception`, `dinov2`, `digits-cnn`, MODULE:CLASS, or a name registered with
            torch-fidelity.
        weights: FILE where one network takes a file, or NAME=FILE for each.
    """
    chosen = [ALIASES.get(name, name) for name in names]
    for name, times in Counter(chosen).items():
        _check_known(name)
        if times > 1:
            raise UserError(
                f"--extractor {' '.join(names)} has {name} twice",
                "each network once",
                "name it once",
            )
    files = _files(chosen, weights)
    return [_load(name, files.get(name), device) for name in chosen]


def _check_known(name: str) -> None:
    ours = [*LOADERS, DIGITS_CNN]
    if ":" not in name and name not in ours and name not in registered():
        raise UserError(
            f"--extractor {name}",
            f"{', '.join(ours)}, MODULE:CLASS, or a name registered with torch-fidelity",
            did_you_mean(name, [*ours, *registered()]),
        )


def _files(names: Sequence[str], weights: Sequence[str]) -> dict[str, Path]:
    """Return the file of weights of each network that has one."""
    files: dict[str, Path] = {}
    for entry in weights:
        name, file = _split(names, entry)
        if name in files:
            raise UserError(
                f"--weights {entry} is the second file for {name}",
                "one file for each network",
                "drop one",
            )
        files[name] = Path(file).expanduser()
        if not files[name].is_file():
            raise UserError(
                f"no file {files[name]} for --weights",
                f"a file of {name}'s weights",
                "check the path",
            )
    return files


def _split(names: Sequence[str], entry: str) -> tuple[str, str]:
    """Return the name and the file of NAME=FILE or FILE."""
    name, _, file = entry.partition("=")
    name = ALIASES.get(name, name)
    if file and name in names:
        return name, file
    # The name of a file may contain "=".
    takers = [name for name in names if name != DIGITS_CNN] or names
    if len(takers) == 1 and (not file or Path(entry).is_file()):
        return takers[0], entry
    raise UserError(
        f"--weights {entry} with --extractor {' '.join(names)}",
        "NAME=FILE of one of them",
        "correct --weights or --extractor",
    )


def _load(name: str, weights: Path | None, device: torch.device) -> Extractor:
    if name == DIGITS_CNN:
        return _load_digits_cnn(weights, device)
    if ":" in name:
        return load_class(name, weights, device)
    if name in LOADERS:
        return LOADERS[name](weights, device)
    return load_registered(name, weights, device)


def _load_digits_cnn(weights: Path | None, device: torch.device) -> Extractor:
    from safetensors.torch import load_file

    from dit.evaluation.extractors.digits_cnn import WIDTH, DigitsCNN

    if weights is not None:
        raise UserError(
            f"--weights {weights} with the extractor digits-cnn",
            "no weights, for they are bundled",
            "drop --weights",
        )
    path, network = digits_cnn_weights(), DigitsCNN()
    network.load_state_dict(load_file(path))
    network.to(device).eval().requires_grad_(False)
    return Extractor(
        lambda images: Outputs(*network(images)),
        DIGITS_CNN,
        path.name,
        sha256(path),
        "gray, to 32x32 by area or bilinear",
        device,
        (WIDTH, 10, 0),
        tuple("0123456789"),
    )


def digits_cnn_weights() -> Path:
    """Return the bundled weights, from `python -m dit.evaluation.extractors.digits_cnn`."""
    return Path(str(resources.files("dit") / "assets" / "digits-cnn.safetensors"))
