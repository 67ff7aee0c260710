import numpy as np
import pytest
import torch
from helpers.image_data import paint
from PIL import Image
from sklearn.datasets import load_digits

from dit.data.image_files import center_crop
from dit.data.images import Digits, ImageFolder, to_digits
from dit.data.sources import load_images
from dit.errors import UserError
from dit.utils.image_size import describe_size, sides, size_flag, size_of


@pytest.fixture(scope="module")
def digits():
    return Digits(32)


@pytest.mark.parametrize("size", [8, 16, 32, 64, (32, 48), (40, 8)])
def test_area_averages_give_the_digits_back(size):
    images = Digits(size).images
    assert images.shape == (1797, 3, *sides(size))
    assert images.dtype == torch.uint8
    error = to_digits(images).numpy() - load_digits().data
    assert np.abs(error).max() < 1.5  # of 16
    assert np.abs(error).mean() < 0.15


def test_digits_are_labelled_and_smooth(digits):
    assert digits.classes == list("0123456789")
    np.testing.assert_array_equal(digits.labels, load_digits().target)
    assert digits.flips is False
    coarse = torch.from_numpy(load_digits().images) * (255 / 16)
    nearest = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    roughness = [x.float().diff(n=2).abs().mean() for x in (digits.images[:, 0], nearest)]
    assert roughness[0] < roughness[1] / 2


def test_digits_too_small():
    with pytest.raises(UserError, match="--image-size 4"):
        Digits(4)


def test_folder_is_listed_in_order_with_common_extensions(tmp_path):
    for name in ["cat/b.JPEG", "cat/a.png", "ant/z.webp", "ant/y.jpg", "ant/x.bmp"]:
        paint(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    folder = load_images(str(tmp_path), 16)
    assert folder.classes == ["ant", "cat"]
    np.testing.assert_array_equal(folder.labels, [0, 0, 0, 1, 1])
    names = [folder.path(i).name for i in range(len(folder))]
    assert names == ["x.bmp", "y.jpg", "z.webp", "a.png", "b.JPEG"]
    assert folder.flips is True
    image = folder[3]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == [10, 200, 30]


def test_flat_folder_has_no_classes(tmp_path):
    for name in ["b.png", "a.jpg", "c.webp"]:
        paint(tmp_path / name, color=(ord(name[0]), 0, 0))
    (tmp_path / "metadata.jsonl").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1.txt").write_text("no image")
    folder = load_images(str(tmp_path), 16)
    assert folder.classes == []
    np.testing.assert_array_equal(folder.labels, [0, 0, 0])
    names = ("a.jpg", "b.png", "c.webp")
    assert [folder.path(i) for i in range(3)] == [tmp_path / name for name in names]
    assert folder[1][0, 0, 0] == ord("b")


@pytest.mark.parametrize("root", ["", "a"])  # with classes, without
def test_fingerprint_depends_on_the_names_of_files(tmp_path, root):
    paint(tmp_path / "a" / "1.png")
    before = ImageFolder(tmp_path / root, 16).fingerprint
    assert ImageFolder(tmp_path / root, 16).fingerprint == before
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    assert ImageFolder(tmp_path / root, 16).fingerprint != before


def test_crop_takes_the_middle():
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 255
    assert center_crop(Image.fromarray(stripes), 20).min() == 255


def test_crop_halves_by_box_filter():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    cropped = center_crop(Image.fromarray(np.repeat(checks[..., None], 3, 2)), 16)
    assert cropped.shape == (16, 16, 3)
    assert set(np.unique(cropped)) <= {127, 128}


@pytest.mark.parametrize("size", [(33, 57), (16, 16), (5, 9), (31, 1000), (100, 17)])
@pytest.mark.parametrize("wanted", [(16, 16), (16, 40), (48, 12), (7, 9)])
def test_crop_has_the_size_asked_for_and_no_border(size, wanted):
    cropped = center_crop(Image.new("RGB", size, "white"), wanted)
    assert cropped.shape == (*wanted, 3)
    assert cropped.min() == 255


def test_crop_covers_a_rectangle_by_the_middle_of_the_longer_side():
    ramp = np.tile(np.arange(60, dtype=np.uint8)[None, :, None], (40, 1, 3))  # 40 high, 60 wide
    wide = center_crop(Image.fromarray(ramp), (40, 20))
    assert wide[0, :, 0].tolist() == list(range(20, 40))
    tall = center_crop(Image.fromarray(ramp.transpose(1, 0, 2)), (20, 40))
    assert tall[:, 0, 0].tolist() == list(range(20, 40))


def test_sizes_are_height_and_width_in_flags_and_width_x_height_in_messages():
    assert sides(32) == (32, 32)
    assert size_of(*sides(32)) == 32
    assert size_of(*sides((32, 48))) == (32, 48)
    assert size_flag((32, 48)) == "--image-size 32 48"
    assert size_flag((32, 32)) == "--image-size 32"
    assert describe_size((32, 48)) == "48x32 pixels (width x height)"
    assert describe_size(32) == "32x32 pixels"


def one_color(mode, color):
    return Image.new(mode, (20, 20), color)


ORANGE = one_color("RGB", (200, 100, 50))


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (one_color("L", 77), "png", (77, 77, 77)),
        (one_color("RGBA", (255, 0, 0, 0)), "png", (255, 255, 255)),
        (Image.fromarray(np.full((20, 20), 77 * 256, np.uint16)), "png", (77, 77, 77)),
        (ORANGE.convert("P", palette=Image.Palette.ADAPTIVE), "gif", (200, 100, 50)),
    ],
)
def test_other_modes_become_rgb(tmp_path, image, suffix, expected):
    image.save(tmp_path / f"x.{suffix}")
    pixels = ImageFolder(tmp_path, 16)[0]
    assert torch.equal(pixels, torch.tensor(expected)[:, None, None].expand(3, 16, 16))


def test_exif_rotates_the_image(tmp_path):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(tmp_path / "x.png", exif=exif)
    image = ImageFolder(tmp_path, 16)[0]
    assert image[:, 2].max() == 0
    assert image[:, -2].min() == 255


def test_a_path_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        ImageFolder(tmp_path / "none", 16)


def test_files_below_a_class_keep_it(tmp_path):
    for name in ("a/1.png", "a/deep/2.png", "b/images/3.JPEG"):
        paint(tmp_path / name, color=(int(name[-5]), 0, 0) if name.endswith("png") else "black")
    folder = ImageFolder(tmp_path, 16)
    assert folder.classes == ["a", "b"]
    assert folder.labels.tolist() == [0, 0, 1]
    assert [folder[i][0, 0, 0].item() for i in range(3)] == [1, 2, 0]
    assert folder.path(2) == tmp_path / "b" / "images" / "3.JPEG"


def test_a_run_is_refused_as_data(make_run):
    run = make_run("a run")
    message = f"--data {run} is a run, not images; .* `dit info '{run}'` shows"
    with pytest.raises(UserError, match=message):
        load_images(str(run), 8)


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_unreadable_file_is_named(tmp_path, content):
    path = paint(tmp_path / "a" / "broken.png", size=(64, 64))
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2] if content == "half" else content)
    folder = ImageFolder(tmp_path, 16)
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        folder[0]


def test_misspelt_data_gets_similar_names(tmp_path):
    with pytest.raises(UserError, match="did you mean digits"):
        load_images("digit", 32)
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*flowers"):
        load_images(str(tmp_path / "flower"), 32)
