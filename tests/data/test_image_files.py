"""Reading image files: pixels of every type, damage, and metadata that must not matter."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from helpers.image_data import paint
from PIL import Image

from dit.data.image_files import find_damage, read_image, read_rgb, read_size
from dit.errors import UserError

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))  # black at the left, white at the right


def refused(path):
    """Return the message of a file that is refused, which the check finds too."""
    with pytest.raises(UserError) as error:
        read_rgb(path)
    assert find_damage(lambda: path.open("rb")) in str(error.value)
    return str(error.value)


def encoded(image, form, **save):
    file = io.BytesIO()
    image.save(file, form, **save)
    return file.getvalue()


def picture(height=24, width=20):
    """Return a smooth picture with some noise."""
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    ramp = np.add.outer(4 * np.arange(height), 3 * np.arange(width))
    return Image.fromarray((ramp[..., None] + noise).astype(np.uint8))


# -- pixels that are not 8 bits --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_gray_of_16_bits_keeps_its_high_byte(tmp_path, suffix):
    values = (RAMP * 65535).astype(np.uint16)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(values).save(path, **({"irreversible": False} if suffix == "jp2" else {}))
    pixels = np.array(read_rgb(path))
    np.testing.assert_array_equal(pixels, np.repeat(values[..., None] >> 8, 3, axis=2))


def test_scaled_gray_of_12_bits_in_a_pgm_is_faithful(tmp_path):
    values = (RAMP * 4095).astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 32 32 4095 " + values.tobytes())
    pixels = np.array(read_rgb(tmp_path / "x.pgm"))[..., 0]
    assert np.abs(pixels / 255 - RAMP).max() < 1 / 128


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.float32), "float numbers, from 0 to 1: .*black, white = 0, 1;"),
        ((RAMP * 2 - 1).astype(np.float32), "from -1 to 1: .*black, white = -1, 1;"),
        ((RAMP * 65535).astype(np.float32), "black, white = 0, 65535;"),
        ((RAMP * 2000 - 1000).astype(np.int32), "signed or 32-bit whole numbers, from -1000 to"),
        ((RAMP * 60000).astype(np.int32), "signed or 32-bit whole numbers, from 0 to 60000"),
        ((RAMP * 4095).astype(np.uint16), "looks like 12 bits or fewer, .*black, white = 0, 4095;"),
        ((RAMP * 255).astype(np.uint16), "looks like 12 bits or fewer, .*black, white = 0, 255;"),
    ],
)
def test_gray_without_a_known_white_is_refused(tmp_path, values, message):
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=rf"x\.tif cannot be read as an image \(.*{message}"):
        read_rgb(path)
    with pytest.raises(UserError, match=message):
        read_size(path)
    assert refused(path)


def test_the_conversion_that_is_advised_works_as_typed(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "x.tif")
    code = refused(tmp_path / "x.tif").split('python -c "')[1].split('" FILES')[0]
    arguments = sys.argv
    try:
        sys.argv = ["-c", str(tmp_path / "x.tif")]
        exec(code, {})
    finally:
        sys.argv = arguments
    pixels = np.array(read_rgb(tmp_path / "x.tif.png"))[..., 0]
    np.testing.assert_array_equal(pixels, (RAMP * 255).round())


def test_16_bits_a_channel_that_hold_12_are_refused(tmp_path):
    def png(values):
        lines = b"".join(b"\0" + line.tobytes() for line in values)
        header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)  # 16 bits, RGB
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)

    gray = np.repeat(RAMP[..., None], 3, axis=2)
    path = tmp_path / "x.png"
    path.write_bytes(png((gray * 65535).astype(">u2")))
    np.testing.assert_array_equal(np.array(read_rgb(path)), (gray * 65535).astype(int) >> 8)
    path.write_bytes(png((gray * 4095).astype(">u2")))
    assert "16 bits a channel without a value above 4095" in refused(path)


def test_black_pictures_of_16_bits_are_black(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "x.png")
    assert np.array(read_rgb(tmp_path / "x.png")).max() == 0


def test_16_bit_negatives_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path, tiffinfo={262: 0})
    assert "16-bit gray whose white is 0" in refused(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_8_bits_keeps_black_and_white(tmp_path, mode):
    black_and_white = np.zeros((8, 8, 3), np.uint8)
    black_and_white[:, 4:] = 255
    image = Image.fromarray(black_and_white)
    if mode == "LAB":
        lab = np.zeros((8, 8, 3), np.uint8)
        lab[:, 4:, 0] = 255  # a and b are 0: gray
        image = Image.frombytes("LAB", (8, 8), lab.tobytes())
    image.convert(mode).save(tmp_path / "x.tif")
    found = np.array(read_rgb(tmp_path / "x.tif")).astype(int)
    assert np.abs(found - black_and_white).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_films_and_pages_the_first_is_read(tmp_path, suffix):
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / f"x.{suffix}", save_all=True, append_images=[blue])
    first = np.array(read_rgb(tmp_path / f"x.{suffix}")).astype(int)
    assert np.abs(first - (255, 0, 0)).max() < 3


# -- metadata never decides over pixels ------------------------------------------------------------


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_chunk(content, extra):
    """Return a PNG file with one more chunk, after the header."""
    return content[:33] + extra + content[33:]


BROKEN_TEXT = chunk(b"tEXt", b"Comment\0hello")[:-4] + b"oops"  # a wrong checksum
METADATA = {
    "text of 2 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
    "70 MB of texts": chunk(b"tEXt", b"Comment\0" + bytes(900_000)) * 78,
    "broken text": BROKEN_TEXT,
    "broken EXIF": chunk(b"eXIf", b"this is no EXIF block"),
    "broken profile": chunk(b"iCCP", b"name\0\0no zlib"),
    "profile of XMP without end": chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_png_does_not_matter(tmp_path, name):
    content = with_chunk(encoded(picture(), "PNG"), METADATA[name])
    path = tmp_path / "x.png"
    path.write_bytes(content)
    np.testing.assert_array_equal(np.array(read_rgb(path)), np.array(picture()))
    assert find_damage(lambda: path.open("rb")) == ""
    assert read_size(path) == (24, 20)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "tif"])
@pytest.mark.parametrize(
    "exif", [b"no EXIF", b"Exif\0\0II*\0", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 20]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_ignored(tmp_path, suffix, exif):
    plain = tmp_path / f"plain.{suffix}"
    broken = tmp_path / f"broken.{suffix}"
    picture().save(plain)
    content = {} if suffix == "tif" else {"exif": exif}
    picture().save(broken, **content)
    np.testing.assert_array_equal(np.array(read_rgb(broken)), np.array(read_rgb(plain)))
    assert find_damage(lambda: broken.open("rb")) == ""
    assert read_size(broken) == (24, 20)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "tif", "avif"])
def test_orientation_is_that_of_exif_whatever_the_format(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / f"x.{suffix}"
    picture().save(path, exif=exif)
    assert read_size(path) == (20, 24)
    turned = np.array(read_rgb(path)).astype(float)
    assert np.abs(turned - np.rot90(np.array(picture()), -1)).mean() < 8


def test_orientation_in_a_text_of_a_png_still_counts(tmp_path):
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>'
    path = tmp_path / "x.png"
    path.write_bytes(with_chunk(encoded(picture(), "PNG"), chunk(b"iTXt", xmp)))
    np.testing.assert_array_equal(np.array(read_rgb(path)), np.rot90(np.array(picture()), 2))


@pytest.mark.parametrize("lost", [1, 4, 12])
def test_the_end_mark_of_a_png_does_not_matter(tmp_path, lost):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(picture(), "PNG")[:-lost] + b"\0" * (lost % 12))
    np.testing.assert_array_equal(np.array(read_rgb(path)), np.array(picture()))
    assert find_damage(lambda: path.open("rb")) == ""


# -- damage ----------------------------------------------------------------------------------------

SAVED = {
    "jpg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "tif": ("TIFF", {}),
    "bmp": ("BMP", {}),
    "jp2": ("JPEG2000", {}),
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.filterwarnings("ignore")
def test_what_passes_the_check_can_be_read_and_nothing_else(name):
    form, save = SAVED[name]
    intact = encoded(picture(), form, **save)
    generator = np.random.default_rng(0)
    damaged = 0
    for _ in range(150):
        content = bytearray(intact)
        for _ in range(generator.integers(1, 4)):
            content[generator.integers(len(content))] = generator.integers(256)
        if generator.random() < 0.2:
            content = content[: generator.integers(len(content))]
        found = find_damage(lambda content=content: io.BytesIO(content))
        try:
            read_image(lambda content=content: io.BytesIO(content), "x")
            reason = ""
        except UserError as error:
            reason = str(error)
        assert bool(found) == bool(reason)
        assert found in reason
        damaged += bool(found)
    assert damaged > 15


def test_changed_pixels_of_a_png_are_never_read():
    # noise compresses to stored bytes, which decompress whatever they are
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    intact = encoded(Image.fromarray(noise), "PNG")
    start = intact.index(b"IDAT") + 4
    for position in range(start, len(intact) - 16, 7):
        content = bytearray(intact)
        content[position] ^= 1
        assert "checksum of chunk IDAT" in find_damage(lambda: io.BytesIO(content))  # noqa: B023


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>", "it is a web page: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull` downloads the image"),
        (b"GIF but not really", "in no format of images that Pillow reads"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIF, .*: pip install pillow-heif"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "in no format of images"),
    ],
)
def test_what_is_no_image_is_said_by_its_content(tmp_path, monkeypatch, content, message):
    def without_plugin():
        return ("JPEG", "PNG", "GIF")

    monkeypatch.setattr("dit.data.image_formats.picture_formats", without_plugin)
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.jpg cannot be read as an image \(.*{message}"):
        read_rgb(path)


def test_missing_files_are_named_once(tmp_path):
    message = refused(tmp_path / "none.png")
    assert message.count("none.png") == 1
    assert "(No such file or directory)" in message


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "exceeds limit" in refused(paint(tmp_path / "x.png", (20, 20)))


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "1.png").symlink_to("/nonexistent/2.png")
    damage = find_damage(lambda: (tmp_path / "1.png").open("rb"))
    assert damage == "a link to /nonexistent/2.png, which is missing"
    assert "No such file" in find_damage(lambda: (tmp_path / "3.png").open("rb"))
