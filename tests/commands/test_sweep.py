"""A sweep does each setting once, says what is best and how sure that is, and refuses nonsense before it samples."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

from benchmarks import forked
from dit.cli import parse
from dit.commands.evaluate import evaluate
from dit.commands.sweep import charts, results
from dit.commands.sweep import sweep as module
from dit.commands.sweep.points import Keys, Point, Setting, classifier_scale, describe
from dit.commands.sweep.ranking import paired_interval, rank
from dit.commands.sweep.sweep import count_evaluations, settings_of, sweep
from dit.config import EvalConfig, SampleConfig, SamplerConfig, SweepConfig
from dit.distributed.ranks import Ranks
from dit.errors import NotFinite, UserError
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import Score
from dit.models.dit import SIZES
from dit.runs import posthoc_ema as posthoc
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_weights
from dit.sampling import folder as sample_folder
from dit.sampling.load import load_run

pytestmark = pytest.mark.usefixtures("small_networks")
COUNT = 24


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "KID_SUBSETS", 3)
        patch.setenv("DIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, which take most of the time."""
    monkeypatch.setattr(results, "draw", lambda sweep: {})


def flags(run, **more):
    return SweepConfig(
        **{**dict(run=run, cfg_scale="1,2", steps="2,3", num_samples=COUNT, bootstrap=10), **more}
    )


def read(out):
    return json.loads((out / "sweep.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def done(tiny_run, tmp_path_factory):
    """The folder of a finished sweep of 2 x 2 settings: read it only."""
    return sweep(flags(tiny_run, out=tmp_path_factory.mktemp("sweep") / "done"), Ranks())


@pytest.fixture
def sampled(monkeypatch):
    """The settings that were sampled, in order."""
    calls, real = [], module.sampled

    def counted(run, config, *more):
        calls.append(config)
        return real(run, config, *more)

    monkeypatch.setattr(module, "sampled", counted)
    return calls


def points_of(out):
    return {path.stem: path for path in (out / "points").glob("*.json")}


# -- what it leaves ----------------------------------------------------------------------------------------------


def test_every_setting_has_a_point_and_all_have_a_page(done):
    found = read(done)
    settings = {(p["steps"], p["cfg_scale"]): p for p in found["points"]}
    assert set(settings) == {(2, 1.0), (2, 2.0), (3, 1.0), (3, 2.0)}
    assert {p["sampler"] for p in found["points"]} == {"dpmpp_2m"}  # auto, resolved
    calls = {key: p["evaluations"] for key, p in settings.items()}
    assert calls == {(2, 1.0): 2, (2, 2.0): 4, (3, 1.0): 3, (3, 2.0): 6}
    assert set(points_of(done)) == {p["key"] for p in found["points"]}
    assert not list(done.glob("samples-*"))
    best = min(found["points"], key=lambda p: p["scores"]["FD(digits-cnn)"])
    assert found["best"] == best["key"]
    low, high = best["interval"]
    assert low < best["scores"]["FD(digits-cnn)"] < high
    assert found["protocol"]["samples"]["count"] == COUNT
    assert "cfg_scale" not in found["protocol"]["sampling"]  # that is what differs
    assert found["protocol"]["scores"]["bootstrap resamples"] == 10
    assert {path.name for path in done.glob("*.png")} == {
        "fd-against-guidance.png",
        "quality-against-evaluations.png",
        "images-by-cfg-scale.png",
    }


def test_pages_are_whole_and_need_nothing_else(done):
    page, text = (done / "sweep.html").read_text(), (done / "sweep.md").read_text()
    setting = describe(module.read_point(done, read(done)["best"]).setting)
    assert setting in page
    assert setting in text
    assert page.count("data:image/png;base64") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<tr") == 1 + 4
    assert "<th></th>" not in page
    floor = read(done)["floor"]["FD(digits-cnn)"]
    assert f"(N = {floor['samples']}, 5 splits)" in text
    assert "at the number of images shown above" in " ".join(page.split())
    assert text.count("\n| ") > 6


def test_scores_are_those_of_evaluate(done, tiny_run, tmp_path):
    point = next(p for p in read(done)["points"] if p["steps"] == 3 and p["cfg_scale"] == 2)
    out = evaluate(
        EvalConfig(
            run=tiny_run,
            num_samples=COUNT,
            cfg_scale=2.0,
            steps=3,
            out=tmp_path / "one",
            bootstrap=10,
        ),
        Ranks(),
    )
    scores = json.loads((out / "report.json").read_text())["scores"]
    assert {name: score["value"] for name, score in scores.items()} == point["scores"]


# -- each once ---------------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_goes_on(done, undrawn, tiny_run, tmp_path, sampled, monkeypatch):
    out, real, seen = tmp_path / "sweep", module.extract, []

    def interrupted(*args):
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(flags(tiny_run, out=out), Ranks())
    assert len(points_of(out)) == 1
    first = {path: path.stat().st_mtime_ns for path in points_of(out).values()}
    sampled.clear()
    sweep(flags(tiny_run, out=out), Ranks())
    assert len(sampled) == 3  # the second's images are there, and only looked at
    assert {path: path.stat().st_mtime_ns for path in first} == first
    again, before = read(out), read(done)
    assert [p["scores"] for p in again["points"]] == [p["scores"] for p in before["points"]]
    assert [p["seconds"] is None for p in again["points"]] == [False, True, False, False]


def test_a_wider_range_does_only_what_is_new(undrawn, tiny_run, tmp_path, sampled, capsys):
    out = tmp_path / "sweep"
    sweep(flags(tiny_run, out=out, steps="2"), Ranks())
    sampled.clear()
    sweep(flags(tiny_run, out=out, steps="2", cfg_scale="1:3:1", batch_size=5), Ranks())
    assert [setting.cfg_scale for setting in sampled] == [3.0]
    assert "3 settings of 24 images each, 2 of them scored before" in capsys.readouterr().out
    assert len(read(out)["points"]) == 3


def test_a_damaged_point_is_scored_again(undrawn, tiny_run, tmp_path, sampled, capsys):
    out = sweep(flags(tiny_run, out=tmp_path / "sweep", steps="2"), Ranks())
    before, files = read(out), sorted(points_of(out).values())
    files[0].write_text(files[0].read_text()[:-100])
    files[1].with_suffix(".png").write_bytes(b"no picture")
    sampled.clear()
    sweep(flags(tiny_run, out=out, steps="2"), Ranks())
    assert len(sampled) == 2
    assert [p["scores"] for p in read(out)["points"]] == [p["scores"] for p in before["points"]]
    assert "is missing or damaged" in capsys.readouterr().out


def test_images_stay_where_that_is_asked_for(undrawn, tiny_run, tmp_path):
    out = sweep(
        flags(tiny_run, out=tmp_path / "sweep", steps="2", cfg_scale="1", keep_samples=True),
        Ranks(),
    )
    images = {path: path.stat().st_mtime_ns for path in out.glob("samples-*/*.png")}
    assert len(images) == COUNT
    again = flags(tiny_run, out=out, steps="2", cfg_scale="1", bootstrap=0)
    assert read(sweep(again, Ranks()))["points"][0]["interval"] is None
    assert {path: path.stat().st_mtime_ns for path in out.glob("samples-*/*.png")} == images


def test_one_setting_that_comes_out_as_nan_stops_no_other(tiny_run, tmp_path, monkeypatch, capsys):
    made = sample_folder.generate

    def unstable(pipeline, labels, indices):
        if pipeline.settings.cfg_scale == 1.5 and 7 in indices:
            raise NotFinite(7, 7)
        return made(pipeline, labels, indices)

    monkeypatch.setattr(sample_folder, "generate", unstable)
    asked = flags(
        tiny_run,
        out=tmp_path / "sweep",
        steps="2",
        cfg_scale="1.5,1,2",
        batch_size=4,
        keep_samples=True,
    )
    out = sweep(asked, Ranks())
    found = read(out)
    failed = found["points"][0]
    assert failed["scores"] == {"FD(digits-cnn)": None}
    assert [len(p["scores"]) > 5 for p in found["points"]] == [False, True, True]
    assert found["best"] in [p["key"] for p in found["points"][1:]]
    assert len(list(out.glob("samples-*"))) == 2  # of the failed one none is kept
    reason = "image 7 (class 7) came out as NaN or infinite"
    said = f"1 setting has no distance: cfg-scale 1.5, 2 steps, dpmpp_2m ({reason})."
    assert said in found["summary"]
    assert all(said in (out / name).read_text() for name in ("sweep.md", "sweep.html"))
    assert (out / "images-by-cfg-scale.png").exists()
    assert found["protocol"]["samples"]["count"] == COUNT
    assert said in capsys.readouterr().out
    monkeypatch.setattr(module, "sampled", pytest.fail)  # it is not tried again
    monkeypatch.setattr(results, "draw", lambda sweep: {})
    assert read(sweep(asked, Ranks())) == found


def test_nothing_is_resampled_where_there_is_no_distance(undrawn, tiny_run, tmp_path, monkeypatch):
    def broken(found, *more):
        return {
            "FD(digits-cnn)": Score(
                "FD(digits-cnn)", None, "lower", COUNT, reason="the arithmetic failed"
            )
        }

    monkeypatch.setattr(module, "score", broken)
    monkeypatch.setattr(module, "bootstrap", pytest.fail)
    out = sweep(flags(tiny_run, out=tmp_path / "sweep", steps="2", cfg_scale="1"), Ranks())
    assert read(out)["summary"] == ["No setting has a distance: the arithmetic failed."]
    assert "No setting has a distance" in (out / "sweep.html").read_text()


def test_what_means_the_same_is_one_setting(tiny_run):
    run = load_run(tiny_run, Ranks().device)
    found = settings_of(
        flags(tiny_run, interval="0-1,0.2-0.8", steps="4", sampler="auto,dpmpp_2m"), run
    )
    assert [(s.cfg_scale, s.cfg_interval) for s in found] == [
        (1.0, (0.0, 1.0)),
        (2.0, (0.0, 1.0)),
        (2.0, (0.2, 0.8)),
    ]
    assert {(s.sampler, s.steps) for s in found} == {("dpmpp_2m", 4)}


def test_what_all_settings_share_is_passed_on(tiny_run):
    asked = flags(
        tiny_run,
        cfg_channels=2,
        eta=0.5,
        seed=3,
        precision="fp32",
        interval="0.2-0.8",
        steps="4",
        sampler="ddim",
    )
    settings = settings_of(asked, load_run(tiny_run, Ranks().device))
    assert {(s.cfg_channels, s.eta, s.seed, s.precision) for s in settings} == {
        (None, 0.5, 3, "fp32"),
        (2, 0.5, 3, "fp32"),
    }
    both = settings_of(
        dataclasses.replace(asked, sampler="ddim,ddpm", variance="large"),
        load_run(tiny_run, Ranks().device),
    )
    assert {(s.sampler, s.eta, s.variance) for s in both} == {
        ("ddim", 0.5, "auto"),
        ("ddpm", 0.0, "large"),
    }
    points = [
        dataclasses.replace(point(1 / setting.cfg_scale), setting=setting) for setting in settings
    ]
    shown = results.command(results.Sweep("t", asked, points, rank(points), {}, Path()))
    flags_of_sample = shlex.split(shown)[2:]
    parsed = parse(SampleConfig, flags_of_sample, "sample.py")
    assert {
        **{name: getattr(parsed, name) for name in vars(SamplerConfig())},
        "ema_length": None,
    } == vars(settings[-1])
    assert parsed.run == tiny_run


def test_command_names_what_was_asked_for_alone():
    points = [point(1.0)]
    shown = results.command(
        results.Sweep("t", SweepConfig(run=Path("my run")), points, rank(points), {}, Path())
    )
    assert shown == "dit sample --run 'my run' --sampler ddim --steps 10 --cfg-scale 1"


def test_keys_tell_apart_what_scores_depend_on(tiny_run, make_run):
    run, other = (load_run(path, Ranks().device) for path in (tiny_run, make_run(ema=0.9)))

    def key(run=run, count=COUNT, reference="reference", bootstrap=10, **setting):
        return Keys(run, count, reference, [], bootstrap)(SamplerConfig(**setting))

    assert key() == key(batch_size=3)
    changed = [
        key(other),
        key(count=25),
        key(reference="x"),
        key(bootstrap=11),
        key(seed=1),
        key(steps=5),
    ]
    elsewhere = key(dataclasses.replace(run, device=torch.device("meta")))
    assert len({key(), *changed, elsewhere}) == 8


def test_scales_that_nobody_asked_for(tiny_run, make_run):
    """1 to 4 where classifier-free guidance or a guide is what there is to sweep, else none."""
    bare, undropped = make_run("bare", num_classes=0), make_run("undropped", label_dropout=0.0)
    weak, judge = (
        make_run("weak", num_classes=0),
        make_run("judge", model="Classifier-Ti/4", label_dropout=0.0),
    )
    cases = [
        (tiny_run, {}, 7),
        (bare, {}, 1),
        (undropped, {}, 1),
        (bare, dict(guide=weak), 7),
        (tiny_run, dict(classifier=judge), 1),
        (bare, dict(classifier=judge, classifier_scale="0,1,2"), 3),
        (tiny_run, dict(classifier=judge, cfg_scale="1,2"), 2),
    ]
    for run, more, count in cases:
        asked = SweepConfig(**{**dict(run=run, steps="2"), **more})
        assert len(settings_of(asked, load_run(run, Ranks().device))) == count


def test_other_networks_guide_where_they_have_anything_to_say(tiny_run, make_run):
    """No guide at scale 1 and no classifier at weight 0; their weights are named, not a run that may go on learning."""
    weak, judge = (
        make_run("weak", objective="x0"),
        make_run("judge", model="Classifier-Ti/4", label_dropout=0.0),
    )
    run = load_run(tiny_run, Ranks().device)
    asked = flags(tiny_run, steps="4", guide=weak, classifier=judge, classifier_scale="0,2")
    settings = settings_of(asked, run)
    assert [(s.cfg_scale, s.guide, s.classifier, classifier_scale(s)) for s in settings] == [
        (1.0, None, None, 0.0),
        (1.0, None, find_weights(judge), 2.0),
        (2.0, find_weights(weak), None, 0.0),
        (2.0, find_weights(weak), find_weights(judge), 2.0),
    ]
    calls = {s: count_evaluations(run, dataclasses.replace(s, sampler="euler")) for s in settings}
    assert [*calls.values()] == [4, 4 + 3, 8, 8 + 3]  # pure noise is not classified
    assert describe(settings[3]) == "cfg-scale 2, classifier-scale 2, 4 steps, dpmpp_2m"
    points = [dataclasses.replace(point(2.0 - i / 10), setting=s) for i, s in enumerate(settings)]
    assert charts.varied(points) == ["cfg-scale", "classifier-scale"]
    found = rank(points)
    assert ("classifier-scale", "largest", 2.0) in found.edges
    assert charts.against_guidance(points, found, {}, "classifier-scale") is not None
    assert set(charts._lines(points, ("sampler", "classifier-scale"), share_unguided=True)) == {
        "classifier-scale 0",
        "classifier-scale 2",
    }
    shown = parse(
        SampleConfig,
        shlex.split(results.command(results.Sweep("t", asked, points, found, {}, Path())))[2:],
        "sample.py",
    )
    assert (shown.guide, shown.classifier, shown.classifier_scale) == (
        find_weights(weak),
        find_weights(judge),
        2.0,
    )


def test_without_its_classifier_a_run_without_classes_has_none(
    make_run, tmp_path, undrawn, sampled
):
    """The point of weight 0 is that of a sweep without classifier: the same key, the same unlabelled samples."""
    run, judge = (
        make_run("bare", num_classes=0),
        make_run("judge", model="Classifier-Ti/4", label_dropout=0.0),
    )
    asked = flags(
        run, out=tmp_path / "sweep", cfg_scale="1", steps="2", num_samples=10, keep_samples=True
    )
    out = sweep(dataclasses.replace(asked, classifier=judge, classifier_scale="0,2"), Ranks())
    labels = {
        p["setting"]["classifier"] is not None: p["protocol"]["samples"]["labels"]
        for p in map(json.loads, map(Path.read_text, points_of(out).values()))
    }
    assert labels == {False: "none", True: "10 classes, 1 images each"}
    shared = read(out)["protocol"]["sampling"]
    assert shared["classifier"] == "Classifier-Ti/4 at step 3"
    assert "classifier_scale" not in shared
    assert "| classifier | Classifier-Ti/4 at step 3 |" in (out / "sweep.md").read_text()
    assert len(list(out.glob("samples-*/labels.csv"))) == 1
    assert len(sampled) == 2
    sweep(asked, Ranks())
    assert len(sampled) == len(points_of(out)) == 2


def test_guidance_that_a_sweep_refuses(tiny_run):
    with pytest.raises(UserError, match="--guide weak with --cfg-scale 1"):
        settings_of(
            flags(tiny_run, guide=Path("weak"), cfg_scale="1"), load_run(tiny_run, Ranks().device)
        )
    with pytest.raises(UserError, match="--classifier-scale 1,2 without --classifier"):
        flags(tiny_run, classifier_scale="1,2")


@pytest.fixture
def tracked(make_run):
    """A run with snapshots of two averages at steps 10, 20, 30 and 40; the weights of the later ones are smaller."""
    home = make_run(ema_lengths=(0.05, 0.1), step=40)
    found = read_weights(find_weights(home))
    for step in (10, 20, 30, 40):
        for length in (0.05, 0.1):
            shrunk = {
                name: tensor * (1.1 - step / 100 - length)
                for name, tensor in found.state_dict.items()
            }
            posthoc.write_snapshot(home, shrunk, found.card, length, step)
    return home


def test_averages_are_an_axis(tracked, tmp_path, sampled, monkeypatch):
    """Each length is scored as its weights are, made once, and named by the command that samples with the best."""
    asked = flags(
        tracked, out=tmp_path / "sweep", ema_length="0.06:0.08:0.02,0.1", cfg_scale="1,2", steps="2"
    )
    out = sweep(asked, Ranks())
    found = read(out)
    assert [(p["ema_length"], p["cfg_scale"]) for p in found["points"]] == [
        (length, scale) for length in (0.06, 0.08, 0.1) for scale in (1.0, 2.0)
    ]
    files = {file: file.stat().st_mtime_ns for file in tracked.glob("ema-length-*")}
    assert len(files) == 3
    assert {path.name for path in out.glob("*.png")} == {
        "fd-against-ema-length.png",
        "fd-against-guidance.png",
        "images-by-ema-length.png",
    }
    monkeypatch.setattr(results, "draw", lambda sweep: {})
    file = tracked / "ema-length-0.06-step-0000040.safetensors"
    alone = read(sweep(flags(file, out=tmp_path / "alone", cfg_scale="2", steps="2"), Ranks()))[
        "points"
    ][0]
    point = found["points"][1]
    assert alone["scores"] == point["scores"]
    record = json.loads((out / "points" / f"{point['key']}.json").read_text())["protocol"]
    assert record["sampling"]["ema"] == "length 0.06"
    best = next(p for p in found["points"] if p["key"] == found["best"])
    assert (
        f"--run {tracked}/ema-length-{best['ema_length']:g}-step-0000040.safetensors"
        in (out / "sweep.html").read_text()
    )
    sampled.clear()
    again = read(
        sweep(dataclasses.replace(asked, ema_length="0.06,0.07,0.08", cfg_scale="1"), Ranks())
    )
    assert [s.ema_length for s in sampled] == [0.07]
    assert {p["key"] for p in again["points"]} > {
        p["key"] for p in found["points"] if p["ema_length"] in (0.06, 0.08) and p["cfg_scale"] == 1
    }
    assert all(file.stat().st_mtime_ns == then for file, then in files.items())


def test_averages_in_words():
    points = [
        point(float(i), ema_length=length) for i, length in enumerate((0.05, 0.1, 0.15), start=1)
    ]
    assert describe(points[0].setting) == "cfg-scale 1, 10 steps, ddim, ema-length 0.05"
    assert charts.varied(points) == ["ema-length"]
    assert rank(points).edges == [("ema-length", "smallest", 0.05)]
    (warned,) = said_of(points)[1]
    assert (
        warned
        == "The best lies at the smallest ema-length of the sweep (0.05): a smaller one may be better."
    )
    assert charts.against_guidance(points, rank(points), {}, "ema-length") is not None
    assert charts.against_guidance(points, rank(points), {}) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(ema_length="0.001"), "10% at most"),
        (dict(ema_length="0"), "--ema-length 0"),
        (dict(ema_length="0.1,0.5"), "--ema-length 0.5"),
        (dict(ema_length="short"), "--ema-length 'short'"),
    ],
)
def test_lengths_that_a_sweep_refuses(tracked, tiny_run, tmp_path, sampled, wrong, says):
    with pytest.raises(UserError) as error:
        sweep(flags(tracked, out=tmp_path / "sweep", **wrong), Ranks())
    assert says in str(error.value)
    with pytest.raises(UserError, match="no snapshots of averages"):
        sweep(flags(tiny_run, out=tmp_path / "sweep", ema_length="0.1"), Ranks())
    assert sampled == []


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
    assert count_evaluations(load_run(tiny_run, Ranks().device), setting) == calls


def sweep_on_ranks(ranks, config):
    SIZES["Ti"] = SMALL
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more while the other waits
    sweep(config, ranks)


@pytest.mark.slow
def test_two_ranks_score_bitwise_as_one(tiny_run, tmp_path, undrawn):
    asked = flags(tiny_run, steps="3", cfg_scale="2", num_samples=COUNT, bootstrap=10)
    sweep(dataclasses.replace(asked, out=tmp_path / "one"), Ranks())
    forked.run(2, sweep_on_ranks, dataclasses.replace(asked, out=tmp_path / "two"))
    one, two = (
        {n: v for n, v in read(tmp_path / name)["points"][0]["scores"].items() if "KID" not in n}
        for name in ("one", "two")
    )  # KID: there with 100 subsets, here with 3
    assert one == two


# -- the best ----------------------------------------------------------------------------------------------------


def point(value, replicates=(), scale=1.0, steps=10, calls=10, **more):
    setting = Setting(sampler="ddim", steps=steps, cfg_scale=scale, **more)
    score = Score(
        "FD(x)", value, "lower", 100, reason=None if value is not None else "the arithmetic failed"
    )
    return Point(f"{scale}-{steps}", setting, {"FD(x)": score}, list(replicates), calls, 1.0, {})


def test_settings_that_share_their_noise_are_compared_in_pairs():
    generator = np.random.default_rng(0)
    shared, own = generator.normal(size=(2, 200))
    best = point(1.0, 1.3 + shared)
    worse = point(1.2, 1.5 + shared + 0.01 * own)  # noise of 1, but the same noise
    low, high = paired_interval(worse, best)
    assert 0.17 < low < 0.2 < high < 0.23
    low, high = paired_interval(point(1.2, 1.5 + own), best)
    assert low < -2 < 2 < high


def test_ranking_says_what_can_not_be_told_apart_and_which_is_cheapest():
    noise = np.random.default_rng(0).normal(size=50)
    far, tied, best, missing = (
        point(3.0, 3 + 0.1 * noise, calls=1),
        point(1.05, 1 - noise, calls=5),
        point(1.0, 1 + noise, calls=50),
        point(None),
    )
    found = rank([far, tied, best, missing])
    assert found.order == [2, 1, 0]
    assert found.best == 2
    assert found.cheapest([far, tied, best, missing]) == 1
    assert 1 in found.tied
    certain = rank([point(3.0, 3 + 0.01 * noise), point(1.0, 1 + 0.01 * noise)])
    assert certain.tied == []
    assert certain.differences[0][0] > 1.9
    unknown = rank([point(1.0), point(2.0)])
    assert unknown.tied == []
    assert unknown.differences == {}
    assert rank([missing]).order == []


def test_best_at_the_end_of_the_range():
    def edges(best, scales, steps=(10,)):
        grid = [point(float((s, n) != best), scale=s, steps=n) for s in scales for n in steps]
        return rank(grid).edges

    assert edges((2.0, 10), (1.0, 2.0, 3.0)) == []
    assert edges((3.0, 10), (1.0, 2.0, 3.0)) == [("cfg-scale", "largest", 3.0)]
    assert edges((1.0, 10), (1.0, 2.0, 3.0)) == []  # below 1 there is no guidance
    assert edges((1.5, 10), (1.5, 2.0)) == [("cfg-scale", "smallest", 1.5)]
    assert edges((2.0, 50), (2.0,), (10, 25, 50)) == [("steps", "largest", 50)]
    assert edges((2.0, 50), (2.0,), (50,)) == []


def said_of(points):
    found = results.Sweep("t", SweepConfig(run=Path("run")), points, rank(points), {}, Path())
    return results.sentences(found), results.warnings(found)


def test_findings_in_words():
    noise = np.random.default_rng(0).normal(size=50)
    said, warned = said_of(
        [
            point(1.0, 1 + noise, scale=2.0, calls=50),
            point(1.1, 1 - noise, scale=1.0, calls=25),
            point(9.0, 9 + noise, scale=1.5),
        ]
    )
    assert said[0].startswith("Best: cfg-scale 2, 10 steps, ddim: FD(x) 1.000 (0.0 – ")
    assert said[1] == "1 setting can not be told apart from it: cfg-scale 1, 10 steps, ddim."
    assert (
        "cheapest of these is cfg-scale 1, 10 steps, ddim: 25 network calls an image instead of 50"
        in said[2]
    )
    assert warned == [
        "The best lies at the largest cfg-scale of the sweep (2): a larger one may be better."
    ]
    assert (
        "beyond the noise"
        in said_of([point(1.0, 1 + noise), point(9.0, 9 + noise, scale=2.0)])[0][1]
    )
    assert "--bootstrap 0" in said_of([point(1.0), point(9.0, scale=2.0)])[0][1]
    assert said_of([point(None)])[0] == ["No setting has a distance: the arithmetic failed."]
    guided = describe(Setting(sampler="ddim", steps=5, cfg_scale=1.5, cfg_interval=(0.2, 0.8)))
    assert guided == "cfg-scale 1.5 at times 0.2-0.8, 5 steps, ddim"


# -- figures -----------------------------------------------------------------------------------------------------


def test_points_without_guidance_belong_to_every_interval():
    points = [
        point(3.0, scale=1.0),
        point(2.0, scale=2.0),
        point(1.0, scale=2.0, cfg_interval=(0.2, 0.8)),
    ]
    lines = charts._lines(points, ("sampler", "steps", "interval"), share_unguided=True)
    assert {label: [p.distance for p in line] for label, line in lines.items()} == {
        "times 0.2-0.8": [1.0, 3.0],
        "times 0-1": [2.0, 3.0],
    }


def test_frontier_is_what_no_cheaper_setting_beats():
    points = [
        point(value, calls=calls)
        for value, calls in ((5.0, 10), (4.0, 10), (4.5, 20), (1.0, 30), (2.0, 40))
    ]
    assert [(p.evaluations, p.distance) for p in charts.frontier(points)] == [(10, 4.0), (30, 1.0)]


def test_there_is_a_figure_only_where_something_varies():
    one, scales = [point(1.0)], [point(1.0), point(2.0, scale=2.0, calls=20)]
    steps = [point(1.0, steps=5, calls=5), point(2.0, calls=10), point(None, steps=7, calls=7)]
    drawn = {
        name: tuple(
            draw(points, rank(points), {}) is not None
            for draw in (charts.against_guidance, charts.against_evaluations)
        )
        for name, points in (
            ("one", one),
            ("scales", scales),
            ("steps", steps),
            ("none", [point(None)]),
        )
    }
    assert drawn == {
        "one": (False, False),
        "scales": (True, False),
        "steps": (False, True),
        "none": (False, False),
    }


def test_strip_shows_the_same_images_along_the_first_axis(tmp_path):
    points = [point(float(i), scale=float(i), steps=n) for i in (1, 2, 3) for n in (5, 10)]
    points = [
        dataclasses.replace(p, setting=p.setting, key=f"{p.setting.cfg_scale}-{p.setting.steps}")
        for p in points
    ]
    (tmp_path / "points").mkdir()
    for p in points:
        Image.new("RGB", (100, 20), (int(80 * p.setting.cfg_scale), p.setting.steps, 0)).save(
            tmp_path / "points" / f"{p.key}.png"
        )
    axis, picture = charts.strip(points, rank(points), tmp_path)
    assert axis == "cfg-scale"
    seen = [picture.getpixel((picture.width - 1, 10 + 20 * i)) for i in range(3)]
    assert seen == [(80, 5, 0), (160, 5, 0), (240, 5, 0)]
    assert charts.strip(points[:1], rank(points[:1]), tmp_path) is None


def test_strip_without_guidance_at_its_best_has_one_interval(tmp_path, monkeypatch):
    points = [
        point(1.0),
        *(
            point(d, scale=scale, cfg_interval=times)
            for scale in (2.0, 3.0)
            for d, times in ((1 + scale, (0.0, 1.0)), (scale, (0.2, 0.8)))
        ),
    ]
    shown = []
    monkeypatch.setattr(charts, "picture_file", lambda out, key: tmp_path / "x.png")
    monkeypatch.setattr(charts, "_stack", lambda rows, labels, points, best: shown.extend(points))
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    charts.strip(points, rank(points), tmp_path)
    assert [(p.setting.cfg_scale, p.distance) for p in shown] == [
        (1.0, 1.0),
        (2.0, 2.0),
        (3.0, 3.0),
    ]


def test_panels_are_of_the_network_that_ranks(monkeypatch):
    names = [f"{kind}({network})" for network in ("x", "y") for kind in ("FD", *charts.PANELS)]
    points = [
        dataclasses.replace(
            point(1.0, scale=scale), scores={n: Score(n, 0.5, "lower", 9) for n in names}
        )
        for scale in (1.0, 2.0)
    ]
    drawn = []
    monkeypatch.setattr(charts, "_draw_shares", lambda axis, lines, name, *more: drawn.append(name))
    charts.against_guidance(points, rank(points), {})
    assert drawn == [f"{panel}(x)" for panel in charts.PANELS]


# -- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(cfg_scale="4:1:1"), "--cfg-scale 4:1:1, which runs backwards"),
        (dict(steps="2.5"), "--steps '2.5'"),
        (dict(interval="0.8-0.2"), "--interval '0.8-0.2'"),
        (dict(sampler="dpmpp2m"), "did you mean dpmpp_2m"),
        (dict(cfg_scale="1:100:1", steps="1:20:1"), "the sweep makes 2,000 settings"),
        (dict(cfg_channels=9), "--cfg-channels 9"),
        (dict(cfg_scale="1", interval="0.2-0.8"), "--interval 0.2-0.8 with --cfg-scale 1"),
        (dict(cfg_scale="1", cfg_channels=2), "--cfg-channels 2 with --cfg-scale 1"),
        (dict(sampler="ddpm,euler", eta=0.5), "--eta 0.5 with --sampler ddpm,euler"),
        (dict(reference="nowhere"), "nowhere"),
        (dict(extractor=("inception",), weights=("none.pth",)), "none.pth"),
    ],
)
def test_mistakes_are_found_before_anything_is_sampled(tiny_run, tmp_path, sampled, wrong, says):
    with pytest.raises(UserError, match="expected") as error:
        sweep(flags(tiny_run, out=tmp_path / "sweep", **wrong), Ranks())
    assert says in str(error.value)
    assert sampled == []


def test_a_setting_that_the_run_can_not_serve_stops_all_of_them(make_run, tmp_path, sampled):
    run = make_run(process="linear", objective="eps")
    with pytest.raises(UserError, match="--steps 2000"):
        sweep(flags(run, out=tmp_path / "sweep", steps="2,2000"), Ranks())
    assert sampled == []


def test_reference_without_a_distance_for_the_first_network(tiny_run, tmp_path, sampled):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError):
        sweep(
            flags(
                tiny_run,
                out=tmp_path / "sweep",
                reference=str(tmp_path / "stats.npz"),
                extractor=("digits-cnn",),
            ),
            Ranks(),
        )
    assert sampled == []


def test_results_of_other_numbers_of_images_stay(done, tiny_run, sampled):
    before = {path: path.read_bytes() for path in done.glob("sweep.*")}
    with pytest.raises(
        UserError, match=r"--num-samples 12 for .*, whose results are of 24 images a setting"
    ):
        sweep(flags(tiny_run, out=done, num_samples=12), Ranks())
    assert {path: path.read_bytes() for path in done.glob("sweep.*")} == before
    assert sampled == []


def test_one_sweep_at_a_time_in_a_folder(tiny_run, tmp_path):
    with Ranks().alone_in(tmp_path), pytest.raises(UserError, match="another process is at work"):
        sweep(flags(tiny_run, out=tmp_path), Ranks())
