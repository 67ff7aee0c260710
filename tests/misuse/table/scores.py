"""Samples, statistics, reports and sweeps: odd sizes, missing labels, bombs, other types."""

import numpy as np

from misuse.case import Case, Damage, refused, works
from misuse.damages import (
    DELETE,
    array,
    arrays,
    copy,
    cut,
    edit,
    evil_pickle,
    fifo,
    flip,
    folder,
    image,
    npz_bomb,
    remove,
    write,
)
from misuse.fixtures import CNN

EVALUATE = f"evaluate --samples samples --reference images --crop {CNN} --out new"
WITH = f"evaluate --samples samples --reference mine.npz {CNN} --out new"
OF = f"evaluate --samples mine.npz --reference images --crop {CNN} --out new"
LABELS, RECORD = "samples/labels.csv", "samples/samples.json"
COMPLETE = "sample --run run --num-samples 12 --steps 2 --out samples"
FEATURES = 64

SAMPLES = [
    refused(EVALUATE, "000003.png", image("samples/000003.png", size=(9, 9))),
    refused(EVALUATE, "000003.png", cut("samples/000003.png", 0.5)),
    refused(EVALUATE, "000003.png", write("samples/000003.png", "")),
    refused(EVALUATE, "samples", remove("samples/*.png")),
    refused(EVALUATE, "labels.csv", write(LABELS, "")),
    refused(EVALUATE, "labels.csv", write(LABELS, b"\xff\xfe\xfd")),
    refused(EVALUATE, "labels.csv", write(LABELS, "file,label\n000000.png,cat\n")),
    refused(EVALUATE, "labels.csv", write(LABELS, "file,label\n000000.png,0\n")),
    refused(EVALUATE, "labels.csv", write(LABELS, "name,class\n000000.png,0\n")),
    refused(EVALUATE, "labels.csv", write(LABELS, "file,label\n000000.png\n")),
    refused(EVALUATE, "labels.csv", write(LABELS, "file,label\n" + "000000.png,-7\n" * 12)),
    refused(EVALUATE, "labels.csv", write(LABELS, f"file,label\n000000.png,{10**30}\n")),
    refused(EVALUATE, "labels.csv", remove(LABELS), folder(LABELS)),
    refused(EVALUATE, "samples.json", write(RECORD, "{")),
    refused(EVALUATE, "samples.json", write(RECORD, "[]")),
    refused(EVALUATE, "samples.json", write(RECORD, "[" * 100_000)),
    refused(EVALUATE, "samples.json", write(RECORD, '{"seed": 1e999}')),
    works(EVALUATE, "report.html", remove(LABELS)),
    works(EVALUATE, "report.html", remove(RECORD)),
    works(EVALUATE, "report.html", fifo("samples/pipe")),
    refused(COMPLETE, "samples.json", write(RECORD, "{"), remove("samples/000003.png")),
    refused(COMPLETE, "samples.json", write(RECORD, "[]"), remove("samples/000003.png")),
    refused(COMPLETE, "samples", edit(RECORD, "seed", 9), remove("samples/000003.png")),
    works(COMPLETE, "12 images", remove("samples/000003.png")),
    works(COMPLETE, "12 images", cut("samples/000003.png", 0.5), changes=("samples/*",)),
    works(COMPLETE, "12 images", remove(LABELS)),
]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def covariance() -> np.ndarray:
    return np.eye(FEATURES)


def statistics(says: str, words: str, **values) -> Case:
    """Describe an evaluation against statistics."""
    return refused(WITH, says, arrays("mine.npz", words, **values))


STATISTICS = [
    refused(WITH, "mine.npz", npz_bomb("mine.npz", "mu", (10**12,))),
    refused(WITH, "mine.npz", npz_bomb("mine.npz", "arr_0", (10**6, 256, 256, 3))),
    refused(OF, "mine.npz", npz_bomb("mine.npz", "arr_0", (10**6, 256, 256, 3))),
    refused(OF, "mine.npz", npz_bomb("mine.npz", "arr_0", (2**62, 2**62, 2**62, 3))),
    refused(WITH, "mine.npz", write("mine.npz", "")),
    refused(WITH, "mine.npz", write("mine.npz", "<html>404</html>")),
    refused(WITH, "mine.npz", write("mine.npz", b"PK\x03\x04" + bytes(100))),
    refused(WITH, "mine.npz", copy("stats.npz", "mine.npz"), cut("mine.npz", 0.5)),
    refused(WITH, "mine.npz", copy("stats.npz", "mine.npz"), flip("mine.npz", 0.5)),
    refused(WITH, "mine.npz", evil_pickle("mine.npz")),
    refused(WITH, "mine.npz", folder("mine.npz/a.npz")),
    refused(
        WITH.replace("mine.npz", "mine.npy"), "mine.npy", array("mine.npy", lambda: normal(4), "x")
    ),
    statistics("mine.npz", "objects", mu=lambda: np.array([{}]), sigma=covariance),
    statistics("mine.npz", "texts", mu=lambda: np.array(["a"] * FEATURES), sigma=covariance),
    statistics("mine.npz", "mu alone", mu=lambda: normal(FEATURES)),
    statistics("mine.npz", "other keys", mean=lambda: normal(FEATURES), cov=covariance),
    statistics("mine.npz", "nothing"),
    statistics("mine.npz", "mu of 3", mu=lambda: normal(3), sigma=covariance),
    statistics("mine.npz", "mu of 3 and sigma 3x3", mu=lambda: normal(3), sigma=lambda: np.eye(3)),
    statistics("mine.npz", "scalars", mu=lambda: 1.0, sigma=lambda: 1.0),
    statistics("mine.npz", "sigma not square", mu=lambda: normal(64), sigma=lambda: normal(64, 3)),
    statistics("mine.npz", "NaN", mu=lambda: normal(64) * np.nan, sigma=covariance),
    statistics("mine.npz", "infinity", mu=lambda: normal(64), sigma=lambda: covariance() * np.inf),
    statistics(
        "mine.npz", "sigma not symmetric", mu=lambda: normal(64), sigma=lambda: normal(64, 64)
    ),
    statistics("mine.npz", "complex", mu=lambda: normal(64) * 1j, sigma=covariance),
    statistics(
        "mine.npz", "a negative variance", mu=lambda: normal(64), sigma=lambda: -covariance()
    ),
]

IMAGES = [
    refused(OF, "mine.npz", arrays("mine.npz", words, arr_0=values))
    for words, values in (
        ("floats", lambda: normal(6, 8, 8, 3)),
        ("booleans", lambda: np.zeros((6, 8, 8, 3), bool)),
        ("objects", lambda: np.array([{}] * 6)),
        ("channels first", lambda: np.zeros((6, 3, 8, 8), np.uint8)),
        ("one image", lambda: np.zeros((8, 8, 3), np.uint8)),
        ("no images", lambda: np.zeros((0, 8, 8, 3), np.uint8)),
        ("four channels", lambda: np.zeros((6, 8, 8, 4), np.uint8)),
        ("sides of 0", lambda: np.zeros((6, 0, 8, 3), np.uint8)),
        ("16 bits", lambda: np.zeros((6, 8, 8, 3), np.uint16)),
    )
]


def labelled(words: str, labels) -> Case:
    """Describe samples with wrong labels."""
    zeros = lambda: np.zeros((6, 8, 8, 3), np.uint8)  # noqa: E731
    return refused(OF, "mine.npz", arrays("mine.npz", words, arr_0=zeros, arr_1=labels))


IMAGES += [
    labelled("5 labels", lambda: np.zeros(5, np.int64)),
    labelled("labels of bytes", lambda: np.array([b"cat"] * 6)),
    labelled("labels of -1", lambda: np.full(6, -1)),
    labelled("fractions for labels", lambda: normal(6)),
    labelled("labels of two axes", lambda: np.zeros((6, 2), np.int64)),
]

REPORT = "evaluation/report.json"
COMPARE = "compare evaluation evaluation"
REPORTS = [
    refused(COMPARE, "report.json", damage)
    for damage in (
        remove(REPORT),
        write(REPORT, ""),
        write(REPORT, "{"),
        write(REPORT, "[]"),
        write(REPORT, "3"),
        write(REPORT, b"\xff\xfe"),
        write(REPORT, "[" * 100_000),
        write(REPORT, '{"scores": 1e999}'),
        edit(REPORT, "scores", []),
        edit(REPORT, "scores", {"FD": 3}),
        edit(REPORT, "scores", {"FD": {"value": "low", "better": "lower", "interval": None}}),
        edit(
            REPORT, "scores", {"FD": {"value": float("nan"), "better": "lower", "interval": None}}
        ),
        edit(REPORT, "scores", {"FD": {"value": 1, "better": "sideways", "interval": None}}),
        edit(REPORT, "scores", {"FD": {"value": 1, "better": "lower", "interval": 3}}),
        edit(REPORT, "scores", {"FD": {"value": 1, "better": "lower", "interval": ["a", "b"]}}),
        edit(REPORT, "protocol", DELETE),
        edit(REPORT, "protocol", {"sampling": 3}),
        edit(REPORT, "format", 99),
        edit(REPORT, "format", "one"),
        edit(REPORT, "digits_recognised", 3),
        edit(REPORT, "digits_recognised", {"found": 3}),
    )
]

POINT = "sweep/points/*.json"
SWEEP = f"sweep --run run --cfg-scale 1,2 --steps 2 --num-samples 4 {CNN} --out sweep"


def every_point(content: str):
    """Replace the record of each point of the sweep."""

    def apply(root):
        for file in root.glob(POINT):
            file.write_text(content)

    return Damage(f"{POINT} are {content[:40]!r}", apply)


SWEEPS = [
    # a damaged point is scored again
    works(SWEEP, "sweep", every_point(content), changes=("sweep/*",))
    for content in ("", "3", "[]", "{}", '{"scores": 3}', "[" * 100_000, '{"scores": 1e999}')
] + [
    works(SWEEP, "sweep", remove("sweep/points"), changes=("sweep/*",)),
    refused(SWEEP, "sweep.json", write("sweep/sweep.json", "{")),
    refused(SWEEP, "sweep.json", write("sweep/sweep.json", "[" * 100_000)),
]

EXTRACTORS = [
    refused(f"{EVALUATE} --weights {name}", "mine", damage)
    for name, damage in (
        ("mine.pth", write("mine.pth", "<html>")),
        ("mine.pth", evil_pickle("mine.pth")),
        ("mine.safetensors", write("mine.safetensors", "")),
        (
            "mine.safetensors",
            copy("first-stage/diffusion_pytorch_model.safetensors", "mine.safetensors"),
        ),
        ("mine", folder("mine")),
    )
] + [
    refused(f"{EVALUATE} --weights inception=a --weights digits-cnn=nowhere", "nowhere"),
    refused(f"{EVALUATE} --weights vgg=samples", "vgg"),
    refused("evaluate --samples samples --reference images --extractor mymodule:Net", "mymodule"),
    refused("evaluate --samples samples --reference images --extractor json:loads", "json:loads"),
    refused(
        "evaluate --samples samples --reference images --extractor broken:Net",
        "broken",
        write("broken.py", "import nothing_of_the_kind\n"),
    ),
    refused(
        "train-vae --data images --image-size 16 --steps 2 --out new --lpips mine.pth",
        "mine.pth",
        write("mine.pth", "<html>"),
    ),
]

CASES: list[Case] = [
    *SAMPLES,
    *STATISTICS,
    *IMAGES,
    *REPORTS,
    *SWEEPS,
    *EXTRACTORS,
]
