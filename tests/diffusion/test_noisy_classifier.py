"""Training a classifier for a run: on its data, latents and noise; resumed as any run."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from helpers.training import prepared
from PIL import Image

from dit.cli import main
from dit.commands.sample import sample
from dit.commands.train import train
from dit.commands.train_classifier import settings_for, train_classifier
from dit.config import ClassifierConfig, SampleConfig, TrainConfig
from dit.diffusion.classifier import NoisyClassifier
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import checkpoints, find_weights
from dit.runs.logs import read_metrics
from dit.runs.weights import read_weights
from dit.training.build_card import build_card
from dit.training.inputs import RunInputs
from dit.training.monitoring.accuracy import AccuracyCurve


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", dict(depth=2, hidden_size=64, num_heads=2))
        yield


def asked(run, **more):
    given = dict(
        run=run,
        model="Classifier-Ti/4",
        steps=4,
        global_batch_size=16,
        warmup=1,
        log_every=2,
        ckpt_every=2,
        precision="fp32",
    )
    return ClassifierConfig(**{**given, **more})


def test_it_learns_for_the_run_and_guides_it(make_run, capsys):
    """It reads latents with the statistics of the run, even where the data would give others."""
    run = make_run(process="cosine", latent_norm="data", time_shift=2.0, flip=False)
    out = train_classifier(asked(run, steps=40, lr=3e-3), Ranks())
    assert out == run / "classifier"
    theirs, ours = ModelCard.read(out), ModelCard.read(run)
    assert (theirs.latent_mean, theirs.latent_std) == (ours.latent_mean, ours.latent_std)
    for name in ("data", "vae", "image_size", "process", "latent_norm", "time_shift", "flip"):
        assert getattr(theirs.config, name) == getattr(ours.config, name)
    assert (theirs.network.num_classes, theirs.network.learn_sigma) == (10, False)
    log = read_metrics(out / "metrics.jsonl")
    assert {"loss", "accuracy"} <= {*log[-1]}
    assert log[-1]["loss"] < log[0]["loss"]
    assert Image.open(out / "accuracy.png").size[0] > 500
    assert not (out / "samples").exists()
    output = capsys.readouterr().out
    assert f"accuracy    {out / 'accuracy.png'}" in output
    *others, last = output.splitlines()
    assert last == f"next        dit sample --run {run} --classifier {out} --classifier-scale 2"
    assert not any("next" in line for line in others)
    guided = SampleConfig(run=run, classifier=out, classifier_scale=2.0, steps=2, per_class=1)
    sample(guided, Ranks())


def test_stopped_and_resumed_is_as_in_one_go(make_run, tmp_path):
    run = make_run(latent_norm="data")
    whole = train_classifier(asked(run, out=tmp_path / "whole"), Ranks())
    first = train_classifier(asked(run, out=tmp_path / "parts"), Ranks())
    shutil.rmtree(checkpoints(first)[-1])
    again = train_classifier(asked(run, resume=str(first)), Ranks())
    assert again == first
    shutil.rmtree(checkpoints(first)[-1])
    plain = dataclasses.replace(ModelCard.read(first).config, resume=str(first), out=first)
    train(plain, Ranks())  # as `train.py --resume` does
    one, other = (read_weights(find_weights(path)) for path in (whole, first))
    assert one.step == other.step == 4
    assert all(torch.equal(one.state_dict[name], other.state_dict[name]) for name in one.state_dict)
    assert other.card.latent_mean == [0.5] * 3  # the run's, not those of the data


def test_run_without_classes_gets_those_of_the_data(make_run):
    run = make_run(num_classes=0)
    out = train_classifier(asked(run, steps=2), Ranks())
    assert ModelCard.read(out).classes == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("settings", "model", "message"),
    [
        (
            dict(model="Classifier-Ti/4", label_dropout=0.0),
            "Classifier-Ti/4",
            "is a Classifier-Ti/4; expected a diffusion",
        ),
        (dict(), "DiT-Ti/4", "--model DiT-Ti/4; expected Classifier-"),
        (dict(), "Classifier-S/3", "--model Classifier-S/3; expected Classifier-"),
    ],
)
def test_refused(make_run, settings, model, message):
    run = make_run(**settings)
    with pytest.raises(UserError) as error:
        train_classifier(asked(run, model=model), Ranks())
    assert message in str(error.value)
    assert not (run / "classifier").exists()


def test_runs_on_captions_have_no_classes(make_run):
    weights = read_weights(find_weights(make_run()))
    network = dataclasses.replace(weights.card.network, conditioning="text", text_width=8)
    captioned = dataclasses.replace(
        weights, card=dataclasses.replace(weights.card, network=network)
    )
    with pytest.raises(UserError, match=r"was trained on captions .* expected a run with classes"):
        settings_for(asked(weights.home), captioned)


@pytest.mark.parametrize(
    "settings",
    [
        dict(label_dropout=0.1),
        dict(eval_every=5),
        dict(process="linear", learn_sigma=True),
        dict(process="linear", objective="eps"),
        dict(objective="x0"),
        dict(loss="vlb"),
        dict(min_snr_gamma=5.0),
    ],
)
def test_settings_of_other_networks_are_refused(settings):
    with pytest.raises(UserError) as error:
        TrainConfig(**{**dict(model="Classifier-Ti/2", label_dropout=0.0), **settings})
    message = "--model Classifier-Ti/2 is a classifier; expected a network that draws images"
    assert message in str(error.value)


def test_other_data_has_the_classes_of_the_run(make_run, tmp_path):
    run = make_run()
    for name in "0123456789":
        (tmp_path / "same" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "same" / name / "image.png")
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    (tmp_path / "other" / "3").rename(tmp_path / "other" / "three")
    train_classifier(asked(run, data=str(tmp_path / "same"), dry_run=True), Ranks())
    with pytest.raises(
        UserError, match="other has class 3 '4', the run has '3'; expected the same classes"
    ):
        train_classifier(asked(run, data=str(tmp_path / "other")), Ranks())


def test_data_without_classes_are_refused(make_run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "image.png")
    with pytest.raises(UserError) as error:
        train_classifier(asked(make_run(), data=str(data)), Ranks())
    message = f"--data {data} has no classes, the run has 10; expected the same classes"
    assert message in str(error.value)
    assert "--num-classes" not in str(error.value)
    with pytest.raises(
        UserError, match=f"Classifier-Ti/4 with --data {data}, which has no classes; expected"
    ):
        train_classifier(asked(make_run("other", num_classes=0), data=str(data)), Ranks())


def test_another_autoencoder_than_the_runs_is_refused(make_run):
    guided = read_weights(find_weights(make_run()))
    with pytest.raises(
        UserError,
        match="--vae identity with no weights; expected SHA-256 55555555, the one that the run",
    ):
        train(
            settings_for(asked(guided.home), guided),
            Ranks(),
            dataclasses.replace(guided.card, vae_sha256="5" * 64),
        )


def curve_of(tmp_path, network, process):
    """What AccuracyCurve measures with this in the place of the EMA."""
    config = TrainConfig(
        model="Classifier-Ti/4",
        vae="identity",
        image_size=8,
        label_dropout=0.0,
        process=process,
        out=tmp_path / "judge",
        precision="fp32",
    )
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    session = prepared(RunInputs(build_card(config, source), source, autoencoder))
    return (
        AccuracyCurve(session).measure(NoisyClassifier(network, session.stream.process)),
        source,
        autoencoder,
    )


@pytest.mark.parametrize("process", ["flow", "linear", "cosine"])
def test_accuracy_curve_of_known_classifiers(tmp_path, process):
    """One that always predicts digit 3; one that has stored all data, with its input times."""
    three = torch.nn.functional.one_hot(torch.tensor(3), 10).float()
    curve, source, autoencoder = curve_of(
        tmp_path / "a", lambda x, t: three.expand(len(x), -1), process
    )
    chosen = np.arange(500) * len(source.labels) // 500
    assert list(curve) == pytest.approx([i / 10 for i in range(11)])
    assert list(curve.values()) == pytest.approx([(source.labels[chosen] == 3).mean()] * 11)
    moments = source.read(chosen, np.zeros(500, bool))
    known, times = autoencoder.draw(moments, torch.zeros_like(moments[:, :3])).flatten(1), []

    def nearest_image(x, t):
        times.append(t.unique().item())
        nearest = (x.flatten(1) @ torch.nn.functional.normalize(known).T).argmax(1)
        return torch.nn.functional.one_hot(
            torch.as_tensor(source.labels[chosen])[nearest], 10
        ).float()

    curve, *_ = curve_of(tmp_path / "b", nearest_image, process)
    assert curve[0] == 1
    assert curve[1] < 0.25
    first = 0 if process == "flow" else 99
    assert sorted(set(times))[:2] == [0, pytest.approx(100 if process == "flow" else first)]


def test_command(make_run, capsys):
    run = make_run()
    assert (
        main(["train-classifier", "--run", str(run), "--model", "Classifier-Ti/4", "--dry-run"])
        == 0
    )
    assert "Classifier-Ti/4" in capsys.readouterr().out
    assert main(["train-classifier", "--run", str(run / "nowhere")]) == 2
    assert "no checkpoint in" in capsys.readouterr().err
