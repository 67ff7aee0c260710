"""The images that the bundled autoencoder `tiny` was trained on: about 40,000 crops of 32 px.

They become data/tiny-images. This needs npm, and `pip install resvg_py==0.5.0`. All sources are of
permissive licences or in the public domain:

- icons: Fluent emoji, 3D and flat (Microsoft; MIT), FxEmojis (Mozilla; Apache 2.0), VSCode Icons
  (R. Huertas; MIT), flat colour icons (Icons8; MIT) and circle flags (HatScripts; MIT).
- photos: those of scikit-image in CC0 or the public domain, and SciPy's raccoon (public domain).
- leaves: rendered here. Random shapes of all sizes that hide one another have the statistics of
  natural images (the dead leaves model; Lee, Mumford and Huang 2001).

Not among them, for measurements: Noto emoji (`emoji-64`), Twitter's emoji, scikit-learn's photos.
"""

import bz2
import io
import json
import math
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from benchmarks.image_sets import npm_pack, pip_download

SIDE = 32  # pixels of a crop: half of an image of 64
SEED = 0
IMAGES = Path("data/tiny-images")

EMOJI_3D = "@lobehub/fluent-emoji-3d@1.1.0"
SVG_SETS = (
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fxemoji@1.2.2",
    "@iconify-json/vscode-icons@1.2.97",
    "@iconify-json/flat-color-icons@1.2.3",
    "@iconify-json/circle-flags@1.2.11",
)
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "skin-tone", "-light", "-dark")
SCIKIT_IMAGE, SCIPY = "scikit-image==0.26.0", "scipy==1.9.3"
PHOTOS = {
    "astronaut.png": 4,
    "chelsea.png": 4,
    "coffee.png": 4,
    "rocket.jpg": 2,
    "hubble_deep_field.jpg": 1,
    "retina.jpg": 1,
}
"""Photos of scikit-image, and their shares of the crops."""
RACCOON = 4
"""Share of SciPy's photo."""
CROPS_OF_PHOTOS, LEAVES = 12_000, 10_000
Crops = Iterator[Image.Image]


# -- icons -----------------------------------------------------------------------------------------


def icons(scratch: Path, rng: np.random.Generator) -> Crops:
    """Yield crops of icons at usual sizes, on white and on colours."""
    for icon in _emoji_3d(scratch):
        for _ in range(4):
            yield _crop_of_icon(icon, rng)
    for icon in _vector_icons(scratch):
        for _ in range(2):
            yield _crop_of_icon(icon, rng)


def _emoji_3d(scratch: Path) -> Iterator[Image.Image]:
    with tarfile.open(npm_pack(EMOJI_3D, scratch)) as package:
        for member in package:
            if member.name.endswith(".webp") and not _has_skin_tone(member.name):
                opened = package.extractfile(member)
                assert opened is not None, "a regular file"
                yield Image.open(io.BytesIO(opened.read())).convert("RGBA")


def _vector_icons(scratch: Path) -> Iterator[Image.Image]:
    from resvg_py import svg_to_bytes

    for name in SVG_SETS:
        with tarfile.open(npm_pack(name, scratch)) as package:
            opened = package.extractfile("package/icons.json")
            assert opened is not None, "the package has its icons in one file"
            listing = json.load(opened)
        for icon, drawn in listing["icons"].items():
            if _has_skin_tone(icon):
                continue
            width = drawn.get("width", listing.get("width", 16))
            height = drawn.get("height", listing.get("height", 16))
            box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            png = svg_to_bytes(svg_string=f"<svg {spaces} {box}>{drawn['body']}</svg>", height=192)
            yield Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _has_skin_tone(name: str) -> bool:
    return any(tone in name for tone in SKIN_TONES)


def _crop_of_icon(icon: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.choice([32, 48, 64, 96], p=[0.15, 0.2, 0.45, 0.2]))
    colour = (255, 255, 255)
    if rng.random() < 0.4:
        colour = tuple(rng.integers(0, 256, 3).tolist())
    canvas = Image.new("RGBA", (side, side), (*colour, 255))
    icon = icon.resize((side, side), Image.Resampling.BOX, reducing_gap=2)
    canvas.alpha_composite(icon)
    picture = canvas.convert("RGB")

    for _ in range(5):
        crop = _random_crop(picture, SIDE, rng)
        if np.asarray(crop).std() > 10:
            break  # a few plain ones are enough
    return crop


# -- photos ----------------------------------------------------------------------------------------


def photos(scratch: Path, rng: np.random.Generator) -> Crops:
    """Yield crops of photos at all scales, in several colours."""
    whole = _load_photos(scratch)
    shares = np.array([*PHOTOS.values(), RACCOON])
    for _ in range(CROPS_OF_PHOTOS):
        photo = whole[rng.choice(len(whole), p=shares / shares.sum())]
        side = round(math.exp(rng.uniform(math.log(2 * SIDE), math.log(min(photo.size)))))
        crop = _random_crop(photo, side, rng).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield _recoloured(crop, rng) if rng.random() < 0.4 else crop


def _load_photos(scratch: Path) -> list[Image.Image]:
    with zipfile.ZipFile(pip_download(SCIKIT_IMAGE, scratch)) as wheel:
        files = [wheel.read(f"skimage/data/{name}") for name in PHOTOS]
    found = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    # the last version with the raccoon in its wheel
    old = pip_download(SCIPY, scratch, "--python-version=3.10", "--only-binary=:all:")
    with zipfile.ZipFile(old) as wheel:
        unpacked = bz2.decompress(wheel.read("scipy/misc/face.dat"))
    raccoon = np.frombuffer(unpacked, np.uint8).reshape(768, 1024, 3)
    return [*found, Image.fromarray(raccoon)]


def _recoloured(crop: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Exchange channels and change each one's contrast: few photos have few colours."""
    pixels = np.asarray(crop)[..., rng.permutation(3)] / 255
    changed = pixels ** np.exp(rng.uniform(-0.6, 0.6, 3))
    return Image.fromarray((changed * 255).round().astype(np.uint8))


# -- leaves ----------------------------------------------------------------------------------------


def leaves(scratch: Path, rng: np.random.Generator) -> Crops:
    """Yield dead leaves: shapes in front of one another, flat, shaded or with a texture."""
    for _ in range(LEAVES):
        palette = _palette(rng)
        canvas = _fill(palette, rng)
        for _ in range(int(rng.integers(3, 60))):
            _drop_leaf(canvas, palette, rng)
        yield canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


LEAF_SIDE = 2 * SIDE  # drawn larger, for soft edges


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Return eight colours [8, 3] in 0..255: of any kind, or about one of them."""
    colours = rng.uniform(0, 255, (8, 3))
    if rng.random() < 0.5:
        colours = colours[:1] + rng.normal(0, 45, (8, 3)) + rng.normal(0, 60, (8, 1))
    return colours.clip(0, 255)


def _fill(palette: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Return a square of a plain colour, of a gradient, or of noise of one scale."""
    first, second = palette[rng.integers(8)], palette[rng.integers(8)]
    kind = rng.random()
    if kind < 0.5:
        return Image.new("RGB", (LEAF_SIDE, LEAF_SIDE), tuple(first.astype(int).tolist()))
    if kind < 0.8:
        x, y = np.meshgrid(*[np.linspace(-1, 1, LEAF_SIDE)] * 2)
        angle = rng.uniform(0, 2 * math.pi)
        share = 0.5 + (math.cos(angle) * x + math.sin(angle) * y) / 2.9
    else:
        cells = int(2 ** rng.uniform(1.5, 6))
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        share = np.asarray(noise.resize((LEAF_SIDE, LEAF_SIDE), Image.Resampling.BICUBIC)) / 255
    mixed = first + (second - first) * share[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _drop_leaf(canvas: Image.Image, palette: np.ndarray, rng: np.random.Generator) -> None:
    """Paste one shape; radii are distributed as r^-3, which looks alike at all scales."""
    low, high = 0.06 * LEAF_SIDE, 0.7 * LEAF_SIDE
    radius = (rng.uniform(high**-2, low**-2)) ** -0.5
    x, y = rng.uniform(0, LEAF_SIDE, 2)
    mask = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(mask)
    corners = int(rng.integers(2, 7))
    stretch = rng.uniform(0.3, 1)
    if corners == 2:
        pen.ellipse((x - radius, y - stretch * radius, x + radius, y + stretch * radius), fill=255)
    else:
        angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
        places = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        pen.polygon([tuple(place) for place in places.tolist()], fill=255)
    if rng.random() < 0.1:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 8)))
    canvas.paste(_fill(palette, rng), mask=mask)


# -- all -------------------------------------------------------------------------------------------


def _random_crop(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    return image.crop((left, top, left + side, top + side))


SOURCES: dict[str, Callable[[Path, np.random.Generator], Crops]] = {
    "icons": icons,
    "photos": photos,
    "leaves": leaves,
}


def make_images(folder: Path = IMAGES) -> Path:
    """Write the crops of all sources into a folder; keep one that is there."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        images = Path(scratch) / "images"
        for name, source in SOURCES.items():
            (images / name).mkdir(parents=True)
            crops = source(Path(scratch), np.random.default_rng(SEED))
            for number, crop in enumerate(tqdm(crops, desc=name, unit="img")):
                crop.save(images / name / f"{number:05}.png")
        # whole or not at all
        os.replace(images, folder)
    return folder
