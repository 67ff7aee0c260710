"""Which files are images: those in a format of pictures that the installed Pillow reads."""

import os
import re
from functools import cache
from importlib.util import find_spec

from PIL import Image

NO_PICTURES = frozenset(
    # drawings and programs, of which EPS would start ghostscript
    {"EPS", "PDF", "WMF"}
    # scientific containers, films and metadata
    | {"BUFR", "FLI", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG"}
    # icons, brushes and thumbnails of programs, and Photoshop's documents
    | {"CUR", "GBR", "ICNS", "ICO", "PSD", "XVTHUMB"}
)
PLUGINS = {  # formats that Pillow may lack, by its names: extensions, and what to install
    "HEIF": ((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    "AVIF": ((".avif",), "pip install --upgrade pillow"),
    "JXL": ((".jxl",), "pip install pillow-jxl-plugin"),
}
STARTS = (  # patterns of how the content of those begins
    (rb"....ftyp.*?avif", "AVIF"),
    (rb"....ftyp.*?(heic|heix|heim|hevc|mif1)", "HEIF"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JXL"),
)
COMMON = ".jpg, .png, .webp, …"  # for messages


def is_image(name: str) -> bool:
    """Return whether a file of this name counts as an image."""
    _, extension = os.path.splitext(name)
    return not name.startswith(".") and extension.lower() in extensions()


@cache
def extensions() -> frozenset[str]:
    """Return the extensions of images, in lower case.

    Those of `PLUGINS` count without the plug-in too: reading such a file then names it.
    """
    readable = {*picture_formats(), "MPO"}  # several JPEGs in one file, opened as JPEG
    registered = Image.registered_extensions().items()
    plugged = (extension for group, _ in PLUGINS.values() for extension in group)
    return frozenset({ext for ext, form in registered if form in readable} | set(plugged))


@cache
def picture_formats() -> tuple[str, ...]:
    """Return the names of the formats that may be opened, the most frequent first."""
    Image.init()
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401  it registers itself
    # Pillow tries them in this order
    ranked = sorted(Image.ID, key=lambda form: form not in ("JPEG", "PNG", "WEBP"))
    return tuple(form for form in ranked if form not in NO_PICTURES)


def describe_unknown(start: bytes) -> str:
    """Return what a file that no format fits is, by its first bytes (64 or more)."""
    if not start:
        return "it is empty"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page: download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: `git lfs pull` downloads the image"

    for pattern, form in STARTS:
        if re.match(pattern, start, re.DOTALL) and form not in picture_formats():
            _, install = PLUGINS[form]
            return f"it is {form}, which this Pillow does not read: {install}"
    return "its content is in no format of images that Pillow reads, or its header is damaged"
