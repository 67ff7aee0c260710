"""Trackers: TensorBoard, and Weights & Biases with --wandb."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from helpers.runs import TINIEST, TINY, train_run
from PIL import Image

from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.logs import read_metrics
from dit.training.monitoring import trackers
from dit.training.monitoring.trackers import LAYOUT, TensorBoard, require_wandb

TINY = dataclasses.replace(TINY, steps=4, sample_every=2, ckpt_every=2, keep=9, log_every=2)
STUB = """
import json
from pathlib import Path

OUT = Path(__file__).parent / "calls.jsonl"


class Error(Exception):
    pass


class Image:
    def __init__(self, picture):
        self.size = picture.size


class Run:
    def define_metric(self, name, step_metric):
        note("define_metric", name=name, step_metric=step_metric)

    def log(self, numbers):
        note("log", **{k: list(v.size) if isinstance(v, Image) else v for k, v in numbers.items()})

    def finish(self):
        note("finish")


def note(call, **values):
    with OUT.open("a") as file:
        file.write(json.dumps({"call": call, **values}) + "\\n")


def init(**settings):
    if settings["project"] == "closed":
        raise Error("no login")
    note("init", **settings)
    return Run()
"""


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """DiT-Ti is smaller in this file."""
    monkeypatch.setitem(SIZES, "Ti", TINIEST)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Return the calls of a stand-in for wandb so far."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    log = tmp_path / "site" / "wandb" / "calls.jsonl"
    yield lambda: [json.loads(line) for line in log.read_text().splitlines()]
    sys.modules.pop("wandb", None)


def test_tensorboard_has_a_layout_whose_charts_find_their_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_run(TINY, out=tmp_path / "run")
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    groups = {name.split("/")[0] for name in board.Tags()["scalars"]}
    assert groups == {"train", "optim", "speed"}
    assert board.Tags()["images"] == [trackers.SAMPLES]
    assert "custom_scalars__config__" in board.Tags()["tensors"]
    charts = {
        title: [t.removeprefix("^").removesuffix("$") for t in tags]
        for page in LAYOUT.values()
        for title, (_, tags) in page.items()
    }
    for title, tags in charts.items():
        for prefix in () if "EMA" in title else tags:
            assert any(name.startswith(prefix) for name in board.Tags()["scalars"]), prefix


def test_tensorboard_drops_what_is_done_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (2, 2.0)):
        board = TensorBoard(tmp_path, start)
        for step in range(start + 1, start + 5):
            board.write(step, {"train/loss": value})
        board.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 1.0), (2, 1.0)] + [
        (step, 2.0) for step in range(3, 7)
    ]


def test_wandb_gets_the_log_and_pictures_and_the_same_run_again(calls, tmp_path):
    config = dataclasses.replace(TINY, out=tmp_path / "run", wandb="digits", resume="auto")
    run = train_run(config)
    train_run(config, steps=6)
    begun = [call for call in calls() if call["call"] == "init"]
    assert len(begun) == 2
    assert (
        begun[0]["id"] == begun[1]["id"] == json.loads((run / "wandb.json").read_text())["digits"]
    )
    assert {(call["project"], call["resume"], call["name"]) for call in begun} == {
        ("digits", "allow", "run")
    }
    assert begun[0]["config"]["lr"] == TINY.lr
    logged = [call for call in calls() if "train/loss" in call]
    lines = read_metrics(run / "metrics.jsonl")
    assert [(call["step"], call["train/loss"]) for call in logged] == [
        (m["step"], m["loss"]) for m in lines
    ]
    pictures = [call for call in calls() if "samples" in call]
    assert [call["step"] for call in pictures] == [2, 4, 6]
    assert tuple(pictures[0]["samples"]) == Image.open(run / "samples" / "step-0000002.png").size
    assert [call["call"] for call in calls()].count("finish") == 2
    assert calls()[1] == {"call": "define_metric", "name": "*", "step_metric": "step"}


def test_every_project_has_an_id_of_its_own(calls, tmp_path):
    run = train_run(TINY, out=tmp_path / "run", sample_every=0, steps=2)
    for steps, project in ((4, "one"), (6, "two")):
        train_run(TINY, out=run, sample_every=0, steps=steps, wandb=project, resume="auto")
    one, two = (call["id"] for call in calls() if call["call"] == "init")
    assert one != two
    assert json.loads((run / "wandb.json").read_text()) == {"one": one, "two": two}


def test_a_wandb_that_refuses_is_named(calls, tmp_path):
    with pytest.raises(
        UserError, match=r"--wandb closed does not start \(no login\).*WANDB_MODE=offline"
    ):
        train_run(TINY, out=tmp_path / "run", wandb="closed")


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        train_run(TINY, out=tmp_path / "run", wandb="digits")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--wandb without a name"):
        require_wandb(" ")
    assert require_wandb(None) is None


def test_wandb_is_not_used_without_the_flag(calls, tmp_path):
    run = train_run(TINY, out=tmp_path / "run", steps=2)
    assert not Path(tmp_path / "site" / "wandb" / "calls.jsonl").exists()
    assert not (run / "wandb.json").exists()
