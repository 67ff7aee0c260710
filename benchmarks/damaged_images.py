"""How a feature network rates images that get worse step by step.

    python -m benchmarks.damaged_images data/twitter-64   # in features of colour-cnn

One half of the images is the reference. The other half is compared with it: as it is, and with
blur, noise, JPEG, wrong colours or missing classes, three steps of each. A useful network gives a
distance that rises with each step. All rows compare as many images. The images must not be those
that the network was trained on: colour-cnn saw `emoji-64`.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import adjust_hue, gaussian_blur

from benchmarks.arguments import new_parser, typed_command
from benchmarks.record import record
from dit.data.images import ImageFolder
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.metrics.frechet import Gaussian, fit, frechet

SIZE = 64  # pixels
SEED = 0
SHARE = 0.4  # of the second half that a row compares: as many are left when classes are missing
SHARES_OF_CLASSES = (0.8, 0.5, 0.2)
Damage = Callable[[Tensor], Tensor]


def blur(sigma: float) -> Damage:
    return lambda images: gaussian_blur(images, 4 * int(sigma + 1) + 1, sigma)


def noise(deviation: float) -> Damage:
    def add(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        added = torch.randn(images.shape, generator=generator) * deviation
        return (images + added).round().clamp(0, 255).byte()

    return add


def jpeg(quality: int) -> Damage:
    def compress(images: Tensor) -> Tensor:
        pixels = [_through_jpeg(image, quality) for image in images]
        return torch.stack(pixels)

    return compress


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def wrong_hue(turn: float) -> Damage:
    """Turn all hues: 0.5 is half of the circle."""
    return lambda images: adjust_hue(images, turn)


DAMAGES: dict[str, dict[str, Damage]] = {
    "blur": {f"sigma {sigma:g}": blur(sigma) for sigma in (0.5, 1.0, 2.0)},
    "noise": {f"deviation {deviation}": noise(deviation) for deviation in (5, 15, 40)},
    "JPEG": {f"quality {quality}": jpeg(quality) for quality in (75, 40, 10)},
    "wrong colours": {f"hue + {turn:g}": wrong_hue(turn) for turn in (0.03, 0.1, 0.4)},
}


def distances(
    images: Tensor, labels: np.ndarray, extractor: Extractor
) -> tuple[float, dict[str, dict[str, float]]]:
    """Return the floor, and kind -> step -> distance to the first half of images [N, 3, H, W]."""
    order = np.random.default_rng(SEED).permutation(len(images))
    first, second = np.array_split(order, 2)
    count = int(SHARE * len(second))
    target = fit(extractor(images[first]).values)

    def distance(samples: Tensor) -> float:
        return frechet(fit(extractor(samples).values), target)

    same = images[second[:count]]
    found = {
        kind: {step: distance(damage(same)) for step, damage in steps.items()}
        for kind, steps in DAMAGES.items()
    }
    if len(np.unique(labels)) > 2:
        found["missing classes"] = _missing(images, labels, second, count, extractor, target)
    return distance(same), found


def _missing(
    images: Tensor,
    labels: np.ndarray,
    second: np.ndarray,
    count: int,
    extractor: Extractor,
    target: Gaussian,
) -> dict[str, float]:
    """Return the distance of images of fewer and fewer classes, the largest of which stay."""
    classes, counts = np.unique(labels[second], return_counts=True)
    largest = classes[np.argsort(-counts)]
    found = {}
    for share in SHARES_OF_CLASSES:
        kept = largest[: max(1, round(share * len(classes)))]
        chosen = second[np.isin(labels[second], kept)][:count]
        samples = images[chosen]
        step = f"{len(kept)} of {len(classes)} left"
        if len(chosen) < count:
            step += f", {len(chosen)} images"
        found[step] = frechet(fit(extractor(samples).values), target)
    return found


def to_lines(floor: float, found: dict[str, dict[str, float]]) -> Sequence[str]:
    """Return a Markdown table: each distance, and how many floors it is."""
    lines = ["| damage | 1 | 2 | 3 |", "|---|---|---|---|"]
    for kind, steps in found.items():
        cells = [f"{step}: {value:.2f} ({value / floor:.1f}×)" for step, value in steps.items()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("folder", type=Path, help="images, one subfolder a class")
    parser.add_argument("--extractor", default="colour-cnn", help="as in evaluate.py")
    parser.add_argument("--weights", nargs="*", default=[], help="as in evaluate.py")
    args = parser.parse_args()

    data = ImageFolder(args.folder, SIZE)
    images = torch.stack([data[index] for index in range(len(data))])
    (extractor,) = load_extractors([args.extractor], args.weights, torch.device("cpu"))
    floor, found = distances(images, np.asarray(data.labels), extractor)
    lines = to_lines(floor, found)
    print(f"FD({extractor.name}) of real images to real images: {floor:.2f}", *lines, sep="\n")
    if args.record:
        results = {"floor": floor, "distances": found}
        print(record("damaged-images", typed_command(), results, lines))


if __name__ == "__main__":
    main()
