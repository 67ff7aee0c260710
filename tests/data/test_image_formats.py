"""Which files count as images."""

import pytest

from dit.data.image_formats import extensions, is_image, picture_formats

PICTURES = "jpg JPEG jpe jfif png webp gif bmp tif TIFF jp2 avif heic heif ppm pgm tga qoi mpo jxl"
OTHERS = "txt json pdf eps ps svg psd mpg h5 grib wmf ico nef mp4 npz tar"


@pytest.mark.parametrize("extension", PICTURES.split())
def test_pictures(extension):
    assert is_image(f"x.{extension}")


@pytest.mark.parametrize("name", [f"x.{one}" for one in OTHERS.split()] + [".x.jpg", "jpg", "x."])
def test_others(name):
    assert not is_image(name)


def test_nothing_that_runs_programs_is_opened():
    assert not {"EPS", "WMF"} & set(picture_formats())
    assert all(extension.startswith(".") for extension in extensions())
