"""The page of a run, and reference curves of presets."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dit.commands.report import page, reference
from dit.commands.report.curves import CURVES, draw_reference, values
from dit.commands.report.page import event_cells, once, report, samples, write_page
from dit.commands.report.reference import (
    Reference,
    differences,
    essence,
    recent_loss,
    settings_that_matter,
    verdict,
)
from dit.config import ReportConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoints import checkpoints, latest_checkpoint
from dit.runs.metrics import BY_TIME, read_metrics, read_starts
from dit.training.monitoring.previews import Previews

pytestmark = pytest.mark.usefixtures("small_networks")
FD = "FD(digits-cnn)"
OLD = Path(__file__).parents[1] / "data" / "run-of-2257fc1"
STARTS = [
    dict(
        step=step,
        date="2026-01-01T00:00:00+00:00",
        device="NVIDIA H100",
        ranks=8,
        threads=4,
        arithmetic="bf16",
        flops_per_image=712e9,
        peak_flops_per_rank=989e12,
        peak_by="data sheet, dense bf16",
        versions={"dit": "0.1.0", "torch": "2.14"},
    )
    for step in (0, 10)
]


def a_line(step: int, **more: object) -> dict[str, object]:
    """Of a log, with all that training tells."""
    return {
        "step": step,
        "loss": 1 / step,
        "grad_norm": 0.5,
        f"{BY_TIME}0.0-0.2": 0.9,
        f"{BY_TIME}0.8-1.0": 0.3,
        "lr": 1e-3,
        "update_ratio": 1e-3,
        "img_per_s": 200.0 + step,
        "mfu": 0.4,
        "data_wait": 0.01,
        "memory_gib": 1.5,
        **more,
    }


def write_log(run: Path, lines: list[dict[str, object]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def home(make_run):
    """A run with all that a page may show."""
    run = make_run(steps=20)
    lines = [a_line(step) for step in range(2, 21, 2)]
    lines[4] |= {FD: 3.0, "eval": "one"}
    lines[9] |= {FD: 2.0, "eval": "one"}
    lines.insert(4, {"step": 9, "event": "skipped", "grad_norm": 812.25, "why": "<b>spike</b>"})
    write_log(run, lines)
    (run / "machine.json").write_text(json.dumps(STARTS))
    (run / "samples").mkdir()
    for step in range(1, 11):
        Image.new("RGB", (40, 90), (20 * step, 0, 0)).save(run / "samples" / f"step-{step:07d}.png")
    return run


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_has_all_of_it_in_one_file(home, capsys, monkeypatch):
    monkeypatch.setattr(page, "find_reference", lambda preset: None)
    report(ReportConfig(run=home), Ranks())
    file = home / "report.html"
    assert capsys.readouterr().out.strip() == str(file)
    html = file.read_text(encoding="utf-8")
    for curve in CURVES:
        assert f">{curve.title}</figcaption>" in html
    for words in (
        "20 of 20 steps, 1,280 images",
        "211 img/s, MFU 40.0%",
        "skipped",
        "grad_norm 812.2, why &lt;b&gt;spike",
        "0, 10",
        "8 x NVIDIA H100",
        "712",
        "data sheet, dense bf16",
        "Scores of the EMA",
        "<dt>lr</dt>",
        "Checkpoints on disk",
        "has no reference curve",
    ):
        assert words in html, words
    assert 'src="data:image/png' in html
    assert "http" not in html.replace("http://www.w3.org", "")


def test_other_ranks_write_nothing(home):
    report(ReportConfig(run=home), Ranks(1, 2))
    assert not (home / "report.html").exists()


def test_runs_of_the_version_before_have_a_page(tmp_path):
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    html = write_page(run).read_text(encoding="utf-8")
    assert "loss</figcaption>" in html
    assert "MFU" not in html
    assert "best</td>" in html


def test_a_run_in_training_has_a_page(make_run):
    run = make_run()
    shutil.rmtree(run / "checkpoints")
    write_log(run, [{"step": 2, "loss": 1.0}])
    assert "None yet." in write_page(run).read_text(encoding="utf-8")
    write_log(run, [{"step": 2, FD: 1.0, "eval": "x"}])
    assert "Scores of the EMA" in write_page(run).read_text(encoding="utf-8")


def test_what_has_no_page(make_run, tmp_path):
    with pytest.raises(UserError, match="no run at"):
        write_page(tmp_path / "nowhere")
    run = make_run()
    with pytest.raises(UserError, match="has no line"):
        write_page(run)
    write_log(run, [{"step": 2, "event": "skipped"}])
    with pytest.raises(UserError, match="has no line"):
        write_page(run)


@pytest.mark.parametrize(
    "text", ["", "[{", "3", "[3]", "null", '{"step": 1}', '[{"step": 0}]', "\0"]
)
def test_a_damaged_record_of_the_machine_is_left_out(home, text, capsys):
    (home / "machine.json").write_text(text)
    assert read_starts(home) == []
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{home / 'machine.json'} is damaged" in said


def test_names_that_are_not_ours_are_left_alone(home):
    for copy in ("checkpoints/step-0000003.bak", "checkpoints/step-3 (copy)"):
        shutil.copytree(latest_checkpoint(home), home / copy)
    others = [
        home / "samples" / name
        for name in ("step-0000004 (copy).png", "step-x.png", "step-4.5.png")
    ]
    for other in others:
        other.write_bytes(b"no picture")
    assert [path.name for path in checkpoints(home)] == ["step-0000003"]
    assert samples(home)
    assert (
        len(Previews(home, ModelCard.read(home), load_autoencoder("identity"), start=4).grids())
        == 4
    )
    assert all(other.exists() for other in others)


def test_steps_done_again_replace_what_was():
    lines = [
        dict(step=2, loss=1.0),
        dict(step=4, loss=9.0),
        dict(step=2, loss=2.0),
        dict(step=3, loss=3.0),
    ]
    assert [(line["step"], line["loss"]) for line in once(lines)] == [(2, 2.0), (3, 3.0), (4, 9.0)]


def test_events_in_words():
    assert event_cells({"step": 1200, "event": "rollback", "to": 1000, "loss": 12.3456}) == (
        "1,200",
        "rollback",
        "to 1000, loss 12.35",
    )


def test_the_strip_has_a_few_grids_and_the_last_one(home):
    (strip,) = samples(home).values()
    assert strip.width < 7 * 44 + 4
    assert strip.getpixel((strip.width - 24, strip.height - 30)) == (200, 0, 0)


def test_numbers_by_name_and_by_what_they_begin_with():
    lines = [a_line(2), {"step": 3, "loss": 5.0}]
    assert values(lines, "loss") == {"loss": [(2, 0.5), (3, 5.0)]}
    assert [*values(lines, BY_TIME)] == [f"{BY_TIME}0.0-0.2", f"{BY_TIME}0.8-1.0"]


# -- references ----------------------------------------------------------------------------------------------------


def a_reference(config: TrainConfig, shift: float = 0.0) -> Reference:
    runs = {
        str(seed): [a_line(step, loss=1 / step + shift + seed / 10) for step in range(2, 21, 2)]
        for seed in (0, 1)
    }
    return Reference(
        config.preset,
        settings_that_matter(config),
        {k: essence(v) for k, v in runs.items()},
        {"command": "as typed"},
    )


@pytest.fixture
def recorded(home, tmp_path, monkeypatch):
    """The run's preset has a reference."""
    config = json.loads((home / "config.json").read_text())["config"]
    ours = a_reference(TrainConfig(model=config["model"], vae="identity", image_size=8, steps=20))
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "digits.json").write_text(json.dumps(ours.to_json()))
    monkeypatch.setattr(
        page,
        "find_reference",
        lambda preset: reference.find_reference(preset, tmp_path / "reference"),
    )
    return ours


def test_a_reference_is_read_as_it_was_written(recorded, tmp_path):
    assert reference.find_reference("digits", tmp_path / "reference") == recorded
    assert reference.find_reference("other", tmp_path / "reference") is None
    (tmp_path / "reference" / "digits.json").write_text("{}")
    with pytest.raises(UserError, match="reference curves"):
        reference.find_reference("digits", tmp_path / "reference")


def test_the_page_compares_a_run_of_the_preset(home, recorded):
    said = "Mean loss of steps 19 to 20: 0.0500 here, 0.0500 and 0.1500 in the reference (preset digits, 2 seeds)"
    assert said in write_page(home).read_text(encoding="utf-8")


def test_the_page_does_not_compare_other_settings(home, recorded, monkeypatch):
    other = dataclasses.replace(recorded, settings={**recorded.settings, "lr": 0.5})
    monkeypatch.setattr(page, "find_reference", lambda preset: other)
    monkeypatch.setattr(page, "draw_all", lambda *_: {})
    assert "for the run has lr 0.004 instead of 0.5." in write_page(home).read_text(
        encoding="utf-8"
    )


def test_seed_and_pace_of_the_log_are_no_difference():
    config = TrainConfig()
    ours = a_reference(config)
    assert (
        differences(
            dataclasses.replace(config, seed=5, log_every=3, out=Path("x"), wandb="p"), ours
        )
        == []
    )
    assert differences(dataclasses.replace(config, lr=1.0, model="DiT-S/2"), ours) == [
        "model DiT-S/2 instead of DiT-Ti/2",
        "lr 1.0 instead of 0.004",
    ]


def test_runs_are_compared_where_both_are():
    ours = a_reference(TrainConfig(), shift=1.0)
    lines = [a_line(step) for step in (6, 8, 10)]
    assert recent_loss(lines, 10) == 0.1
    assert recent_loss(lines, 5) is None
    assert verdict(lines, ours).startswith(
        "Mean loss of steps 10 to 10: 0.1000 here, 1.1000 and 1.2000 in"
    )
    assert "no loss to compare" in verdict([{"step": 20, FD: 1.0}], ours)


def test_the_command_gathers_what_was_trained(home, tmp_path):
    from benchmarks.reference_curves import gather, write

    found = gather("digits", {0: home, 1: home}, "as typed")
    assert found.settings["steps"] == 20
    assert found.runs["0"] == essence(read_metrics(home / "metrics.jsonl"))
    assert {*found.runs["1"][0]} == {
        "step",
        "loss",
        "grad_norm",
        f"{BY_TIME}0.0-0.2",
        f"{BY_TIME}0.8-1.0",
    }
    file, picture = write(found, tmp_path, record=False)
    assert Reference.read(file) == found
    assert Image.open(picture).size == draw_reference(found).size
