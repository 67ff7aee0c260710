"""Images to score: every form that is read, every mistake that is named."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dit.data.images import Digits, ImageFolder
from dit.errors import UserError
from dit.evaluation.inputs import archives
from dit.evaluation.inputs import images as module


def pixels(n=4, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / (names[i] if names else f"{i:06d}.png"))
    return folder


def refused(path, crop=None):
    with pytest.raises(UserError) as error:
        module.read_images(path, crop)
    return str(error.value)


def as_array(found):
    return found.stack(range(len(found))).permute(0, 2, 3, 1).numpy()


# -- what is read ------------------------------------------------------------------------------------------------


def test_flat_folder_with_labels(tmp_path):
    save(tmp_path, pixels())
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{i:06d}.png,{i % 2}\n" for i in range(4))
    )
    (tmp_path / "samples.json").write_text("{}")
    found = module.read_images(tmp_path)
    assert np.array_equal(as_array(found), pixels())
    assert found.labels == ["0", "1", "0", "1"]
    assert found.size == (8, 8)


def test_class_names_are_preferred_to_ids(tmp_path):
    save(tmp_path, pixels(2))
    (tmp_path / "labels.csv").write_text("file,label,class\n000000.png,1,dog\n000001.png,0,cat\n")
    assert module.read_images(tmp_path).labels == ["dog", "cat"]


def test_flat_folder_without_labels(tmp_path):
    assert module.read_images(save(tmp_path, pixels())).labels is None


def test_class_folders(tmp_path):
    save(tmp_path / "cat", pixels(4)[:1])
    save(tmp_path / "dog", pixels(4)[1:])
    (tmp_path / ".hidden").mkdir()
    found = module.read_images(tmp_path)
    assert found.labels == ["cat", "dog", "dog", "dog"]
    assert np.array_equal(as_array(found), pixels(4))


@pytest.mark.parametrize("labels", [None, [3, 1, 4, 1]])
def test_npz_as_adm_writes_it(tmp_path, labels):
    arrays = {"arr_0": pixels(), **({} if labels is None else {"arr_1": np.array(labels)})}
    np.savez(tmp_path / "samples.npz", **arrays)
    for path in (tmp_path / "samples.npz", tmp_path):
        found = module.read_images(path)
        assert np.array_equal(as_array(found), pixels())
        assert found.labels == (None if labels is None else ["3", "1", "4", "1"])


def test_gray_and_transparent_files_become_rgb(tmp_path):
    Image.fromarray(pixels(1)[0, :, :, 0]).save(tmp_path / "0.png")
    Image.fromarray(pixels(1)[0]).convert("RGBA").save(tmp_path / "1.png")
    found = as_array(module.read_images(tmp_path))
    assert np.array_equal(found[0], np.repeat(pixels(1)[0, :, :, :1], 3, axis=2))
    assert np.array_equal(found[1], pixels(1)[0])


def test_clear_pixels_lie_on_white_and_exif_turns_as_in_training(tmp_path):
    clear = Image.fromarray(pixels(1, 8, 16)[0]).convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(np.zeros((16, 8, 3), np.uint8)).save(tmp_path / "1.jpg", exif=exif)
    found = module.read_images(tmp_path)
    assert found.size == (8, 16)
    assert found.read(0).unique().tolist() == [255]
    assert found.read(1).shape == (3, 8, 16)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 1)])
def test_gray_arrays_become_rgb(tmp_path, shape):
    gray = pixels()[..., 0].reshape(shape)
    np.savez(tmp_path / "gray.npz", gray)
    found = as_array(module.read_images(tmp_path / "gray.npz"))
    assert np.array_equal(found, np.repeat(gray.reshape(4, 8, 8, 1), 3, axis=3))


def test_crop_is_that_of_training(tmp_path):
    for name, size in (("a", (40, 24)), ("b", (17, 90)), ("c", (16, 16))):
        save(tmp_path / "set" / name, pixels(2, *size))
    training = ImageFolder(tmp_path / "set", 16)
    for found in (module.read_images(tmp_path / "set", 16), module.from_data(training, "training")):
        assert found.size == (16, 16)
        assert found.labels == ["a", "a", "b", "b", "c", "c"]
        assert torch.equal(found.stack(range(6)), torch.stack([training[i] for i in range(6)]))
    np.savez(tmp_path / "a.npz", pixels(2, 40, 24))
    archive = module.read_images(tmp_path / "a.npz", 16)
    flat = module.read_images(tmp_path / "set" / "b", 16)
    for i in (0, 1):
        assert torch.equal(archive.read(i), training[i])
        assert torch.equal(flat.read(i), training[2 + i])


def test_large_arrays_stay_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAPPED_FROM", 1)
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=pixels(), arr_1=np.arange(4))
    with archives.open_npz(path) as file:
        assert isinstance(archives.read_array(file, path, "arr_0"), np.memmap)
    found = module.read_images(path)
    assert np.array_equal(as_array(found), pixels())
    assert found.labels == ["0", "1", "2", "3"]
    content = bytearray(path.read_bytes())
    content[len(pixels().tobytes()) // 2] ^= 1
    path.write_bytes(content)
    assert "CRC" in refused(path)
    np.savez(path, arr_0=np.array([{}], dtype=object))
    assert "pickled objects are never loaded" in refused(path)


# -- content -----------------------------------------------------------------------------------------------------


def test_contents_tell_pixels_order_and_crop_but_not_names(tmp_path):
    save(tmp_path / "first", pixels(3, 16, 16))
    save(tmp_path / "second", pixels(3, 16, 16), ["a.png", "b.png", "c.png"])
    save(tmp_path / "turned", pixels(3, 16, 16)[::-1])
    other = pixels(3, 16, 16)
    other[2, 15, 15, 2] ^= 1
    save(tmp_path / "other", other)
    contents = module.read_images(tmp_path / "first").contents()
    assert module.read_images(tmp_path / "second").contents() == contents
    different = [module.read_images(tmp_path / name).contents() for name in ("turned", "other")]
    different += [module.read_images(tmp_path / "first", crop).contents() for crop in (8, 16)]
    assert len({contents, *different}) == 5


def test_contents_of_arrays(tmp_path):
    def contents(array, crop=None):
        np.savez(tmp_path / "x.npz", array)
        return module.read_images(tmp_path / "x.npz", crop).contents()

    changed = pixels()
    changed[3, 7, 7, 2] ^= 1
    assert contents(pixels()) == module.from_array(pixels(), "memory").contents()
    assert (
        len(
            {
                contents(a)
                for a in (pixels(), changed, pixels()[::-1], pixels().reshape(4, 16, 4, 3))
            }
        )
        == 4
    )
    assert len({contents(pixels(), crop) for crop in (None, 4, 8)}) == 3


def test_contents_of_data_sets(tmp_path):
    digits = [module.from_data(Digits(size), "digits").contents() for size in (8, 8, 9)]
    assert digits[0] == digits[1] != digits[2]
    save(tmp_path / "set" / "a", pixels(2, 20, 30))
    training = module.from_data(ImageFolder(tmp_path / "set", 16), "training").contents()
    assert training == module.read_images(tmp_path / "set", 16).contents()


def test_contents_of_many_images_keep_their_order(monkeypatch):
    array = pixels(37, 2, 2)
    whole = module.from_array(array, "memory").contents()
    monkeypatch.setattr(module, "BLOCK", 5)
    assert module.from_array(array, "memory").contents() == whole


# -- what is refused ---------------------------------------------------------------------------------------------


def test_missing_or_empty(tmp_path):
    assert "is not a folder or an .npz file" in refused(tmp_path / "none")
    assert "has no images" in refused(tmp_path)


def test_files_of_different_sizes_are_both_named(tmp_path):
    save(tmp_path, pixels(2))
    save(tmp_path, pixels(1, 8, 16), ["wide.png"])
    message = refused(tmp_path)
    assert f"{tmp_path / '000000.png'} is 8x8" in message
    assert f"{tmp_path / 'wide.png'} is 16x8" in message


def test_unreadable_file_is_named(tmp_path):
    save(tmp_path, pixels(2))
    (tmp_path / "000001.png").write_bytes(b"not an image")
    assert str(tmp_path / "000001.png") in refused(tmp_path)


def test_truncated_file_is_named_when_read(tmp_path):
    save(tmp_path, pixels(2, 64, 64))
    content = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(content[: len(content) // 2])
    found = module.read_images(tmp_path)
    with pytest.raises(UserError, match=r"000001\.png can not be read"):
        found.stack([0, 1])


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert "mode I;16; expected 8 bits" in refused(tmp_path)


def test_links_that_lead_nowhere_are_named(tmp_path):
    save(tmp_path, pixels(1))
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "loop.png can not be read" in refused(tmp_path)
    found = module.read_images(tmp_path, 8)
    with pytest.raises(UserError, match=r"loop\.png can not be read"):
        found.stack([0, 1])
    with pytest.raises(UserError, match=r"loop\.png can not be read"):
        found.contents()


def test_forbidden_folder_is_named(tmp_path, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "iterdir", forbidden)
    assert "Permission denied" in refused(tmp_path)


def test_folders_of_other_shapes(tmp_path):
    save(tmp_path / "deep" / "train" / "cat", pixels(1))
    assert f"pass {tmp_path / 'deep' / 'train'} if that folder holds the classes" in refused(
        tmp_path / "deep"
    )
    save(tmp_path / "set" / "full", pixels(1))
    (tmp_path / "set" / "hollow").mkdir()
    assert "hollow has no images" in refused(tmp_path / "set")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "labels.csv").write_text("file,label\n")
    assert "has no images but labels.csv" in refused(tmp_path / "table")


def test_images_at_two_levels(tmp_path):
    save(tmp_path, pixels(1))
    save(tmp_path / "more", pixels(1))
    assert "both directly (000000.png) and in subfolders" in refused(tmp_path)


def test_labels_that_do_not_fit(tmp_path):
    save(tmp_path, pixels(2))
    (tmp_path / "labels.csv").write_text("file,label\n000000.png,1\n")
    assert "no label for 000001.png" in refused(tmp_path)
    (tmp_path / "labels.csv").write_text("000000.png,1\n000001.png,1\n")
    assert "expected columns file and label" in refused(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe")
    assert "expected text in UTF-8" in refused(tmp_path)


def test_labels_from_a_spreadsheet(tmp_path):
    save(tmp_path, pixels(1))
    (tmp_path / "labels.csv").write_text("file,label\n000000.png,7\n", encoding="utf-8-sig")
    assert module.read_images(tmp_path).labels == ["7"]


@pytest.mark.parametrize(
    ("array", "messages"),
    [
        (pixels() / np.float32(255), ["float32 pixels in 0..1", "(x * 255).round().clip(0, 255)"]),
        (
            pixels() / np.float32(127.5) - 1,
            ["float32 pixels in -1..1", "((x + 1) * 127.5).round().clip(0, 255)"],
        ),
        (pixels() / 127.5 * 1.02 - 1.02, ["float64 pixels in -1.02..1.02", "((x + 1) * 127.5)"]),
        (
            pixels().astype(np.float16),
            ["float16 pixels in 0..255", "x.clip(0, 255).round().astype('uint8')"],
        ),
        (pixels().astype(np.int64), ["int64 pixels in 0..255", "x.clip(0, 255)"]),
        (
            pixels().astype(np.uint16) * 257,
            ["uint16 pixels in 0..6.55e+04", "bring them to 0..255 first"],
        ),
        (pixels() > 9, ["bool pixels"]),
        (
            pixels().transpose(0, 3, 1, 2),
            ["shape [4, 3, 8, 8]", "x.transpose(0, 2, 3, 1)", "x.permute(0, 2, 3, 1)"],
        ),
        (pixels().transpose(0, 3, 1, 2)[:, :1], ["shape [4, 1, 8, 8]", "x.transpose(0, 2, 3, 1)"]),
        (np.zeros((4, 8, 8, 4), np.uint8), ["shape [4, 8, 8, 4]", "x[..., :3]"]),
        (pixels()[0], ["shape [8, 8, 3]", "a single image is x[None]"]),
        (pixels().reshape(4, -1), ["shape [4, 192]", "x.reshape(N, H, W, 3)"]),
        (pixels()[:0], ["no images in", "shape [0, 8, 8, 3]"]),
    ],
)
def test_arrays_of_another_kind(tmp_path, array, messages):
    np.savez(tmp_path / "samples.npz", array)
    found = refused(tmp_path / "samples.npz")
    assert not [message for message in messages if message not in found], found


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255)])
def test_the_conversion_named_is_right(low, high):
    x = pixels() / np.float64(255) * (high - low) + low
    assert np.array_equal(eval(module._conversion(low, high, "f"), {"x": x}), pixels())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_samples_names_the_image(tmp_path, value):
    array = pixels().astype(np.float32) / 255
    array[2, 1, 1, 0] = value
    np.savez(tmp_path / "samples.npz", array)
    assert "NaN or infinity in image 2" in refused(tmp_path / "samples.npz")


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=np.array([{"an": "object"}], dtype=object))
    assert "pickled objects are never loaded" in refused(tmp_path / "samples.npz")


def test_npz_without_images_or_broken(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, other=pixels())
    assert "holds other; expected an array arr_0" in refused(path)
    np.savez(path, arr_0=pixels(), arr_1=np.arange(3))
    assert "3 labels for 4 images" in refused(path)
    np.savez(path, arr_0=pixels(), arr_1=np.eye(4))
    assert "labels float64 [4, 4]" in refused(path)
    path.write_bytes(path.read_bytes()[:100])
    assert "can not be read" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0", "text")
    assert "arr_0 in" in refused(path)
    path.with_suffix(".pkl").write_bytes(b"\x80\x04.")
    assert "is a pickle, which can run any code" in refused(path.with_suffix(".pkl"))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_anywhere_in_an_archive_is_named_or_harmless(tmp_path, write):
    path = tmp_path / "samples.npz"
    write(path, arr_0=pixels(), arr_1=np.arange(4))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    named = 0
    for _ in range(200):
        content = bytearray(whole)
        content[random.integers(2, len(whole))] ^= 1 << int(random.integers(8))
        path.write_bytes(content[: random.integers(2, 2 * len(whole))])
        try:
            found = module.read_images(path)
        except UserError:
            named += 1
        else:
            assert np.array_equal(as_array(found), pixels())
    assert named > 150
