"""From images to report, and what is refused before anything is sampled."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit.config import EvalConfig, TrainConfig
from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation import evaluate as module
from dit.evaluation import metrics
from dit.evaluation.evaluate import evaluate
from dit.hardware import Ranks


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 5)


def fill(folder, count=60, size=32):
    """Real digits as samples, with their labels."""
    folder.mkdir(parents=True)
    digits = Digits(size)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        for i in range(count):
            Image.fromarray(digits[i].permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")
            rows.writerow([f"{i:06d}.png", digits.labels[i]])
    return folder


@pytest.fixture
def samples(tmp_path):
    return fill(tmp_path / "samples")


def refused(**flags):
    with pytest.raises(UserError) as error:
        evaluate(EvalConfig(**flags), Ranks())
    return str(error.value)


def test_folder_of_real_digits_scores_like_real_digits(samples, capsys):
    out = evaluate(EvalConfig(samples=samples, reference="digits"), Ranks())
    assert out == samples.with_name(f"{samples.name}-evaluation")
    values = json.loads((out / "report.json").read_text())
    assert values["digits_recognised"]["found"]["accuracy"] > 0.98
    assert values["scores"]["precision"]["value"] > 0.9
    assert values["protocol"]["sampling"]["sampler"] == "unknown"
    assert values["protocol"]["reference"]["count"] == 1797
    printed = capsys.readouterr().out
    assert "FD(digits-cnn)" in printed
    assert str(out / "report.html") in printed
    with Image.open(out / "grid.png") as grid:
        assert grid.height > 10 * 64


def test_settings_beside_the_samples_are_recorded_and_name_the_reference(samples, tmp_path):
    settings = {"data": "digits", "sampler": "heun", "cfg_scale": 4.0, "cfg_channels": None, "weights_sha256": "ab"}
    (samples / "samples.json").write_text(json.dumps(settings))
    out = evaluate(EvalConfig(samples=samples, out=tmp_path / "there"), Ranks())
    recorded = json.loads((out / "report.json").read_text())["protocol"]["sampling"]
    assert recorded["cfg_scale"] == 4.0
    assert recorded["cfg_channels"] == "all"
    assert recorded["steps"] == "unknown"


def test_npz_without_labels_has_no_recognition(samples, tmp_path):
    images = Digits(32).images[:60].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "samples.npz", images)
    out = evaluate(EvalConfig(samples=tmp_path / "samples.npz", reference="digits"), Ranks())
    values = json.loads((out / "report.json").read_text())
    assert values["digits_recognised"]["found"] is None
    assert "no labels" in values["digits_recognised"]["reason"]


def test_statistics_give_distance_only(samples, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    out = evaluate(EvalConfig(samples=samples, reference=str(tmp_path / "stats.npz"), extractor="digits-cnn"), Ranks())
    scores = json.loads((out / "report.json").read_text())["scores"]
    assert scores["fd"]["value"] > 0
    assert "statistics only" in scores["kid"]["reason"]


def test_folder_of_images_is_a_reference(samples, tmp_path):
    other = fill(tmp_path / "other", 40)
    out = evaluate(EvalConfig(samples=samples, reference=str(other), extractor="digits-cnn"), Ranks())
    values = json.loads((out / "report.json").read_text())
    assert values["scores"]["fd"]["reference"] == 40
    assert values["digits_recognised"] is None


# -- refused -----------------------------------------------------------------------------------------------------


def test_flags_that_contradict(samples, tmp_path):
    assert "neither --run nor --samples" in refused()
    assert "both --run and --samples" in refused(run=tmp_path, samples=samples)
    assert "--cfg-scale 2.0 with --samples" in refused(samples=samples, reference="digits", cfg_scale=2.0)
    assert "--num-samples 9 with --samples" in refused(samples=samples, reference="digits", num_samples=9)
    assert "no --reference for" in refused(samples=samples)
    weights = tmp_path / "w.pth"
    assert "--weights" in refused(samples=samples, reference="digits", weights=weights)


def test_sizes_that_differ_are_both_named(samples, tmp_path):
    other = fill(tmp_path / "other", 3, size=16)
    message = refused(samples=samples, reference=str(other), extractor="digits-cnn")
    assert "samples of 32x32" in message
    assert "reference of 16x16" in message


def test_one_sample_is_too_few(tmp_path):
    assert "1 sample in" in refused(samples=fill(tmp_path / "one", 1), reference="digits")


def test_statistics_of_another_network(samples, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    stats = str(tmp_path / "stats.npz")
    assert "64 features of the samples and 2048" in refused(samples=samples, reference=stats, extractor="digits-cnn")


# -- runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that samples real digits; `calls` says how often."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "lr": 0.1}\n{"step": 2, "loss": 0.5, "lr": 0.1}\n'
    )
    (directory / "ema.safetensors").write_bytes(b"weights")
    card = SimpleNamespace(config=TrainConfig(), network=SimpleNamespace(num_classes=10),
                           classes=[str(i) for i in range(10)])
    fake = SimpleNamespace(card=card, weights=SimpleNamespace(path=directory / "ema.safetensors"))
    calls = []

    def sample_folder(run, config, classes, num_samples, out, format, ranks):
        calls.append((list(classes), num_samples, config.cfg_scale, format))
        if not out.exists():
            fill(out, num_samples)
        (out / "samples.json").write_text(json.dumps({"sampler": "heun", "cfg_scale": config.cfg_scale}))
        return out

    monkeypatch.setattr(module, "load_run", lambda path, device: fake)
    monkeypatch.setattr(module, "sample_folder", sample_folder)
    return SimpleNamespace(path=directory, calls=calls, card=card)


def test_run_is_sampled_scored_and_its_loss_drawn(run):
    out = evaluate(EvalConfig(run=run.path, num_samples=50, cfg_scale=1.5), Ranks())
    assert out == run.path / "evaluation"
    assert run.calls == [(list(range(10)), 50, 1.5, "png")]
    values = json.loads((out / "report.json").read_text())
    assert values["protocol"]["sampling"]["cfg_scale"] == 1.5
    assert "Training loss" in (out / "report.html").read_text()
    evaluate(EvalConfig(run=run.path, num_samples=50, cfg_scale=4.0), Ranks())
    assert len(list(out.glob("samples-*"))) == 2  # other settings, another folder


def test_nothing_is_sampled_before_reference_and_weights_are_known_to_be_good(run, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3))
    small = fill(tmp_path / "small", 3, size=16)
    assert "array sigma" in refused(run=run.path, reference=str(tmp_path / "stats.npz"))
    assert "does not exist" in refused(run=run.path, extractor="inception", weights=tmp_path / "none.pth")
    assert "is not a folder" in refused(run=run.path, reference=str(tmp_path / "none"))
    assert "a reference of 16x16" in refused(run=run.path, reference=str(small), extractor="digits-cnn")
    assert run.calls == []


def test_data_that_are_no_images_ask_for_a_reference(run, tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "encoding.json").write_text("{}")
    run.card.config = TrainConfig(data=str(tmp_path / "latents"))
    assert "latents, which can not be the reference" in refused(run=run.path)


def test_number_of_samples_follows_the_reference(run, tmp_path):
    other = fill(tmp_path / "other", 40)
    evaluate(EvalConfig(run=run.path, reference=str(other), extractor="digits-cnn"), Ranks())
    assert run.calls[0][1] == 40
