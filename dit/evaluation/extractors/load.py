"""Feature networks by name: Inception, DINOv2, the bundled ones, the user's, torch-fidelity's."""

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from dit.errors import UserError, did_you_mean
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.custom import load_class, load_registered, registered
from dit.evaluation.extractors.dinov2 import DINOV2, load_dinov2
from dit.evaluation.extractors.inception import INCEPTION, inception_cache, load_inception
from dit.utils.files import sha256

DIGITS_CNN, COLOUR_CNN = "digits-cnn", "colour-cnn"
BUNDLED = (DIGITS_CNN, COLOUR_CNN)
LOADERS = {"inception": load_inception, "dinov2": load_dinov2}
ALIASES = {INCEPTION: "inception", DINOV2: "dinov2"}  # names in reports: names of flags


def load_extractors(
    names: Sequence[str], weights: Sequence[str], device: torch.device
) -> list[Extractor]:
    """Return feature networks by name, with their weights verified.

    Args:
        names: `inception`, `dinov2`, `colour-cnn`, `digits-cnn`, MODULE:CLASS, or a name
            registered with torch-fidelity.
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
    ours = [*LOADERS, *BUNDLED]
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
    takers = [name for name in names if name not in BUNDLED] or names
    if len(takers) == 1 and (not file or Path(entry).is_file()):
        return takers[0], entry
    raise UserError(
        f"--weights {entry} with --extractor {' '.join(names)}",
        "NAME=FILE of one of them",
        "correct --weights or --extractor",
    )


def _load(name: str, weights: Path | None, device: torch.device) -> Extractor:
    if name in BUNDLED:
        _refuse_weights(name, weights)
        return _load_digits_cnn(device) if name == DIGITS_CNN else _load_colour_cnn(device)
    if ":" in name:
        return load_class(name, weights, device)
    if name in LOADERS:
        return LOADERS[name](weights, device)
    return load_registered(name, weights, device)


def _refuse_weights(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise UserError(
            f"--weights {weights} with the extractor {name}",
            "no weights, for they are bundled",
            "drop --weights",
        )


def _load_digits_cnn(device: torch.device) -> Extractor:
    from safetensors.torch import load_file

    from dit.evaluation.extractors.digits_cnn import WIDTH, DigitsCNN

    path, network = bundled_weights(DIGITS_CNN), DigitsCNN()
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


def _load_colour_cnn(device: torch.device) -> Extractor:
    from safetensors.torch import load_file

    from dit.evaluation.extractors.colour_cnn import WIDTH, ColourCNN

    path, network = bundled_weights(COLOUR_CNN), ColourCNN()
    network.load_state_dict(load_file(path))
    network.to(device).eval().requires_grad_(False)
    return Extractor(
        lambda images: Outputs(network(images)),
        COLOUR_CNN,
        path.name,
        sha256(path),
        "bilinear with antialiasing to 64x64",
        device,
        (WIDTH, 0, 0),
    )


def bundled_weights(name: str) -> Path:
    """Return weights from `python -m dit.evaluation.extractors.digits_cnn` or `colour_cnn`."""
    return Path(str(resources.files("dit") / "assets" / f"{name}.safetensors"))


# -- which one, unless named -----------------------------------------------------------------------


def usual_network(
    names: Sequence[str], weights: Sequence[str], device: torch.device
) -> tuple[str, str]:
    """Return the network of images other than digits, and a note if it is not Inception.

    On a GPU it is Inception, as in papers. On other machines Inception counts if its weights are
    here: in the cache, or in a file that is of none of `names`.
    """
    given = any(entry.partition("=")[0] not in names for entry in weights)
    if device.type == "cuda" or given or inception_cache().is_file():
        return "inception", ""
    note = (
        f"features: {COLOUR_CNN}, which is bundled, because Inception's weights are not on this "
        f"machine. FD({COLOUR_CNN}) is not FID. It ranks checkpoints and settings of one run on "
        "the same images, and cannot be compared with numbers of papers. For FID pass --extractor "
        "inception (it downloads 91 MB), or --weights FILE"
    )
    return COLOUR_CNN, note
