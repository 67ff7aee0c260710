"""A frozen vision transformer of timm, whose patch features training aligns with (--align)."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.errors import UserError, one_line
from dit.utils.files import sha256
from dit.utils.hub import find_folder
from dit.utils.typed_json import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEAD = ("head.", "fc_norm.")  # tensors of a classifier, which may be left out
ARGUMENTS = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("init_values", "class_token", "reg_tokens", "no_embed_class", "global_pool"),
)
"""What a config may change of an architecture. Others could make timm read further files."""


class TimmConfig(TypedDict, total=False):
    """What is read of a config.json of timm."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]


@dataclass(frozen=True)
class VisionEncoder:
    """A frozen vision transformer that sees an image in as many patches as a DiT has tokens.

    Attributes:
        network: timm's VisionTransformer, made for images of `size`.
        size: height and width in pixels.
        mean, deviation: of its training images, [3, 1, 1], of pixels from 0 to 1.
        checksum: SHA-256 of its weights.
    """

    name: str
    network: Any
    size: tuple[int, int]
    mean: Tensor
    deviation: Tensor
    checksum: str

    @property
    def width(self) -> int:
        """E, features of a patch."""
        return self.network.num_features

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 [B, 3, H, W] to patch features [B, T, E] after the last norm before pooling."""
        pixels = F.interpolate(images.float() / 255, self.size, mode="bicubic", antialias=True)
        tokens = self.network.forward_features((pixels - self.mean) / self.deviation)
        return tokens[:, self.network.num_prefix_tokens :]


def load_vision_encoder(
    name: str, grid: tuple[int, int], device: torch.device | str = "cpu"
) -> VisionEncoder:
    """Load a folder in timm's layout, or a hub name such as timm/vit_base_patch14_dinov2.lvd142m.

    Only safetensors are read.

    Args:
        grid: patches along height and width, as many as the tokens that are aligned.
    """
    folder = locate_vision_encoder(name)
    config = read_json(folder / CONFIG, TimmConfig, "the configuration of timm", "copy it again")
    network = _read_network(name, folder / WEIGHTS, config)

    patch = network.patch_embed.patch_size
    size = grid[0] * patch[0], grid[1] * patch[1]
    network.set_input_size(img_size=size)
    statistics = config.get("pretrained_cfg", {})
    mean, deviation = (
        torch.tensor(statistics.get(key, (0.5, 0.5, 0.5)), device=device).view(3, 1, 1)
        for key in ("mean", "std")
    )
    network = network.to(device).eval().requires_grad_(False)
    return VisionEncoder(name, network, size, mean, deviation, sha256(folder / WEIGHTS))


def locate_vision_encoder(name: str) -> Path:
    """Return the folder that holds config.json and weights, downloaded if necessary."""
    files = f"{CONFIG} and {WEIGHTS}"
    folder = find_folder("--align", name, "`self`, a folder", files, [CONFIG, WEIGHTS], near="self")
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(
                f"--align {name} has no {file}",
                f"{files} of a vision transformer of timm",
                "copy both into one folder; pickled weights are not read",
            )
    return folder


def _read_network(name: str, file: Path, config: TimmConfig) -> Any:
    """Return the float32 network of a config with the weights in a file."""
    import timm
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    architecture = config.get("architecture", "")
    given = config.get("model_args") or {}
    options = {key: given[key] for key in ARGUMENTS if key in given}
    network: Any = None
    # a name with a scheme, as hf-hub:…, would be downloaded
    if timm.is_model(architecture):
        # other networks do not take such arguments
        with suppress(TypeError, ValueError, RuntimeError):
            network = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    if not isinstance(network, VisionTransformer):
        raise UserError(
            f"--align {name} is {architecture!r}",
            "a VisionTransformer of timm, whose patches have features",
            "pass another folder, or --align self",
        )
    try:
        tensors = load_file(file)
        own = network.state_dict().keys()
        # with average pooling, fc_norm stays without a classifier
        extra = {key for key in tensors if key.startswith(HEAD) and key not in own}
        kept = {key: tensor for key, tensor in tensors.items() if key not in extra}
        network.load_state_dict({key: tensor.float() for key, tensor in kept.items()})
    except Exception as error:  # of safetensors and torch
        raise UserError(
            f"{file} does not fit {architecture} ({one_line(error)})",
            f"all weights of {architecture}",
            "copy it again",
        ) from error
    return network
