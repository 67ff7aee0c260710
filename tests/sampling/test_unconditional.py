"""Runs without classes, from data to report: flat folders, and --num-classes 0."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import prepared
from PIL import Image
from safetensors.torch import load_file

from dit.commands.encode import encode
from dit.commands.evaluate import evaluate
from dit.commands.info import info
from dit.commands.sample import sample
from dit.commands.sweep.command import sweep
from dit.commands.train import train
from dit.config import (
    EncodeConfig,
    EvalConfig,
    SampleConfig,
    SamplerConfig,
    SweepConfig,
    TrainConfig,
)
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.on_the_fly import OnlineLatents
from dit.latents.store import LatentStore
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import find_weights
from dit.runs.logs import read_metrics
from dit.sampling.classes import class_ids
from dit.sampling.load import load_run
from dit.sampling.sample_folder import sample_folder
from dit.training.batches import read_batch
from dit.training.build_card import build_card
from dit.training.inputs import RunInputs

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
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(
            root / f"{i:02d}.png"
        )
    return root


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the flat folder, with scores."""
    out = tmp_path_factory.mktemp("runs") / "faces"
    train(
        dataclasses.replace(
            TINY,
            data=str(faces),
            out=out,
            eval_every=2,
            eval_samples=6,
            eval_extractor="digits-cnn",
        ),
        ALONE,
    )
    return out


def table(run: Path) -> torch.Tensor:
    return load_file(find_weights(run))["y_embedder.embedding_table.weight"]


def test_a_flat_folder_trains_without_classes(run: Path):
    card = ModelCard.read(run)
    assert (card.network.num_classes, card.classes, card.unconditional, card.ids) == (
        0,
        [],
        True,
        [0],
    )
    assert len(table(run)) == 1
    with Image.open(run / "samples" / "step-0000002.png") as picture:
        assert picture.width == 4 + 4 * (
            64 + 4
        )  # four columns of 8 pixels, eight times enlarged, and no names
    scores = json.loads((run / "scores.json").read_text())
    assert [made["samples"]["labels"] for made in scores.values()] == ["none"]
    assert [made["sampling"]["cfg_scale"] for made in scores.values()] == [1.0]
    assert "FD(digits-cnn)" in read_metrics(run / "metrics.jsonl")[-1]
    said = info(run)
    assert "none (unconditional)" in said
    assert "label dropout" not in said


def test_labels_are_the_null_id_whatever_the_data(faces: Path, tmp_path: Path):
    for config in (
        dataclasses.replace(TINY, data=str(faces)),
        dataclasses.replace(TINY, num_classes=0),
    ):
        images = load_images(config.data, config.image_size)
        source = OnlineLatents(images, load_autoencoder("identity"), flips=False)
        card = build_card(
            dataclasses.replace(config, label_dropout=0.0, out=tmp_path / "none"), source
        )
        assert card.classes == []
        session = prepared(RunInputs(card, source, load_autoencoder("identity")))
        assert read_batch(session.stream, 0).labels.tolist() == [0] * 4


def test_classes_of_data_without_any_are_refused(faces: Path):
    with pytest.raises(UserError, match="--num-classes 3 for data without classes"):
        train(dataclasses.replace(TINY, data=str(faces), num_classes=3), ALONE)
    with pytest.raises(
        UserError, match=r"--num-classes 3 for data with 10 classes; expected 10 or more, or 0"
    ):
        train(dataclasses.replace(TINY, num_classes=3), ALONE)


def test_a_grid_has_no_names(run: Path, tmp_path: Path):
    out = sample(SampleConfig(run=run, out=tmp_path / "grid.png", per_class=10, **QUICK), ALONE)
    with Image.open(out) as picture:
        assert picture.size == (4 + 8 * (64 + 4), 4 + 2 * (64 + 4))


def test_folders_have_no_labels_and_go_on(run: Path, tmp_path: Path):
    loaded, config = load_run(run, ALONE.device), SamplerConfig(batch_size=3, **QUICK)
    found = {}
    for format in ("png", "npz"):
        for count in (4, 5, 5):
            out = sample_folder(
                loaded,
                config,
                class_ids(None, loaded.card)[0],
                count,
                tmp_path / format,
                format,
                ALONE,
            )
        found[format] = out
    assert [f.name for f in sorted(found["png"].iterdir())] == [
        *(f"{i:06d}.png" for i in range(5)),
        "samples.json",
    ]
    assert json.loads((found["png"] / "samples.json").read_text())["classes"] == []
    with np.load(found["npz"] / "samples.npz") as archive:
        assert archive.files == ["arr_0"]
        pixels = np.stack([np.array(Image.open(f)) for f in sorted(found["png"].glob("*.png"))])
        np.testing.assert_array_equal(archive["arr_0"], pixels)


def test_choosing_classes_is_refused(run: Path):
    with pytest.raises(UserError, match="--classes 0 for a run without classes"):
        sample(SampleConfig(run=run, classes=("0",), **QUICK), ALONE)


def test_a_report_has_no_classes(run: Path, tmp_path: Path):
    config = EvalConfig(run=run, num_samples=6, extractor=("digits-cnn",), bootstrap=0, **QUICK)
    for reference in (None, "digits"):
        out = evaluate(
            dataclasses.replace(config, reference=reference, out=tmp_path / str(reference)), ALONE
        )
        report = json.loads((out / "report.json").read_text())
        assert (report["classes"], report["digits_recognised"]) == ([], None)
        assert report["protocol"]["samples"]["labels"] == "none"
        assert "recognised" not in (out / "report.md").read_text()


def test_a_sweep_keeps_what_it_was_told_to_keep(run: Path, tmp_path: Path):
    config = SweepConfig(
        run=run,
        cfg_scale="1",
        steps="1,2",
        num_samples=4,
        extractor=("digits-cnn",),
        bootstrap=0,
        precision="fp32",
        out=tmp_path,
    )
    sweep(dataclasses.replace(config, keep_samples=True), ALONE)
    kept = sorted(tmp_path.glob("samples-*/*.png"))
    assert len(kept) == 8
    for point in (tmp_path / "points").glob("*.json"):
        point.unlink()
    sweep(config, ALONE)
    assert sorted(tmp_path.glob("samples-*/*.png")) == kept


def test_encoded_folders_train_too(faces: Path, run: Path, tmp_path: Path):
    stored = encode(
        EncodeConfig(data=str(faces), out=tmp_path / "latents", vae="identity", image_size=8), ALONE
    )
    assert LatentStore(stored).classes == []
    trained = train(dataclasses.replace(TINY, data=str(stored), out=tmp_path / "run"), ALONE)
    losses = [read_metrics(r / "metrics.jsonl")[-1]["loss"] for r in (trained, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # stored in half precision


def test_the_null_label_goes_from_runs_with_classes_to_those_without_and_back(
    faces: Path, run: Path, tmp_path: Path
):
    """One step at a learning rate of nothing leaves weights as they were started."""
    still = dataclasses.replace(TINY, steps=1, lr=1e-30, sample_every=0)
    there = train(dataclasses.replace(still, init=run, out=tmp_path / "classes"), ALONE)
    assert torch.equal(table(there)[-1], table(run)[0])
    assert len(table(there)) == 11
    back = train(
        dataclasses.replace(still, data=str(faces), init=there, out=tmp_path / "none"), ALONE
    )
    assert torch.equal(table(back), table(run))
