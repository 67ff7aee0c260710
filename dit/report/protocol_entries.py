"""The kinds of a protocol's entries: what a difference in them means for two reports.

An entry says how scores were MEASURED, how images were SAMPLED, or something ASIDE of both. Its
path is SECTION/ENTRY; `features` stands for the sections `features (NETWORK)`.
"""

from collections.abc import Iterable, Iterator, Sequence

from dit.report.evaluation_page import RECOGNISED
from dit.report.score_names import SHARES, parse

MEASURED, SAMPLED, ASIDE = "measured", "sampled", "aside"
SHUFFLED = "IS (torch-fidelity)"
FRECHET = ("FID", "sFID", "FD", "sFD")
OF_REFERENCE = (*FRECHET, "KID", *SHARES)
OF_FEATURES = (*OF_REFERENCE, "IS", SHUFFLED)
ALL = (*OF_FEATURES, RECOGNISED)
DEFINITION = "another definition of the score"

NEEDED: dict[str, tuple[Sequence[str], str]] = {
    "samples/count": (OF_FEATURES, "a Fréchet distance falls as samples are added"),
    "samples/labels": (
        ALL,
        "balanced labels score better than random ones; labels are read from labels.csv, "
        "class folders, or arr_1 of an .npz",
    ),
    "samples/size": (ALL, "a network sees other features in images of another size"),
    "sampling/classes": (ALL, "other classes are another distribution"),
    "reference/count": (OF_REFERENCE, "a Fréchet distance falls as images are added"),
    "reference/size": (OF_REFERENCE, "resizing changes features"),
    "reference/crop": (OF_REFERENCE, "another crop or filter moves every score"),
    "reference/statistics": (FRECHET, "those of a file may come from other images"),
    "reference/sha256": (OF_REFERENCE, "other images, other scores"),
    "features/weights_sha256": (OF_FEATURES, "other weights are another measure"),
    "features/preprocessing": (OF_FEATURES, "how one resizes changes features by percents"),
    "scores/KID": (("KID",), DEFINITION),
    "scores/neighbours (precision, recall)": (SHARES[:2], DEFINITION),
    "scores/neighbours (density, coverage)": (SHARES[2:], DEFINITION),
    "scores/reference images (precision, recall, density, coverage)": (SHARES, DEFINITION),
    "scores/IS": (("IS",), DEFINITION),
    "scores/IS (torch-fidelity)": ((SHUFFLED,), DEFINITION),
    "scores/subset seed": (("KID", *SHARES, SHUFFLED), "other subsets score differently"),
}
"""Entry -> the scores that depend on it, and why. They compare only where it is known."""
ASIDE_ENTRIES = (
    *("samples/source", "samples/pixels_sha256", "reference/source"),
    "features/weights",  # the name of a file; its content is weights_sha256
    *("scores/bootstrap resamples", "sampling/format", "sampling/num_samples"),
)
NONE_IF_ABSENT = (
    *("prompts", "negative_prompt", "text_encoder", "text_encoder_sha256", "guide"),
    *("guide_sha256", "classifier", "classifier_sha256", "classifier_scale", "block_cache"),
)
ABSENT = {
    **{f"sampling/{entry}": "none" for entry in NONE_IF_ABSENT},
    "sampling/trained_size": "that of the samples",
    "sampling/network conditioning": "adaln-zero",
    "sampling/network block": "plain",
    "sampling/network text_width": None,
    "sampling/network unet_attention": None,
    "sampling/network time_scale": 1.0,
    "sampling/network interval": False,
    "sampling/network interval_smoothing": 25.0,
    "sampling/network time_endpoint": False,
    "sampling/network mlp_norm_eps": 1e-6,
}
"""What the absence of an entry means in a report that names its sampler."""


def kind_of(path: str) -> tuple[str, Sequence[str], str]:
    """Return the kind of an entry, the scores that depend on it, and why; also if it is new."""
    section, entry = path.split("/", 1)
    known = f"{section.split(' (')[0]}/{entry}"  # `features` stands for those of all networks
    if known in ASIDE_ENTRIES or section == "software":
        return ASIDE, (), ""
    if known in NEEDED:
        return MEASURED, *NEEDED[known]
    if known == "sampling/prompts":
        return MEASURED, ALL, "other prompts are another distribution"
    if section == "sampling":
        return SAMPLED, (), ""

    depending: Sequence[str] = OF_REFERENCE if section == "reference" else ALL
    if section == "scores":
        words = entry.replace(",", " ").replace("(", " ").replace(")", " ").split()
        depending = [name for name in OF_FEATURES if name in words] or OF_FEATURES
    return MEASURED, depending, "scores may depend on it"


def depends(score: str, path: str, depending: Sequence[str]) -> bool:
    """Return whether a score depends on an entry, given which kinds of scores do."""
    section = path.split("/", 1)[0]
    kind, network, convention = parse(score)
    if section.startswith("features (") and section != f"features ({network})":
        return False
    return (f"{kind} ({convention})" if convention else kind) in depending


def needed_entries(networks: Iterable[str]) -> Iterator[str]:
    """Yield the paths of entries that scores of these feature networks depend on."""
    for path in NEEDED:
        section, entry = path.split("/", 1)
        sections = [f"features ({network})" for network in sorted(networks)]
        for name in sections if section == "features" else [section]:
            yield f"{name}/{entry}"
