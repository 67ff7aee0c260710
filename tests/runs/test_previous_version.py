"""A run of commit 2257fc1 after 4 of 6 steps, with points and samples of a sweep, goes on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from dit.commands.info import info
from dit.commands.sweep import points
from dit.commands.sweep.points import Keys
from dit.commands.train import train
from dit.config import SamplerConfig
from dit.distributed.device import library_versions
from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.metrics.compute import Score
from dit.evaluation.samples import settings_key
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import checkpoint_name, latest_checkpoint
from dit.runs.logs import read_metrics
from dit.sampling import load as trained
from dit.sampling.load import load_run
from dit.sampling.sample_folder import sample_folder
from dit.training.monitoring import evaluation as scores
from dit.training.monitoring.eval_protocol import eval_key
from dit.training.monitoring.previews import preview_settings
from dit.utils.files import write_json
from dit.utils.typed_json import from_json

OLD = Path(__file__).parents[1] / "data" / "run-of-2257fc1"
CPU = torch.device("cpu")
FD = "FD(digits-cnn)"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The size that the run's network had when it was made."""
    monkeypatch.setitem(SIZES, "Ti", dict(depth=1, hidden_size=4, num_heads=1))


@pytest.fixture
def home(tmp_path) -> Path:
    """A copy to work on."""
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def old_points() -> dict[str, dict]:
    """What is in the files of the sweep, by their names."""
    return {
        file.stem: json.loads(file.read_text())
        for file in sorted((OLD / "sweep" / "points").glob("*.json"))
    }


def go_on(home: Path) -> None:
    """As train.py --resume does."""
    train(dataclasses.replace(ModelCard.read(home).config, resume=str(home), out=home), Ranks())


def test_info_knows_it():
    table = info(OLD)
    assert "DiT-Ti/4" in table
    assert "checksums verified" in table


def test_its_eval_stays(home):
    """Computed from scores.json, so that it is the same on any machine."""
    ((eval, record),) = json.loads((home / "scores.json").read_text()).items()
    card = ModelCard.read(home)
    features = record["features (digits-cnn)"]
    (extractor,) = load_extractors(["digits-cnn"], (), CPU)
    assert extractor.checksum == features["weights_sha256"]
    count, digest = card.config.eval_samples, record["reference"]["sha256"]
    assert eval_key(count, preview_settings(card), digest, extractor) == eval == "c4448e"


def test_training_goes_on_and_its_best_checkpoint_stays(home, monkeypatch):
    monkeypatch.setattr(
        scores.references,
        "score_samples",
        lambda *_: {
            name: Score(name, 1e9 if name == FD else None, "lower", 10)
            for name in scores.score_names("digits-cnn")
        },
    )
    (before,) = json.loads((home / "scores.json").read_text())
    go_on(home)
    assert (home / "best").resolve().name == checkpoint_name(4)
    assert latest_checkpoint(home).name == checkpoint_name(6)
    assert {line["eval"] for line in read_metrics(home / "metrics.jsonl")} == {before}
    assert [*json.loads((home / "scores.json").read_text())] == [before]


def test_what_is_off_is_not_in_the_protocol_of_scores(home):
    old = json.loads((home / "scores.json").read_text())["c4448e"]["sampling"]
    (home / "scores.json").unlink()
    go_on(home)
    (new,) = json.loads((home / "scores.json").read_text()).values()
    network = new["sampling"].pop("network")
    assert new["sampling"] == old
    assert network == json.loads((OLD / "config.json").read_text())["network"]


def test_its_samples_go_on(home):
    """Also under the name that evaluation and sweep give the folder."""
    run = load_run(home, CPU)
    (folder,) = (home / "sweep").glob("samples-*")
    setting = SamplerConfig(sampler="dpmpp_2m", steps=2, precision="fp32")
    assert folder.name == f"samples-{settings_key(run, setting, 2)}"
    record = json.loads((folder / "samples.json").read_text())
    assert [*record["versions"]] == [*run.versions]
    write_json(
        folder / "samples.json", {**record, "versions": run.versions}
    )  # of the libraries here
    assert sample_folder(run, setting, range(10), 5, folder, "png", Ranks()) == folder
    assert len(list(folder.glob("*.png"))) == 5
    assert json.loads((folder / "samples.json").read_text()) == {
        **record,
        "versions": run.versions,
        "num_samples": 5,
    }


def test_its_points_keep_their_keys(monkeypatch):
    found = old_points()
    assert len(found) == 2
    run = load_run(OLD, CPU)
    (extractor,) = load_extractors(["digits-cnn"], (), CPU)
    for key, point in found.items():
        software = point["protocol"]["software"]
        for module in (trained, points):
            monkeypatch.setattr(
                module,
                "library_versions",
                lambda *names, then=software: {name: then[name] for name in names},
            )
        keys = Keys(run, 2, point["protocol"]["reference"]["sha256"], [extractor], 0)
        assert keys(from_json(SamplerConfig, point["setting"])) == key
        assert points.read_point(OLD / "sweep", key).setting == from_json(
            points.Setting, point["setting"]
        )


def test_runs_of_text_name_their_libraries_too(home):
    run = load_run(home, CPU)
    names = ["dit", "torch", "numpy", "timm", "diffusers"]
    assert run.versions == library_versions(*names)
    heard = dataclasses.replace(
        run, denoise=dataclasses.replace(run.denoise, network=trained.Captioned(None, None))
    )
    assert [*heard.versions] == [*names, "transformers", "tokenizers"]


def test_records_of_a_network_have_only_what_is_not_default(home):
    spec = load_run(home, CPU).card.network
    assert spec.summary == json.loads((home / "config.json").read_text())["network"]
    other = dataclasses.replace(spec, conditioning="text", text_width=64)
    assert other.summary == {**spec.summary, "conditioning": "text", "text_width": 64}
