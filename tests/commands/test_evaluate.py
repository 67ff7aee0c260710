"""From images to report, and what is refused before anything is sampled."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import forked
from helpers.evaluation import random_pixels, save_images
from PIL import Image

from dit.commands import evaluate as module
from dit.commands.compare import compare
from dit.commands.encode import encode
from dit.commands.evaluate import evaluate
from dit.commands.stats import stats
from dit.config import CompareConfig, EncodeConfig, EvalConfig, StatsConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.metrics import compute as metrics

pytestmark = pytest.mark.usefixtures("small_networks")
CNN = ("digits-cnn",)


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 5)


def save_digits(folder, count=60, size=32, first=0):
    """Write real digits as samples, with their labels."""
    digits = Digits(size)
    save_images(folder, digits.images[first : first + count].permute(0, 2, 3, 1).numpy())
    rows = [f"{i:06d}.png,{digits.labels[first + i]}\n" for i in range(count)]
    (folder / "labels.csv").write_text("file,label\n" + "".join(rows))
    return folder


@pytest.fixture
def samples(tmp_path):
    return save_digits(tmp_path / "samples")


@pytest.fixture
def run(make_run):
    directory = make_run()
    lines = ['{"step": 1, "loss": 1.0, "lr": 0.1}\n', '{"step": 2, "loss": 0.5, "lr": 0.1}\n']
    (directory / "metrics.jsonl").write_text("".join(lines))
    return directory


def report(**flags):
    """Return the report of an evaluation, without a bootstrap unless asked."""
    out = evaluate(EvalConfig(**{"bootstrap": 0, **flags}), Ranks())
    return json.loads((out / "report.json").read_text())


def refused(**flags):
    with pytest.raises(UserError) as error:
        evaluate(EvalConfig(**flags), Ranks())
    return str(error.value)


# -- samples in a folder ---------------------------------------------------------------------------


def test_real_digits_score_like_real_digits(samples, capsys):
    values = report(samples=samples, reference="digits", bootstrap=10)
    out = samples.with_name(f"{samples.name}-evaluation")
    assert values["digits_recognised"]["found"]["accuracy"] > 0.98
    assert values["scores"]["precision(digits-cnn)"]["value"] > 0.9
    assert values["scores"]["FD(digits-cnn)"]["better"] == "lower"
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


def test_settings_beside_the_samples_name_the_reference(samples):
    """It is the training data: samples that are training images are found to be copies."""
    settings = {"data": "digits", "sampler": "heun", "cfg_scale": 4.0, "cfg_channels": None}
    (samples / "samples.json").write_text(json.dumps(settings))
    values = report(samples=samples)
    recorded = values["protocol"]["sampling"]
    assert (recorded["cfg_scale"], recorded["cfg_channels"]) == (4.0, "all")
    assert recorded["steps"] == "unknown"
    shares = {found["by"]: found for found in values["memorisation"]}
    assert set(shares) == {"pixels", "digits-cnn"}
    for found in shares.values():
        assert (found["share"], found["checked"], found["count"]) == (1.0, 60, 1797)


def test_npz_without_labels_has_no_recognition_and_no_classes(tmp_path):
    np.savez(tmp_path / "samples.npz", Digits(32).images[:60].permute(0, 2, 3, 1).numpy())
    values = report(samples=tmp_path / "samples.npz", reference="digits")
    assert values["digits_recognised"]["found"] is None
    assert "no labels" in values["digits_recognised"]["reason"]
    assert values["classes"] == []


def test_copies_are_searched_for_in_other_images_when_asked(samples, tmp_path, monkeypatch):
    others = save_digits(tmp_path / "others", 200, first=1000)
    flags = dict(samples=samples, reference="digits", extractor=CNN)
    found = report(**flags, train_data=str(others))["memorisation"]
    assert {(one["against"], one["count"]) for one in found} == {(str(others), 200)}
    assert all(one["share"] < 0.2 for one in found)
    monkeypatch.setattr(module, "pixel_extractor", lambda device: pytest.fail("not needed"))
    values = report(**flags)
    assert "not known: pass --train-data" in values["notes"][0]
    assert values["memorisation"] == []


def test_folder_of_other_images_is_a_reference_once_cropped(samples, tmp_path):
    larger = save_digits(tmp_path / "larger", 40, size=64)
    flags = dict(samples=samples, reference=str(larger), extractor=CNN)
    message = refused(**flags)
    for part in ("samples of 32x32", "reference of 64x64", "--crop"):
        assert part in message
    values = report(**flags, crop=True)
    assert values["scores"]["FD(digits-cnn)"]["reference"] == 40
    assert values["protocol"]["reference"]["crop"] == "ADM's, to 32x32"
    assert values["digits_recognised"] is None


def test_several_networks_share_one_pass_over_the_images(samples, tmp_path, monkeypatch):
    (tmp_path / "own_features.py").write_text(
        "import torch\n\nclass Means(torch.nn.Module):\n    def forward(self, images):\n"
        "        return images.float().mean(dim=(2, 3)) + torch.arange(3.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    read, original = [], module.read_samples

    def counting(path):
        images = original(path)

        def read_one(index):
            read.append(index)
            return images.read(index)

        return dataclasses.replace(images, read=read_one, labels=None)

    monkeypatch.setattr(module, "read_samples", counting)
    extractors = ("digits-cnn", "own_features:Means")
    values = report(samples=samples, reference="digits", extractor=extractors, cache=False)
    names = {"FD(digits-cnn)", "FD(own_features:Means)", "KID(own_features:Means)"}
    assert names <= set(values["scores"])
    assert "no classifier" in values["scores"]["IS(own_features:Means)"]["reason"]
    assert "features (own_features:Means)" in values["protocol"]
    assert read[:60] == list(range(60))
    assert len(read) < 2 * 60 + 100  # once for features; again for pictures only


def evaluate_on_ranks(ranks, config):
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more while the other waits
    evaluate(config, ranks)


def test_two_ranks_score_bitwise_as_one(samples, tmp_path):
    real = save_digits(tmp_path / "real", 100, first=500)
    flags = dict(samples=samples, reference=str(real), extractor=CNN, cache=False)
    config = EvalConfig(**flags, bootstrap=10, batch_size=16)
    reports = []
    for world in (1, 2):
        out = tmp_path / str(world)
        forked.run(world, evaluate_on_ranks, dataclasses.replace(config, out=out))
        reports.append(json.loads((out / "report.json").read_text()))
        del reports[-1]["protocol"]["software"]["date"]
    assert reports[0] == reports[1]
    assert reports[0]["scores"]["FD(digits-cnn)"]["value"] > 0


# -- statistics ------------------------------------------------------------------------------------


def test_statistics_give_distances_only_and_choose_the_network(samples, tmp_path):
    stats(StatsConfig(data="digits", out=tmp_path / "stats.npz"), Ranks())
    scores = report(samples=samples, reference=str(tmp_path / "stats.npz"))["scores"]
    assert scores["FD(digits-cnn)"]["value"] > 0
    for name in ("KID", "precision", "recall", "density", "coverage"):
        assert scores[f"{name}(digits-cnn)"]["value"] is None
        assert "statistics only" in scores[f"{name}(digits-cnn)"]["reason"]


def test_statistics_and_their_images_are_comparable(samples, tmp_path, capsys):
    real = save_digits(tmp_path / "real", 100, first=500)
    stats(StatsConfig(data=str(real), out=tmp_path / "real.npz", extractor=CNN), Ranks())
    for name, reference in (("images", real), ("statistics", tmp_path / "real.npz")):
        report(samples=samples, reference=str(reference), extractor=CNN, out=tmp_path / name)
    compare(CompareConfig(a=tmp_path / "images", b=tmp_path / "statistics"), Ranks())
    assert "\ncomparable\n" in capsys.readouterr().out


def test_statistics_of_another_network_or_size(samples, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    message = refused(samples=samples, reference=str(tmp_path / "stats.npz"), extractor=CNN)
    assert "statistics of 2048 values, digits-cnn gives 64" in message
    stats(StatsConfig(data="digits", image_size=16, out=tmp_path / "small.npz"), Ranks())
    message = refused(samples=samples, reference=str(tmp_path / "small.npz"), extractor=CNN)
    assert "samples of 32x32 pixels and statistics of 16x16" in message


# -- runs ------------------------------------------------------------------------------------------


def test_run_is_sampled_and_scored(run):
    flags = dict(run=run, num_samples=30, sampler="euler", steps=2)
    values = report(**flags, cfg_scale=1.5)
    assert values["protocol"]["sampling"]["cfg_scale"] == 1.5
    assert values["protocol"]["samples"]["labels"] == "10 classes, 3 images each"
    assert "Training" in (run / "evaluation" / "report.html").read_text()
    assert {found["by"] for found in values["memorisation"]} == {"pixels", "digits-cnn"}
    report(**flags, cfg_scale=1.5, batch_size=7)
    assert len(list((run / "evaluation").glob("samples-*"))) == 1
    report(**flags, cfg_scale=4.0)
    assert len(list((run / "evaluation").glob("samples-*"))) == 2


def test_chosen_classes_are_sampled_and_compared_with_their_own(run):
    flags = dict(run=run, sampler="euler", steps=1, num_samples=6)
    values = report(**flags, classes=("3", "0"))
    assert [row["label"] for row in values["classes"]] == ["0", "3"]
    recorded = values["protocol"]
    assert recorded["samples"]["labels"] == "2 classes, 3 images each"
    assert recorded["reference"]["count"] == 361  # of 1,797 digits
    assert "no class cat" in refused(**flags, classes=("cat",))
    assert len(list((run / "evaluation").glob("samples-*"))) == 1


def test_run_on_latents_is_compared_with_the_images_that_were_encoded(
    tmp_path, make_run, monkeypatch
):
    pictures = save_digits(tmp_path / "pictures", 12, size=8)
    (pictures / "labels.csv").unlink()
    latents = tmp_path / "latents"
    encode(EncodeConfig(data=str(pictures), out=latents, vae="identity", image_size=8), Ranks())
    on_latents = make_run("on-latents", data=str(latents))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    values = report(run=on_latents, sampler="euler", steps=1)
    assert values["protocol"]["reference"]["source"] == str(pictures)
    assert values["protocol"]["samples"]["count"] == 12
    assert values["scores"]["FD(colour-cnn)"]["value"] > 0
    assert {found["against"] for found in values["memorisation"]} == {str(pictures)}

    pictures.rename(tmp_path / "moved")
    message = refused(run=on_latents)
    assert f"the images of the latents {latents} are no longer at {pictures}" in message
    assert "pass --reference with the folder where they are now, and --crop" in message
    moved = dict(reference=str(tmp_path / "moved"), crop=True)
    again = report(run=on_latents, **moved, sampler="euler", steps=1)
    assert again["scores"] == values["scores"]


def test_digits_cnn_on_colour_images_is_noted(tmp_path, capsys):
    colours = save_images(tmp_path / "colours", random_pixels(8))
    flags = dict(samples=colours, reference=str(colours))
    values = report(**flags, extractor=CNN)
    assert any("sees no colours" in note for note in values["notes"])
    assert "note: digits-cnn was made for gray digits" in capsys.readouterr().err
    values = report(**flags, extractor=("colour-cnn",))
    assert not any("colours" in note for note in values["notes"])


def test_gray_as_an_autoencoder_restores_it_has_no_note_on_colours(tmp_path):
    gray = random_pixels(8)[..., :1].repeat(3, axis=-1) // 2
    gray[..., 0] += 7
    folder = save_images(tmp_path / "gray", gray)
    values = report(samples=folder, reference=str(folder), extractor=CNN)
    assert not any("colours" in note for note in values["notes"])


def test_number_of_samples_is_that_of_the_reference(run, tmp_path, capsys):
    other = save_digits(tmp_path / "other", 40, size=8)
    values = report(run=run, reference=str(other), extractor=CNN, sampler="euler", steps=1)
    assert values["protocol"]["samples"]["count"] == 40
    assert re.search(
        "^note: 40 samples are drawn, .* --num-samples N", capsys.readouterr().err, re.M
    )


# -- refused before anything is sampled or scored --------------------------------------------------


def test_flags_that_contradict(samples, tmp_path):
    flags = dict(samples=samples, reference="digits")
    assert "neither --run nor --samples" in refused()
    assert "both --run and --samples" in refused(run=tmp_path, samples=samples)
    assert "--cfg-scale 2 with --samples" in refused(**flags, cfg_scale=2.0)
    assert "--num-samples 9 with --samples" in refused(**flags, num_samples=9)
    assert "no --reference for" in refused(samples=samples)
    assert "--weights" in refused(**flags, weights=(str(tmp_path / "w.pth"),))


def test_mistakes_with_samples(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "prepare_reference", lambda *given: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    flags = dict(samples=samples, reference="digits")
    assert "is a file" in refused(**flags, out=tmp_path / "file")
    assert "cannot be created" in refused(**flags, out=Path("/proc/none"))
    assert "is not a folder" in refused(**flags, train_data=str(tmp_path / "nowhere"))
    assert "with no images" in refused(**flags, train_data=str(tmp_path / "stats.npz"))
    assert "--extractor; expected one name" in refused(**flags, extractor=())
    one = save_digits(tmp_path / "one", 1)
    assert "1 sample in" in refused(samples=one, reference="digits")


def test_a_run_is_not_taken_for_samples(run, monkeypatch):
    for name in ("find_reference", "choose_extractors"):
        monkeypatch.setattr(module, name, lambda *given: pytest.fail("too late"))
    for picture in ("loss.png", "samples/step-0000001.png", "samples/step-0000002.png"):
        (run / picture).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(run / picture)

    found = refused(samples=run, reference="digits")
    assert f"--samples {run} is a run; expected a folder of images" in found
    assert f"pass --run {run} to sample from it and score" in found
    found = refused(samples=run / "samples", reference="digits")
    assert f"is the previews and grids of the run {run}; expected" in found


def test_mistakes_with_a_run(run, tmp_path, make_run):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3))
    weights = (str(tmp_path / "none.pth"),)
    assert "sigma" in refused(run=run, reference=str(tmp_path / "stats.npz"))
    assert "none.pth" in refused(run=run, extractor=("inception",), weights=weights)
    assert "is not a folder" in refused(run=run, reference=str(tmp_path / "none"))
    assert "--variance learned" in refused(run=run, variance="learned")
    ddpm = make_run("ddpm", process="linear", objective="eps")
    assert "--steps 2000" in refused(run=ddpm, steps=2000)
    gone = make_run("gone", data=str(tmp_path / "lost"))
    message = refused(run=gone)
    assert f"the images of training are no longer at {tmp_path / 'lost'}" in message
    assert "pass --reference with the folder" in message
    assert not list(tmp_path.rglob("samples-*"))
