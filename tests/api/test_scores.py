"""Scores in Python: the numbers of evaluate.py on the same pixels."""

import json
import re
import threading
import weakref

import numpy as np
import pytest
import torch
from helpers.evaluation import random_pixels, save_images
from PIL import Image

import dit
from dit.commands.evaluate import evaluate as command
from dit.config import EvalConfig
from dit.distributed.ranks import Ranks
from dit.evaluation.metrics import compute as metrics
from dit.sampling.generate import generate

CNN = "colour-cnn"
DISTANCE = "FD(colour-cnn)"


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 5)


@pytest.fixture(scope="module")
def images():
    return random_pixels(30), random_pixels(40, seed=1) // 2


@pytest.fixture(scope="module")
def folders(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return [save_images(root / name, one) for name, one in zip("ab", images, strict=True)]


@pytest.fixture
def report(folders, tmp_path):
    """What evaluate.py finds for the PNGs."""
    samples, reference = folders
    config = EvalConfig(
        samples=samples,
        reference=str(reference),
        extractor=(CNN,),
        bootstrap=10,
        out=tmp_path / "report",
    )
    return json.loads((command(config, Ranks()) / "report.json").read_text())["scores"]


def test_scores_are_those_of_evaluate_py(report, images, folders):
    samples, reference = images
    channels_first = torch.from_numpy(samples).permute(0, 3, 1, 2)
    kinds = [
        (folders[0], folders[1]),
        (samples, reference),
        (channels_first, str(folders[1])),
        (channels_first.float() / 255, reference),
        ([Image.fromarray(image) for image in samples], reference),
    ]
    for ours, theirs in kinds:
        found = dit.evaluate(ours, theirs, extractor=CNN, bootstrap=10, device="cpu")
        assert dict(found) == {
            name: one["value"] for name, one in report.items() if one["value"] is not None
        }
        assert found.intervals == {DISTANCE: tuple(report[DISTANCE]["interval"])}
        assert found.missing.keys() == report.keys() - found.keys()
    assert f"{DISTANCE} {found[DISTANCE]:.4g} (" in str(found)


def test_a_pipeline_is_sampled_as_evaluate_py_does(weights, folders, tmp_path):
    reference = str(folders[1])
    config = EvalConfig(
        run=weights,
        reference=reference,
        num_samples=12,
        steps=2,
        cfg_scale=2.0,
        extractor=(CNN,),
        bootstrap=0,
        out=tmp_path / "report",
    )
    report = json.loads((command(config, Ranks()) / "report.json").read_text())["scores"]
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    sampled = dict(num_samples=12, guidance_scale=2.0, num_inference_steps=2)
    found = dit.evaluate(pipe, reference, extractor=CNN, bootstrap=0, device="cpu", **sampled)
    assert dict(found) == {
        name: one["value"] for name, one in report.items() if one["value"] is not None
    }
    # images that were made by hand
    made = pipe(num_images=12, guidance_scale=2.0, num_inference_steps=2, output_type="np")
    assert dict(dit.evaluate(made, reference, extractor=CNN, bootstrap=0, device="cpu")) == dict(
        found
    )


def test_a_pipeline_has_a_batch_of_samples_in_memory(weights, monkeypatch):
    made = []

    def watched(pipeline, labels, indices):
        assert all(batch() is None for batch, _ in made)
        images = generate(pipeline, labels, indices)
        made.append((weakref.ref(images), indices.tolist()))
        return images

    monkeypatch.setattr("dit.api.evaluate.generate", watched)
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    settings = dict(extractor=CNN, bootstrap=0, device="cpu", num_inference_steps=1)
    dit.evaluate(pipe, random_pixels(12), batch_size=3, num_samples=11, **settings)
    # each is made once, the last batch is smaller
    assert [indices for _, indices in made] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


def test_a_batch_of_samples_that_fails_is_made_once_by_the_calling_thread(weights, monkeypatch):
    calls = []

    def failing(*_):
        calls.append(threading.current_thread())
        raise dit.UserError("NaN", "finite latents", "")

    monkeypatch.setattr("dit.api.evaluate.generate", failing)
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    with pytest.raises(dit.UserError, match="NaN"):
        dit.evaluate(pipe, random_pixels(4), extractor=CNN, device="cpu", batch_size=4)
    assert calls == [threading.current_thread()]


def test_mistakes_in_settings_of_a_pipeline_show_before_the_reference_is_read(weights, monkeypatch):
    monkeypatch.setattr("dit.api.evaluate.prepare_reference", unexpected)
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    for settings, message in (
        (dict(num_samples=1), "num_samples 1; expected a whole number, 2 or more"),
        (dict(num_samples=0), "num_samples 0"),
        (dict(num_images=4), "num_images with a pipeline to score; expected num_samples"),
        (dict(output_type="np"), "argument 'output_type'"),
        (dict(guidance_scale=-1.0), "guidance_scale=-1"),
    ):
        with pytest.raises(dit.UserError, match=message):
            dit.evaluate(pipe, random_pixels(4), extractor=CNN, device="cpu", **settings)


def unexpected(*_):
    pytest.fail("the reference was read")


def test_as_many_samples_as_one_image_are_a_mistake_in_the_reference(weights, tmp_path):
    one = str(save_images(tmp_path / "one", random_pixels(1)))
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    config = EvalConfig(run=weights, reference=one, extractor=(CNN,), out=tmp_path / "report")
    for score in (
        lambda: dit.evaluate(pipe, one, extractor=CNN, device="cpu"),
        lambda: command(config, Ranks()),
    ):
        message = f"1 image in reference {re.escape(one)}; expected at least 2"
        with pytest.raises(dit.UserError, match=message):
            score()


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        (3, {}, "samples of type int"),
        (random_pixels(1), {}, "1 image in samples"),
        (random_pixels(4).astype(np.float64), {}, "float64 images of shape"),
        (random_pixels(4), dict(reference=None), "no reference"),
        (random_pixels(4), dict(num_samples=3), "num_samples with images"),
        (random_pixels(4), dict(guidance_scale=3), "guidance_scale with images"),
        (random_pixels(4, 9), {}, "one size for both"),
        (random_pixels(4), dict(extractor="colour"), "extractor colour"),
        (random_pixels(4), dict(bootstrap=1), "bootstrap=1"),
        ("nowhere", {}, "nowhere is not a folder"),
    ],
)
def test_mistakes_are_errors_that_name_arguments(samples, settings, message):
    with pytest.raises(dit.UserError, match=message):
        dit.evaluate(samples, **{"reference": random_pixels(4), "extractor": CNN, **settings})
