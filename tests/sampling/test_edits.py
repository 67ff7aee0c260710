"""Edits by a run: what they are at their limits, and what files are read for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_run
from PIL import Image

from dit.config import SamplerConfig
from dit.errors import UserError
from dit.sampling.edit import (
    encode,
    inpaint,
    interpolate,
    known_latents,
    read_image,
    read_mask,
    vary,
)
from dit.sampling.image_grid import sample_grid
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline

CPU = torch.device("cpu")
NAMES = ("ddpm", "ddim", "euler", "heun", "dpmpp_2m")
CONFIG = SamplerConfig(precision="fp32", steps=4, cfg_scale=2.0, seed=5)
CLASSES = [3, 1]

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Flow matching on 8 px, with the bundled autoencoder of digits, which has a factor of 4."""
    return load_run(write_run(tmp_path_factory.mktemp("edit") / "run"), CPU)


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(3)).byte()


def pipeline_of(run, classes=CLASSES, **settings):
    return build_pipeline(run, replace(CONFIG, **settings), classes)


def decoded(run, image):
    return run.autoencoder.decode(encode(run, image))[0]


@pytest.mark.parametrize("sampler", NAMES)
def test_inpainting_at_its_limits(run, image, sampler):
    pipeline = pipeline_of(run, sampler=sampler)
    everything = torch.ones(8, 8, dtype=torch.bool)
    made = inpaint(pipeline, image, everything, 2).generate()
    assert torch.equal(made, sample_grid(pipeline, 2)[0])

    made = inpaint(pipeline, image, ~everything, 2, paste=False).generate()
    assert torch.equal(made, decoded(run, image).expand_as(made))


@pytest.mark.parametrize("sampler", NAMES)
def test_variations_at_their_limits(run, image, sampler):
    pipeline = pipeline_of(run, sampler=sampler)
    made = vary(pipeline, image, 1.0, 2).generate()
    assert torch.equal(made, sample_grid(pipeline, 2)[0])

    made = vary(pipeline, image, 0.0, 2).generate()
    assert torch.equal(made, decoded(run, image).expand_as(made))


@pytest.mark.parametrize("sampler", NAMES)
def test_the_ends_of_an_interpolation_are_samples(run, sampler):
    # equal shapes of batches: rounding depends on them
    pipeline = pipeline_of(run, sampler=sampler, batch_size=1)
    made = interpolate(pipeline, 9, 2, 3).generate().unflatten(0, (2, 3))
    for end, label, seed in ((0, 3, 5), (-1, 1, 9)):
        settings = dict(sampler=sampler, batch_size=1, seed=seed)
        expected, _ = sample_grid(pipeline_of(run, [label], **settings), 2)
        assert torch.equal(made[:, end], expected)
    assert (made[:, 1].int() - made[:, 0].int()).abs().max() > 2


def test_an_interpolation_does_not_depend_on_the_batch(run):
    def made(size):
        return interpolate(pipeline_of(run, batch_size=size), 9, 2, 3).generate().int()

    assert (made(4) - made(64)).abs().max() <= 1


def test_an_edit_can_be_made_twice(run):
    edit = interpolate(pipeline_of(run, sampler="ddpm"), 9, 1, 3)
    assert torch.equal(edit.generate(), edit.generate())


def test_kept_pixels_are_those_of_the_image(run, image):
    paint = torch.zeros(8, 8, dtype=torch.bool)
    paint[2:5, 3:] = True
    made = inpaint(pipeline_of(run), image, paint, 2)
    images = made.generate()
    assert torch.equal(images[..., ~paint], image[:, ~paint].expand(4, -1, -1))
    assert (images.int() - image.int())[..., paint].abs().max() > 2
    assert torch.equal(made.beside["kept"][:, ~paint], image[:, ~paint])


def test_latents_are_known_where_all_their_pixels_are():
    paint = torch.zeros(8, 12, dtype=torch.bool)
    paint[3:5, 8] = True  # one pixel of two latents each
    known = known_latents(paint, 4)
    assert known.tolist() == [[[[1, 1, 0], [1, 1, 0]]]]


# -- files -----------------------------------------------------------------------------------------


def save(path: Path, pixels, mode=None) -> Path:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(path)
    return path


def test_a_mask_is_cropped_as_its_image(run, tmp_path):
    """A rectangle of 16x32: its center is 16x16, halved."""
    pixels = np.zeros((16, 32, 3))
    pixels[4:8, 12:20] = 255
    pixels[:, :8] = 255  # outside of the center
    image = save(tmp_path / "image.png", pixels)
    mask = save(tmp_path / "mask.png", pixels[..., 0])
    paint = read_mask(mask, image, run)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 2:6] = True
    assert torch.equal(paint, expected)
    assert torch.equal(read_image(image, run, "--inpaint")[0] >= 128, expected)


def test_a_mask_of_another_size_is_refused(run, tmp_path):
    image = save(tmp_path / "image.png", np.zeros((8, 8, 3)))
    mask = save(tmp_path / "mask.png", np.zeros((8, 9)))
    with pytest.raises(UserError, match=r"mask.png of 9x8 pixels for an image of 8x8"):
        read_mask(mask, image, run)


def test_a_file_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png is no file; expected an image"):
        read_image(tmp_path / "nowhere.png", run, "--variations")


def test_too_many_pixels_are_refused_before_they_are_read(run, tmp_path):
    file = tmp_path / "huge.png"
    Image.new("1", (10_001, 10_000)).save(file)
    with pytest.raises(UserError, match="at most 100,000,000 pixels"):
        read_image(file, run, "--variations")


def test_no_more_than_two_classes_are_interpolated(run):
    with pytest.raises(UserError, match="between 3 classes"):
        interpolate(pipeline_of(run, [0, 1, 2]), 1, 1, 3)


def test_the_block_cache_is_refused_between_classes(run):
    pipeline = pipeline_of(run, block_cache=2)
    with pytest.raises(UserError, match="the cache would mix the classes"):
        interpolate(pipeline, 5, 1, 3)
    # of one class it is right
    one = pipeline_of(run, [3], block_cache=2)
    assert len(interpolate(one, 9, 1, 3).generate()) == 3
