"""Scores during training: right, the same on any number of ranks, without a trace in the weights; the best one kept."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY, write_run
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import forked
from dit.commands.info import info
from dit.config import TrainConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.metrics.compute import Score
from dit.latents.load import build_source
from dit.models.dit import SIZES
from dit.runs.checkpoints import (
    Best,
    Distance,
    checkpoints,
    find_best,
    find_weights,
    latest_checkpoint,
    read_distance,
    verify_checkpoint,
)
from dit.runs.metrics import read_metrics
from dit.sampling.generate import generate
from dit.sampling.load import load_run
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.training import batches
from dit.training import checkpointing as checkpoint
from dit.training.batches import Batch, draw_batch
from dit.training.checkpointing import tidy
from dit.training.monitoring import evaluation as scores
from dit.training.monitoring.metrics import EvalResult, MetricsLog
from dit.training.monitoring.previews import sampler_settings
from dit.training.prepare import build_card, prepare
from dit.training.resilience.preemption import Stop
from dit.training.session import TrainingSession
from dit.training.trainer import train
from dit.utils.files import write_json
from dit.utils.pictures import loss_curve

COUNT = 70  # two batches, the second one not full
QUIET = TrainConfig(
    **TINY,
    global_batch_size=16,
    steps=20,
    warmup=2,
    cooldown=0,
    sample_every=0,
    ckpt_every=10,
    log_every=10,
    precision="fp32",
    keep=9,
)
SCORED = dataclasses.replace(QUIET, eval_every=5, eval_samples=COUNT)
FEW = dataclasses.replace(SCORED, eval_samples=5)
FD = "FD(digits-cnn)"


@pytest.fixture(scope="module", autouse=True)
def surroundings(small_networks, tmp_path_factory):
    """A small network, and a cache of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory, surroundings):
    """A run whose weights are not zero, to start from."""
    return write_run(tmp_path_factory.mktemp("weights") / "run")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, weights):
    """A run of 20 steps, scored after every fifth."""
    return train(
        dataclasses.replace(SCORED, init=weights, out=tmp_path_factory.mktemp("scored") / "run"),
        Ranks(),
    )


def a_session(tmp_path: Path, **changes: object) -> TrainingSession:
    config = dataclasses.replace(SCORED, out=tmp_path / "session", **changes)
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    return prepare(build_card(config, source), source, autoencoder, Ranks())


def measured(run: Path) -> dict[int, dict[str, float]]:
    """The scores of a run's log by step."""
    lines = {line["step"]: line for line in read_metrics(run / "metrics.jsonl") if FD in line}
    return {
        step: {k: v for k, v in line.items() if "(digits-cnn)" in k} for step, line in lines.items()
    }


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    return {
        k: v
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for k, v in load_file(file).items()
    }


def names(run: Path) -> list[str]:
    return [c.name for c in checkpoints(run)]


def prescribe(monkeypatch: pytest.MonkeyPatch, *distances: float) -> None:
    """Let the distances be these, one after the other."""
    coming = iter(distances)

    def score(*_: object) -> dict[str, Score]:
        found = {
            name: Score(name, None, "higher", COUNT) for name in scores.score_names("digits-cnn")
        }
        return {**found, FD: Score(FD, next(coming), "lower", COUNT)}

    monkeypatch.setattr(scores.references, "score", score)


def interrupted(ranks: Ranks, config: TrainConfig) -> None:
    """Train; rank 1 gets a signal when it makes its second batch of samples, of thousands."""
    made, quick = [], scores.generate

    def slow(*given: object) -> Tensor:
        made.append(given)
        if ranks.rank == 1 and len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(made) < 10, "goes on as if nothing had come"
        return quick(*given)

    SIZES["Ti"] = dict(depth=1, hidden_size=32, num_heads=1)
    scores.generate = slow
    train(config, ranks)


def test_a_signal_to_any_rank_ends_scoring_and_the_run_goes_on_from_there(tmp_path):
    config = dataclasses.replace(SCORED, eval_samples=10**5, out=tmp_path / "run")
    forked.run(2, interrupted, config)
    assert verify_checkpoint(latest_checkpoint(config.out))["step"] == 5
    assert [
        (line["step"], line["event"]) for line in read_metrics(config.out / "metrics.jsonl")
    ] == [(5, "unscored")]


def test_a_signal_ends_a_picture():
    stop, network, calls = Stop(Ranks()), torch.nn.Identity(), []
    with stop.leaving(network):
        calls.append(network(1))
        stop.asked = True
        calls.append(network(2))
    assert [*calls, network(3)] == [1, 3]


# -- the numbers -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_ema_in_the_checkpoint(scored):
    """Through another door: the saved EMA, samples one batch at a time, torch-fidelity's distance."""
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    run = load_run(scored / "checkpoints" / "step-0000010", torch.device("cpu"))
    settings = dataclasses.replace(sampler_settings(run.card), batch_size=COUNT)
    assert settings.cfg_scale > 1
    labels = torch.arange(10).repeat_interleave(COUNT // 10)
    plan = build_pipeline(run, settings)
    (extractor,) = load_extractors(["digits-cnn"], (), torch.device("cpu"))
    sides = (generate(plan, labels, torch.arange(COUNT)), Digits(8).images)
    statistics = [fid_features_to_statistics(extractor(images).values.double()) for images in sides]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert measured(scored)[10][FD] == pytest.approx(expected, rel=1e-3)
    assert abs(measured(scored)[5][FD] / expected - 1) > 0.01


def test_log_and_tensorboard_have_all_scores(scored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = read_metrics(scored / "metrics.jsonl")
    assert [(line["step"], "loss" in line) for line in lines] == [
        (5, False),
        (10, True),
        (15, False),
        (20, True),
    ]
    assert [*measured(scored)[5]] == [
        f"{s}(digits-cnn)" for s in ("FD", "KID", "precision", "recall", "IS")
    ]
    board = EventAccumulator(str(scored / "tensorboard"))
    board.Reload()
    for name in measured(scored)[5]:
        tag = next(
            tag for tag in board.Tags()["scalars"] if tag.startswith(f"eval/{name.split('(')[0]}")
        )
        events = [(event.step, event.value) for event in board.Scalars(tag)]
        assert events == [
            (step, pytest.approx(found[name], rel=1e-6)) for step, found in measured(scored).items()
        ]
    with Image.open(scored / "scores.png") as picture:
        assert picture.width > 500


def test_training_is_the_same_bit_for_bit_with_and_without_scores(scored, weights, tmp_path):
    plain = train(dataclasses.replace(QUIET, init=weights, out=tmp_path / "run"), Ranks())
    left, right = tensors(latest_checkpoint(plain)), tensors(latest_checkpoint(scored))
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []
    logs = [
        [
            (m["step"], m["loss"], m["grad_norm"])
            for m in read_metrics(r / "metrics.jsonl")
            if "loss" in m
        ]
        for r in (plain, scored)
    ]
    assert logs[0] == logs[1]
    assert not (plain / "best").exists()
    assert not (plain / "scores.png").exists()


def test_nothing_is_read_while_the_ema_is_measured(tmp_path, monkeypatch):
    """The feature network sets flags of the whole process, which the encoder would heed."""
    reading: list[int] = []

    def slow(session: TrainingSession, step: int) -> Batch:
        reading.append(step)
        time.sleep(0.05)
        batch = draw_batch(session, step)
        reading.remove(step)
        return batch

    monkeypatch.setattr(batches, "draw_batch", slow)
    monkeypatch.setattr(
        scores.Scores, "measure", lambda *_: seen.append([*reading]) or EvalResult()
    )
    seen: list[list[int]] = []
    train(dataclasses.replace(FEW, eval_every=1, steps=4, out=tmp_path / "run"), Ranks())
    assert seen == [[], [], [], []]


def a_folder(folder: Path) -> None:
    """Noise in two classes, of another shape than what is trained on."""
    for i, name in enumerate("aabb"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i}.png")


def measure(ranks: Ranks, config: TrainConfig) -> list[dict[str, object]]:
    """What a rank finds, and what it finds when the last one has an EMA that is not finite."""
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    session = prepare(build_card(config, source), source, autoencoder, ranks)
    judge = scores.choose_eval_target(config, ranks).prepare(session)
    found = judge.measure(5, session.average())
    if ranks.rank == ranks.world - 1:
        next(session.state.ema.network.parameters()).data.fill_(
            torch.nan
        )  # on one rank: the others must hear of it
    return [*map(dataclasses.asdict, (found, judge.measure(6, session.average())))]


def score_on_ranks(ranks: Ranks, out: Path, init: Path) -> None:
    """Measure, and train on a folder with scores and without."""
    SIZES["Ti"] = SMALL
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more for the reference
    config = dataclasses.replace(SCORED, init=init, eval_samples=150)
    found = {f"rank {ranks.rank}": measure(ranks, dataclasses.replace(config, out=out / "run"))}
    if ranks.main:
        found["alone"] = measure(Ranks(), dataclasses.replace(config, out=out / "alone"))
    for every in (0, 2):
        train(
            dataclasses.replace(
                config,
                data=str(out / "images"),
                out=out / f"every-{every}",
                steps=3,
                warmup=1,
                eval_every=every,
                eval_samples=20,
                eval_extractor="digits-cnn",
            ),
            ranks,
        )
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))


def test_two_ranks_measure_what_one_does(tmp_path, weights):
    """And train on a folder, encoded as it is read, as without scores."""
    a_folder(tmp_path / "images")
    forked.run(2, score_on_ranks, tmp_path, weights)
    found = {
        k: v for r in (0, 1) for k, v in json.loads((tmp_path / f"{r}.json").read_text()).items()
    }
    assert found["rank 0"] == found["rank 1"] == found["alone"]
    first, nothing = found["alone"]
    assert first["leads"]
    assert first["scores"][FD] > 0
    assert nothing == dataclasses.asdict(EvalResult())
    plain, scored = (tensors(latest_checkpoint(tmp_path / f"every-{every}")) for every in (0, 2))
    assert plain.keys() == scored.keys()
    assert [k for k in plain if not torch.equal(plain[k], scored[k])] == []
    assert [*measured(tmp_path / "every-2")] == [2, 3]


def test_samples_that_are_not_finite_cost_a_warning_only(tmp_path, weights, capsys):
    session = a_session(tmp_path, init=weights)
    judge = scores.choose_eval_target(session.config, Ranks()).prepare(session)
    ema = next(session.state.ema.network.parameters()).data
    good = ema.clone()
    ema.fill_(torch.nan)
    assert judge.measure(7, session.average()) == EvalResult()
    assert "warning: no scores at step 7" in capsys.readouterr().err
    ema.copy_(good)
    found = judge.measure(8, session.average())
    assert found.leads
    assert np.isfinite([*found.scores.values()]).all()
    again = dataclasses.replace(found, leads=False)
    assert judge.measure(9, session.average()) == again, (
        "the same samples each time, and no better than before"
    )


def test_classes_are_spread_evenly_over_few_samples(tmp_path, weights, monkeypatch):
    seen: list[tuple[int, int]] = []

    def black(pipeline: SamplingPipeline, labels: Tensor, indices: Tensor) -> Tensor:
        seen.extend(zip(indices.tolist(), labels.tolist(), strict=True))
        return torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(scores, "generate", black)
    session = a_session(tmp_path, init=weights)
    for count in (5, 20):
        config = dataclasses.replace(session.config, eval_samples=count)
        scored = dataclasses.replace(session, card=dataclasses.replace(session.card, config=config))
        scores.choose_eval_target(config, Ranks()).prepare(scored).measure(1, session.average())
    assert seen[:5] == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]
    assert seen[5:] == [(i, i // 2) for i in range(20)]


# -- the best checkpoint -----------------------------------------------------------------------------------------


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, monkeypatch, capsys):
    prescribe(monkeypatch, 4.0, 2.5, 3.0, 2.5, 9.0, 8.0)
    config = dataclasses.replace(FEW, eval_every=2, ckpt_every=6, steps=12, keep=1)
    out = train(dataclasses.replace(config, out=tmp_path / "run"), Ranks())
    assert names(out) == ["step-0000004", "step-0000012"]
    assert (out / "best").resolve() == (out / "checkpoints" / "step-0000004").resolve()
    assert not (out / "best").readlink().is_absolute(), "the run may be moved"
    assert find_weights(out / "best") == next((out / "checkpoints" / "step-0000004").glob("ema-*"))
    assert f"best        {out / 'best'} (step 4, FD(digits-cnn) 2.5)" in capsys.readouterr().out
    assert "FD(digits-cnn) 2.5 at step 4 (best)" in info(out)


def test_every_new_best_takes_the_place_of_the_last(tmp_path, monkeypatch):
    prescribe(monkeypatch, 4.0, 3.0, 2.0, 2.5)
    out = train(
        dataclasses.replace(FEW, eval_every=2, ckpt_every=0, steps=7, keep=1, out=tmp_path / "run"),
        Ranks(),
    )
    assert names(out) == ["step-0000006", "step-0000007"]
    assert find_best(out).distance[:2] == (FD, 2.0)


def test_a_resumed_run_has_the_scores_and_the_best_of_an_undisturbed_one(scored, weights, tmp_path):
    out = tmp_path / "run"
    train(dataclasses.replace(SCORED, init=weights, out=out, steps=10), Ranks())
    with (out / "metrics.jsonl").open("a") as file:  # as a kill after step 15 leaves it
        file.write(json.dumps({"step": 15, FD: 0.0}) + "\n")
    train(dataclasses.replace(SCORED, init=weights, out=out, resume="auto"), Ranks())
    assert measured(out) == measured(scored)
    assert names(out) == names(scored)
    assert (out / "best").readlink() == (scored / "best").readlink()


def test_the_best_before_counts_when_a_run_goes_on(tmp_path, monkeypatch):
    prescribe(monkeypatch, 2.0, 3.0, 1.0)
    first = dataclasses.replace(FEW, ckpt_every=0, steps=5, keep=1, out=tmp_path / "run")
    for steps, expected in ((5, "step-0000005"), (10, "step-0000005"), (15, "step-0000015")):
        out = train(dataclasses.replace(first, steps=steps, resume="auto"), Ranks())
        assert (out / "best").resolve().name == expected
    assert names(out) == ["step-0000015"]


def test_scores_may_begin_when_a_run_goes_on(tmp_path, monkeypatch):
    prescribe(monkeypatch, 2.0)
    out = train(dataclasses.replace(QUIET, steps=2, out=tmp_path / "run"), Ranks())
    more = dataclasses.replace(FEW, steps=4, out=out)
    with pytest.raises(UserError, match="eval_samples 500 there, 5 now"):
        train(dataclasses.replace(more, resume="auto"), Ranks())
    train(dataclasses.replace(more, resume=str(out)), Ranks())
    assert measured(out) == {4: {FD: 2.0}}


class Kill(BaseException):
    """What no one handles."""


@pytest.mark.parametrize("last", ["step-0000005", "step-0000010"])
def test_a_kill_before_the_link_is_mended_when_the_run_goes_on(last, tmp_path, monkeypatch):
    """Though not a step may be left to do."""
    best = int(last.removeprefix("step-"))
    prescribe(monkeypatch, 2.0, 1.0)
    config = dataclasses.replace(
        FEW, steps=10, ckpt_every=0, keep=1, out=tmp_path / "run", resume="auto"
    )
    link = checkpoint._link

    def killed(name: Path, to: Path | None) -> None:
        if to and to.name == last:
            raise Kill
        link(name, to)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_link", killed)
        with pytest.raises(Kill):
            train(config, Ranks())
    out = tmp_path / "run"
    assert names(out) == [f"step-{step:07d}" for step in (5, 10) if step <= best]
    assert not (out / "best").exists() or (out / "best").resolve().name != last
    train(dataclasses.replace(config, steps=best), Ranks())
    assert names(out) == [last]
    assert (out / "best").resolve().name == last


def test_a_lost_log_is_not_the_loss_of_the_best(tmp_path, monkeypatch):
    prescribe(monkeypatch, 1.0, 3.0, 2.0)
    config = dataclasses.replace(FEW, steps=10, keep=1, out=tmp_path / "run", resume="auto")
    out = train(config, Ranks())
    (out / "metrics.jsonl").unlink()
    assert "FD(digits-cnn) 1 at step 5 (best)" in info(out)
    train(dataclasses.replace(config, steps=15), Ranks())
    assert names(out) == ["step-0000005", "step-0000015"]
    assert (out / "best").resolve().name == "step-0000005"


def test_a_kill_while_the_log_is_rewritten_leaves_it(tmp_path, monkeypatch):
    out = train(dataclasses.replace(QUIET, steps=4, log_every=2, out=tmp_path / "run"), Ranks())
    before = (out / "metrics.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr("dit.training.monitoring.metrics.flush", killed)
        with pytest.raises(Kill):
            MetricsLog(out, start=2)
    assert (out / "metrics.jsonl").read_bytes() == before
    MetricsLog(out, start=2).close()
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [2]


def test_distances_to_another_reference_do_not_compare(tmp_path, monkeypatch):
    prescribe(monkeypatch, 1.0, 5.0, 6.0, 2.0)
    a_folder(tmp_path / "images")
    config = dataclasses.replace(
        FEW,
        steps=5,
        keep=1,
        ckpt_every=0,
        out=tmp_path / "run",
        resume="auto",
        eval_extractor="digits-cnn",
    )
    other = dataclasses.replace(config, eval_reference=str(tmp_path / "images"))
    out = train(config, Ranks())
    train(dataclasses.replace(other, steps=12), Ranks())
    assert names(out) == ["step-0000010", "step-0000012"], (
        "5 there is the lowest, whatever 1 was here"
    )
    assert (out / "best").resolve().name == "step-0000010"
    train(dataclasses.replace(config, steps=15), Ranks())
    assert names(out) == ["step-0000015"]
    one, two, again, back = (
        line["eval"] for line in read_metrics(out / "metrics.jsonl") if FD in line
    )
    assert one == back != two == again
    record = json.loads((out / "scores.json").read_text())
    assert [*record] == [one, two]
    assert [record[key]["reference"]["source"] for key in (one, two)] == [
        "digits",
        str(tmp_path / "images"),
    ]


@pytest.mark.parametrize(
    "changes", [dict(eval_samples=6), dict(precision="bf16"), dict(label_dropout=0.0)]
)
def test_what_distances_depend_on_is_in_their_hash(changes, tmp_path):
    session = a_session(tmp_path)
    yardstick = scores.choose_eval_target(session.config, Ranks())
    other = dataclasses.replace(session.card, config=dataclasses.replace(session.config, **changes))
    one, two = (
        yardstick.prepare(dataclasses.replace(session, card=card)).eval
        for card in (session.card, other)
    )
    weights = dataclasses.replace(
        yardstick, extractor=dataclasses.replace(yardstick.extractor, checksum="other")
    )
    assert len({one, two, weights.prepare(session).eval}) == 3
    assert one == yardstick.prepare(session).eval


def test_the_protocol_of_scores_is_written(scored, tmp_path):
    ((key, record),) = json.loads((scored / "scores.json").read_text()).items()
    assert {line["eval"] for line in read_metrics(scored / "metrics.jsonl") if FD in line} == {key}
    assert {read_distance(c).eval for c in checkpoints(scored)} == {key}
    assert {
        k: record["sampling"][k]
        for k in ("sampler", "steps", "cfg_scale", "seed", "precision", "vae")
    } == {
        "sampler": "dpmpp_2m",
        "steps": 20,
        "cfg_scale": 1.5,
        "seed": 0,
        "precision": "fp32",
        "vae": "identity",
    }
    assert record["samples"]["count"] == COUNT
    assert record["samples"]["labels"] == "10 classes, 7 images each"
    assert record["features (digits-cnn)"]["weights_sha256"]
    assert record["reference"]["count"] == 1797
    session = a_session(tmp_path)
    session.run.mkdir()
    (session.run / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json is missing or damaged"):
        scores.choose_eval_target(SCORED, Ranks()).prepare(session)


def test_a_best_checkpoint_removed_by_hand_is_no_harm(tmp_path, monkeypatch):
    prescribe(monkeypatch, 1.0, 3.0, 4.0)
    config = dataclasses.replace(FEW, steps=10, out=tmp_path / "run", resume="auto")
    out = train(config, Ranks())
    shutil.rmtree(out / "checkpoints" / "step-0000005")
    assert "3 at step 10 (checkpoints/step-0000010)" in info(out)
    train(dataclasses.replace(config, steps=12), Ranks())
    assert names(out) == ["step-0000010", "step-0000012"]
    assert (out / "best").resolve().name == "step-0000010"
    for left in checkpoints(out):
        shutil.rmtree(left)
    tidy(out, config)
    assert not (out / "best").is_symlink()


def test_the_best_is_kept_where_there_are_no_links(tmp_path, monkeypatch, capsys):
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    prescribe(monkeypatch, 1.0, 3.0)
    out = train(
        dataclasses.replace(FEW, steps=10, ckpt_every=0, keep=1, out=tmp_path / "run"), Ranks()
    )
    assert names(out) == ["step-0000005", "step-0000010"]
    assert f"the best checkpoint, {out}/checkpoints/step-0000005" in capsys.readouterr().err
    assert "1 at step 5 (checkpoints/step-0000005)" in info(out)


def a_checkpoint(run: Path, step: int, *distance: object) -> Path:
    """One that has only its meta.json."""
    checkpoint = run / "checkpoints" / f"step-{step:07d}"
    checkpoint.mkdir(parents=True)
    scored = {"distance": Distance(*distance)._asdict()} if distance else {}
    write_json(checkpoint / "meta.json", {"step": step, **scored, "files": {}})
    return checkpoint


def test_the_best_is_the_first_of_those_measured_as_the_newest(tmp_path):
    assert find_best(tmp_path) is None
    old = a_checkpoint(tmp_path, 1, FD, 1.0, "aaaaaa")
    a_checkpoint(tmp_path, 2, FD, 5.0, "bbbbbb")
    best = a_checkpoint(tmp_path, 3, FD, 4.0, "bbbbbb")
    a_checkpoint(tmp_path, 4, FD, 4.0, "bbbbbb")
    unscored = a_checkpoint(tmp_path, 5)
    (a_checkpoint(tmp_path, 6, FD, 0.1, "bbbbbb") / "meta.json").write_text("{")
    assert find_best(tmp_path) == Best(best, Distance(FD, 4.0, "bbbbbb"))
    assert find_best(tmp_path, "aaaaaa").checkpoint == old
    assert find_best(tmp_path, "cccccc") is None
    assert read_distance(unscored) is None
    assert verify_checkpoint(unscored) == {"step": 5, "files": {}}


def test_the_loss_curve_and_the_table_pass_over_lines_without_loss(tmp_path):
    lines = [
        {"step": 1, "loss": 2.0, "lr": 1e-3},
        {"step": 2, FD: 3.0},
        {"step": 3, "loss": 1.0, "lr": 1e-3},
    ]
    pictures = [tmp_path / name for name in ("all.png", "losses.png")]
    for part, picture in zip((lines, [lines[0], lines[2]]), pictures, strict=True):
        loss_curve(part, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    run = write_run(tmp_path / "run", step=2)
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in (lines[0], {"step": 4, FD: 3.0}))
    )
    table = " ".join(info(run).split())
    assert "trained 4 steps logged" in table
    assert "last loss 2.0" in table


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(eval_reference="nowhere"), "nowhere"),
        (dict(eval_extractor="nonsense"), "--eval-extractor nonsense"),
        (dict(eval_weights="file.pth"), "--eval-weights"),
        (dict(eval_extractor="inception", eval_weights="file.pth"), "file.pth"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_mistakes_in_flags_are_told_before_anything_is_trained(wrong, message, dry_run, tmp_path):
    with pytest.raises(UserError) as error:
        train(dataclasses.replace(SCORED, out=tmp_path / "run", dry_run=dry_run, **wrong), Ranks())
    assert message in str(error.value)
    assert " --extractor" not in str(error.value)
    assert " --weights" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_latents_need_images_to_compare_with(tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "encoding.json").write_text("{}")
    with pytest.raises(UserError, match="--eval-reference"):
        scores.choose_eval_target(
            dataclasses.replace(SCORED, data=str(tmp_path / "latents")), Ranks()
        )


def test_a_folder_is_cropped_as_in_training(tmp_path):
    a_folder(tmp_path / "images")
    config = dataclasses.replace(SCORED, data=str(tmp_path / "images"), eval_extractor="digits-cnn")
    images = scores.choose_eval_target(config, Ranks()).reference.images
    source = build_source(config, load_autoencoder("identity"))
    assert len(images) == 4
    assert torch.equal(images.read(0), source._images[0])


def test_an_image_that_can_not_be_read_ends_it_before_training(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((8, 8), 50).convert("RGB").save(folder / f"{i}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:80])
    config = dataclasses.replace(
        SCORED, out=tmp_path / "run", eval_reference=str(folder), eval_extractor="digits-cnn"
    )
    with pytest.raises(UserError, match=r"1\.png"):
        train(config, Ranks())
    assert not (tmp_path / "run").exists()
