"""Feature networks: Inception through torch-fidelity, and the bundled one for digits."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.errors import UserError
from dit.evaluation.inception import INCEPTION, check_inception, find_inception
from dit.files import sha256

DIGITS_CNN = "digits-cnn"


@dataclass(frozen=True)
class Extractor:
    """A feature network, ready to use.

    Args:
        network: torch-fidelity's module, giving (features, logits).
        name: as registered with torch-fidelity.
        width: number of features D; `classes`: number of logits K.
        weights: file name of the weights, and `checksum` their SHA-256.
    """

    network: torch.nn.Module
    name: str
    width: int
    classes: int
    weights: str
    checksum: str
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] uint8 -> features [B, D] and logits [B, K], float32 on the CPU."""
        features, logits = self.network(images.to(self.device))
        return features.float().cpu(), logits.float().cpu()


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """The feature network `inception` or `digits-cnn`.

    Args:
        weights: local file of Inception's weights; unless given, torch-fidelity's cache or its download.

    Raises:
        UserError: Inception's weights are not here and can not be downloaded, or the file is not what it should be;
            `weights` with digits-cnn, which has its own.
    """
    if name == DIGITS_CNN:
        if weights is not None:
            raise UserError(f"--weights {weights} with the extractor digits-cnn", "--weights with inception only",
                            "drop --weights or pass --extractor inception")
        register_digits_cnn()
        return _create(DIGITS_CNN, ["features", "logits"], digits_cnn_weights(), device)
    path = check_inception(weights) if weights is not None else find_inception()
    return _create(INCEPTION, ["2048", "logits_unbiased"], path, device)


def _create(name: str, layers: list[str], weights: Path, device: torch.device) -> Extractor:
    from torch_fidelity.utils import create_feature_extractor

    network = create_feature_extractor(
        name, layers, cuda=False, verbose=False, feature_extractor_weights_path=str(weights)
    ).to(device)
    probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)
    width, classes = (output.shape[1] for output in network(probe))
    return Extractor(network, name, width, classes, weights.name, sha256(weights), device)


# -- digits ------------------------------------------------------------------------------------------------------


def digits_cnn_weights() -> Path:
    """The bundled weights, made by `python -m dit.evaluation.digits_cnn`."""
    return Path(str(resources.files("dit") / "assets" / "digits-cnn.safetensors"))


def register_digits_cnn() -> None:
    """Make `digits-cnn` known to torch-fidelity, once."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if DIGITS_CNN not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(DIGITS_CNN, _digits_cnn_class())


def _digits_cnn_class() -> Any:
    """The class is made here, so that importing this module does not import torch-fidelity."""
    from safetensors.torch import load_file
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    from dit.evaluation.digits_cnn import DigitsCNN

    class FeatureExtractorDigitsCNN(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path=None, **kwargs: Any):
            super().__init__(name, features_list)
            self.network = DigitsCNN()
            self.network.load_state_dict(load_file(feature_extractor_weights_path or digits_cnn_weights()))

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features, logits = self.network(images)
            layers = {"features": features, "logits": logits}
            return tuple(layers[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return True

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    return FeatureExtractorDigitsCNN
