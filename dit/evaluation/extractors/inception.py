"""Inception through torch-fidelity, with the spatial features of sFID; its weights are verified."""

import urllib.error
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.weights import read_tensors
from dit.utils.files import sha256, write_atomically
from dit.utils.imports import reason

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, which PyTorch's convention puts in the name
SPATIAL_CHANNELS = 7  # of 192, as in ADM's evaluator
WIDTHS = (2048, 1008, SPATIAL_CHANNELS * 17 * 17)


def load_inception(weights: Path | None, device: torch.device) -> Extractor:
    """Return the network of FID, sFID and IS: 2048 features, 1008 logits, 2023 spatial features.

    Args:
        weights: local file; unless given, torch-fidelity's cache or a download.
    """
    path = weights if weights is not None else find_inception()
    return Extractor(
        with_spatial(_stock_network(path).to(device)),
        INCEPTION,
        path.name,
        sha256(path),
        "bilinear to 299x299 as TensorFlow 1",
        device,
        WIDTHS,
    )


def _stock_network(path: Path) -> nn.Module:
    """Return torch-fidelity's module: images -> features [B, 2048], unbiased logits [B, 1008]."""
    from torch_fidelity.utils import create_feature_extractor

    # torch-fidelity unpickles the file without `weights_only`, which would run code in it.
    read_tensors(path, INCEPTION_FILE)
    layers = ["2048", "logits_unbiased"]
    options = {"cuda": False, "verbose": False, "feature_extractor_weights_path": str(path)}
    try:
        return create_feature_extractor(INCEPTION, layers, **options)
    except Exception as error:  # safe tensors of another network, in any form
        raise UserError(
            f"weights {path} are not Inception's ({reason(error)})",
            f"the pickle {INCEPTION_FILE}",
            "pass that file as --weights",
        ) from error


def with_spatial(network: nn.Module) -> Callable[[Tensor], Outputs]:
    """Add the features of sFID (2103.03841), from the same pass, as ADM's evaluator takes them.

    They are the first 7 channels of TensorFlow's `mixed_6/conv`, which is `Mixed_6d.branch1x1`
    after its ReLU, [B, 192, 17, 17]; flattened with channels last.
    """
    outputs: list[Tensor] = []
    branch = network.get_submodule("Mixed_6d.branch1x1")
    branch.register_forward_hook(lambda module, args, output: outputs.append(output))

    def run(images: Tensor) -> Outputs:
        features, logits = network(images)
        spatial = outputs.pop()[:, :SPATIAL_CHANNELS]
        return Outputs(features, logits, spatial.permute(0, 2, 3, 1).flatten(1))

    return run


# -- weights ---------------------------------------------------------------------------------------


def inception_cache() -> Path:
    """Return the file in which torch-fidelity keeps Inception's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def find_inception() -> Path:
    """Return Inception's weights in torch-fidelity's cache, downloaded if they are missing."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = inception_cache()
    if path.is_file():
        return path
    try:
        with write_atomically(path) as beside:
            torch.hub.download_url_to_file(
                URL_INCEPTION_V3, str(beside), hash_prefix=INCEPTION_SHA256
            )
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"Inception's weights {INCEPTION_FILE} are missing and cannot be downloaded ({error})",
            f"the file {path}",
            f"download {URL_INCEPTION_V3} elsewhere, and put it there or pass it as --weights "
            "inception=FILE",
        ) from error
    return path
