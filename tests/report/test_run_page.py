"""The page of a run, and reference curves of presets."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from helpers.run_pages import FD, fill_run, log_line, write_log
from PIL import Image

from dit.commands.report import report
from dit.config import ReportConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.report import reference_curves, run_page
from dit.report.reference_curves import (
    Reference,
    differences,
    essence,
    recent_loss,
    settings_that_matter,
    verdict,
)
from dit.report.run_curves import CURVES, draw_reference, values
from dit.report.run_page import event_cells, last_of_each_step, write_page
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import checkpoints, latest_checkpoint
from dit.runs.logs import BY_TIME, read_metrics, read_starts
from dit.training.monitoring.previews import Previews

pytestmark = pytest.mark.usefixtures("small_networks")
OLD = Path(__file__).parents[1] / "data" / "run-of-2257fc1"


def read_page(run: Path) -> str:
    return write_page(run).read_text(encoding="utf-8")


@pytest.fixture
def home(make_run):
    return fill_run(make_run(steps=20))


@pytest.fixture
def undrawn(monkeypatch):
    """No curves, which take most of the time."""
    monkeypatch.setattr(run_page, "draw_all", lambda *_: {})


# -- scores that lie in a run ----------------------------------------------------------------------


def add_evaluation(folder: Path, date: str, distance: float) -> None:
    """Write the report.json of an evaluation."""
    real = {"low": 1.0, "mean": 1.0, "high": 1.0, "splits": 5, "samples": 9, "reference": 9}
    scores = {
        FD: {"value": distance, "floor": real},
        "KID(digits-cnn)": {"value": None, "floor": None},
    }
    protocol = {
        "samples": {"count": 1797},
        "sampling": {"step": 20, "cfg_scale": 1.5},
        "software": {"date": f"{date}T10:00:00+00:00"},
    }
    content = {"format": 2, "scores": scores, "memorisation": [], "protocol": protocol}
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(content))


def test_evaluations_of_a_run_are_on_its_page_newest_first(home, undrawn, capsys):
    add_evaluation(home / "evaluation", "2026-01-02", 3.0)
    add_evaluation(home / "evaluation" / "later", "2026-01-03", 1.2)
    (home / "evaluation" / "bad").mkdir()
    (home / "evaluation" / "bad" / "report.json").write_text("{")
    report(ReportConfig(run=home), Ranks())
    sentence, _ = capsys.readouterr().out.splitlines()
    assert sentence.startswith("Newest evaluation (evaluation/later, step 20). As good as real")
    html = (home / "report.html").read_text(encoding="utf-8")
    assert sentence in html
    table = html[html.index(">Evaluations<") :]
    assert table.index("evaluation/later") < table.index("<span>evaluation<")
    assert "Not shown, damaged or of another format: evaluation/bad." in html
    assert "KID" not in html


def test_scores_during_training_are_in_a_table(home, undrawn):
    html = read_page(home)
    assert "3.000" in html
    assert "<small>lowest</small>" in html


# -- the page --------------------------------------------------------------------------------------


def test_the_page_has_everything_in_one_file(home, capsys, monkeypatch):
    monkeypatch.setattr(run_page, "find_reference", lambda preset: None)
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
    html = read_page(Path(shutil.copytree(OLD, tmp_path / "run")))
    assert "loss</figcaption>" in html
    assert "MFU" not in html
    assert "<small>best</small>" in html


def test_a_run_in_training_has_a_page(make_run, undrawn):
    run = make_run()
    shutil.rmtree(run / "checkpoints")
    write_log(run, [{"step": 2, "loss": 1.0}])
    assert "None yet." in read_page(run)
    write_log(run, [{"step": 2, FD: 1.0, "eval": "x"}])
    assert "Scores of the EMA" in read_page(run)


def test_what_has_no_page(make_run, tmp_path):
    with pytest.raises(UserError, match="no run at"):
        write_page(tmp_path / "nowhere")
    run = make_run()
    for lines in ([], [{"step": 2, "event": "skipped"}]):
        write_log(run, lines)
        with pytest.raises(UserError, match="has no line"):
            write_page(run)


@pytest.mark.parametrize("text", ["", "[{", "3", "[3]", '{"step": 1}', '[{"step": 0}]', "\0"])
def test_a_damaged_record_of_the_machine_is_skipped(home, text, capsys):
    (home / "machine.json").write_text(text)
    assert read_starts(home) == []
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{home / 'machine.json'} is missing or damaged" in warning


def test_files_with_foreign_names_are_ignored(home):
    for copy in ("checkpoints/step-0000003.bak", "checkpoints/step-3 (copy)"):
        shutil.copytree(latest_checkpoint(home), home / copy)
    names = ("step-0000004 (copy).png", "step-x.png", "step-4.5.png")
    others = [home / "samples" / name for name in names]
    for other in others:
        other.write_bytes(b"no picture")
    assert [path.name for path in checkpoints(home)] == ["step-0000003"]
    assert run_page._samples(home)
    previews = Previews(home, ModelCard.read(home), load_autoencoder("identity"), 4, captions=None)
    assert len(previews.grids()) == 4
    assert all(other.exists() for other in others)


def test_repeated_steps_count_once():
    losses = ((2, 1.0), (4, 9.0), (2, 2.0), (3, 3.0))
    lines = last_of_each_step([dict(step=step, loss=loss) for step, loss in losses])
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (3, 3.0), (4, 9.0)]


def test_events_in_words():
    cells = event_cells({"step": 1200, "event": "rollback", "to": 1000, "loss": 12.3456})
    assert [cell.text for cell in cells] == ["1,200", "rollback", "to 1000, loss 12.35"]


def test_the_strip_has_a_few_grids_and_the_last_one(home):
    (strip,) = run_page._samples(home).values()
    assert strip.width < 7 * 44 + 4
    assert strip.getpixel((strip.width - 24, strip.height - 30)) == (200, 0, 0)


def test_numbers_by_name_and_by_prefix():
    lines = [log_line(2), {"step": 3, "loss": 5.0}]
    assert values(lines, "loss") == {"loss": [(2, 0.5), (3, 5.0)]}
    assert [*values(lines, BY_TIME)] == [f"{BY_TIME}0.0-0.2", f"{BY_TIME}0.8-1.0"]


# -- references ------------------------------------------------------------------------------------


def make_reference(config: TrainConfig, shift: float = 0.0) -> Reference:
    steps = range(2, 21, 2)
    runs = {
        str(seed): essence([log_line(step, loss=1 / step + shift + seed / 10) for step in steps])
        for seed in (0, 1)
    }
    return Reference(config.preset, settings_that_matter(config), runs, {"command": "as typed"})


@pytest.fixture
def recorded(home, tmp_path, monkeypatch, undrawn):
    """A reference of the run's preset."""
    model = json.loads((home / "config.json").read_text())["config"]["model"]
    ours = make_reference(TrainConfig(model=model, vae="identity", image_size=8, steps=20))
    (tmp_path / "digits.json").write_text(json.dumps(ours.to_json()))
    find = reference_curves.find_reference
    monkeypatch.setattr(run_page, "find_reference", lambda preset: find(preset, tmp_path))
    return ours


def test_a_reference_is_read_as_it_was_written(recorded, tmp_path):
    find = reference_curves.find_reference
    assert find("digits", tmp_path) == recorded
    assert find("other", tmp_path) is None
    (tmp_path / "digits.json").write_text("{}")
    with pytest.raises(UserError, match="reference curves"):
        find("digits", tmp_path)


def test_the_page_compares_a_run_with_its_preset(home, recorded, monkeypatch):
    theirs = "0.0500 and 0.1500 in the reference (preset digits, 2 seeds)"
    assert f"steps 19 to 20: 0.0500 in this run, {theirs}" in read_page(home)
    other = dataclasses.replace(recorded, settings={**recorded.settings, "lr": 0.5})
    monkeypatch.setattr(run_page, "find_reference", lambda preset: other)
    assert "preset digits: the run has lr 0.004 instead of 0.5." in read_page(home)


def test_seed_and_logging_are_no_difference():
    config = TrainConfig()
    ours = make_reference(config)
    other = dataclasses.replace(config, seed=5, log_every=3, out=Path("x"), wandb="p")
    assert differences(other, ours) == []
    assert differences(dataclasses.replace(config, lr=1.0, model="DiT-S/2"), ours) == [
        "model DiT-S/2 instead of DiT-Ti/2",
        "lr 1.0 instead of 0.004",
    ]


def test_runs_are_compared_at_steps_of_both():
    ours = make_reference(TrainConfig(), shift=1.0)
    lines = [log_line(step) for step in (6, 8, 10)]
    assert recent_loss(lines, 10) == 0.1
    assert recent_loss(lines, 5) is None
    expected = "Mean loss of steps 10 to 10: 0.1000 in this run, 1.1000 and 1.2000 in"
    assert verdict(lines, ours).startswith(expected)
    assert "no loss to compare" in verdict([{"step": 20, FD: 1.0}], ours)


def test_the_benchmark_gathers_trained_runs(home, tmp_path):
    from benchmarks.reference_curves import gather, write

    found = gather("digits", {0: home, 1: home}, "as typed")
    assert found.settings["steps"] == 20
    assert found.runs["0"] == essence(read_metrics(home / "metrics.jsonl"))
    by_time = {f"{BY_TIME}0.0-0.2", f"{BY_TIME}0.8-1.0"}
    assert {*found.runs["1"][0]} == {"step", "loss", "grad_norm"} | by_time
    file, picture = write(found, tmp_path, record=False)
    assert Reference.read(file) == found
    assert Image.open(picture).size == draw_reference(found).size
