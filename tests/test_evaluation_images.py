"""Images to score: every form that is read, every mistake that is named."""

import numpy as np
import pytest
from PIL import Image

from dit.errors import UserError
from dit.evaluation import images as module


def pixels(n=4, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / (names[i] if names else f"{i:06d}.png"))
    return folder


def refused(path):
    with pytest.raises(UserError) as error:
        module.read_images(path)
    return str(error.value)


def as_array(found):
    return found.stack(range(len(found))).permute(0, 2, 3, 1).numpy()


# -- what is read ------------------------------------------------------------------------------------------------


def test_flat_folder_with_labels(tmp_path):
    save(tmp_path, pixels())
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{i:06d}.png,{i % 2}\n" for i in range(4)))
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


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels().astype(np.float32) / 255, "float32 pixels in 0"),
        (pixels().astype(np.float32) / 127.5 - 1, "float32 pixels in -1"),
        (pixels().astype(np.int64), "int64 pixels"),
        (pixels().transpose(0, 3, 1, 2), r"shape [4, 3, 8, 8]; expected [N, H, W, 3]"),
        (pixels()[0], "shape [8, 8, 3]"),
        (pixels()[:0], "shape [0, 8, 8, 3]"),
    ],
)
def test_arrays_of_another_kind(tmp_path, array, message):
    np.savez(tmp_path / "samples.npz", array)
    assert message in refused(tmp_path / "samples.npz")


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
    path.write_bytes(path.read_bytes()[:100])
    assert "can not be read" in refused(path)
