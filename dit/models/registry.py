"""Networks by name. They are forward(x, t, y) -> output of x's shape; classifiers are forward(x, t) -> logits."""

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from dit.errors import UserError, did_you_mean
from dit.models import classifier, unet
from dit.models.classifier import Classifier
from dit.models.dit import PATCHES, SIZES, DiT, PatchTransformer
from dit.models.unet import UNet

DIT_NAMES = [f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES]
NAMES = [*DIT_NAMES, *unet.NAMES, *classifier.NAMES]


def check_name(name: str, conditioning: str = "adaln-zero") -> None:
    """Whether a network has this name and hears of its condition in this way.

    Raises:
        UserError: none has, with the nearest names of networks that draw images; or only a DiT has the choice.
    """
    if name not in NAMES:
        kinds = f"{{{','.join(SIZES)}}}/{{{','.join(map(str, PATCHES))}}}"
        raise UserError(
            f"unknown model {name!r}",
            f"DiT-{kinds} or UNet-{{{','.join(unet.SIZES)}}}",
            did_you_mean(name, [*DIT_NAMES, *unet.NAMES], "see train.py --help"),
        )
    if conditioning != "adaln-zero" and name not in DIT_NAMES:
        raise UserError(
            f"--conditioning {conditioning} with --model {name}",
            "a DiT with --conditioning",
            f"drop --conditioning, or pass --model {DIT_NAMES[1]}",
        )


def is_classifier(name: str) -> bool:
    """Whether a network of this name says classes, not images."""
    return name in classifier.NAMES


def side_multiple(name: str) -> int:
    """What both sides of the latents must be multiples of, for the network of this name."""
    family, _, size = name.partition("-")
    return unet.side_multiple(size) if family == "UNet" else int(size.partition("/")[2])


def create_model(
    name: str,
    *,
    input_size: int | tuple[int, int],
    in_channels: int,
    num_classes: int,
    learn_sigma: bool = False,
    conditioning: str = "adaln-zero",
    text_width: int | None = None,
    unet_attention: tuple[int, ...] | None = None,
) -> nn.Module:
    """`create_model("DiT-S/4", input_size=32, in_channels=4, num_classes=1000)`; a classifier has no variance to learn.

    Raises:
        UserError: unknown name, or one that does not go with the conditioning, the size, the number of classes or the
            levels to attend at.
    """
    check_name(name, conditioning)
    family, _, size = name.partition("-")
    shape: dict[str, Any] = dict(
        input_size=input_size, in_channels=in_channels, num_classes=num_classes
    )
    if family == "UNet":
        own = {} if unet_attention is None else {"attention_sides": unet_attention}
        network = UNet(**shape, learn_sigma=learn_sigma, **{**unet.SIZES[size], **own})
        if not set(unet_attention or ()) <= set(network.sides):
            raise UserError(
                f"--unet-attention {' '.join(map(str, unet_attention or ()))} with --model {name}",
                f"sides of its levels: {' '.join(map(str, network.sides))}",
                "change --unet-attention",
            )
        return network
    size, _, patch = size.partition("/")
    shape |= dict(patch_size=int(patch), **SIZES[size])
    if family == "Classifier":
        return Classifier(**shape)
    return DiT(**shape, learn_sigma=learn_sigma, conditioning=conditioning, text_width=text_width)


def structure(network: nn.Module) -> str:
    """What a network is made of, in words."""
    if isinstance(network, UNet):
        return f"U-Net of {network.halvings + 1} levels"
    assert isinstance(network, PatchTransformer)
    kind = (
        f"Diffusion Transformer, {network.conditioning} conditioning"
        if isinstance(network, DiT)
        else "classifier"
    )
    (height, width), patch = network.grid, network.patch_size
    return f"{kind}, {height * width} tokens of {patch} x {patch} latents"


def parameters(network: nn.Module) -> int:
    """Number of parameters, fixed positions included."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(name: str, text_tokens: int = 0, **sizes: Any) -> int:
    """Multiply-adds of one forward pass for one image (what papers call "Gflops"); real FLOPs are twice that.

    Args:
        text_tokens: of a caption, for a network of text.
        sizes: as `create_model` takes them.
    """
    with torch.device("meta"):
        return multiply_adds_of(
            create_model(name, **sizes), blank_inputs(name, 1, text_tokens, **sizes)
        )


def multiply_adds_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Of one forward pass of a network on these inputs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() // 2


def blank_inputs(name: str, batch: int, text_tokens: int = 0, **sizes: Any) -> tuple[Tensor, ...]:
    """What a network made by `create_model(name, **sizes)` takes, as zeros; of text so many tokens."""
    x, t = (
        torch.zeros(batch, sizes["in_channels"], *to_2tuple(sizes["input_size"])),
        torch.zeros(batch),
    )
    if is_classifier(name):
        return x, t
    if width := sizes.get("text_width"):
        return x, t, torch.zeros(batch, text_tokens, width)
    return x, t, torch.zeros(batch, dtype=torch.long)


def split_name(name: str) -> tuple[str, int]:
    """Size and patch of a name: `DiT-S/4` -> (`S`, 4).

    Raises:
        UserError: no DiT, with the nearest names.
    """
    if name not in DIT_NAMES:
        raise UserError(
            f"unknown model {name!r}",
            f"DiT-{{{','.join(SIZES)}}}/{{{','.join(map(str, PATCHES))}}}",
            did_you_mean(name, DIT_NAMES),
        )
    size, patch = name.removeprefix("DiT-").split("/")
    return size, int(patch)
