"""Networks by name: sizes and cost of the papers, mistakes in names."""

import pytest
import torch
from helpers.networks import IMAGENET

from dit.errors import UserError
from dit.models.registry import (
    check_name,
    count_parameters,
    create_model,
    describe_network,
    multiply_adds,
)

# 2212.09748: table 4 for the multiply-adds (at patch 8, 4, 2), appendix for the parameters (at 2).
PAPER = {
    "S": (33, (0.36, 1.41, 6.06)),
    "B": (130, (1.42, 5.56, 23.01)),
    "L": (458, (5.01, 19.70, 80.71)),
    "XL": (675, (7.39, 29.05, 118.64)),
}
# 2212.09748, figure 5 and table 4: multiply-adds (G) and parameters (M) of XL/2
OTHER_CONDITIONINGS = {
    "in-context": (119.37, 449),
    "cross-attention": (137.62, 598),
    "adaln": (118.56, 600),
}


def on_meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **IMAGENET, **options)


@pytest.mark.parametrize("size", PAPER)
def test_parameters_and_multiply_adds_are_those_of_the_paper(size):
    millions, gflops = PAPER[size]
    # 130.5 M is printed as 130, 32.96 as 33
    assert count_parameters(on_meta(f"DiT-{size}/2")) / 1e6 == pytest.approx(millions, abs=0.52)
    counted = [multiply_adds(f"DiT-{size}/{patch}", **IMAGENET) / 1e9 for patch in (8, 4, 2)]
    # printed with two decimals, not always rounded to the nearest; activations add some 0.02 %
    assert counted == [pytest.approx(printed, rel=2.5e-4, abs=0.0065) for printed in gflops]


@pytest.mark.parametrize("conditioning", OTHER_CONDITIONINGS)
def test_cost_of_other_conditionings_is_that_of_the_paper(conditioning):
    gflops, millions = OTHER_CONDITIONINGS[conditioning]
    network = on_meta("DiT-XL/2", conditioning=conditioning)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, abs=0.8)
    counted = multiply_adds("DiT-XL/2", conditioning=conditioning, **IMAGENET)
    assert counted / 1e9 == pytest.approx(gflops, rel=2.5e-4)


def test_adaln_single_has_one_matrix_of_modulation_and_a_table_a_block():
    depth, width = 28, 1152
    matrix, last = 6 * (width**2 + width), 2 * (width**2 + width)
    network = on_meta("DiT-XL/2", conditioning="adaln-single")
    expected = 675_129_632 - (depth - 1) * matrix - last + (6 * depth + 2) * width
    assert count_parameters(network) == expected


def test_xl_has_the_size_of_the_published_checkpoint():
    assert count_parameters(on_meta("DiT-XL/2")) == 675_129_632


def test_multiply_adds_at_512_pixels():
    counted = multiply_adds("DiT-XL/2", **{**IMAGENET, "input_size": 64})
    assert counted / 1e9 == pytest.approx(524.60, rel=2.5e-4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DiT-S/3", "did you mean DiT-S/"),
        ("S/2", "did you mean DiT-S/2"),
        ("", "expected DiT-.* or UNet-.*; see"),
        ("UNet-M", "did you mean UNet-[SB] or UNet-[SB]"),
        ("unet-s", "UNet-S"),
        ("Classifier-S", "expected DiT-.* or UNet-.*; see"),
        ("UNet-S/2", "did you mean UNet-S"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(UserError, match=hint):
        check_name(name, "adaln-zero")
    with pytest.raises(UserError, match=hint):
        on_meta(name)


@pytest.mark.parametrize("name", ["UNet-S", "Classifier-S/2"])
def test_only_a_dit_has_a_choice_of_conditioning(name):
    with pytest.raises(UserError, match=f"--conditioning in-context with --model {name}"):
        check_name(name, "in-context")
    check_name("DiT-S/2", "in-context")


def test_networks_are_described():
    shape = dict(input_size=(8, 16), in_channels=4, num_classes=10)
    names = ("DiT-Ti/2", "UNet-S", "Classifier-Ti/4")
    assert [describe_network(create_model(name, **shape)) for name in names] == [
        "Diffusion Transformer, adaln-zero conditioning, 32 tokens of 2 x 2 latents",
        "U-Net of 3 levels",
        "classifier, 8 tokens of 4 x 4 latents",
    ]
    in_context = create_model("DiT-Ti/2", conditioning="in-context", **shape)
    assert "in-context conditioning" in describe_network(in_context)


def test_patch_that_does_not_divide():
    with pytest.raises(UserError, match="30 x 30 with patch size 4"):
        create_model("DiT-S/4", **{**IMAGENET, "input_size": 30})
