"""Scores of digits of known quality, and their difference from torch-fidelity's own.

    python -m benchmarks.digits_scores [--samples RUN/evaluation/samples-HASH] [--record]

The reference is one half of scikit-learn's digits. It is compared with the other half (as it is,
blurred, and with noise), with pure noise, and with the samples of a run. Each set is scored by
evaluate.py and by torch_fidelity.calculate_metrics.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.functional import gaussian_blur

from benchmarks.arguments import new_parser, typed_command
from benchmarks.record import record
from dit.commands.evaluate import evaluate
from dit.config import EvalConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.inputs.images import read_images
from dit.evaluation.metrics import compute as metrics

METRICS = ("FD", "KID", "precision", "recall", "density", "coverage", "IS")
TORCH_FIDELITY_KEYS = {
    "FD": "frechet_inception_distance",
    "KID": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
    "IS": "inception_score_mean",
}
DIFFERENCE = "relative difference to torch-fidelity"


def image_sets(samples: Path | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the reference [M, 3, 32, 32] and the sets to compare with it, uint8."""
    digits = Digits(32).images
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(digits)))
    reference = digits[order[:899]]
    real = digits[order[899:]]

    generator = torch.Generator().manual_seed(0)
    noisy = real.int() + (torch.randn(real.shape, generator=generator) * 40).round().int()
    sets = {
        "real": real,
        "blurred (sigma 2)": gaussian_blur(real, 13, 2.0),
        "noisy (deviation 40)": noisy.clamp(0, 255).byte(),
        "noise": torch.randint(0, 256, real.shape, generator=generator, dtype=torch.uint8),
    }
    if samples:
        images = read_images(samples)
        sets["samples"] = images.stack(range(len(images)))
    return reference, sets


def our_scores(images: Tensor, reference: Tensor) -> dict[str, dict[str, Any]]:
    """Return the scores of evaluate.py by metric."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, array in (("samples", images), ("reference", reference)):
            np.savez(folder / f"{file}.npz", array.permute(0, 2, 3, 1).contiguous().numpy())
        config = EvalConfig(
            samples=folder / "samples.npz",
            reference=str(folder / "reference.npz"),
            extractor=("digits-cnn",),
            cache=False,
        )
        out = evaluate(config, Ranks())
        report = json.loads((out / "report.json").read_text())
    return {name: report["scores"][f"{name}(digits-cnn)"] for name in METRICS}


def register_extractor() -> None:
    """Register digits-cnn as an extractor of torch-fidelity."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import register_feature_extractor

    class DigitsExtractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any):
            super().__init__(name, features_list)
            (self.extractor,) = load_extractors(["digits-cnn"], [], torch.device("cpu"))

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            outputs = self.extractor(images)
            by_name = {"features": outputs.values, "logits": outputs.logits}
            return tuple(by_name[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    register_feature_extractor("digits-cnn", DigitsExtractor)


def torch_fidelity_scores(images: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the same scores by torch-fidelity, whose features and KID are float32."""
    import torch_fidelity

    scores = torch_fidelity.calculate_metrics(
        # torch-fidelity takes datasets only
        input1=Subset(images, range(len(images))),
        input2=Subset(reference, range(len(reference))),
        feature_extractor="digits-cnn",
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subsets=metrics.KID_SUBSETS,
        kid_subset_size=metrics.kid_subset_size(len(images), len(reference)),
        isc_splits=max(1, len(images) // metrics.IS_SPLIT),
        samples_shuffle=False,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    return {name: scores[key] for name, key in TORCH_FIDELITY_KEYS.items()}


def compare(images: Tensor, reference: Tensor) -> dict[str, Any]:
    """Return our scores of a set and their relative differences from torch-fidelity's."""
    ours = our_scores(images, reference)
    theirs = torch_fidelity_scores(images, reference)
    differences = {
        name: abs(ours[name]["value"] - value) / max(abs(value), 1e-12)
        for name, value in theirs.items()
    }
    return {
        "samples": len(images),
        "reference": len(reference),
        "scores": ours,
        DIFFERENCE: differences,
    }


def main() -> None:
    """Score every set and print a table."""
    parser = new_parser(__doc__)
    parser.add_argument("--samples", type=Path, help="folder or .npz of a run's samples, 32x32")
    args = parser.parse_args()

    register_extractor()
    reference, sets = image_sets(args.samples)
    results = {name: compare(images, reference) for name, images in sets.items()}

    heads = "".join(f"{name:>11}" for name in METRICS)
    print(f"\n{'set':<22}{heads}{'difference':>12}")
    for name, result in results.items():
        values = "".join(f"{result['scores'][metric]['value']:>11.4f}" for metric in METRICS)
        print(f"{name:<22}{values}{max(result[DIFFERENCE].values()):>12.1e}")

    if args.record:
        print(record("digits-scores", typed_command(), results))


if __name__ == "__main__":
    main()
