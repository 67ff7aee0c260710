"""What the scores say of digits whose quality is known, and how far they are from torch-fidelity's own.

    python -m benchmarks.digits_scores [--samples runs/quickstart/evaluation/samples-HASH] [--record]

The reference is one half of scikit-learn's digits. Against it stand the other half as it is, blurred, and with noise,
pure noise, and the samples of a run. Each set is scored by evaluate.py and by torch_fidelity.calculate_metrics.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import gaussian_blur

from benchmarks.record import record
from dit.commands.evaluate import evaluate
from dit.config import EvalConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.inputs.images import read_images
from dit.evaluation.metrics import compute as metrics

SHOWN = ("FD", "KID", "precision", "recall", "density", "coverage", "IS")
THEIRS = {
    "FD": "frechet_inception_distance",
    "KID": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
    "IS": "inception_score_mean",
}


def sets(samples: Path | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference [M, 3, 32, 32] and what is compared with it, uint8."""
    digits = Digits(32).images
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(digits)))
    reference, real = digits[order[:899]], digits[order[899:]]
    generator = torch.Generator().manual_seed(0)
    noisy = real.int() + (torch.randn(real.shape, generator=generator) * 40).round().int()
    made = {
        "real": real,
        "blurred (sigma 2)": gaussian_blur(real, 13, 2.0),
        "noisy (deviation 40)": noisy.clamp(0, 255).byte(),
        "noise": torch.randint(0, 256, real.shape, generator=generator, dtype=torch.uint8),
    }
    if samples:
        images = read_images(samples)
        made["samples"] = images.stack(range(len(images)))
    return reference, made


def ours(images: Tensor, reference: Tensor) -> dict[str, dict[str, Any]]:
    """The scores of evaluate.py, by their plain names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, array in (("samples", images), ("reference", reference)):
            np.savez(folder / f"{file}.npz", array.permute(0, 2, 3, 1).contiguous().numpy())
        out = evaluate(
            EvalConfig(
                samples=folder / "samples.npz",
                reference=str(folder / "reference.npz"),
                extractor=("digits-cnn",),
                cache=False,
            ),
            Ranks(),
        )
        report = json.loads((out / "report.json").read_text())
    return {name: report["scores"][f"{name}(digits-cnn)"] for name in SHOWN}


class Pixels(Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].contiguous()


def register() -> None:
    """Make digits-cnn known to torch-fidelity."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import register_feature_extractor

    class Wrapped(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any):
            super().__init__(name, features_list)
            (self.extractor,) = load_extractors(["digits-cnn"], [], torch.device("cpu"))

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            outputs = self.extractor(images)
            return tuple(
                {"features": outputs.values, "logits": outputs.logits}[name]
                for name in self.features_list
            )

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    register_feature_extractor("digits-cnn", Wrapped)


def theirs(images: Tensor, reference: Tensor) -> dict[str, float]:
    """The same scores by torch-fidelity's own command; its features and KID are float32."""
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        input1=Pixels(images),
        input2=Pixels(reference),
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
    return {name: found[key] for name, key in THEIRS.items()}


def main() -> None:
    """Score every set and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, help="folder or .npz of a run's samples, 32x32")
    parser.add_argument(
        "--record", action="store_true", help="write the figures to benchmarks/results/"
    )
    args = parser.parse_args()
    register()
    reference, made = sets(args.samples)
    results = {}
    for name, images in made.items():
        mine, oracle = ours(images, reference), theirs(images, reference)
        apart = {
            key: abs(mine[key]["value"] - value) / max(abs(value), 1e-12)
            for key, value in oracle.items()
        }
        results[name] = {
            "samples": len(images),
            "reference": len(reference),
            "scores": mine,
            "relative difference to torch-fidelity": apart,
        }
    print(f"\n{'set':<22}" + "".join(f"{name:>11}" for name in SHOWN) + f"{'apart':>11}")
    for name, found in results.items():
        values = "".join(f"{found['scores'][key]['value']:>11.4f}" for key in SHOWN)
        print(
            f"{name:<22}{values}{max(found['relative difference to torch-fidelity'].values()):>11.1e}"
        )
    if args.record:
        command = shlex.join(["python", "-m", "benchmarks.digits_scores", *sys.argv[1:]])
        print(record("digits-scores", command, results))


if __name__ == "__main__":
    main()
