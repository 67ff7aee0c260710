"""Networks by name: forward(x, t, y) -> prediction; of classifiers forward(x, t) -> logits."""

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn

from dit.errors import UserError, did_you_mean
from dit.models import classifier, unet
from dit.models.classifier import Classifier
from dit.models.conditioning import CONDITIONINGS
from dit.models.dit import DiT, PatchTransformer
from dit.models.embeddings import SMOOTHING, IntervalEmbedder, with_lengths
from dit.models.layers import EPS, PLAIN, parse_layers
from dit.models.parts import early_block
from dit.models.routing import number_kept
from dit.models.sizes import PATCHES, SIZES, grid_of
from dit.models.unet import UNet

DIT_NAMES = [f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES]
NAMES = [*DIT_NAMES, *unet.NAMES, *classifier.NAMES]
OWN_NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.<>]*")  # MODULE:CLASS, the user's own
DIT_PATTERN = f"DiT-{{{','.join(SIZES)}}}/{{{','.join(map(str, PATCHES))}}}"


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of networks that fit a pattern, smallest first in each family.

    >>> list_models("DiT-*/2")[:3]
    ['DiT-Mi/2', 'DiT-Ti/2', 'DiT-S/2']
    """
    return [name for name in NAMES if fnmatchcase(name, pattern)]


def create_model(
    name: str,
    *,
    input_size: int | tuple[int, int] = 32,
    in_channels: int = 4,
    num_classes: int = 1000,
    learn_sigma: bool = False,
    conditioning: str = "adaln-zero",
    block: str = "plain",
    text_width: int | None = None,
    unet_attention: tuple[int, ...] | None = None,
    time_scale: float = 1.0,
    inner_head: bool = False,
    interval: bool = False,
    interval_smoothing: float = SMOOTHING,
    time_endpoint: bool = False,
    mlp_norm_eps: float = EPS,
) -> nn.Module:
    """Return a network of this name with fresh weights: forward(x, t, y) -> prediction.

    Args:
        name: One of `list_models()`.
        input_size: Side, or height and width, of the latents x [B, in_channels, h, w].
        num_classes: Ids of classes y [B]; the id after the last is the null class. 0: none.

    The other arguments are the flags of train.py of the same names. Times t [B] are 0 … 1000.

    >>> create_model("DiT-Ti/4", num_classes=10)(
    ...     torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.tensor([7])
    ... ).shape
    torch.Size([1, 4, 32, 32])
    """
    check_name(name, conditioning, block, inner_head)
    if is_own(name):
        raise UserError(f"create_model of {name}", f"one of {DIT_PATTERN}", "call the class itself")
    assert name in DIT_NAMES or not interval
    assert (conditioning == "text") == (text_width is not None)
    family, size, patch = _parts(name)
    shape: dict[str, Any] = dict(input_size=input_size, in_channels=in_channels)
    shape["num_classes"] = num_classes
    # only imported transformers were trained on other times
    assert family == "DiT" or (time_scale, time_endpoint, mlp_norm_eps) == (1, False, EPS)
    if family == "UNet":
        return _create_unet(size, unet_attention, learn_sigma=learn_sigma, **shape)

    shape |= dict(patch_size=int(patch), **SIZES[size])
    if family == "Classifier":
        return Classifier(**shape)

    shape |= dict(learn_sigma=learn_sigma, text_width=text_width, inner_head=inner_head)
    transformer = _create_dit(conditioning, block, **shape)
    if interval:
        # drawn last, so that all other weights are those of a network without it
        transformer.t_embedder = with_lengths(transformer.t_embedder)
        transformer.t_embedder.smoothing = interval_smoothing
    transformer.t_embedder.time_scale = time_scale
    transformer.t_embedder.endpoint = time_endpoint
    for made in transformer.blocks:
        made.norm2.eps = mlp_norm_eps  # type: ignore[union-attr]
    return transformer


def _create_dit(conditioning: str, block: str, **settings: Any) -> DiT:
    """Return a DiT with blocks of this conditioning and of these layers."""
    layers = parse_layers(block)
    settings["num_heads"] = layers.num_heads(settings["hidden_size"], settings["num_heads"])
    kind, final_layer = CONDITIONINGS[conditioning]
    return DiT(**settings, layers=layers, block=kind, final_layer=final_layer)


def _create_unet(size: str, attention: tuple[int, ...] | None, **settings: Any) -> UNet:
    """Return a U-Net of this size with attention at these sides of the latents."""
    options = dict(unet.SIZES[size])
    if attention is not None:
        options["attention_sides"] = attention
    network = UNet(**settings, **options)
    # which sides there are depends on the size of the latents
    if not set(attention or ()) <= set(network.sides):
        raise UserError(
            f"--unet-attention {' '.join(map(str, attention or ()))} with --model UNet-{size}",
            f"sides of its levels: {' '.join(map(str, network.sides))}",
            "change --unet-attention",
        )
    return network


def check_name(
    name: str, conditioning: str, block: str = "plain", inner_head: bool = False
) -> None:
    """Refuse unknown names, and choices of a DiT for networks that are none."""
    if name not in NAMES and not is_own(name):
        raise UserError(
            f"unknown model {name!r}",
            f"{DIT_PATTERN} or UNet-{{{','.join(unet.SIZES)}}}, or MODULE:CLASS",
            did_you_mean(name, [*DIT_NAMES, *unet.NAMES], "see `train.py --help`"),
        )
    if conditioning not in CONDITIONINGS:
        known = ", ".join(CONDITIONINGS)
        do = did_you_mean(conditioning, CONDITIONINGS)
        raise UserError(f"--conditioning {conditioning}", f"one of {known}", do)
    parse_layers(block)
    for flag, typed, default in (
        ("--conditioning", f"--conditioning {conditioning}", conditioning == "adaln-zero"),
        ("--block", f"--block {block}", block == "plain"),
        ("--inner-head", "--inner-head", not inner_head),
    ):
        if not default and name not in DIT_NAMES:
            raise UserError(
                f"{typed} with --model {name}",
                f"a DiT with {flag}",
                f"drop {flag}, or pass --model DiT-Ti/2",
            )


def is_own(name: str) -> bool:
    """Return whether a name is that of a network of the user's own, MODULE:CLASS."""
    return OWN_NAME.fullmatch(name) is not None


def _parts(name: str) -> tuple[str, str, str]:
    """Split `DiT-S/4` into DiT, S and 4; `UNet-S` into UNet, S and nothing."""
    family, _, rest = name.partition("-")
    size, _, patch = rest.partition("/")
    return family, size, patch


def split_name(name: str) -> tuple[str, int]:
    """Return size and patch of a DiT's name: `DiT-S/4` -> (`S`, 4)."""
    if name not in DIT_NAMES:
        raise UserError(f"unknown model {name!r}", DIT_PATTERN, did_you_mean(name, DIT_NAMES))
    _, size, patch = _parts(name)
    return size, int(patch)


def is_classifier(name: str) -> bool:
    """Return whether a network of this name predicts classes."""
    return name in classifier.NAMES


def side_multiple(name: str) -> int:
    """Return what both sides of the latents must be multiples of."""
    if is_own(name):
        return 1
    family, size, patch = _parts(name)
    return unet.side_multiple(size) if family == "UNet" else int(patch)


def describe_network(network: nn.Module) -> str:
    """Describe a network that `create_model` returned."""
    if isinstance(network, UNet):
        return f"U-Net of {network.halvings + 1} levels"

    if not isinstance(network, PatchTransformer):
        return f"{type(network).__name__} of {type(network).__module__}, not one of this package"
    kind = "classifier"
    if isinstance(network, DiT):
        of_block = {block: name for name, (block, _) in CONDITIONINGS.items()}
        kind = f"Diffusion Transformer, {of_block[type(network.blocks[0])]} conditioning"  # type: ignore[index]
        if network.layers != PLAIN:
            kind += f", blocks with {network.layers}"
        if network.inner_final_layer:
            kind += f", an inner head after block {early_block(len(network.blocks))}"
        if isinstance(network.t_embedder, IntervalEmbedder):
            kind += ", times with lengths"
    height, width = network.grid
    return f"{kind}, {height * width} tokens of {network.patch_size} x {network.patch_size} latents"


def token_grid(name: str, input_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the tokens of a DiT along height and width."""
    return grid_of(input_size, split_name(name)[1])


def count_tokens(name: str, input_size: int | tuple[int, int]) -> int:
    """Return the tokens of an image in a DiT."""
    height, width = to_2tuple(input_size)
    return height * width // split_name(name)[1] ** 2


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters, fixed positions included."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(
    name: str, text_tokens: int = 0, route: float = 0.0, parts: bool = False, **sizes: Any
) -> int:
    """Return multiply-adds of a forward pass for one image, which papers call "Gflops".

    Real FLOPs are twice that. `route`, `parts` and `sizes` are those of `zero_inputs`.
    """
    # nothing is allocated or computed on the meta device
    with torch.device("meta"):
        network = create_model(name, **sizes)
        return multiply_adds_of(network, zero_inputs(name, 1, text_tokens, route, parts, **sizes))


def multiply_adds_of(network: Callable[..., Any], inputs: tuple[Any, ...]) -> int:
    """Return multiply-adds of a forward pass on these inputs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() // 2


def zero_inputs(
    name: str,
    batch: int,
    text_tokens: int,
    route: float = 0.0,
    parts: bool = False,
    **sizes: Any,
) -> tuple[Any, ...]:
    """Return inputs of zeros for the network `create_model(name, **sizes)`.

    Args:
        route: share of the tokens that skip the middle blocks.
        parts: whether a DiT returns what an early block knows too.
    """
    x = torch.zeros(batch, sizes["in_channels"], *to_2tuple(sizes["input_size"]))
    # a network of intervals takes times and lengths
    t = torch.zeros(batch, 2) if sizes.get("interval") else torch.zeros(batch)
    if is_classifier(name):
        return x, t
    y = torch.zeros(batch, dtype=torch.long)
    if width := sizes.get("text_width"):
        y = torch.zeros(batch, text_tokens, width)
    keep = None
    if route:
        kept = number_kept(route, count_tokens(name, sizes["input_size"]))
        keep = torch.arange(kept).expand(batch, -1)
    if parts:
        return x, t, y, keep, True
    return (x, t, y) if keep is None else (x, t, y, keep)
