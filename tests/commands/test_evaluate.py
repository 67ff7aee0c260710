"""From images to report, and what is refused before anything is sampled."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import forked
from dit.commands import evaluate as module
from dit.commands.compare import compare
from dit.commands.evaluate import evaluate
from dit.commands.stats import stats
from dit.config import CompareConfig, EvalConfig, StatsConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.metrics import compute as metrics

pytestmark = pytest.mark.usefixtures("small_networks")
CNN = ("digits-cnn",)


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 5)


def fill(folder, count=60, size=32, first=0):
    """Real digits as samples, with their labels."""
    folder.mkdir(parents=True)
    digits = Digits(size)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        for i in range(count):
            Image.fromarray(digits[first + i].permute(1, 2, 0).numpy()).save(
                folder / f"{i:06d}.png"
            )
            rows.writerow([f"{i:06d}.png", digits.labels[first + i]])
    return folder


@pytest.fixture
def samples(tmp_path):
    return fill(tmp_path / "samples")


def report(**flags):
    """The report of an evaluation, without resamples unless asked."""
    out = evaluate(EvalConfig(**{"bootstrap": 0, **flags}), Ranks())
    return json.loads((out / "report.json").read_text())


def refused(**flags):
    with pytest.raises(UserError) as error:
        evaluate(EvalConfig(**flags), Ranks())
    return str(error.value)


def test_folder_of_real_digits_scores_like_real_digits(samples, capsys):
    out = evaluate(EvalConfig(samples=samples, reference="digits", bootstrap=10), Ranks())
    assert out == samples.with_name(f"{samples.name}-evaluation")
    values = json.loads((out / "report.json").read_text())
    assert values["digits_recognised"]["found"]["accuracy"] > 0.98
    assert values["scores"]["precision(digits-cnn)"]["value"] > 0.9
    low, high = values["scores"]["FD(digits-cnn)"]["interval"]
    assert low < values["scores"]["FD(digits-cnn)"]["value"] < high
    assert values["protocol"]["sampling"]["sampler"] == "unknown"
    assert values["protocol"]["reference"]["count"] == 1797
    assert [row["label"] for row in values["classes"]] == [str(i) for i in range(10)]
    printed = capsys.readouterr().out
    assert "FD(digits-cnn)" in printed
    assert str(out / "report.html") in printed
    with Image.open(out / "grid.png") as grid:
        assert grid.height > 10 * 64


def test_settings_beside_the_samples_are_recorded_and_name_the_reference(samples, tmp_path):
    settings = {
        "data": "digits",
        "sampler": "heun",
        "cfg_scale": 4.0,
        "cfg_channels": None,
        "weights_sha256": "ab",
    }
    (samples / "samples.json").write_text(json.dumps(settings))
    recorded = report(samples=samples, out=tmp_path / "there")["protocol"]["sampling"]
    assert recorded["cfg_scale"] == 4.0
    assert recorded["cfg_channels"] == "all"
    assert recorded["steps"] == "unknown"


def test_npz_without_labels_has_no_recognition_and_no_classes(tmp_path):
    np.savez(tmp_path / "samples.npz", Digits(32).images[:60].permute(0, 2, 3, 1).numpy())
    values = report(samples=tmp_path / "samples.npz", reference="digits")
    assert values["digits_recognised"]["found"] is None
    assert "no labels" in values["digits_recognised"]["reason"]
    assert values["classes"] == []


def test_copies_are_found_where_the_reference_is_the_training_data(samples):
    (samples / "samples.json").write_text(json.dumps({"data": "digits"}))
    shares = {found["by"]: found for found in report(samples=samples)["memorisation"]}
    assert set(shares) == {"pixels", "digits-cnn"}  # these samples are training images
    assert {(found["share"], found["checked"], found["count"]) for found in shares.values()} == {
        (1.0, 60, 1797)
    }


def test_pixels_are_looked_at_only_where_copies_are_looked_for(samples, monkeypatch):
    monkeypatch.setattr(
        module, "pixel_extractor", lambda device: pytest.fail("nobody asked for pixels")
    )
    assert report(samples=samples, reference="digits")["memorisation"] == []


def test_copies_are_looked_for_in_other_images_when_asked(samples, tmp_path):
    others = fill(tmp_path / "others", 200, first=1000)
    flags = dict(samples=samples, reference="digits", extractor=CNN)
    assert "not known: pass --train-data" in report(**flags)["notes"][0]
    found = report(**flags, train_data=str(others))["memorisation"]
    assert {(one["against"], one["count"]) for one in found} == {(str(others), 200)}
    assert all(one["share"] < 0.2 for one in found)


def test_statistics_give_distances_only(samples, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    scores = report(samples=samples, reference=str(tmp_path / "stats.npz"), extractor=CNN)["scores"]
    assert scores["FD(digits-cnn)"]["value"] > 0
    for name in ("KID", "precision", "recall", "density", "coverage"):
        assert scores[f"{name}(digits-cnn)"]["value"] is None
        assert "statistics only" in scores[f"{name}(digits-cnn)"]["reason"]


def test_folder_of_images_is_a_reference(samples, tmp_path):
    other = fill(tmp_path / "other", 40)
    values = report(samples=samples, reference=str(other), extractor=CNN)
    assert values["scores"]["FD(digits-cnn)"]["reference"] == 40
    assert values["digits_recognised"] is None


def test_crop_brings_a_reference_to_the_samples_size(samples, tmp_path):
    larger = fill(tmp_path / "larger", 40, size=64)
    values = report(samples=samples, reference=str(larger), crop=True, extractor=CNN)
    assert values["protocol"]["reference"]["crop"] == "ADM's, to 32x32"
    assert values["protocol"]["reference"]["size"] == "32x32"


def test_several_networks_see_each_image_once(samples, tmp_path, monkeypatch):
    (tmp_path / "own_features.py").write_text(
        "import torch\n\nclass Means(torch.nn.Module):\n    def forward(self, images):\n"
        "        return images.float().mean(dim=(2, 3)) + torch.arange(3.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    read = []
    original = module.read_images

    def counting(path):
        images = original(path)
        return type(images)(
            **{**vars(images), "read": lambda i: read.append(i) or images.read(i), "labels": None}
        )

    monkeypatch.setattr(module, "read_images", counting)
    values = report(
        samples=samples,
        reference="digits",
        extractor=("digits-cnn", "own_features:Means"),
        cache=False,
    )
    assert {"FD(digits-cnn)", "FD(own_features:Means)", "KID(own_features:Means)"} <= set(
        values["scores"]
    )
    assert "no classifier" in values["scores"]["IS(own_features:Means)"]["reason"]
    assert "features (own_features:Means)" in values["protocol"]
    assert read[:60] == list(range(60))
    assert len(read) < 2 * 60 + 100  # once for features; again for pictures only


def evaluate_on_ranks(ranks, config):
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more while the other waits
    evaluate(config, ranks)


def test_two_ranks_score_bitwise_as_one(samples, tmp_path):
    real = fill(tmp_path / "real", 100, first=500)
    config = EvalConfig(
        samples=samples,
        reference=str(real),
        extractor=CNN,
        cache=False,
        bootstrap=10,
        batch_size=16,
    )
    for world in (1, 2):
        forked.run(world, evaluate_on_ranks, dataclasses.replace(config, out=tmp_path / str(world)))
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in "12")
    for values in (one, two):
        del values["protocol"]["software"]["date"]
    assert one == two
    assert one["scores"]["FD(digits-cnn)"]["value"] > 0


# -- refused ---------------------------------------------------------------------------------------


def test_flags_that_contradict(samples, tmp_path):
    assert "neither --run nor --samples" in refused()
    assert "both --run and --samples" in refused(run=tmp_path, samples=samples)
    assert "--cfg-scale 2.0 with --samples" in refused(
        samples=samples, reference="digits", cfg_scale=2.0
    )
    assert "--num-samples 9 with --samples" in refused(
        samples=samples, reference="digits", num_samples=9
    )
    assert "no --reference for" in refused(samples=samples)
    assert "--weights" in refused(
        samples=samples, reference="digits", weights=(str(tmp_path / "w.pth"),)
    )


def test_sizes_that_differ_are_both_named(samples, tmp_path):
    message = refused(
        samples=samples, reference=str(fill(tmp_path / "other", 3, size=16)), extractor=CNN
    )
    assert "samples of 32x32" in message
    assert "reference of 16x16" in message
    assert "--crop" in message


def test_one_sample_is_too_few(tmp_path):
    assert "1 sample in" in refused(samples=fill(tmp_path / "one", 1), reference="digits")


def test_statistics_of_another_network(samples, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    message = refused(samples=samples, reference=str(tmp_path / "stats.npz"), extractor=CNN)
    assert "statistics of 2048 values, digits-cnn gives 64" in message


def test_statistics_of_images_of_another_size(samples, tmp_path):
    stats(StatsConfig(data="digits", image_size=16, out=tmp_path / "stats.npz"), Ranks())
    message = refused(samples=samples, reference=str(tmp_path / "stats.npz"), extractor=CNN)
    assert "samples of 32x32 pixels and statistics of 16x16" in message


def test_statistics_that_are_no_covariance(samples, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.diag([-1.0] + [1.0] * 63))
    message = refused(samples=samples, reference=str(tmp_path / "stats.npz"), extractor=CNN)
    assert "eigenvalue -1 beside 1" in message


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def run(make_run):
    directory = make_run()
    (directory / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "lr": 0.1}\n{"step": 2, "loss": 0.5, "lr": 0.1}\n'
    )
    return directory


def test_run_is_sampled_scored_and_its_loss_drawn(run):
    flags = dict(run=run, num_samples=30, sampler="euler", steps=2)
    values = report(**flags, cfg_scale=1.5)
    assert values["protocol"]["sampling"]["cfg_scale"] == 1.5
    assert values["protocol"]["samples"]["labels"] == "10 classes, 3 images each"
    assert "Training" in (run / "evaluation" / "report.html").read_text()
    assert {found["by"] for found in values["memorisation"]} == {"pixels", "digits-cnn"}
    report(**flags, cfg_scale=4.0)
    assert len(list((run / "evaluation").glob("samples-*"))) == 2  # other settings, another folder


def test_nothing_is_sampled_before_everything_is_known_to_be_good(run, tmp_path, make_run):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3))
    small = fill(tmp_path / "small", 3, size=16)
    stats = str(tmp_path / "stats.npz")
    assert "sigma" in refused(run=run, reference=stats)
    assert "none.pth" in refused(
        run=run, extractor=("inception",), weights=(str(tmp_path / "none.pth"),)
    )
    assert "is not a folder" in refused(run=run, reference=str(tmp_path / "none"))
    assert "a reference of 16x16" in refused(run=run, reference=str(small), extractor=CNN)
    assert "--variance learned" in refused(run=run, variance="learned")
    ddpm = make_run("ddpm", process="linear", objective="eps")
    assert "--steps 2000" in refused(run=ddpm, steps=2000)
    assert not list(tmp_path.rglob("samples-*"))


def test_data_that_are_no_images_ask_for_a_reference(make_run, tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "encoding.json").write_text("{}")
    run = make_run(data=str(tmp_path / "latents"))
    assert "latents, which can not be the reference" in refused(run=run)


def test_number_of_samples_follows_the_reference(run, tmp_path):
    other = fill(tmp_path / "other", 40, size=8)
    values = report(run=run, reference=str(other), extractor=CNN, sampler="euler", steps=1)
    assert values["protocol"]["samples"]["count"] == 40


def test_statistics_beside_images_are_part_of_the_reference(samples, tmp_path):
    images = Digits(32).images[:60].permute(0, 2, 3, 1).numpy()
    hashes = set()
    for spread in (1, 5):
        np.savez(tmp_path / "both.npz", arr_0=images, mu=np.zeros(64), sigma=spread * np.eye(64))
        found = report(samples=samples, reference=str(tmp_path / "both.npz"), extractor=CNN)
        hashes.add(found["protocol"]["reference"]["sha256"])
    assert len(hashes) == 2


def test_what_is_not_known_of_statistics_is_unknown(samples, tmp_path):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(64), sigma=np.eye(64))
    stats(StatsConfig(data="digits", out=tmp_path / "own.npz"), Ranks())
    foreign, own = (
        report(samples=samples, reference=str(tmp_path / name), extractor=CNN)["protocol"][
            "reference"
        ]
        for name in ("foreign.npz", "own.npz")
    )
    assert [foreign[entry] for entry in ("count", "size", "crop")] == ["unknown"] * 3
    assert [own[entry] for entry in ("count", "size", "crop")] == [1797, "32x32", "none"]


def test_batch_size_does_not_make_new_samples(run):
    flags = dict(run=run, num_samples=20, sampler="euler", steps=1)
    report(**flags)
    report(**flags, batch_size=7)
    assert len(list((run / "evaluation").glob("samples-*"))) == 1


def test_statistics_and_the_images_they_are_of_are_comparable(samples, tmp_path, capsys):
    real = fill(tmp_path / "real", 100, first=500)
    stats(StatsConfig(data=str(real), out=tmp_path / "real.npz", extractor=CNN), Ranks())
    for name, reference in (("images", real), ("statistics", tmp_path / "real.npz")):
        report(samples=samples, reference=str(reference), extractor=CNN, out=tmp_path / name)
    compare(CompareConfig(a=tmp_path / "images", b=tmp_path / "statistics"), Ranks())
    assert "\ncomparable\n" in capsys.readouterr().out


def test_auto_takes_the_network_of_the_statistics(samples, tmp_path):
    stats(StatsConfig(data="digits", out=tmp_path / "stats.npz"), Ranks())
    assert (
        report(samples=samples, reference=str(tmp_path / "stats.npz"))["scores"]["FD(digits-cnn)"][
            "value"
        ]
        > 0
    )


def test_mistakes_are_told_before_any_features(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    flags = dict(samples=samples, reference="digits")
    assert "is a file" in refused(**flags, out=tmp_path / "file")
    assert "can not be made" in refused(**flags, out=Path("/proc/none"))
    assert "is not a folder" in refused(**flags, train_data=str(tmp_path / "nowhere"))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    assert "with no images" in refused(**flags, train_data=str(tmp_path / "stats.npz"))
    assert "--extractor ()" in refused(**flags, extractor=())
