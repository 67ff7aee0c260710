"""PSNR of a first stage, and its verdict."""

import math

import pytest
import torch

from dit.encoders.autoencoder import load_autoencoder
from dit.encoders.psnr import GOOD, LOW, VERY_GOOD, compute_psnr, describe_psnr, measure_psnr


def test_psnr_of_known_images():
    real = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    output = real.clone()
    output[1] = 255
    assert compute_psnr(real, output) == pytest.approx(10 * math.log10(2))
    assert compute_psnr(real, real) == math.inf
    # uint8 arithmetic would wrap around
    assert compute_psnr(output, real) == compute_psnr(real, output)


def test_pixels_have_no_error_and_the_bundled_autoencoder_has_some():
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    assert measure_psnr(load_autoencoder("identity"), images) == math.inf
    # it knows digits, not noise
    assert measure_psnr(load_autoencoder("digits"), images) < LOW


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (LOW - 0.1, "19.9 dB: not enough"),
        (LOW, "20.0 dB: enough to recognise"),
        (GOOD, "25.0 dB: good"),
        (VERY_GOOD, "30.0 dB: very good"),
        (math.inf, "without any error"),
    ],
)
def test_the_verdict_has_four_steps(value: float, verdict: str):
    assert describe_psnr(value).startswith(verdict)
