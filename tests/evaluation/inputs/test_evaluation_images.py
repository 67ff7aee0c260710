"""Images to score: every form that is read, every mistake that is named."""

import zipfile

import numpy as np
import pytest
import torch
from helpers.evaluation import random_pixels, save_images
from PIL import Image

from dit.data.images import Digits, ImageFolder
from dit.errors import UserError
from dit.evaluation.inputs import archives
from dit.evaluation.inputs import images as module


def refused(path, crop=None):
    with pytest.raises(UserError) as error:
        module.read_images(path, crop)
    return str(error.value)


def as_array(images):
    return images.stack(range(len(images))).permute(0, 2, 3, 1).numpy()


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        (None, None),
        ("file,label\n000000.png,1\n000001.png,0\n", ["1", "0"]),
        ("\ufefffile,label\n000000.png,1\n000001.png,0\n", ["1", "0"]),  # of a spreadsheet
        ("file,label,class\n000000.png,1,dog\n000001.png,0,cat\n", ["dog", "cat"]),
    ],
)
def test_flat_folder(tmp_path, table, labels):
    save_images(tmp_path, random_pixels(2))
    (tmp_path / "samples.json").write_text("{}")
    if table:
        (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    found = module.read_images(tmp_path)
    assert np.array_equal(as_array(found), random_pixels(2))
    assert found.labels == labels
    assert found.size == (8, 8)


def test_class_folders(tmp_path):
    save_images(tmp_path / "cat", random_pixels()[:1])
    save_images(tmp_path / "dog", random_pixels()[1:])
    (tmp_path / ".hidden").mkdir()
    found = module.read_images(tmp_path)
    assert found.labels == ["cat", "dog", "dog", "dog"]
    assert np.array_equal(as_array(found), random_pixels())


@pytest.mark.parametrize("labels", [None, [3, 1, 4, 1]])
def test_npz_of_adm(tmp_path, labels):
    arrays = {"arr_0": random_pixels(), **({} if labels is None else {"arr_1": np.array(labels)})}
    np.savez(tmp_path / "samples.npz", **arrays)
    for path in (tmp_path / "samples.npz", tmp_path):
        found = module.read_images(path)
        assert np.array_equal(as_array(found), random_pixels())
        assert found.labels == (None if labels is None else ["3", "1", "4", "1"])


def test_gray_and_transparent_files_become_rgb(tmp_path):
    image = random_pixels(1)[0]
    clear = Image.fromarray(image).convert("RGBA")
    clear.putalpha(0)
    Image.fromarray(image[:, :, 0]).save(tmp_path / "0.png")
    Image.fromarray(image).convert("RGBA").save(tmp_path / "1.png")
    clear.save(tmp_path / "2.png")
    gray, opaque, white = as_array(module.read_images(tmp_path))
    assert np.array_equal(gray, np.repeat(image[:, :, :1], 3, axis=2))
    assert np.array_equal(opaque, image)
    assert (white == 255).all()


def test_exif_turns_images_as_in_training(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((16, 8, 3), np.uint8)).save(tmp_path / "1.jpg", exif=exif)
    found = module.read_images(tmp_path)
    assert found.size == (8, 16)
    assert found.read(0).shape == (3, 8, 16)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 1)])
def test_gray_arrays_become_rgb(tmp_path, shape):
    gray = random_pixels()[..., 0].reshape(shape)
    np.savez(tmp_path / "gray.npz", gray)
    found = as_array(module.read_images(tmp_path / "gray.npz"))
    assert np.array_equal(found, np.repeat(gray.reshape(4, 8, 8, 1), 3, axis=3))


def test_crop_is_that_of_training(tmp_path):
    for name, size in (("a", (40, 24)), ("b", (17, 90)), ("c", (16, 16))):
        save_images(tmp_path / "set" / name, random_pixels(2, *size))
    training = ImageFolder(tmp_path / "set", 16)
    for found in (module.read_images(tmp_path / "set", 16), module.from_data(training, "training")):
        assert found.size == (16, 16)
        assert found.labels == ["a", "a", "b", "b", "c", "c"]
        assert torch.equal(found.stack(range(6)), torch.stack([training[i] for i in range(6)]))
    np.savez(tmp_path / "a.npz", random_pixels(2, 40, 24))
    archive = module.read_images(tmp_path / "a.npz", 16)
    flat = module.read_images(tmp_path / "set" / "b", 16)
    for i in (0, 1):
        assert torch.equal(archive.read(i), training[i])
        assert torch.equal(flat.read(i), training[2 + i])


def test_large_arrays_are_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAPPED_FROM", 1)
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=random_pixels(), arr_1=np.arange(4))
    with archives.open_npz(path) as file:
        assert isinstance(archives.read_array(file, path, "arr_0"), np.memmap)
    found = module.read_images(path)
    assert np.array_equal(as_array(found), random_pixels())
    assert found.labels == ["0", "1", "2", "3"]
    content = bytearray(path.read_bytes())
    content[random_pixels().nbytes // 2] ^= 1
    path.write_bytes(content)
    assert "CRC" in refused(path)
    np.savez(path, arr_0=np.array([{}], dtype=object))
    assert "pickled objects are never loaded" in refused(path)


# -- hashes of content -----------------------------------------------------------------------------


def test_contents_depend_on_pixels_order_and_crop_but_not_on_names(tmp_path):
    images, changed = random_pixels(3, 16, 16), random_pixels(3, 16, 16)
    changed[2, 15, 15, 2] ^= 1
    first = save_images(tmp_path / "first", images)
    renamed = save_images(tmp_path / "renamed", images, ["a.png", "b.png", "c.png"])
    contents = module.read_images(first).contents()
    assert module.read_images(renamed).contents() == contents
    others = [
        module.read_images(save_images(tmp_path / "turned", images[::-1])),
        module.read_images(save_images(tmp_path / "changed", changed)),
        *(module.read_images(first, crop) for crop in (8, 16)),
    ]
    assert len({contents, *(other.contents() for other in others)}) == 5


def test_contents_of_arrays(tmp_path):
    def contents(array, crop=None):
        np.savez(tmp_path / "x.npz", array)
        return module.read_images(tmp_path / "x.npz", crop).contents()

    images, changed = random_pixels(), random_pixels()
    changed[3, 7, 7, 2] ^= 1
    assert contents(images) == module.from_array(images, "memory", None).contents()
    others = [changed, images[::-1], images.reshape(4, 16, 4, 3)]
    assert len({contents(array) for array in (images, *others)}) == 4
    assert len({contents(images, crop) for crop in (None, 4, 8)}) == 3


def test_contents_of_data_sets(tmp_path):
    digits = [module.from_data(Digits(size), "digits").contents() for size in (8, 8, 9)]
    assert digits[0] == digits[1] != digits[2]
    save_images(tmp_path / "set" / "a", random_pixels(2, 20, 30))
    training = module.from_data(ImageFolder(tmp_path / "set", 16), "training").contents()
    assert training == module.read_images(tmp_path / "set", 16).contents()


def test_contents_of_many_images_keep_their_order(monkeypatch):
    images = module.from_array(random_pixels(37, 2, 2), "memory", None)
    expected = images.contents()
    monkeypatch.setattr(module, "BLOCK", 5)
    assert images.contents() == expected


# -- what is refused -------------------------------------------------------------------------------


def test_files_of_different_sizes_are_both_named(tmp_path):
    save_images(tmp_path, random_pixels(2))
    save_images(tmp_path, random_pixels(1, 8, 16), ["wide.png"])
    message = refused(tmp_path)
    assert f"{tmp_path / '000000.png'} is 8x8" in message
    assert f"{tmp_path / 'wide.png'} is 16x8" in message


def test_damaged_files_are_named(tmp_path):
    save_images(tmp_path, random_pixels(2, 64, 64))
    path = tmp_path / "000001.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"000001\.png cannot be read"):
        module.read_images(tmp_path).stack([0, 1])
    path.write_bytes(b"not an image")
    assert str(path) in refused(tmp_path)


@pytest.mark.parametrize("crop", [None, 8])
def test_pixels_are_those_of_training(tmp_path, crop):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = as_array(module.read_images(tmp_path, crop))
    assert np.array_equal(found[0], np.repeat(deep[..., None] >> 8, 3, axis=2))
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"float\.tif cannot be read .*float numbers"):
        module.read_images(tmp_path, crop).stack([0, 1])


def test_an_orientation_that_only_the_end_of_a_file_tells_is_no_traceback(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = Image.new("RGB", (8, 16))
    image.save(tmp_path / "1.png")
    image.save(tmp_path / "2.png", exif=exif)
    content = (tmp_path / "2.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "2.png").write_bytes(moved)
    with pytest.raises(UserError, match=r"2\.png is 16x8"):
        module.read_images(tmp_path).stack([0, 1])


def test_images_left_out_are_told(tmp_path):
    save_images(tmp_path / "cat" / "deep", random_pixels()[:1])
    save_images(tmp_path / "dog", random_pixels()[1:])
    (tmp_path / "dog" / "notes.txt").write_text("text")
    found = module.read_images(tmp_path)
    assert found.labels == ["cat", "dog", "dog", "dog"]
    assert np.array_equal(as_array(found), random_pixels())
    assert found.notes == [f"1 file left out in {tmp_path} (1 .txt)"]
    assert module.from_data(ImageFolder(tmp_path, 8), "training").notes == found.notes


def test_links_that_lead_nowhere_are_named(tmp_path):
    save_images(tmp_path, random_pixels(1))
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "loop.png cannot be read" in refused(tmp_path)
    found = module.read_images(tmp_path, 8)
    for read in (lambda: found.stack([0, 1]), found.contents):
        with pytest.raises(UserError, match=r"loop\.png cannot be read"):
            read()


def test_folders_without_images(tmp_path):
    assert "is not a folder or an .npz file" in refused(tmp_path / "none")
    assert "has no images; expected image files" in refused(tmp_path)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "notes.txt").write_text("text")
    assert "has no images but 1 .txt" in refused(tmp_path / "table")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"file,label\n000000.png,1\n", "no label for 000001.png"),
        (b"000000.png,1\n000001.png,1\n", "expected columns file and label"),
        (b"file,label\n\xff\xfe", "expected text in UTF-8"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, table, message):
    save_images(tmp_path, random_pixels(2))
    (tmp_path / "labels.csv").write_bytes(table)
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("array", "given"),
    [
        (random_pixels() / np.float32(255), "float32 images of shape [4, 8, 8, 3]"),
        (random_pixels().astype(np.int64), "int64 images"),
        (random_pixels().transpose(0, 3, 1, 2), "uint8 images of shape [4, 3, 8, 8]"),
        (np.zeros((4, 8, 8, 4), np.uint8), "shape [4, 8, 8, 4]"),
        (random_pixels()[0], "shape [8, 8, 3]"),
        (random_pixels().reshape(4, -1), "shape [4, 192]"),
        (random_pixels()[:0], "shape [0, 8, 8, 3]"),
    ],
)
def test_arrays_of_another_type_or_layout(tmp_path, array, given):
    np.savez(tmp_path / "samples.npz", array)
    message = refused(tmp_path / "samples.npz")
    assert given in message
    assert "uint8 pixels 0..255, [N, H, W, 3]" in message


def test_npz_without_images_or_broken(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, other=random_pixels())
    assert "holds other; expected an array arr_0" in refused(path)
    np.savez(path, arr_0=random_pixels(), arr_1=np.arange(3))
    assert "3 labels for 4 images" in refused(path)
    np.savez(path, arr_0=random_pixels(), arr_1=np.eye(4))
    assert "labels float64 [4, 4]" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0", "text")
    assert "arr_0 in" in refused(path)
    path.with_suffix(".pkl").write_bytes(b"\x80\x04.")
    assert "is a pickle, which can run any code" in refused(path.with_suffix(".pkl"))
    np.savez(path, arr_0=np.array([{"an": "object"}], dtype=object))
    assert "pickled objects are never loaded" in refused(path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_anywhere_in_an_archive_is_named_or_harmless(tmp_path, write):
    path = tmp_path / "samples.npz"
    write(path, arr_0=random_pixels(), arr_1=np.arange(4))
    intact, generator = path.read_bytes(), np.random.default_rng(0)
    named = 0
    for _ in range(200):
        content = bytearray(intact)
        content[generator.integers(2, len(intact))] ^= 1 << int(generator.integers(8))
        path.write_bytes(content[: generator.integers(2, 2 * len(intact))])
        try:
            found = module.read_images(path)
        except UserError:
            named += 1
        else:
            assert np.array_equal(as_array(found), random_pixels())
    assert named > 150
