"""Runs without classes, from the data to the report.

The data is a flat folder of images, or any data with --num-classes 0.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.samples import pixels
from PIL import Image
from safetensors.torch import load_file

from dit.commands.encode import encode
from dit.commands.evaluate import evaluate
from dit.commands.info import info
from dit.commands.sample import sample
from dit.config import EncodeConfig, EvalConfig, SampleConfig, SamplerConfig, TrainConfig
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.online import OnlineLatents
from dit.latents.store import LatentStore
from dit.runs.card import ModelCard
from dit.runs.checkpoints import find_weights
from dit.runs.metrics import read_metrics
from dit.sampling.folder import sample_folder
from dit.sampling.load import class_ids, load_run
from dit.training.batches import draw_batch
from dit.training.prepare import build_card, prepare
from dit.training.trainer import train

ALONE, COUNT = Ranks(), 12
pytestmark = pytest.mark.usefixtures("small_networks")
TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=4,
    steps=2,
    warmup=1,
    sample_every=2,
    ckpt_every=0,
    log_every=2,
    precision="fp32",
)
QUICK = dict(steps=2, precision="fp32")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of images."""
    root, rng = tmp_path_factory.mktemp("data") / "faces", np.random.default_rng(0)
    root.mkdir()
    for i in range(COUNT):
        image = Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
        image.save(root / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the flat folder, with scores."""
    scored = dict(eval_every=2, eval_samples=6, eval_extractor="digits-cnn")
    out = tmp_path_factory.mktemp("runs") / "faces"
    train(dataclasses.replace(TINY, data=str(faces), out=out, **scored), ALONE)
    return out


def label_table(run: Path) -> torch.Tensor:
    return load_file(find_weights(run))["y_embedder.embedding_table.weight"]


def test_a_flat_folder_trains_without_classes(run: Path):
    card = ModelCard.read(run)
    assert (card.network.num_classes, card.classes) == (0, [])
    assert (card.unconditional, card.ids) == (True, [0])
    assert len(label_table(run)) == 1
    with Image.open(run / "samples" / "step-0000002.png") as picture:
        # four columns of 8 pixels, eight times enlarged, and no names
        assert picture.width == 4 + 4 * (64 + 4)

    (record,) = json.loads((run / "scores.json").read_text()).values()
    assert record["samples"]["labels"] == "none"
    assert record["sampling"]["cfg_scale"] == 1.0
    assert "FD(digits-cnn)" in read_metrics(run / "metrics.jsonl")[-1]
    text = info(run)
    assert "none (unconditional)" in text
    assert "label dropout" not in text


def test_labels_are_the_null_id_whatever_the_data(faces: Path, tmp_path: Path):
    for settings in (dict(data=str(faces)), dict(num_classes=0)):
        config = dataclasses.replace(TINY, **settings, label_dropout=0.0, out=tmp_path / "none")
        images = load_images(config.data, config.image_size)
        source = OnlineLatents(images, load_autoencoder("identity"), flips=False)
        card = build_card(config, source)
        assert card.classes == []
        session = prepare(card, source, load_autoencoder("identity"), ALONE)
        assert draw_batch(session, 0).labels.tolist() == [0] * 4


def test_numbers_of_classes_that_the_data_does_not_have_are_refused(faces: Path):
    with pytest.raises(UserError, match="--num-classes 3 for data without classes"):
        train(dataclasses.replace(TINY, data=str(faces), num_classes=3), ALONE)
    message = r"--num-classes 3 for data with 10 classes; expected 10 or more, or 0"
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(TINY, num_classes=3), ALONE)


def test_a_grid_has_no_names(run: Path, tmp_path: Path):
    out = sample(SampleConfig(run=run, out=tmp_path / "grid.png", per_class=10, **QUICK), ALONE)
    with Image.open(out) as picture:
        assert picture.size == (4 + 8 * (64 + 4), 4 + 2 * (64 + 4))


def test_choosing_classes_is_refused(run: Path):
    with pytest.raises(UserError, match="--classes 0 for a run without classes"):
        sample(SampleConfig(run=run, classes="0", **QUICK), ALONE)


def test_folders_have_no_labels_and_can_grow(run: Path, tmp_path: Path):
    loaded, config = load_run(run, ALONE.device), SamplerConfig(batch_size=3, **QUICK)
    ids = class_ids(None, loaded.card)
    for format in ("png", "npz"):
        for count in (4, 5, 5):
            sample_folder(loaded, config, ids, count, tmp_path / format, format, ALONE)

    png, npz = tmp_path / "png", tmp_path / "npz"
    names = [f"{i:06d}.png" for i in range(5)]
    assert sorted(f.name for f in png.iterdir()) == [*names, "samples.json"]
    assert json.loads((png / "samples.json").read_text())["classes"] == []
    with np.load(npz / "samples.npz") as archive:
        assert archive.files == ["arr_0"]
    assert torch.equal(pixels(npz), pixels(png))


def test_a_report_has_no_classes(run: Path, tmp_path: Path):
    config = EvalConfig(run=run, num_samples=6, extractor=("digits-cnn",), bootstrap=0, **QUICK)
    for reference in (None, "digits"):
        asked = dataclasses.replace(config, reference=reference, out=tmp_path / str(reference))
        out = evaluate(asked, ALONE)
        report = json.loads((out / "report.json").read_text())
        assert (report["classes"], report["digits_recognised"]) == ([], None)
        assert report["protocol"]["samples"]["labels"] == "none"
        assert "recognised" not in (out / "report.md").read_text()


def test_encoded_folders_train_too(faces: Path, run: Path, tmp_path: Path):
    config = EncodeConfig(data=str(faces), out=tmp_path / "latents", vae="identity", image_size=8)
    stored = encode(config, ALONE)
    assert LatentStore(stored).classes == []
    trained = train(dataclasses.replace(TINY, data=str(stored), out=tmp_path / "run"), ALONE)
    losses = [read_metrics(r / "metrics.jsonl")[-1]["loss"] for r in (trained, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # stored in half precision


def test_the_null_label_is_kept_when_classes_are_added_or_dropped(
    faces: Path, run: Path, tmp_path: Path
):
    """A step at a learning rate of nearly 0 leaves the initial weights."""
    still = dataclasses.replace(TINY, steps=1, lr=1e-30, sample_every=0)
    classes = train(dataclasses.replace(still, init=run, out=tmp_path / "classes"), ALONE)
    assert torch.equal(label_table(classes)[-1], label_table(run)[0])
    assert len(label_table(classes)) == 11
    none = dataclasses.replace(still, data=str(faces), init=classes, out=tmp_path / "none")
    assert torch.equal(label_table(train(none, ALONE)), label_table(run))
