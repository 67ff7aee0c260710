"""Reports of evaluations that were never made."""

import torch

from dit.evaluation.metrics.bootstrap import Extrapolation
from dit.evaluation.metrics.compute import RealVsReal, Score
from dit.evaluation.metrics.per_class import ClassRow, Recognition
from dit.report import evaluation_page as report
from dit.report import figures
from dit.utils import pictures

MISSING = "needs at least 20 images on both sides, has 3 samples and 1797 reference images"
HASH = "5bd1e995" * 8
NETWORK = "a.very.long_module.name.of_a_feature:NetworkOfSomebody"
FD, KID, IS = (f"{kind}(digits-cnn)" for kind in ("FD", "KID", "IS"))
FIDS = {"FID": 3.9426, "sFID": 6.1404, "KID": -0.00021}
SHARES = {"precision": 0.8265, "recall": None, "density": 1.12, "coverage": 0.941}
INCEPTION_SCORES = {"IS": 215.837, "IS (torch-fidelity)": 213.1}


def make(**more):
    """A report with a complete score, one that is missing, and one with a deviation only."""
    given = dict(
        title="Evaluation of runs/000",
        scores={
            FD: Score(FD, 1.23456, "lower", 1000, 1797),
            KID: Score(KID, None, "lower", 3, 1797, reason=MISSING),
            IS: Score(IS, 8.5, "higher", 1000, deviation=0.1, note="2 splits"),
        },
        real_vs_real={FD: RealVsReal(0.52, 0.55, 0.61, 5, 898, 899)},
        protocol={
            "sampling": {
                "sampler": "heun",
                "steps": 25,
                "cfg_scale": 1.5,
                "cfg_interval": [0.0, 1.0],
                "eta": None,
                "vae": "<script>alert(1)</script>",
                "classes": list(range(1000)),
            }
        },
        intervals={FD: (1.1, 1.4)},
    )
    return report.Report(**{**given, **more})


def rich():
    """A report with everything, and with names that are hard to lay out."""
    count = 50_000
    scores = {name: Score(name, value, "lower", count, count) for name, value in FIDS.items()}
    scores["KID"] = Score("KID", FIDS["KID"], "lower", count, count, note="100 subsets of 1,000")
    for name, value in SHARES.items():
        scores[name] = Score(name, value, "higher", count, count)
    reason = "the reference has statistics only, no images"
    scores["recall"] = Score("recall", None, "higher", count, reason=reason)
    for name, value in INCEPTION_SCORES.items():
        scores[name] = Score(name, value, "higher", count, deviation=3.2)
    fd = f"FD({NETWORK})"
    scores[fd] = Score(fd, 63.4, "lower", count, count, note="<b>bold & bare</b>")

    ranges = {
        "FID": (1.71, 1.74, 1.79),
        "KID": (-1e-4, 0, 1e-4),
        "precision": (0.73, 0.74, 0.75),
        "IS": (210.2, 212, 214),
    }
    long = "a long & <winding> name of class, such as ImageNet has, number"
    classes = [
        ClassRow(
            f"n{i:08d} {long} {i}", 50, 1300, 100 + i * 37 % 91 * 2.0, 90.0, i * 13 % 100 / 100
        )
        for i in range(100)
    ]
    sizes, distances = [5000, 10000, 20000, 35000, 50000], [8.1, 5.9, 4.8, 4.2, 3.94]
    limits = {
        "FID": Extrapolation(sizes, distances, 3.4, 0.08),
        fd: Extrapolation([], [], reason="needs 1,000 samples"),
    }
    protocol = {
        "samples": {
            "source": "/data/" + "long/" * 20 + "folder",
            "count": count,
            "size": "256x256",
            "labels": "1000 classes, 50 images each",
            "pixels_sha256": HASH,
        },
        "sampling": {
            "sampler": "dpmpp_2m",
            "steps": 25,
            "cfg_scale": 1.5,
            "cfg_interval": [0.2, 0.8],
            "cfg_channels": 3,
            "ema": 0.9999,
            "classes": list(range(1000)),
            "weights_sha256": HASH,
        },
        "reference": {"source": "VIRTUAL_imagenet256_labeled.npz", "count": 10_000, "sha256": HASH},
        "features (inception-v3-compat)": {"weights": "inception.pth", "weights_sha256": HASH},
        f"features ({NETWORK})": {"weights": "unknown", "preprocessing": "<i>none</i> & nothing"},
        "software": {
            "date": "2026-11-20T10:11:12+00:00",
            "device": "NVIDIA H200",
            "dit": "0.2.0",
            "torch": "2.15.0",
        },
    }
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
    names = ["cat", "a dog with a long name", "owl", "fox", "elk", "carp"]
    grid = pictures.grid(noise, names, 10, 8)
    curve = figures.distance_by_size(limits)
    return make(
        title="Evaluation of runs/017-imagenet-256-DiT-XL-2/checkpoints/step-0400000 <not & a tag>",
        scores=scores,
        real_vs_real={name: RealVsReal(*ends, 5, 25_000, 25_000) for name, ends in ranges.items()},
        protocol=protocol,
        intervals={"FID": (3.88, 4.02), "precision": (0.82, 0.83)},
        digits=report.Digits(
            Recognition(0.985, {"0": 1.0, "1": 0.97}, 200), Recognition(0.99, {}, 1797)
        ),
        classes=classes,
        uncertainty=limits,
        memorisation=[
            report.NearCopies(0.012, 0.01, 10_000, "imagenet", 1_281_167, by)
            for by in ("pixels", "FD")
        ],
        figures={
            report.SAMPLES: {"The first samples of each class": grid},
            report.UNCERTAINTY: {"Distance by number of samples": curve},
            report.MEMORISATION: {"Samples, and under each the nearest training image": grid},
            report.TRAINING: {"Training loss": curve},
            "Another <section>": {"Another figure": curve},
        },
        notes=["2,000 images for 2,048 features: the distance is biased upwards", "<b>no tag</b>"],
    )
