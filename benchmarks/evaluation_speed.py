"""Seconds and memory of scoring: random features of Inception's width, torch-fidelity's neighbours, and digits.

    python -m benchmarks.evaluation_speed [--samples 50000] [--compared 10000] [--digits 10000] [--record]

Every measurement is a process of its own, so that peaks do not mix. `peak_gb` is the peak of the whole process,
`extra_gb` what it has above the features themselves and the libraries. Ours and torch-fidelity's precision and recall
must be the same numbers.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.inputs.features import Features, extract
from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.frechet import fit, frechet
from dit.evaluation.metrics.memorisation import pixel_extractor
from dit.evaluation.references import Reference, prepare, score

WIDTH, CLASSES, SPREAD = 2048, 1008, 0.01
CPU = torch.device("cpu")
SAME = 1e-6  # relative; torch-fidelity takes the means of its flags in float32


# -- what is measured: (samples [N, D], reference [M, D]) -> numbers ---------------------------------------------


def fid(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Both Gaussians and their distance."""
    return {"FID": frechet(fit(samples), fit(reference))}


def kid(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """100 subsets."""
    return {
        "KID": metrics.kernel_distance(samples, metrics.Target(reference), CPU).value or math.nan
    }


def ours(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage against at most 10,000 reference images."""
    found = metrics.neighbour_scores(samples, metrics.Target(reference), CPU)
    return {score.name: score.value or 0.0 for score in found}


def theirs_double(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """torch-fidelity's precision and recall, as its manual has it for little memory, on float64."""
    return theirs_single(samples.double(), reference.double())


def theirs_single(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """The same on features as they are."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    reference = reference[metrics._subset(len(reference), metrics.PRC_REFERENCE)]
    found = prc_features_to_metric(samples, reference, save_cpu_ram=True, verbose=False)
    return {name: found[name] for name in ("precision", "recall")}


def everything(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """All scores of features with logits, the reference's Gaussian included."""
    logits = torch.randn(len(samples), CLASSES, generator=torch.Generator().manual_seed(2))
    scores = metrics.compute_scores(
        Features(samples, logits), metrics.Target.of(Features(reference)), INCEPTION, CPU
    )
    return {name: score.value for name, score in scores.items() if score.value is not None}


WORK: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "fid": fid,
    "kid": kid,
    "neighbours": ours,
    "torch-fidelity fp64": theirs_double,
    "torch-fidelity fp32": theirs_single,
    "all scores": everything,
}


def random_features(samples: int, reference: int) -> tuple[Tensor, Tensor]:
    """Positive as Inception's are; the samples' a little further apart."""
    one, other = (
        torch.empty(n, WIDTH).normal_(generator=torch.Generator().manual_seed(i)).abs_()
        for i, n in enumerate((samples, reference))
    )
    return one.mul_(1 + SPREAD), other


def measure_features(work: str, samples: int, reference: int) -> dict[str, Any]:
    """One kind of work on random features, the libraries loaded before."""
    import torch_fidelity.metric_isc
    import torch_fidelity.metric_kid
    import torch_fidelity.metric_prc  # noqa: F401

    features = random_features(samples, reference)
    before = peak()
    begin = time.perf_counter()
    found = WORK[work](*features)
    return {
        "seconds": seconds_since(begin),
        "peak_gb": peak(),
        "extra_gb": round(peak() - before, 3),
        "found": found,
    }


def measure_flow(samples: int, reference: int) -> dict[str, Any]:
    """All that evaluate.py does with features of Inception's three widths and pixels: floors, scores, in its order."""
    generator = torch.Generator().manual_seed(0)
    spatial = 2023

    def network(images: Tensor) -> Outputs:
        return Outputs(
            *(
                torch.randn(len(images), width, generator=generator).abs()
                for width in (WIDTH, CLASSES, spatial)
            )
        )

    eyes = [
        Extractor(network, INCEPTION, "random", "", "none", CPU, (WIDTH, CLASSES, spatial)),
        pixel_extractor(CPU),
    ]
    begin = time.perf_counter()
    real, made = (
        from_array(np.zeros((n, 4, 4, 3), dtype=np.uint8), "zeros") for n in (reference, samples)
    )
    standard = prepare(
        Reference("zeros", real, None), eyes, [INCEPTION], samples, 500, Ranks(), cache=False
    )
    floor = seconds_since(begin)
    scores = score(extract(made, eyes, 500, Ranks(), "samples"), standard, [INCEPTION], CPU)
    found = {name: found.value for name, found in scores.items() if found.value is not None}
    return {
        "seconds": seconds_since(begin),
        "seconds_reference_and_floor": floor,
        "peak_gb": peak(),
        "extra_gb": peak(),
        "found": found,
    }


def measure_digits(count: int, reference: int) -> dict[str, Any]:
    """Samples of 32x32, noisy digits, against the real ones: from pixels to scores and floor, with digits-cnn."""
    digits = Digits(32).images.permute(0, 2, 3, 1)
    chosen = torch.randint(len(digits), (count,), generator=torch.Generator().manual_seed(0))
    noise = torch.randint(
        -40, 41, (count, 32, 32, 1), generator=torch.Generator().manual_seed(1), dtype=torch.int16
    )
    samples = (digits[chosen] + noise).clamp_(0, 255).byte()
    del noise
    before = peak()
    begin = time.perf_counter()
    extractors = load_extractors(["digits-cnn"], [], CPU)
    ours, real = (
        extract(from_array(images.numpy(), name), extractors, 64, Ranks(), name).networks[
            "digits-cnn"
        ]
        for images, name in ((samples, "samples"), (digits.contiguous(), "digits"))
    )
    extracted = seconds_since(begin)
    scores = metrics.compute_scores(ours, metrics.Target.of(real), "digits-cnn", CPU)
    scored = seconds_since(begin)
    metrics.compute_floor(real, count, "digits-cnn", CPU)
    found = {name: score.value for name, score in scores.items()}
    return {
        "seconds": seconds_since(begin),
        "seconds_features": extracted,
        "seconds_scores": scored - extracted,
        "peak_gb": peak(),
        "extra_gb": round(peak() - before, 3),
        "found": found,
    }


WHOLE = {"digits": measure_digits, "evaluate.py": measure_flow}


def seconds_since(begin: float) -> float:
    """Wall clock."""
    return round(time.perf_counter() - begin, 2)


def peak() -> float:
    """Peak memory of this process so far, GB (10^9 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


# -- processes ---------------------------------------------------------------------------------------------------


def in_a_process(work: str, samples: int, reference: int) -> dict[str, Any]:
    """Measure in a fresh one."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.evaluation_speed",
        "--work",
        work,
        "--samples",
        str(samples),
        "--reference",
        str(reference),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = {
        "samples": samples,
        "reference": reference,
        **json.loads(done.stdout.splitlines()[-1]),
    }
    print(
        f"{work:<22}{samples:>8}{reference:>8}{result['seconds']:>9} s{result['peak_gb']:>8} GB"
        f"{result['extra_gb']:>8} GB",
        flush=True,
    )
    return result


def compare(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times slower and larger torch-fidelity is; fails where the numbers differ."""
    own, ratios = results["neighbours"], {}
    for precision in ("fp64", "fp32"):
        theirs = results.get(f"torch-fidelity {precision}")
        if theirs is None:
            continue
        ratios[f"speed_ratio_{precision}"] = round(theirs["seconds"] / own["seconds"], 2)
        ratios[f"memory_ratio_{precision}"] = round(
            theirs["extra_gb"] / max(own["extra_gb"], 1e-3), 1
        )
    exact = results["torch-fidelity fp64"]["found"]
    for name, value in exact.items():
        assert math.isclose(own["found"][name], value, rel_tol=SAME), (
            f"{name}: {own['found'][name]}, theirs {value}"
        )
    return ratios


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000, help="random features of samples")
    parser.add_argument(
        "--reference", type=int, default=50_000, help="random features of the reference"
    )
    parser.add_argument(
        "--compared", type=int, default=10_000, help="of both, against torch-fidelity a second time"
    )
    parser.add_argument("--digits", type=int, default=10_000, help="samples from pixels to scores")
    parser.add_argument("--record", action="store_true", help="write JSON to benchmarks/results")
    parser.add_argument(
        "--work", choices=[*WORK, *WHOLE], help="measure this alone, in this process"
    )
    args = parser.parse_args()
    if args.work:
        measure = WHOLE.get(args.work, partial(measure_features, args.work))
        print(json.dumps(measure(args.samples, args.reference)))
        return
    print(f"{'':<22}{'samples':>8}{'real':>8}{'time':>11}{'peak':>11}{'extra':>11}")
    large = {
        work: in_a_process(work, args.samples, args.reference)
        for work in WORK
        if "fp32" not in work
    }
    small = {
        work: in_a_process(work, args.compared, args.compared)
        for work in ("neighbours", "torch-fidelity fp64", "torch-fidelity fp32")
    }
    results = {
        "features": large,
        "features, ratios": compare(large),
        "compared": small,
        "compared, ratios": compare(small),
        "digits": in_a_process("digits", args.digits, 1797),
        "evaluate.py": in_a_process("evaluate.py", args.samples, args.reference),
    }
    print(
        json.dumps({name: ratios for name, ratios in results.items() if "ratios" in name}, indent=2)
    )
    if args.record:
        command = (
            f"python -m benchmarks.evaluation_speed --samples {args.samples} --reference {args.reference} "
            f"--compared {args.compared} --digits {args.digits} --record"
        )
        print(record("evaluation-speed", command, results))


if __name__ == "__main__":
    main()
