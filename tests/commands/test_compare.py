"""When two reports are comparable, and what is said when they are not."""

import copy
import json

import numpy as np
import pytest
import torch
from test_evaluation_page import make, rich

from dit import cli
from dit.commands import compare
from dit.commands.compare import ASIDE, MEASURED, SAMPLED, UNKNOWN
from dit.config import CompareConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics.compute import Score
from dit.evaluation.protocol import protocol
from dit.evaluation.references import Reference
from dit.report import evaluation_page as report

HASH, OTHER = "5b" * 32, "6c" * 32
CNN, INCEPTION = "features (digits-cnn)", "features (inception-v3-compat)"
NAMES = (
    "FID",
    "sFID",
    "KID",
    "precision",
    "density",
    "IS",
    "IS (torch-fidelity)",
    "FD(digits-cnn)",
    "KID(digits-cnn)",
    "recall(digits-cnn)",
)
OF_INCEPTION, OF_CNN = set(NAMES[:7]), set(NAMES[7:])
PROTOCOL = {
    "samples": {
        "source": "runs/a",
        "count": 50_000,
        "size": "32x32",
        "labels": "10 classes, 5000 images each",
        "pixels_sha256": HASH,
    },
    "sampling": {
        "sampler": "ddim",
        "steps": 25,
        "cfg_scale": 1.5,
        "cfg_interval": [0.0, 1.0],
        "cfg_channels": "all",
        "seed": 0,
        "precision": "fp32",
        "weights": "ema.safetensors",
        "weights_sha256": HASH,
        "ema": 0.999,
        "vae": "digits",
        "vae_sha256": HASH,
        "eta": None,
        "network": {"model": "DiT-S/2", "num_classes": 10},
        "classes": [*range(10)],
        "format": "png",
    },
    "reference": {
        "source": "digits",
        "count": 1797,
        "size": "32x32",
        "crop": "none",
        "statistics": "computed",
        "sha256": HASH,
    },
    CNN: {
        "weights": "digits-cnn.safetensors",
        "weights_sha256": HASH,
        "preprocessing": "gray",
        "widths": [64, 10, 0],
    },
    INCEPTION: {"weights": "inception.pth", "weights_sha256": HASH, "preprocessing": "bilinear"},
    "scores": {
        "KID": "100 subsets of 1000 images, or of half the smaller set",
        "neighbours (precision, recall)": 3,
        "neighbours (density, coverage)": 5,
        "IS": "splits of 5000 images in order",
        "reference images (precision, recall, density, coverage)": "at most 10000",
        "IS (torch-fidelity)": "10 splits, shuffled",
        "subset seed": 2020,
        "bootstrap resamples": 1000,
    },
    "software": {"date": "2026-11-20", "device": "CPU", "torch": "2.15.0"},
}


def made(**changes):
    """A report in JSON; changes are `section__entry=value`, or `scores`, by name."""
    scores = changes.pop("scores", dict.fromkeys(NAMES, 1.0))
    protocol = copy.deepcopy(PROTOCOL)
    for path, value in changes.items():
        section, entry = path.split("__", 1)
        protocol.setdefault(section, {})[entry] = value
    better = {name: "lower" if "D" in name else "higher" for name in scores}
    whole = make(
        scores={n: Score(n, v, better[n], 10) for n, v in scores.items()},
        protocol=protocol,
        floor={},
        intervals={},
    )
    return json.loads(json.dumps(report.to_json(whole)))


def only(found):
    """The one difference there is."""
    assert len(found.differences) == 1, found.differences
    return found.differences[0]


def test_a_report_is_comparable_with_itself():
    found = compare.differences(made(), made())
    assert found.comparable
    assert found.differences == ()
    assert compare.to_text(found).startswith("comparable\n\nscore")


# -- row by row

EVERY = set(NAMES)
REAL = EVERY - {"IS", "IS (torch-fidelity)"}  # those that have a reference
ROWS = [
    (
        "samples__count",
        10_000,
        MEASURED,
        "number of samples: A 50,000, B 10,000 – a Fréchet distance falls",
        EVERY,
    ),
    (
        "samples__labels",
        "10 classes, 1 to 9 images each",
        MEASURED,
        "label balance: A 10 classes, 5000",
        EVERY,
    ),
    ("samples__size", "64x64", MEASURED, "image size: A 32x32, B 64x64 – ", EVERY),
    ("samples__source", "runs/b", ASIDE, "source of the samples", None),
    ("samples__pixels_sha256", OTHER, ASIDE, "pixels of the samples", None),
    (
        "samples__new",
        1,
        UNKNOWN,
        "samples: new: B 1, unknown in A: can't tell – scores may depend on it",
        EVERY,
    ),
    (
        "reference__sha256",
        OTHER,
        MEASURED,
        "content of the reference: A 5b5b5b5b5b5b…, B 6c6c6c6c6c6c… – ",
        REAL,
    ),
    ("reference__new", 1, UNKNOWN, "reference: new: B 1, unknown in A: can't tell", REAL),
    (
        "reference__statistics",
        "from the file",
        ASIDE,
        "statistics of the reference",
        None,
    ),  # of the same content
    ("reference__source", "folder", ASIDE, "name of the reference", None),
    (
        "reference__crop",
        "ADM's, to 32x32",
        ASIDE,
        "crop of the reference",
        None,
    ),  # for its content is the same
    ("reference__count", 10, ASIDE, "number of reference images", None),
    (
        f"{CNN}__weights_sha256",
        OTHER,
        MEASURED,
        "weights of the feature network (digits-cnn): A 5b5b",
        OF_CNN,
    ),
    (f"{CNN}__weights", "other.pth", ASIDE, "file of the feature network (digits-cnn)", None),
    (
        f"{CNN}__preprocessing",
        "none",
        MEASURED,
        "preprocessing (digits-cnn): A gray, B none – ",
        OF_CNN,
    ),
    (
        f"{CNN}__widths",
        [64, 0, 0],
        MEASURED,
        "widths (digits-cnn): A 64, 10, 0, B 64, 0, 0",
        OF_CNN,
    ),
    (
        f"{INCEPTION}__weights_sha256",
        OTHER,
        MEASURED,
        "weights of the feature network (inception",
        OF_INCEPTION,
    ),
    (
        "scores__KID",
        "50 subsets",
        MEASURED,
        "KID: A 100 subsets of 1000",
        {"KID", "KID(digits-cnn)"},
    ),
    (
        "scores__neighbours (precision, recall)",
        5,
        MEASURED,
        "neighbours (precision, recall): A 3, B 5",
        {"precision", "recall(digits-cnn)"},
    ),
    (
        "scores__neighbours (density, coverage)",
        3,
        MEASURED,
        "neighbours (density, coverage): A 5, B 3",
        {"density"},
    ),
    (
        "scores__reference images (precision, recall, density, coverage)",
        "all",
        MEASURED,
        "reference images",
        {"precision", "density", "recall(digits-cnn)"},
    ),
    ("scores__IS", "1 split", MEASURED, "IS: A splits of 5000 images in order, B 1 split", {"IS"}),
    (
        "scores__IS (torch-fidelity)",
        "1 split",
        MEASURED,
        "IS (torch-fidelity): ",
        {"IS (torch-fidelity)"},
    ),
    (
        "scores__subset seed",
        1,
        MEASURED,
        "seed of subsets: A 2020, B 1",
        {
            "KID",
            "precision",
            "density",
            "IS (torch-fidelity)",
            "KID(digits-cnn)",
            "recall(digits-cnn)",
        },
    ),
    ("scores__bootstrap resamples", 0, ASIDE, "resamples of the bootstrap", None),
    ("scores__size of FID", 1, UNKNOWN, "size of FID: B 1, unknown in A", {"FID"}),
    (
        "sampling__classes",
        [0, 1],
        MEASURED,
        "classes: A 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, B 0, 1 – other classes",
        EVERY,
    ),
    ("sampling__sampler", "heun", SAMPLED, "sampler: A ddim, B heun", None),
    ("sampling__steps", 250, SAMPLED, "steps: A 25, B 250", None),
    ("sampling__cfg_scale", 4.0, SAMPLED, "CFG scale: A 1.5, B 4", None),
    ("sampling__cfg_interval", [0.2, 0.8], SAMPLED, "CFG interval: A 0, 1, B 0.2, 0.8", None),
    ("sampling__cfg_channels", 3, SAMPLED, "CFG channels: A all, B 3", None),
    ("sampling__seed", 7, SAMPLED, "seed: A 0, B 7", None),
    ("sampling__precision", "bf16", SAMPLED, "precision: A fp32, B bf16", None),
    ("sampling__weights_sha256", OTHER, SAMPLED, "weights: A 5b5b5b5b5b5b…, B 6c6c6c6c6c6c…", None),
    ("sampling__ema", 0.9999, SAMPLED, "EMA: A 0.999, B 0.9999", None),
    ("sampling__ema", "length 0.07", SAMPLED, "EMA: A 0.999, B length 0.07", None),
    ("sampling__eta", 1.0, SAMPLED, "eta: A none, B 1", None),
    ("sampling__vae_sha256", OTHER, SAMPLED, "weights of the autoencoder: A 5b5b", None),
    (
        "sampling__network",
        {"model": "DiT-B/2", "num_classes": 10},
        SAMPLED,
        "network model: A DiT-S/2, B DiT-B",
        None,
    ),
    ("sampling__sampler", "unknown", SAMPLED, "sampler: A ddim, unknown in B: can't tell", None),
    ("sampling__new", "thing", SAMPLED, "new: B thing, unknown in A: can't tell", None),
    ("sampling__guide", "DiT-Ti/4 at step 9", SAMPLED, "guide: A none, B DiT-Ti/4 at step 9", None),
    (
        "sampling__guide_sha256",
        OTHER,
        SAMPLED,
        "weights of the guide: A none, B 6c6c6c6c6c6c…",
        None,
    ),
    (
        "sampling__classifier",
        "Classifier-S/2 at step 9",
        SAMPLED,
        "classifier: A none, B Classifier-S/2",
        None,
    ),
    (
        "sampling__classifier_sha256",
        OTHER,
        SAMPLED,
        "weights of the classifier: A none, B 6c6c",
        None,
    ),
    ("sampling__classifier_scale", 2.0, SAMPLED, "classifier scale: A none, B 2", None),
    ("sampling__negative_prompt", "a one", SAMPLED, "negative prompt: A none, B a one", None),
    ("sampling__text_encoder", "digits", SAMPLED, "text encoder: A none, B digits", None),
    (
        "sampling__text_encoder_sha256",
        OTHER,
        SAMPLED,
        "weights of the text encoder: A none, B 6c6c6c6c6c6c…",
        None,
    ),
    (
        "sampling__prompts",
        ["a seven"],
        MEASURED,
        "prompts: A none, B a seven – other prompts are another",
        EVERY,
    ),
    (
        "sampling__trained_size",
        16,
        SAMPLED,
        "image size of training: A that of the samples, B 16",
        None,
    ),
    ("sampling__format", "npz", ASIDE, "format of the samples", None),
    ("software__torch", "2.16.0", ASIDE, "torch", None),
    ("software__new", "1.0", ASIDE, "new", None),
    ("new section__entry", 5, UNKNOWN, "new section: entry: B 5, unknown in A: can't tell", EVERY),
]


@pytest.mark.parametrize(
    ("path", "value", "kind", "words", "scores"), ROWS, ids=[f"{r[0]}={r[1]}" for r in ROWS]
)
def test_each_entry_is_judged(path, value, kind, words, scores):
    found = compare.differences(made(), made(**{path: value}))
    difference = only(found)
    assert difference.kind == kind
    assert compare.in_words(difference).startswith(words)
    assert found.comparable == (kind in (SAMPLED, ASIDE))
    spoilt = {line.name for line in found.scores if line.spoilt or line.unsure}
    assert spoilt == (scores or set())
    assert words.split(":")[0] in compare.to_text(found)


@pytest.mark.parametrize("entry", ["count", "size", "crop"])
def test_reference_entries_matter_where_its_content_is_another(entry):
    found = compare.differences(
        made(), made(**{f"reference__{entry}": "other", "reference__sha256": OTHER})
    )
    assert [difference.kind for difference in found.differences] == [MEASURED, MEASURED]


@pytest.mark.parametrize(
    ("a", "b", "sides"), [(UNKNOWN, "x", "A"), ("x", UNKNOWN, "B"), (UNKNOWN, UNKNOWN, "A and B")]
)
def test_unknown_is_neither_equal_nor_different(a, b, sides):
    found = compare.differences(made(samples__labels=a), made(samples__labels=b))
    assert only(found).kind == UNKNOWN
    assert not found.comparable
    text = compare.to_text(found)
    assert text.startswith("can't tell: 1 entry of the protocol unknown")
    assert f"unknown in {sides}: can't tell – balanced labels" in text


def test_unknown_entries_do_not_matter_where_the_content_is_known_to_be_the_same():
    unknown = {"reference__count": UNKNOWN, "reference__size": UNKNOWN}
    assert compare.differences(made(**unknown), made(**unknown)).comparable


@pytest.mark.parametrize("nothing", [UNKNOWN, ""])
def test_unknown_content_is_not_the_same(nothing):
    found = compare.differences(
        made(reference__sha256=nothing), made(reference__sha256=nothing, reference__crop="x")
    )
    assert [difference.kind for difference in found.differences] == [MEASURED, UNKNOWN]


def test_how_a_missing_score_is_measured_does_not_matter():
    scores = dict.fromkeys(NAMES, 1.0)
    found = compare.differences(
        made(),
        made(scores={**scores, "density": None}, **{"scores__neighbours (density, coverage)": 3}),
    )
    assert only(found).kind == ASIDE
    assert found.comparable
    assert "density ↑" in compare.to_text(found)
    assert "not available in B" in compare.to_text(found)


def test_a_network_in_one_report_only_spoils_nothing():
    fewer = made(scores=dict.fromkeys(NAMES[:7], 1.0))
    del fewer["protocol"][CNN]
    found = compare.differences(made(), fewer)
    assert only(found).kind == ASIDE
    assert found.comparable
    assert (only(found).a, only(found).b) == ("recorded", "not recorded")
    assert "Without influence as a rule: features (digits-cnn)" in compare.to_text(found)


# -- what is not there


def without(*sections, **changes):
    """A report whose protocol lacks some sections."""
    whole = made(**changes)
    whole["protocol"] = {
        name: entries for name, entries in whole["protocol"].items() if name not in sections
    }
    return whole


MISSING = {
    "samples": EVERY,
    "reference": REAL,
    CNN: OF_CNN,
    INCEPTION: OF_INCEPTION,
    "scores": EVERY - {"FID", "sFID", "FD(digits-cnn)"},
    "sampling": set(),
    "software": set(),
}


@pytest.mark.parametrize(
    ("a", "b"), [(True, True), (True, False), (False, True)], ids=["both", "a", "b"]
)
@pytest.mark.parametrize("section", MISSING)
def test_a_section_that_is_missing_is_not_known(section, a, b):
    found = compare.differences(*(without(section) if missing else made() for missing in (a, b)))
    assert {line.name for line in found.scores if line.unsure} == MISSING[section]
    assert not any(line.spoilt for line in found.scores)
    assert found.comparable == (not MISSING[section])
    assert compare.to_text(found).startswith("can't tell: " if MISSING[section] else "comparable\n")


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        (section, entry)
        for section in PROTOCOL
        for entry in PROTOCOL[section]
        if compare.rule_of(section, entry).kind == MEASURED
        and f"{section}/{entry}" not in (f"{CNN}/widths", "sampling/classes", *compare.OF_CONTENT)
    ],
)
def test_an_entry_that_is_missing_in_both_is_not_known(section, entry):
    whole = made()
    del whole["protocol"][section][entry]
    found = compare.differences(whole, whole)
    assert only(found).kind == UNKNOWN
    assert compare.to_text(found).startswith("can't tell: 1 entry of the protocol unknown")


def test_reports_without_a_protocol_are_not_comparable():
    found = compare.differences(without(*PROTOCOL), without(*PROTOCOL))
    assert not found.comparable
    assert all(line.unsure for line in found.scores)
    assert "number of samples: unknown in A and B: can't tell" in compare.to_text(found)


def test_needs_are_those_of_the_scores_in_common():
    """The Inception score has no reference, and no network but Inception's needs to be known for it."""
    scores = {"IS": 1.0}
    a = without("reference", CNN, scores=scores)
    assert compare.differences(a, a).comparable
    assert compare.differences(a, made(scores=scores, reference__sha256=OTHER)).comparable


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ([0, 1], [2, 3], MEASURED),
        ([0, 1], [0, 1], None),
        ([0, 1], UNKNOWN, UNKNOWN),
        (
            [*range(10)],
            UNKNOWN,
            ASIDE,
        ),  # all there are; the label balance says that the other has as many
        (UNKNOWN, UNKNOWN, None),
    ],
)
def test_classes_matter_under_one_label_balance(a, b, kind):
    labels = {"samples__labels": "2 classes, 5 images each"}
    found = compare.differences(
        made(sampling__classes=a, **labels), made(sampling__classes=b, **labels)
    )
    assert [difference.kind for difference in found.differences] == ([kind] if kind else [])
    assert found.comparable == (kind in (None, ASIDE))


TEN = [f"a {i}" for i in range(10)]


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ({"prompts": ["a 7", "a 3"]}, {"prompts": ["a 7", "a 1"]}, MEASURED),
        ({"prompts": ["a 7", "a 3"]}, {"prompts": ["a 3", "a 7"]}, ASIDE),
        ({"prompts": TEN}, {}, ASIDE),  # a caption for each class
        (
            {"prompts": TEN[:2], "classes": [0, 1]},
            {"classes": [0, 1]},
            MEASURED,
        ),  # of ten classes: which captions?
        (
            {"prompts": TEN},
            {"classes": UNKNOWN, "sampler": UNKNOWN},
            ASIDE,
        ),  # other people's, all classes
        ({}, {"sampler": UNKNOWN}, None),
    ],
)
def test_prompts_matter_as_classes_do(a, b, kind):
    found = compare.differences(
        *(made(**{f"sampling__{name}": value for name, value in side.items()}) for side in (a, b))
    )
    assert [
        difference.kind for difference in found.differences if difference.words == "prompts"
    ] == ([kind] if kind else [])
    assert found.comparable == (kind != MEASURED)


def test_what_older_reports_do_not_tell_is_what_it_was_then():
    old = {"model": "DiT-S/2", "num_classes": 10}
    new = {**old, "conditioning": "adaln-zero", "text_width": None, "unet_attention": None}
    assert (
        compare.differences(made(sampling__network=old), made(sampling__network=new)).differences
        == ()
    )
    text = {**new, "conditioning": "text", "text_width": 64}
    found = compare.differences(made(sampling__network=old), made(sampling__network=text))
    assert [(d.words, d.a, d.b) for d in found.differences] == [
        ("network conditioning", "adaln-zero", "text"),
        ("network text width", None, 64),
    ]


def test_no_negative_prompt_is_none():
    told = {"prompts": TEN, "text_encoder": "digits"}
    a, b = (
        made(
            **{
                f"sampling__{name}": value
                for name, value in {**told, "negative_prompt": negative}.items()
            }
        )
        for negative in ("", "a one")
    )
    assert compare.in_words(only(compare.differences(a, b))) == "negative prompt: A none, B a one"


def test_unlabelled_samples_are_told_what_to_do():
    unlabelled = made(samples__labels=UNKNOWN)
    text = compare.to_text(compare.differences(unlabelled, unlabelled))
    assert text.startswith("can't tell")
    assert (
        "label balance: unknown in A and B: can't tell – balanced labels score better than labels drawn at random; "
        "evaluate samples with labels: labels.csv, class folders, or arr_1 of an .npz\n"
    ) in text
    assert "with labels" not in compare.to_text(
        compare.differences(made(), made(samples__labels="2 classes"))
    )


def test_what_is_not_known_of_the_sampler_is_not_said_to_differ():
    found = compare.differences(made(), made(sampling__sampler=UNKNOWN, sampling__steps=50))
    parts = compare.to_text(found).split("\n\n")
    assert parts[1] == "Sampled differently – what the comparison is about:\n  steps: A 25, B 50"
    assert parts[2] == (
        "Not known – they may have been sampled differently:\n"
        "  sampler: A ddim, unknown in B: can't tell"
    )


def test_nothing_in_common_is_not_comparable():
    one, other = made(scores={"FID": 1.0}), made(scores={"FD(digits-cnn)": 1.0, "FID": None})
    found = compare.differences(one, other)
    assert not found.comparable
    assert compare.verdict(found) == "not comparable: no score in both"


def test_digits_recognised_is_compared_too():
    one, other = (json.loads(json.dumps(report.to_json(rich()))) for _ in range(2))
    other["digits_recognised"]["found"]["accuracy"] = 0.5
    found = compare.differences(one, other)
    assert "digits recognised ↑" in compare.to_text(found)
    other["protocol"]["samples"]["count"] = 10
    lines = {line.name: line.spoilt for line in compare.differences(one, other).scores}
    assert lines["digits recognised"] == ()
    assert lines["FID"] == ("number of samples",)


# -- the table


def scored(value, interval=None, name="FID"):
    """A report with one score."""
    whole = made(scores={name: value})
    whole["scores"][name]["interval"] = interval
    return whole


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (scored(2.0), scored(1.0), "B is better; uncertainty unknown"),
        (scored(2.0), scored(2.0), "equal"),
        (
            scored(2.0, [1.7, 2.3]),
            scored(1.0, [0.6, 1.4]),
            "B is better by more than the uncertainty (± 0.5000)",
        ),
        (
            scored(1.0, [0.7, 1.3]),
            scored(2.0, [1.6, 2.4]),
            "A is better by more than the uncertainty (± 0.5000)",
        ),
        (scored(2.0, [1.7, 2.3]), scored(2.4, [2.0, 2.8]), "within the uncertainty (± 0.5000)"),
        (
            scored(0.1, [0, 0.4]),
            scored(0.5, [0.1, 0.9]),
            "within the uncertainty (± 0.5000)",
        ),  # the wider half counts
        (scored(2.0, [1.7, 2.3]), scored(1.0), "B is better; uncertainty unknown"),
        (scored(2.0, name="IS"), scored(1.0, name="IS"), "A is better; uncertainty unknown"),
        (scored(None), scored(1.0), "not available in A"),
    ],
)
def test_differences_are_judged(a, b, told):
    assert compare.judge(compare.differences(a, b).scores[0]) == told


def test_table_shows_differences_of_comparable_scores_only():
    other = made(
        scores={**dict.fromkeys(NAMES, 1.0), "FID": 1.25},
        **{"scores__neighbours (precision, recall)": 5},
    )
    lines = compare.to_text(compare.differences(made(), other)).splitlines()
    row = {line.split()[0]: line.split() for line in lines if " ↓ " in line or " ↑ " in line}
    assert row["FID"][2:5] == ["1.000", "1.250", "+0.2500"]
    assert lines[0].endswith("(8 of the 10 scores in both not touched)")
    assert row["precision"][2:7] == ["1.000", "1.000", "–", "not", "comparable:"]


# -- the command


def written(path, whole):
    """A report.json in a folder of its own."""
    path.mkdir(exist_ok=True)
    (path / "report.json").write_text(whole if isinstance(whole, str) else json.dumps(whole))
    return path


def run(a, b):
    compare.compare(CompareConfig(a=a, b=b), Ranks(device=torch.device("cpu")))


def test_comparable_reports_end_well(tmp_path, capsys):
    run(
        written(tmp_path / "a", made()),
        written(tmp_path / "b", made(sampling__steps=50)) / "report.json",
    )
    out = capsys.readouterr().out
    assert "\ncomparable\n" in out
    assert "  steps: A 25, B 50\n" in out


def test_others_end_with_code_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(
            written(tmp_path / "a", made()),
            written(tmp_path / "b", made(samples__count=10_000, samples__size="8x8")),
        )
    assert end.value.code == 1
    assert "not comparable: 2 differences in how they were measured" in capsys.readouterr().out


def test_code_comes_out_of_the_command(tmp_path):
    a, b = written(tmp_path / "a", made()), written(tmp_path / "b", made(samples__count=2))
    assert cli.main(["compare", str(a), str(a)]) == 0
    assert cli.main(["compare", str(a), str(tmp_path / "nowhere")]) == 2
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main(["compare", str(a), str(b)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is missing or damaged"),
        ("[1]", "is not a report"),
        ("{}", "is not a report"),
        ('{"format": 2, "scores": {"FID": 3}, "protocol": {}}', "is not a report"),
        ('{"format": 2, "scores": {}, "protocol": []}', "is not a report"),
        ('{"scores": {}, "protocol": {}}', "in format 1; expected format 2"),
        ('{"format": 3, "scores": {}, "protocol": {}}', "in format 3; expected format 2"),
        *[
            (
                f'{{"format": 2, "scores": {{"FID": {score}}}, "protocol": {{}}}}',
                "is missing or damaged",
            )
            for score in (
                "{}",
                '{"value": "x", "better": "lower", "interval": null}',
                '{"value": NaN, "better": "lower", "interval": null}',
                '{"value": 1.5, "better": "down", "interval": null}',
                '{"value": 1.5, "better": "lower"}',
                '{"value": 1.5, "better": "lower", "interval": [1]}',
                '{"value": 1.5, "better": "lower", "interval": [1, "x"]}',
            )
        ],
        (
            '{"format": 2, "scores": {}, "protocol": {}, "digits_recognised": {"found": {"n": 5}}}',
            "is missing or damaged",
        ),
    ],
)
def test_files_that_are_no_reports_are_named(tmp_path, content, said):
    file = written(tmp_path / "a", content) / "report.json"
    with pytest.raises(UserError, match=f"a/report.json .*{said}"):
        compare.read_report(file)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no .*x/report.json; expected report.json of an evaluation"
    ):
        compare.read_report(tmp_path / "x" / "report.json")
    with pytest.raises(UserError, match=r"there is no .*report.json"):
        compare.read_report(tmp_path)


def test_every_rule_is_of_an_entry_that_reports_have():
    """A rule that nothing looks up is a misspelt one."""
    asked = {
        f"{section.split(' (')[0]}/{entry}"
        for section, entries in PROTOCOL.items()
        for entry in entries
    }
    always = {path for path, rule in compare.RULES.items() if rule.absent == UNKNOWN}
    assert always - asked == {"sampling/data", "sampling/num_samples"}


def test_the_record_of_an_evaluation_has_all_that_is_needed():
    """Here the entries' names come from the record itself."""
    images = from_array(np.zeros((4, 8, 8, 3), dtype=np.uint8), "folder", ["a", "a", "b", "b"])
    cpu = torch.device("cpu")
    networks = [
        Extractor(lambda pixels: None, name, "file", HASH, "none", cpu, (4, 0, 0))
        for name in ("digits-cnn", "inception-v3-compat")
    ]
    record = protocol(images, HASH, {}, Reference("real", images, None), HASH, networks, cpu)
    whole = made()
    whole["protocol"] = json.loads(json.dumps(record))
    found = compare.differences(whole, whole)
    assert found.differences == ()
    assert found.comparable


def test_statistics_of_unknown_images_are_not_those_computed_from_others():
    found = compare.differences(
        made(), made(reference__statistics="from the file", reference__sha256="f" * 64)
    )
    (difference,) = [d for d in found.differences if d.words == "statistics of the reference"]
    assert difference.kind == MEASURED
    assert set(difference.scores) == {"FID", "sFID", "FD(digits-cnn)"}
