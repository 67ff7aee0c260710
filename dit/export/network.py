"""A trained network as a component of a pipeline of diffusers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from dit.build import build_denoiser, build_network, load_weights, with_data_statistics
from dit.config import SamplerConfig
from dit.encoders.autoencoder import Autoencoder, load_autoencoder, wrap_network
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.weights import Weights, read_weights, write_weights
from dit.sampling.classes import find_class
from dit.sampling.generate import generate
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.sampling.python_arguments import NAMES, python_names, sampler_settings
from dit.utils.stored_weights import WEIGHTS

SEE = "see pipe.config.id2label"


class RunNetwork(ModelMixin, ConfigMixin):
    """A network of ours with its card, which samples as `dit sample` does.

    Args:
        card: The model card as plain JSON values.
        step: Of training.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, card: dict[str, Any], step: int = 0):
        super().__init__()
        self.card = ModelCard.from_json(dict(card))
        self.network = build_network(self.card.network)
        self.step = step
        self.file = Path(WEIGHTS)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **_: Any,
    ) -> "RunNetwork":
        """Load the weights of a folder, in float32: `precision` of a call chooses the arithmetic.

        diffusers passes its own settings of loading, such as `use_safetensors`.
        """
        asked = dtype or torch_dtype
        if asked not in (None, torch.float32):
            raise ValueError(
                f"dtype {asked} for a network of dit; expected float32; pass precision='bf16' to "
                "the pipeline's call"
            )
        weights = read_weights(Path(folder) / WEIGHTS)
        network = cls(weights.card.to_json(), weights.step)
        network.card = weights.card
        load_weights(network.network, weights.state_dict, weights.path)
        network.file = weights.path
        return network.eval().requires_grad_(False)

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, **_: Any
    ) -> None:
        """Save weights and card into a folder, as `from_pretrained` reads them."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        card = self.card
        if card.config.vae != "identity":
            # the autoencoder lies beside the network's own folder
            card = replace(card, config=replace(card.config, vae="../vae"))
        write_weights(out / WEIGHTS, self.network.state_dict(), card, self.step)
        self.register_to_config(card=card.to_json())
        self.save_config(out)

    def sample(
        self, vae: Any, labels: Sequence[str | int] | str | int, settings: dict[str, Any]
    ) -> Tensor:
        """Return images uint8 [N, 3, H, W] on the CPU, image i of the seed and i alone.

        Args:
            vae: The pipeline's AutoencoderKL or VQModel; None for pixels.
            labels: N names or ids of classes, or one.
            settings: Those of `SamplerConfig`, by their names in Python.

        Raises:
            UserError: Wrong classes or settings, by the names that the pipeline's call has.
        """
        with python_names():
            return self._sample(vae, labels, _settings(settings))

    def _sample(self, vae: Any, labels: Any, config: SamplerConfig) -> Tensor:
        labels = [labels] if isinstance(labels, str | int) else labels
        if not len(labels):
            raise UserError("class_labels is empty", "names or ids of classes", SEE)
        weights = Weights(self.file, self.card, self.step, {})
        denoise = build_denoiser(self.card.config, self.network)
        run = LoadedRun(weights, denoise, self._autoencoder(vae), self.device)
        ids = [self._class_id(label) for label in labels]
        pipeline = build_pipeline(run, config, ids)
        return generate(pipeline, torch.tensor(ids), torch.arange(len(ids)))

    def _class_id(self, label: str | int) -> int:
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise UserError(f"class_labels with {label!r}", "names or ids of classes", SEE)
        if self.card.unconditional and label == 0:
            return 0
        try:
            return find_class(label, self.card, SEE)
        except UserError as error:
            given = f"class_labels with {error.given}"
            raise UserError(given, error.expected, error.do) from None

    def _autoencoder(self, vae: Any) -> Autoencoder:
        if vae is None:
            return load_autoencoder("identity", self.device)
        checksum = self.card.vae_sha256
        wrapped = wrap_network(vae, dict(vae.config), self.device, "vae", checksum)  # type: ignore[arg-type]
        return with_data_statistics(wrapped, self.card)


def _settings(values: dict[str, Any]) -> SamplerConfig:
    if "steps" in values and "num_inference_steps" not in values:
        # of pipeline.py of 0.2, which may go with 0.4
        values = {NAMES.get(name, name): value for name, value in values.items()}
    return sampler_settings(**values)
