"""Levers on the speed of training compute what the trainer's own step computes, or say that they do not."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import levers, record
from benchmarks.levers import (
    BASE,
    LEVERS,
    TOLERANCE,
    Case,
    Lever,
    Tolerance,
    attempt,
    differences,
    verdict,
)

CPU = torch.device("cpu")
EXACT = Tolerance(1e-5, 1e-4, 1e-5)  # float32, summed in another order
IN_BF16 = (
    "bf16-weights",
    "bf16-tokens",
    "fused",
)  # elsewhere they change nothing, or are meant to round
ELSEWHERE = (
    "fp8",
    "flex",
    "sdpa-cudnn",
    "sdpa-efficient",
)  # have no gradients, or nothing at all, on this CPU
CHANGES = [lever for lever in LEVERS if lever.compiled in (levers.usual, levers.as_trained)]


def eager(lever: Lever) -> Lever:
    """So that only what the lever changes is tried, and not the compiler."""
    return replace(lever, compiled=levers.uncompiled)


@pytest.fixture(scope="module")
def attempted(tmp_path_factory):
    """What a lever did to two small blocks with heads of 24."""
    folder = str(tmp_path_factory.mktemp("levers"))
    return lambda lever, precision: attempt(
        eager(lever), Case("DiT-Ti/8", 4, CPU, folder, precision, tiny=True)
    )[1]


@pytest.fixture(scope="module")
def base(attempted):
    return {precision: attempted(BASE, precision) for precision in ("fp32", "bf16")}


@pytest.mark.parametrize("lever", CHANGES, ids=lambda lever: lever.name)
def test_a_lever_computes_the_same(lever, attempted, base):
    precision = "bf16" if lever.name in IN_BF16 else "fp32"
    with levers.one_rank(CPU):
        found = attempted(lever, precision)
    if lever.name in ELSEWHERE:
        assert found.note
    else:
        assert not found.note
        difference = differences(found.evidence, base[precision].evidence)
        assert not verdict(difference, TOLERANCE if lever.name in IN_BF16 else EXACT)


def halve_scale(session):
    for attn in levers.attentions(session):
        attn.scale /= 2
        attn.fused_attn = False
    return session


def keep_average(session):
    session.state.ema.update = lambda network, step: None
    return session


def refuse(session):
    raise RuntimeError("no kernel\nfor heads of 24")


WRONG = [
    eager(Lever(change.__name__, "", "", change)) for change in (halve_scale, keep_average, refuse)
]


@pytest.mark.parametrize(
    ("lever", "note"),
    [
        (WRONG[0], "gradient differs"),
        (WRONG[1], "lag differs"),
        (WRONG[2], "RuntimeError: no kernel"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_one_that_does_not_is_told(lever, note, attempted, base):
    found = attempted(lever, "fp32")
    said = found.note or verdict(differences(found.evidence, base["fp32"].evidence), TOLERANCE)
    assert note in said
    assert "\n" not in said


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`python -m benchmarks.levers`: what it prints and what it records, by lever."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def call(*arguments: str):
        monkeypatch.setattr(
            sys, "argv", ["levers", "--tiny", "--rounds", "2", "--record", *arguments]
        )
        levers.main()
        told = capsys.readouterr()
        *_, file = told.out.split()
        return told, {
            row["lever"]: row for row in json.loads(Path(file).read_text())["results"]["rows"]
        }

    return call


def test_the_table_counts_only_what_computes_the_same(run, monkeypatch):
    monkeypatch.setattr(levers, "BASE", eager(BASE))
    monkeypatch.setattr(levers, "LEVERS", [eager(LEVERS[0]), *WRONG])
    told, rows = run()
    assert rows["nothing"]["ratio"] > 0
    assert rows["base"]["ratio"] == 1
    assert all(
        rows[lever.name].get("ratio") is None and rows[lever.name]["note"] for lever in WRONG
    )
    assert told.out.count("\n| DiT-Ti/8 of 2 blocks | 4 |") == len(rows) == 5
    told, rows = run("--budget", "0.001")
    assert list(rows) == ["base"]
    assert told.err.endswith(
        "left out for lack of time: nothing, halve_scale, keep_average, refuse\n"
    )


@pytest.mark.slow
def test_compiled_levers_compute_the_same(run):
    _, rows = run()
    assert {name for name, row in rows.items() if not row.get("ratio")} == set()
