"""A sweep scores each setting once, names the best, and checks everything before it samples."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import forked
from PIL import Image

from dit.cli import parse
from dit.commands.evaluate import evaluate
from dit.commands.sweep import charts, results, score_point
from dit.commands.sweep.command import sweep
from dit.commands.sweep.evaluations import count_evaluations
from dit.commands.sweep.points import Keys, Point, Setting, classifier_scale, describe, read_point
from dit.commands.sweep.ranking import paired_interval, rank
from dit.commands.sweep.settings import settings_of
from dit.config import EvalConfig, SampleConfig, SamplerConfig, SweepConfig
from dit.distributed.ranks import Ranks
from dit.errors import NotFinite, UserError
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import Score
from dit.models.sizes import SIZES
from dit.runs import posthoc_ema
from dit.runs.checkpoint_files import find_weights
from dit.runs.weights import read_weights
from dit.sampling import sample_folder
from dit.sampling.load import load_run

pytestmark = pytest.mark.usefixtures("small_networks")
COUNT = 24
ONE = dict(cfg_scale="1", steps="2")
CLASSIFIER = dict(model="Classifier-Ti/4", label_dropout=0.0)


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "KID_SUBSETS", 3)
        patch.setenv("DIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """No charts, which take most of the time."""
    monkeypatch.setattr(results, "draw", lambda sweep: {})


@pytest.fixture
def sampled(monkeypatch):
    """The settings that were sampled, in order."""
    calls, real = [], score_point.sample_to_folder

    def counted(run, config, *more):
        calls.append(config)
        return real(run, config, *more)

    monkeypatch.setattr(score_point, "sample_to_folder", counted)
    return calls


@pytest.fixture(scope="module")
def done(tiny_run, tmp_path_factory):
    """The folder of a finished sweep of 2 x 2 settings: read it only."""
    return run_sweep(tiny_run, out=tmp_path_factory.mktemp("sweep") / "done")


@pytest.fixture
def tracked(make_run):
    """A run with snapshots of two averages at steps 10 to 40; later weights are smaller."""
    home = make_run(ema_lengths=(0.05, 0.1), step=40)
    found = read_weights(find_weights(home))
    for step in (10, 20, 30, 40):
        for length in (0.05, 0.1):
            scale = 1.1 - step / 100 - length
            shrunk = {name: tensor * scale for name, tensor in found.state_dict.items()}
            posthoc_ema.write_snapshot(home, shrunk, found.card, length, step)
    return home


def flags(run, **more):
    given = dict(run=run, cfg_scale="1,2", steps="2,3", num_samples=COUNT, bootstrap=10)
    return SweepConfig(**{**given, **more})


def run_sweep(run, **more):
    return sweep(flags(run, **more), Ranks())


def load(run):
    return load_run(run, Ranks().device)


def read(out):
    return json.loads((out / "sweep.json").read_text(), parse_constant=pytest.fail)


def scores_in(out):
    return [point["scores"] for point in read(out)["points"]]


def points_of(out):
    return {path.stem: path for path in (out / "points").glob("*.json")}


def times_of(files):
    return {file: file.stat().st_mtime_ns for file in files}


# -- what it leaves --------------------------------------------------------------------------------


def test_every_setting_has_a_point_and_all_have_a_page(done):
    found = read(done)
    settings = {(p["steps"], p["cfg_scale"]): p for p in found["points"]}
    calls = {key: p["evaluations"] for key, p in settings.items()}
    assert calls == {(2, 1.0): 2, (2, 2.0): 4, (3, 1.0): 3, (3, 2.0): 6}
    assert {p["sampler"] for p in found["points"]} == {"dpmpp_2m"}  # auto, resolved
    assert set(points_of(done)) == {p["key"] for p in found["points"]}
    assert not list(done.glob("samples-*"))

    best = min(found["points"], key=lambda p: p["scores"]["FD(digits-cnn)"])
    assert found["best"] == best["key"]
    low, high = best["interval"]
    assert low < best["scores"]["FD(digits-cnn)"] < high
    assert found["protocol"]["samples"]["count"] == COUNT
    assert "cfg_scale" not in found["protocol"]["sampling"]  # that is what differs
    assert found["protocol"]["scores"]["bootstrap resamples"] == 10
    assert {path.stem for path in done.glob("*.png")} == {
        "fd-against-guidance",
        "quality-against-evaluations",
        "images-by-cfg-scale",
    }


def test_pages_are_complete_and_need_no_other_file(done):
    page, text = (done / "sweep.html").read_text(), (done / "sweep.md").read_text()
    setting = describe(read_point(done, read(done)["best"]).setting)
    assert f'<span class="setting">{setting}</span>' in page
    assert f"best setting: **{setting}**" in text
    assert page.count("data:image/png;base64") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<tr") == 1 + 4
    assert page.count('class="best"') == 1
    real = read(done)["floor"]["FD(digits-cnn)"]
    assert f"(N = {real['samples']}, 5 splits)" in text
    assert text.count("\n| ") > 6


def test_scores_are_those_of_evaluate(done, tiny_run, tmp_path):
    point = next(p for p in read(done)["points"] if p["steps"] == 3 and p["cfg_scale"] == 2)
    asked = dict(run=tiny_run, num_samples=COUNT, cfg_scale=2.0, steps=3, bootstrap=10)
    out = evaluate(EvalConfig(out=tmp_path / "one", **asked), Ranks())
    scores = json.loads((out / "report.json").read_text())["scores"]
    assert {name: score["value"] for name, score in scores.items()} == point["scores"]


# -- each once -------------------------------------------------------------------------------------


def test_an_interrupted_sweep_continues(done, undrawn, tiny_run, tmp_path, sampled, monkeypatch):
    out, real, seen = tmp_path / "sweep", score_point.extract, []

    def interrupted(*args):
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(score_point, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tiny_run, out=out)
    first = times_of(points_of(out).values())
    assert len(first) == 1
    sampled.clear()
    run_sweep(tiny_run, out=out)
    assert len(sampled) == 3  # the images of the second exist, and are only checked
    assert times_of(first) == first
    assert scores_in(out) == scores_in(done)
    assert [p["seconds"] is None for p in read(out)["points"]] == [False, True, False, False]


def test_a_wider_range_samples_only_what_is_new(undrawn, tiny_run, tmp_path, sampled, capsys):
    out = run_sweep(tiny_run, out=tmp_path / "sweep", steps="2")
    sampled.clear()
    run_sweep(tiny_run, out=out, steps="2", cfg_scale="1:3:1", batch_size=5)
    assert [setting.cfg_scale for setting in sampled] == [3.0]
    assert "3 settings of 24 images each, 2 of them scored before" in capsys.readouterr().out
    assert len(read(out)["points"]) == 3


def test_a_damaged_point_is_scored_again(undrawn, tiny_run, tmp_path, sampled, capsys):
    out = run_sweep(tiny_run, out=tmp_path / "sweep", steps="2")
    before, files = scores_in(out), sorted(points_of(out).values())
    files[0].write_text(files[0].read_text()[:-100])
    files[1].with_suffix(".png").write_bytes(b"no picture")
    sampled.clear()
    run_sweep(tiny_run, out=out, steps="2")
    assert len(sampled) == 2
    assert scores_in(out) == before
    assert "is missing or damaged" in capsys.readouterr().out


def test_images_stay_if_asked(undrawn, tiny_run, tmp_path):
    out = run_sweep(tiny_run, out=tmp_path / "sweep", keep_samples=True, **ONE)
    images = times_of(out.glob("samples-*/*.png"))
    assert len(images) == COUNT
    run_sweep(tiny_run, out=out, bootstrap=0, **ONE)
    assert read(out)["points"][0]["interval"] is None
    assert times_of(out.glob("samples-*/*.png")) == images


def test_a_setting_of_nan_stops_no_other(tiny_run, tmp_path, monkeypatch, capsys):
    real = sample_folder.generate

    def unstable(pipeline, labels, indices):
        if pipeline.settings.cfg_scale == 1.5 and 7 in indices:
            raise NotFinite(7, 7)
        return real(pipeline, labels, indices)

    monkeypatch.setattr(sample_folder, "generate", unstable)
    more = dict(steps="2", cfg_scale="1.5,1,2", batch_size=4, keep_samples=True)
    out = run_sweep(tiny_run, out=tmp_path / "sweep", **more)
    found = read(out)
    assert found["points"][0]["scores"] == {"FD(digits-cnn)": None}
    assert [len(p["scores"]) > 5 for p in found["points"]] == [False, True, True]
    assert found["best"] in [p["key"] for p in found["points"][1:]]
    assert len(list(out.glob("samples-*"))) == 2  # none of the failed one

    reason = "image 7 (class 7) came out as NaN or infinite"
    warning = f"1 setting has no distance: cfg-scale 1.5, 2 steps, dpmpp_2m ({reason})."
    assert warning in found["summary"]
    assert all(warning in (out / name).read_text() for name in ("sweep.md", "sweep.html"))
    assert warning in capsys.readouterr().out
    assert (out / "images-by-cfg-scale.png").exists()
    assert found["protocol"]["samples"]["count"] == COUNT

    monkeypatch.setattr(score_point, "sample_to_folder", pytest.fail)  # it is not tried again
    monkeypatch.setattr(results, "draw", lambda sweep: {})
    run_sweep(tiny_run, out=out, **more)
    assert read(out) == found


def test_nothing_is_resampled_without_a_distance(undrawn, tiny_run, tmp_path, monkeypatch):
    reason, name = "the arithmetic failed", "FD(digits-cnn)"
    failed = {name: Score(name, None, "lower", COUNT, reason=reason)}
    monkeypatch.setattr(score_point, "score_samples", lambda *_: failed)
    monkeypatch.setattr(score_point, "bootstrap", pytest.fail)
    out = run_sweep(tiny_run, out=tmp_path / "sweep", **ONE)
    assert read(out)["summary"] == ["No setting has a distance: the arithmetic failed."]
    assert "No setting has a distance" in (out / "sweep.html").read_text()


def test_keys_differ_where_scores_do(tiny_run, make_run):
    run, other = load(tiny_run), load(make_run(ema=0.9))

    def key(run=run, count=COUNT, reference="reference", bootstrap=10, **setting):
        return Keys(run, count, reference, [], bootstrap)(SamplerConfig(**setting))

    assert key() == key(batch_size=3)
    changes = (dict(count=25), dict(reference="x"), dict(bootstrap=11), dict(seed=1), dict(steps=5))
    elsewhere = key(dataclasses.replace(run, device=torch.device("meta")))
    assert len({key(), key(other), elsewhere, *(key(**change) for change in changes)}) == 8


# -- settings --------------------------------------------------------------------------------------


def test_equal_meanings_are_one_setting(tiny_run):
    more = dict(interval="0-1,0.2-0.8", steps="4", sampler="auto,dpmpp_2m")
    found = settings_of(flags(tiny_run, **more), load(tiny_run))
    assert [(s.cfg_scale, s.cfg_interval) for s in found] == [
        (1.0, (0.0, 1.0)),
        (2.0, (0.0, 1.0)),
        (2.0, (0.2, 0.8)),
    ]
    assert {(s.sampler, s.steps) for s in found} == {("dpmpp_2m", 4)}


def command_of(points, cfg):
    """The flags of the command that samples with the best point."""
    shown = results.command(results.Sweep("t", cfg, points, rank(points), {}, Path()))
    return parse(SampleConfig, shlex.split(shown)[2:], "sample.py")


def test_flags_reach_the_settings_that_use_them_and_the_command(tiny_run):
    more = dict(cfg_channels=2, eta=0.5, seed=3, precision="fp32", interval="0.2-0.8", steps="4")
    asked = flags(tiny_run, sampler="ddim", **more)
    settings = settings_of(asked, load(tiny_run))
    shared = {(s.cfg_channels, s.eta, s.seed, s.precision) for s in settings}
    assert shared == {(None, 0.5, 3, "fp32"), (2, 0.5, 3, "fp32")}
    two = dataclasses.replace(asked, sampler="ddim,ddpm", variance="large")
    of_samplers = {(s.sampler, s.eta, s.variance) for s in settings_of(two, load(tiny_run))}
    assert of_samplers == {("ddim", 0.5, "auto"), ("ddpm", 0.0, "large")}

    points = [dataclasses.replace(point(1 / s.cfg_scale), setting=s) for s in settings]
    parsed = command_of(points, asked)
    values = {name: getattr(parsed, name) for name in vars(SamplerConfig())}
    assert {**values, "ema_length": None} == vars(settings[-1])
    assert parsed.run == tiny_run


def test_the_command_names_no_defaults():
    points, cfg = [point(1.0)], SweepConfig(run=Path("my run"))
    shown = results.command(results.Sweep("t", cfg, points, rank(points), {}, Path()))
    assert shown == "dit sample --run 'my run' --sampler ddim --steps 10 --cfg-scale 1"


def test_default_scales_depend_on_what_guides(tiny_run, make_run):
    """1 to 4 for classifier-free guidance and for a guide, else none."""
    bare, undropped = make_run("bare", num_classes=0), make_run("undropped", label_dropout=0.0)
    weak, classifier = make_run("weak", num_classes=0), make_run("classifier", **CLASSIFIER)
    cases = [
        (tiny_run, {}, 7),
        (bare, {}, 1),
        (undropped, {}, 1),
        (bare, dict(guide=weak), 7),
        (tiny_run, dict(classifier=classifier), 1),
        (bare, dict(classifier=classifier, classifier_scale="0,1,2"), 3),
        (tiny_run, dict(classifier=classifier, cfg_scale="1,2"), 2),
    ]
    for run, more, count in cases:
        assert len(settings_of(SweepConfig(run=run, steps="2", **more), load(run))) == count


def test_guide_and_classifier_are_in_the_settings_that_use_them(tiny_run, make_run):
    """No guide at scale 1, no classifier at weight 0; their weights are pinned to a file."""
    weak, classifier = make_run("weak", objective="x0"), make_run("classifier", **CLASSIFIER)
    more = dict(steps="4", guide=weak, classifier=classifier, classifier_scale="0,2")
    asked, run = flags(tiny_run, **more), load(tiny_run)
    settings = settings_of(asked, run)
    files = find_weights(weak), find_weights(classifier)
    assert [(s.cfg_scale, s.guide, s.classifier, classifier_scale(s)) for s in settings] == [
        (1.0, None, None, 0.0),
        (1.0, None, files[1], 2.0),
        (2.0, files[0], None, 0.0),
        (2.0, *files, 2.0),
    ]
    calls = [count_evaluations(run, dataclasses.replace(s, sampler="euler")) for s in settings]
    assert calls == [4, 4 + 3, 8, 8 + 3]  # pure noise is not classified
    assert describe(settings[3]) == "cfg-scale 2, classifier-scale 2, 4 steps, dpmpp_2m"

    points = [dataclasses.replace(point(2.0 - i / 10), setting=s) for i, s in enumerate(settings)]
    assert charts.varied(points) == ["cfg-scale", "classifier-scale"]
    assert ("classifier-scale", "largest", 2.0) in rank(points).edges
    assert charts.over_scale(points, rank(points), {}, "classifier-scale") is not None
    lines = charts.lines_of(points, ("sampler", "classifier-scale"), share_unguided=True)
    assert set(lines) == {"classifier-scale 0", "classifier-scale 2"}
    shown = command_of(points, asked)
    assert (shown.guide, shown.classifier, shown.classifier_scale) == (*files, 2.0)


def test_an_unconditional_run_has_classes_only_with_a_classifier(
    make_run, tmp_path, undrawn, sampled
):
    """The point of weight 0 is that of a sweep without classifier: one key, unlabelled samples."""
    run, classifier = make_run("bare", num_classes=0), make_run("classifier", **CLASSIFIER)
    asked = flags(run, out=tmp_path / "sweep", num_samples=10, keep_samples=True, **ONE)
    out = sweep(dataclasses.replace(asked, classifier=classifier, classifier_scale="0,2"), Ranks())
    points = [json.loads(path.read_text()) for path in points_of(out).values()]
    labels = {bool(p["setting"]["classifier"]): p["protocol"]["samples"]["labels"] for p in points}
    assert labels == {False: "none", True: "10 classes, 1 images each"}
    shared = read(out)["protocol"]["sampling"]
    assert shared["classifier"] == "Classifier-Ti/4 at step 3"
    assert "classifier_scale" not in shared
    assert "| classifier | Classifier-Ti/4 at step 3 |" in (out / "sweep.md").read_text()
    assert len(list(out.glob("samples-*/labels.csv"))) == 1
    sweep(asked, Ranks())
    assert len(sampled) == len(points_of(out)) == 2


def test_averages_are_an_axis(tracked, tmp_path, sampled, monkeypatch):
    """Each length is scored as its file of weights is, written once, and in the command."""
    asked = dict(ema_length="0.06:0.08:0.02,0.1", cfg_scale="1,2", steps="2")
    out = run_sweep(tracked, out=tmp_path / "sweep", **asked)
    found = read(out)
    grid = [(length, scale) for length in (0.06, 0.08, 0.1) for scale in (1.0, 2.0)]
    assert [(p["ema_length"], p["cfg_scale"]) for p in found["points"]] == grid
    files = times_of(tracked.glob("ema-length-*"))
    assert len(files) == 3
    assert {path.stem for path in out.glob("*.png")} == {
        "fd-against-ema-length",
        "fd-against-guidance",
        "images-by-ema-length",
    }
    best = next(p for p in found["points"] if p["key"] == found["best"])
    file = f"{tracked}/ema-length-{best['ema_length']:g}-step-0000040.safetensors"
    assert f"--run {file}" in (out / "sweep.html").read_text()

    monkeypatch.setattr(results, "draw", lambda sweep: {})
    file = tracked / "ema-length-0.06-step-0000040.safetensors"
    (alone,) = scores_in(run_sweep(file, out=tmp_path / "alone", cfg_scale="2", steps="2"))
    assert alone == found["points"][1]["scores"]
    record = json.loads(points_of(out)[found["points"][1]["key"]].read_text())["protocol"]
    assert record["sampling"]["ema"] == "length 0.06"

    sampled.clear()
    run_sweep(tracked, out=out, **{**asked, "ema_length": "0.06,0.07,0.08", "cfg_scale": "1"})
    assert [s.ema_length for s in sampled] == [0.07]
    assert times_of(files) == files


def test_averages_in_words():
    lengths = enumerate((0.05, 0.1, 0.15), start=1)
    points = [point(float(i), ema_length=length) for i, length in lengths]
    assert describe(points[0].setting) == "cfg-scale 1, 10 steps, ddim, ema-length 0.05"
    assert charts.varied(points) == ["ema-length"]
    assert rank(points).edges == [("ema-length", "smallest", 0.05)]
    where = "The best lies at the smallest ema-length of the sweep (0.05)"
    assert texts_of(points)[1] == [f"{where}: a smaller one may be better."]
    assert charts.over_scale(points, rank(points), {}, "ema-length") is not None
    assert charts.over_scale(points, rank(points), {}) is None


@pytest.mark.parametrize(
    ("sampler", "scale", "interval", "calls"),
    [
        ("euler", 1.0, (0.0, 1.0), 4),
        ("euler", 2.0, (0.0, 1.0), 8),
        ("heun", 1.0, (0.0, 1.0), 7),
        ("euler", 2.0, (0.4, 0.8), 6),  # times 1, 0.75, 0.5, 0.25: two of them guided
    ],
)
@pytest.mark.parametrize("cache", [None, 2])
def test_network_calls_are_counted(tiny_run, sampler, scale, interval, calls, cache):
    setting = SamplerConfig(
        sampler=sampler, steps=4, cfg_scale=scale, cfg_interval=interval, block_cache=cache
    )
    assert count_evaluations(load(tiny_run), setting) == calls


def sweep_on_ranks(ranks, config):
    SIZES["Ti"] = SMALL
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more while the other waits
    sweep(config, ranks)


@pytest.mark.slow
def test_two_ranks_score_bitwise_as_one(tiny_run, tmp_path, undrawn):
    asked = flags(tiny_run, steps="3", cfg_scale="2")
    sweep(dataclasses.replace(asked, out=tmp_path / "one"), Ranks())
    forked.run(2, sweep_on_ranks, dataclasses.replace(asked, out=tmp_path / "two"))
    # but for KID: the forked processes have 100 subsets, this one 3
    one, two = (
        {name: value for name, value in scores_in(tmp_path / n)[0].items() if "KID" not in name}
        for n in ("one", "two")
    )
    assert one == two


# -- the best --------------------------------------------------------------------------------------


def point(value, replicates=(), scale=1.0, steps=10, calls=10, **more):
    setting = Setting(sampler="ddim", steps=steps, cfg_scale=scale, **more)
    reason = "the arithmetic failed" if value is None else None
    score = Score("FD(x)", value, "lower", 100, reason=reason)
    return Point(f"{scale}-{steps}", setting, {"FD(x)": score}, list(replicates), calls, 1.0, {})


def test_settings_that_share_noise_are_compared_in_pairs():
    shared, own = np.random.default_rng(0).normal(size=(2, 200))
    best = point(1.0, 1.3 + shared)
    worse = point(1.2, 1.5 + shared + 0.01 * own)  # noise of 1, but the same noise
    low, high = paired_interval(worse, best)
    assert 0.17 < low < 0.2 < high < 0.23
    low, high = paired_interval(point(1.2, 1.5 + own), best)
    assert low < -2 < 2 < high


def test_ranking_has_ties_and_the_cheapest_of_them():
    noise = np.random.default_rng(0).normal(size=50)
    far, best = point(3.0, 3 + 0.1 * noise, calls=1), point(1.0, 1 + noise, calls=50)
    tied, missing = point(1.05, 1 - noise, calls=5), point(None)
    points = [far, tied, best, missing]
    found = rank(points)
    assert (found.order, found.best, found.cheapest(points)) == ([2, 1, 0], 2, 1)
    assert 1 in found.tied
    certain = rank([point(3.0, 3 + 0.01 * noise), point(1.0, 1 + 0.01 * noise)])
    assert certain.tied == []
    assert certain.differences[0][0] > 1.9
    unknown = rank([point(1.0), point(2.0)])
    assert (unknown.tied, unknown.differences) == ([], {})
    assert rank([missing]).order == []


@pytest.mark.parametrize(
    ("best", "scales", "steps", "edges"),
    [
        ((2.0, 10), (1.0, 2.0, 3.0), (10,), []),
        ((3.0, 10), (1.0, 2.0, 3.0), (10,), [("cfg-scale", "largest", 3.0)]),
        ((1.0, 10), (1.0, 2.0, 3.0), (10,), []),  # below 1 there is no guidance
        ((1.5, 10), (1.5, 2.0), (10,), [("cfg-scale", "smallest", 1.5)]),
        ((2.0, 50), (2.0,), (10, 25, 50), [("steps", "largest", 50)]),
        ((2.0, 50), (2.0,), (50,), []),
    ],
)
def test_best_at_the_end_of_the_range(best, scales, steps, edges):
    grid = [point(float((s, n) != best), scale=s, steps=n) for s in scales for n in steps]
    assert rank(grid).edges == edges


def texts_of(points):
    found = results.Sweep("t", SweepConfig(run=Path("run")), points, rank(points), {}, Path())
    return results.sentences(found), results.warnings(found)


def test_findings_in_words():
    noise = np.random.default_rng(0).normal(size=50)
    best, tied = (
        point(1.0, 1 + noise, scale=2.0, calls=50),
        point(1.1, 1 - noise, scale=1.0, calls=25),
    )
    sentences, warnings = texts_of([best, tied, point(9.0, 9 + noise, scale=1.5)])
    assert sentences[0].startswith("Best: cfg-scale 2, 10 steps, ddim: FD(x) 1.000 (0.0 – ")
    cheap = "cfg-scale 1, 10 steps, ddim"
    assert sentences[1] == f"1 setting cannot be told apart from it: {cheap}."
    instead = "25 network calls an image instead of 50"
    assert f"cheapest of these is {cheap}: {instead}" in sentences[2]
    where = "The best lies at the largest cfg-scale of the sweep (2)"
    assert warnings == [f"{where}: a larger one may be better."]

    certain = texts_of([point(1.0, 1 + noise), point(9.0, 9 + noise, scale=2.0)])[0]
    assert "beyond the noise" in certain[1]
    assert "--bootstrap 0" in texts_of([point(1.0), point(9.0, scale=2.0)])[0][1]
    assert texts_of([point(None)])[0] == ["No setting has a distance: the arithmetic failed."]
    guided = describe(Setting(sampler="ddim", steps=5, cfg_scale=1.5, cfg_interval=(0.2, 0.8)))
    assert guided == "cfg-scale 1.5, times 0.2-0.8, 5 steps, ddim"


# -- charts ----------------------------------------------------------------------------------------


def test_points_without_guidance_belong_to_every_interval():
    guided = point(2.0, scale=2.0), point(1.0, scale=2.0, cfg_interval=(0.2, 0.8))
    points = [point(3.0, scale=1.0), *guided]
    lines = charts.lines_of(points, ("sampler", "steps", "interval"), share_unguided=True)
    assert {label: [p.distance for p in line] for label, line in lines.items()} == {
        "times 0.2-0.8": [1.0, 3.0],
        "times 0-1": [2.0, 3.0],
    }


def test_frontier_is_what_no_cheaper_setting_beats():
    costs = ((5.0, 10), (4.0, 10), (4.5, 20), (1.0, 30), (2.0, 40))
    found = charts.frontier([point(value, calls=calls) for value, calls in costs])
    assert [(p.evaluations, p.distance) for p in found] == [(10, 4.0), (30, 1.0)]


STEPS = [point(1.0, steps=5, calls=5), point(2.0, calls=10), point(None, steps=7, calls=7)]


@pytest.mark.parametrize(
    ("points", "drawn"),
    [
        ([point(1.0)], (False, False)),
        ([point(1.0), point(2.0, scale=2.0, calls=20)], (True, False)),
        (STEPS, (False, True)),
        ([point(None)], (False, False)),
    ],
    ids=["one", "scales", "steps", "none"],
)
def test_there_is_a_chart_only_where_something_varies(points, drawn):
    found = (
        draw(points, rank(points), {}) for draw in (charts.over_scale, charts.over_evaluations)
    )
    assert tuple(chart is not None for chart in found) == drawn


def test_strip_shows_the_same_images_along_the_first_axis(tmp_path):
    points = [point(float(i), scale=float(i), steps=n) for i in (1, 2, 3) for n in (5, 10)]
    (tmp_path / "points").mkdir()
    for p in points:
        picture = Image.new("RGB", (100, 20), (int(80 * p.setting.cfg_scale), p.setting.steps, 0))
        picture.save(tmp_path / "points" / f"{p.key}.png")
    axis, picture = charts.strip(points, rank(points), tmp_path)
    assert axis == "cfg-scale"
    seen = [picture.getpixel((picture.width - 9, 14 + 24 * i)) for i in range(3)]
    assert seen == [(80, 5, 0), (160, 5, 0), (240, 5, 0)]
    assert charts.strip(points[:1], rank(points[:1]), tmp_path) == ("", None)


def test_strip_of_an_unguided_best_has_one_interval(tmp_path, monkeypatch):
    guided = [
        point(distance, scale=scale, cfg_interval=times)
        for scale in (2.0, 3.0)
        for distance, times in ((1 + scale, (0.0, 1.0)), (scale, (0.2, 0.8)))
    ]
    points, shown = [point(1.0), *guided], []
    monkeypatch.setattr(charts, "picture_file", lambda out, key: tmp_path / "x.png")
    monkeypatch.setattr(charts, "grid", lambda images, labels, columns: shown.extend(labels))
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    charts.strip(points, rank(points), tmp_path)
    best = "cfg-scale 1: 1.000, best"
    assert shown == [best, "cfg-scale 2: 2.000", "cfg-scale 3: 3.000"]


def test_panels_are_of_the_network_that_ranks(monkeypatch):
    names = [f"{kind}({network})" for network in ("x", "y") for kind in ("FD", *charts.PANELS)]
    scores = {name: Score(name, 0.5, "lower", 9) for name in names}
    points = [dataclasses.replace(point(1.0, scale=s), scores=scores) for s in (1.0, 2.0)]
    drawn = []
    monkeypatch.setattr(charts, "_draw_shares", lambda axis, lines, name, *more: drawn.append(name))
    charts.over_scale(points, rank(points), {})
    assert drawn == [f"{panel}(x)" for panel in charts.PANELS]


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(cfg_scale="4:1:1"), "--cfg-scale 4:1:1, which runs backwards"),
        (dict(sampler="dpmpp2m"), "did you mean dpmpp_2m"),
        (dict(cfg_scale="1:100:1", steps="1:20:1"), "the sweep makes 2,000 settings"),
        (dict(cfg_channels=9), "--cfg-channels 9"),
        (dict(cfg_scale="1", interval="0.2-0.8"), "--cfg-interval 0.2-0.8 with --cfg-scale 1"),
        (dict(cfg_scale="1", guide=Path("weak")), "--guide weak with --cfg-scale 1"),
        (dict(sampler="ddpm,euler", eta=0.5), "--eta 0.5 with --sampler ddpm,euler"),
        (dict(steps=""), "--steps '' with an empty entry"),
        (dict(reference="nowhere"), "nowhere"),
        (dict(extractor=("inception",), weights=("none.pth",)), "none.pth"),
        (dict(ema_length="0.1"), "no snapshots of averages"),
        (dict(ema_length="0.1,0.5"), "--ema-lengths 0.5"),
        (dict(ema_length="short"), "--ema-lengths 'short'"),
        (dict(classifier_scale="1,2"), "--classifier-scale 1,2 without --classifier"),
    ],
)
def test_mistakes_are_found_before_sampling(tiny_run, tmp_path, sampled, wrong, message):
    with pytest.raises(UserError) as error:
        run_sweep(tiny_run, out=tmp_path / "sweep", **wrong)
    assert message in str(error.value)
    assert sampled == []


def test_a_length_that_snapshots_cannot_make_is_refused(tracked, tmp_path, sampled):
    with pytest.raises(UserError, match="10% at most"):
        run_sweep(tracked, out=tmp_path / "sweep", ema_length="0.001")
    assert sampled == []


def test_a_setting_that_the_run_cannot_serve_stops_all(make_run, tmp_path, sampled):
    run = make_run(process="linear", objective="eps")
    with pytest.raises(UserError, match="--steps 2000"):
        run_sweep(run, out=tmp_path / "sweep", steps="2,2000")
    assert sampled == []


def test_a_reference_without_a_distance_is_refused(tiny_run, tmp_path, sampled):
    file = tmp_path / "stats.npz"
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError):
        run_sweep(tiny_run, out=tmp_path, reference=str(file), extractor=("digits-cnn",))
    assert sampled == []


def test_results_of_other_numbers_of_images_stay(done, tiny_run, sampled):
    before = {path: path.read_bytes() for path in done.glob("sweep.*")}
    message = r"--num-samples 12 for .*, whose results are of 24 images a setting"
    with pytest.raises(UserError, match=message):
        run_sweep(tiny_run, out=done, num_samples=12)
    assert {path: path.read_bytes() for path in done.glob("sweep.*")} == before
    assert sampled == []


def test_one_sweep_at_a_time_in_a_folder(tiny_run, tmp_path):
    with (
        Ranks().lock_folder(tmp_path),
        pytest.raises(UserError, match="another process is at work"),
    ):
        run_sweep(tiny_run, out=tmp_path)
