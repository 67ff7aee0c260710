"""Inception through torch-fidelity, with the spatial features of sFID; its weights are checked before loading."""

import io
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.weights import check_shapes, read_tensors, shapes
from dit.utils.files import sha256, write_atomically

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, which PyTorch's convention puts in the name
SPATIAL_CHANNELS = 7  # of the 192, as ADM's evaluator
WIDTHS = (2048, 1008, SPATIAL_CHANNELS * 17 * 17)


def load_inception(weights: Path | None, device: torch.device) -> Extractor:
    """The network that FID, sFID and IS are made with: 2048 features, 1008 logits, 2023 spatial features.

    Args:
        weights: local file; unless given, torch-fidelity's cache or a download.

    Raises:
        UserError: weights missing, unsafe or not Inception's.
    """
    path = check_inception(weights) if weights is not None else find_inception()
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
    """torch-fidelity's module, giving (features [B, 2048], unbiased logits [B, 1008])."""
    from torch_fidelity.utils import create_feature_extractor

    layers = ["2048", "logits_unbiased"]
    return create_feature_extractor(
        INCEPTION, layers, cuda=False, verbose=False, feature_extractor_weights_path=str(path)
    )


def with_spatial(network: nn.Module) -> Callable[[Tensor], Outputs]:
    """The features of sFID (Nash et al. 2103.03841) from the same pass, as ADM's evaluator takes them.

    They are the first 7 channels of TensorFlow's `mixed_6/conv`, which is `Mixed_6d.branch1x1` after its ReLU,
    [B, 192, 17, 17]; flattened with channels last.
    """
    seen = threading.local()  # so that two threads can use the network at once
    branch = network.get_submodule("Mixed_6d.branch1x1")
    branch.register_forward_hook(lambda module, args, output: seen.__dict__.update(layer=output))

    def run(images: Tensor) -> Outputs:
        features, logits = network(images)
        layer = seen.__dict__.pop("layer")
        return Outputs(features, logits, layer[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))

    return run


# -- weights -----------------------------------------------------------------------------------------------------


def inception_cache() -> Path:
    """Where torch-fidelity looks for Inception's weights, and puts them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def find_inception() -> Path:
    """Inception's weights from torch-fidelity's cache, downloaded if they are not there.

    Raises:
        UserError: not there and no download, naming the file, its place and the flag.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = inception_cache()
    if not path.is_file():
        try:
            with write_atomically(path) as beside:
                torch.hub.download_url_to_file(
                    URL_INCEPTION_V3, str(beside), hash_prefix=INCEPTION_SHA256
                )
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"Inception's weights {INCEPTION_FILE} are not here and can not be downloaded ({error})",
                f"the file {path}",
                f"download {URL_INCEPTION_V3} elsewhere, and put it there or pass it as --weights "
                "inception=FILE",
            ) from error
    return check_inception(path)


def check_inception(path: Path) -> Path:
    """`path`, once it is known to be safe to load: torch-fidelity would run any code that a pickle holds.

    Raises:
        UserError: not loadable as plain tensors, or not Inception's tensors.
    """
    if path.suffix == ".safetensors":
        raise UserError(
            f"weights {path} are in safetensors format",
            f"the pickle {INCEPTION_FILE}",
            "pass that file as --weights",
        )
    check_shapes(
        path,
        shapes(read_tensors(path, INCEPTION_FILE)),
        inception_shapes(),
        "Inception's",
        INCEPTION_FILE,
    )
    return path


def inception_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that torch-fidelity's network loads, read off the network without weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Shapes(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        network = Shapes(INCEPTION, ["2048"], feature_extractor_weights_path=nothing)
    return shapes(network.state_dict())
