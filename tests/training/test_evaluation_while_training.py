"""Scores during training: correct, the same on any number of ranks, without effect on weights."""

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
from conftest import SMALL, write_run
from helpers import forked
from helpers.training import TINY, a_session, differing, logged, resume, run, tensors
from PIL import Image
from torch import Tensor

from dit.commands.info import info
from dit.commands.train import train
from dit.config import TrainConfig
from dit.data.images import Digits
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.metrics.compute import Score
from dit.latents.load import build_source
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import (
    Best,
    Distance,
    checkpoints,
    find_best,
    find_weights,
    latest_checkpoint,
    read_distance,
    verify_checkpoint,
)
from dit.runs.logs import read_metrics
from dit.sampling.generate import generate
from dit.sampling.load import load_run
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.training import batches, checkpointing
from dit.training.batches import Batch, read_batch
from dit.training.checkpointing import tidy
from dit.training.monitoring import eval_samples, evaluation
from dit.training.monitoring.log import EvalResult, MetricsLog
from dit.training.monitoring.previews import preview_settings
from dit.training.resilience.preemption import Stop
from dit.training.session import TrainingSession
from dit.utils.files import write_json
from dit.utils.pictures import loss_curve

COUNT = 70  # two batches, the second one not full
PLAIN = dataclasses.replace(TINY, steps=20, cooldown=0, ckpt_every=10, log_every=10, keep=9)
SCORED = dataclasses.replace(PLAIN, eval_every=5, eval_samples=COUNT)
FEW = dataclasses.replace(SCORED, eval_samples=5)
FD = "FD(digits-cnn)"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def surroundings(small_networks, tmp_path_factory):
    """A small network, and a cache for this module alone."""
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
    return run(tmp_path_factory.mktemp("scored") / "run", SCORED, init=weights)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Noise in two classes, of another shape than what is trained on."""
    for i, name in enumerate("aabb"):
        file = tmp_path / "images" / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return tmp_path / "images"


def scores_of(session: TrainingSession) -> evaluation.Scores:
    return evaluation.choose_eval_target(session.config, session.ranks).prepare(session)


def measured(run: Path) -> dict[int, dict[str, float]]:
    """The scores of a run's log by step."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if FD in line]
    return {
        line["step"]: {name: value for name, value in line.items() if "(digits-cnn)" in name}
        for line in lines
    }


def names(run: Path) -> list[str]:
    return [checkpoint.name for checkpoint in checkpoints(run)]


def prescribe(monkeypatch: pytest.MonkeyPatch, *distances: float) -> None:
    """Let the distances be these, one after the other."""
    coming = iter(distances)

    def score(*_: object) -> dict[str, Score]:
        found = {
            name: Score(name, None, "higher", COUNT)
            for name in evaluation.score_names("digits-cnn")
        }
        return {**found, FD: Score(FD, next(coming), "lower", COUNT)}

    monkeypatch.setattr(evaluation.references, "score_samples", score)


# -- signals ---------------------------------------------------------------------------------------


def train_interrupted(ranks: Ranks, config: TrainConfig) -> None:
    """Train; rank 1 gets a signal when it samples its second batch, of thousands."""
    sampled, quick = [], eval_samples.generate

    def slow(*given: object) -> Tensor:
        sampled.append(given)
        if ranks.rank == 1 and len(sampled) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(sampled) < 10, "the signal is ignored"
        return quick(*given)

    SIZES["Ti"] = dict(depth=1, hidden_size=32, num_heads=1)
    eval_samples.generate = slow
    train(config, ranks)


def test_a_signal_to_any_rank_ends_scoring_with_a_checkpoint(tmp_path):
    out = tmp_path / "run"
    forked.run(2, train_interrupted, dataclasses.replace(SCORED, eval_samples=10**5, out=out))
    assert verify_checkpoint(latest_checkpoint(out))["step"] == 5
    assert logged(out, "event", "step") == [("unscored", 5)]


def test_a_signal_ends_a_picture():
    stop, network, calls = Stop(Ranks()), torch.nn.Identity(), []
    with stop.interrupting(network):
        calls.append(network(1))
        stop.asked = True
        calls.append(network(2))
    assert [*calls, network(3)] == [1, 3]


# -- the numbers -----------------------------------------------------------------------------------


def test_scores_are_those_of_the_ema_in_the_checkpoint(scored):
    """Computed otherwise: the saved EMA, samples in one batch, torch-fidelity's distance."""
    from torch_fidelity import metric_fid

    loaded = load_run(scored / "checkpoints" / "step-0000010", CPU)
    settings = dataclasses.replace(preview_settings(loaded.card), batch_size=COUNT)
    assert settings.cfg_scale > 1
    labels = torch.arange(10).repeat_interleave(COUNT // 10)
    samples = generate(build_pipeline(loaded, settings), labels, torch.arange(COUNT))

    (extractor,) = load_extractors(["digits-cnn"], (), CPU)
    statistics = [
        metric_fid.fid_features_to_statistics(extractor(images).values.double())
        for images in (samples, Digits(8).images)
    ]
    result = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    expected = result[metric_fid.KEY_METRIC_FID]
    assert measured(scored)[10][FD] == pytest.approx(expected, rel=1e-3)
    assert abs(measured(scored)[5][FD] / expected - 1) > 0.01


def test_log_and_tensorboard_have_all_scores(scored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = read_metrics(scored / "metrics.jsonl")
    with_loss = [(line["step"], "loss" in line) for line in lines]
    assert with_loss == [(5, False), (10, True), (15, False), (20, True)]
    shown = ("FD", "KID", "precision", "recall", "IS")
    assert [*measured(scored)[5]] == [f"{name}(digits-cnn)" for name in shown]

    board = EventAccumulator(str(scored / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    for name in measured(scored)[5]:
        tag = next(tag for tag in tags if tag.startswith(f"eval/{name.split('(')[0]}"))
        events = [(event.step, event.value) for event in board.Scalars(tag)]
        logged_scores = [(step, found[name]) for step, found in measured(scored).items()]
        assert events == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged_scores]
    with Image.open(scored / "scores.png") as picture:
        assert picture.width > 500


def test_training_is_the_same_bit_for_bit_with_and_without_scores(scored, weights, tmp_path):
    plain = run(tmp_path / "run", PLAIN, init=weights)
    left, right = (tensors(latest_checkpoint(out)) for out in (plain, scored))
    assert differing(left, right) == []
    assert logged(plain, "loss", "grad_norm", "step") == logged(scored, "loss", "grad_norm", "step")
    assert not (plain / "best").exists()
    assert not (plain / "scores.png").exists()


def test_nothing_is_read_while_the_ema_is_scored(tmp_path, monkeypatch):
    """The feature network sets flags of the process, which would change what the encoder does."""
    reading: list[int] = []
    seen: list[list[int]] = []

    def slow(stream: batches.DataStream, position: int) -> Batch:
        reading.append(position)
        time.sleep(0.05)
        batch = read_batch(stream, position)
        reading.remove(position)
        return batch

    def measure(*_: object) -> EvalResult:
        seen.append([*reading])
        return EvalResult()

    monkeypatch.setattr(batches, "read_batch", slow)
    monkeypatch.setattr(evaluation.Scores, "measure", measure)
    run(tmp_path / "run", FEW, eval_every=1, steps=4)
    assert seen == [[], [], [], []]


def measure_twice(folder: Path, ranks: Ranks, **changes: object) -> list[dict[str, object]]:
    """What a rank measures; and what, once the last one has an EMA that is not finite."""
    session = a_session(folder, SCORED, ranks, **changes)
    scores = scores_of(session)
    found = scores.measure(5, session.ema_for_sampling())
    if ranks.rank == ranks.world - 1:
        next(session.state.ema.network.parameters()).data.fill_(torch.nan)
    return [*map(dataclasses.asdict, (found, scores.measure(6, session.ema_for_sampling())))]


def score_on_ranks(ranks: Ranks, out: Path, init: Path) -> None:
    """Measure; and train on a folder with scores and without."""
    SIZES["Ti"] = SMALL
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more for the reference
    changes = dict(init=init, eval_samples=150)
    found = {f"rank {ranks.rank}": measure_twice(out / "ranks", ranks, **changes)}
    if ranks.main:
        found["alone"] = measure_twice(out / "alone", Ranks(), **changes)
    settings = dict(steps=3, warmup=1, eval_samples=20, eval_extractor="digits-cnn")
    config = dataclasses.replace(SCORED, init=init, data=str(out / "images"), **settings)
    for every in (0, 2):
        train(dataclasses.replace(config, out=out / f"every-{every}", eval_every=every), ranks)
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))


def test_two_ranks_measure_what_one_does(tmp_path, weights, folder):
    """And train on a folder, encoded as it is read, as without scores."""
    forked.run(2, score_on_ranks, tmp_path, weights)
    found = {}
    for rank in (0, 1):
        found |= json.loads((tmp_path / f"{rank}.json").read_text())
    assert found["rank 0"] == found["rank 1"] == found["alone"]
    first, nothing = found["alone"]
    assert first["is_best"]
    assert first["scores"][FD] > 0
    assert nothing == dataclasses.asdict(EvalResult())
    plain, scored = (tensors(latest_checkpoint(tmp_path / f"every-{every}")) for every in (0, 2))
    assert differing(plain, scored) == []
    assert [*measured(tmp_path / "every-2")] == [2, 3]


def test_samples_that_are_not_finite_only_cause_a_warning(tmp_path, weights, capsys):
    session = a_session(tmp_path, SCORED, init=weights)
    scores = scores_of(session)
    ema = next(session.state.ema.network.parameters()).data
    good = ema.clone()
    ema.fill_(torch.nan)
    assert scores.measure(7, session.ema_for_sampling()) == EvalResult()
    assert "warning: no scores at step 7" in capsys.readouterr().err
    ema.copy_(good)
    found = scores.measure(8, session.ema_for_sampling())
    assert found.is_best
    assert np.isfinite([*found.scores.values()]).all()
    # The same samples each time, which lead no more.
    assert scores.measure(9, session.ema_for_sampling()) == dataclasses.replace(
        found, is_best=False
    )


def test_classes_are_spread_evenly_over_few_samples(tmp_path, weights, monkeypatch):
    seen: list[tuple[int, int]] = []

    def black(pipeline: SamplingPipeline, labels: Tensor, indices: Tensor) -> Tensor:
        seen.extend(zip(indices.tolist(), labels.tolist(), strict=True))
        return torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(eval_samples, "generate", black)
    for count in (5, 20):
        session = a_session(tmp_path / str(count), SCORED, init=weights, eval_samples=count)
        scores_of(session).measure(1, session.ema_for_sampling())
    assert seen[:5] == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]
    assert seen[5:] == [(i, i // 2) for i in range(20)]


# -- the best checkpoint ---------------------------------------------------------------------------


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, monkeypatch, capsys):
    prescribe(monkeypatch, 4.0, 2.5, 3.0, 2.5, 9.0, 8.0)
    out = run(tmp_path / "run", FEW, eval_every=2, ckpt_every=6, steps=12, keep=1)
    assert names(out) == ["step-0000004", "step-0000012"]
    best = out / "checkpoints" / "step-0000004"
    assert (out / "best").resolve() == best.resolve()
    assert not (out / "best").readlink().is_absolute(), "the run may be moved"
    assert find_weights(out / "best") == next(best.glob("ema-*"))
    assert f"best        {out / 'best'} (step 4, FD(digits-cnn) 2.5)" in capsys.readouterr().out
    assert "FD(digits-cnn) 2.5 at step 4 (best)" in info(out)


def test_a_resumed_run_has_the_scores_and_the_best_of_an_undisturbed_one(scored, weights, tmp_path):
    out = run(tmp_path / "run", SCORED, init=weights, steps=10)
    with (out / "metrics.jsonl").open("a") as file:  # as a kill after step 15 leaves it
        file.write(json.dumps({"step": 15, FD: 0.0}) + "\n")
    resume(out, SCORED, init=weights)
    assert measured(out) == measured(scored)
    assert names(out) == names(scored)
    assert (out / "best").readlink() == (scored / "best").readlink()


def test_the_best_before_counts_when_a_run_continues(tmp_path, monkeypatch):
    prescribe(monkeypatch, 2.0, 3.0, 1.0)
    for steps, expected in ((5, "step-0000005"), (10, "step-0000005"), (15, "step-0000015")):
        out = resume(tmp_path / "run", FEW, ckpt_every=0, keep=1, steps=steps)
        assert (out / "best").resolve().name == expected
    assert names(out) == ["step-0000015"]


def test_scores_may_begin_when_a_run_continues(tmp_path, monkeypatch):
    prescribe(monkeypatch, 2.0)
    out = run(tmp_path / "run", PLAIN, steps=2)
    with pytest.raises(UserError, match="--eval-samples 500 there, --eval-samples 5 now"):
        resume(out, FEW, steps=4)
    run(out, FEW, steps=4, resume=str(out))
    assert measured(out) == {4: {FD: 2.0}}


class Kill(BaseException):
    """What nothing handles."""


@pytest.mark.parametrize("last", ["step-0000005", "step-0000010"])
def test_a_link_that_a_kill_prevented_is_made_when_the_run_continues(last, tmp_path, monkeypatch):
    """Even if no step is left."""
    best = int(last.removeprefix("step-"))
    prescribe(monkeypatch, 2.0, 1.0)
    settings = dict(ckpt_every=0, keep=1)
    out, link = tmp_path / "run", checkpointing._link_best

    def killed(name: Path, to: Path | None) -> None:
        if to and to.name == last:
            raise Kill
        link(name, to)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "_link_best", killed)
        with pytest.raises(Kill):
            resume(out, FEW, steps=10, **settings)
    assert names(out) == [f"step-{step:07d}" for step in (5, 10) if step <= best]
    assert not (out / "best").exists() or (out / "best").resolve().name != last
    resume(out, FEW, steps=best, **settings)
    assert names(out) == [last]
    assert (out / "best").resolve().name == last


def test_the_best_is_known_without_the_log(tmp_path, monkeypatch):
    prescribe(monkeypatch, 1.0, 3.0, 2.0)
    out = run(tmp_path / "run", FEW, steps=10, keep=1)
    (out / "metrics.jsonl").unlink()
    assert "FD(digits-cnn) 1 at step 5 (best)" in info(out)
    resume(out, FEW, steps=15, keep=1)
    assert names(out) == ["step-0000005", "step-0000015"]
    assert (out / "best").resolve().name == "step-0000005"


def test_a_kill_while_the_log_is_rewritten_leaves_it(tmp_path, monkeypatch):
    out = run(tmp_path / "run", PLAIN, steps=4, log_every=2)
    before = (out / "metrics.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr("dit.training.monitoring.log.sync_to_disk", killed)
        with pytest.raises(Kill):
            MetricsLog(out, start=2)
    assert (out / "metrics.jsonl").read_bytes() == before
    MetricsLog(out, start=2).close()
    assert logged(out, "step") == [(2,)]


def test_distances_to_another_reference_do_not_compare(tmp_path, monkeypatch, folder):
    prescribe(monkeypatch, 1.0, 5.0, 6.0, 2.0)
    settings = dict(keep=1, ckpt_every=0, eval_extractor="digits-cnn")
    out = run(tmp_path / "run", FEW, steps=5, **settings)
    resume(out, FEW, steps=12, eval_reference=str(folder), **settings)
    # 5 is the lowest distance to the folder, though 1 to the digits was lower.
    assert names(out) == ["step-0000010", "step-0000012"]
    assert (out / "best").resolve().name == "step-0000010"
    resume(out, FEW, steps=15, **settings)
    assert names(out) == ["step-0000015"]

    (one,), (two,), (again,), (back,) = logged(out, "eval")
    assert one == back != two == again
    record = json.loads((out / "scores.json").read_text())
    assert [*record] == [one, two]
    sources = [record[key]["reference"]["source"] for key in (one, two)]
    assert sources == ["digits", str(folder)]


@pytest.mark.parametrize(
    "changes", [dict(eval_samples=6), dict(precision="bf16"), dict(label_dropout=0.0)]
)
def test_the_hash_of_scores_depends_on_all_that_distances_depend_on(changes, tmp_path):
    session = a_session(tmp_path, SCORED)
    other = a_session(tmp_path, SCORED, **changes)
    target = evaluation.choose_eval_target(session.config, Ranks())
    extractor = dataclasses.replace(target.extractor, checksum="other")
    of_weights = dataclasses.replace(target, extractor=extractor).prepare(session)
    hashes = {scores_of(session).eval, scores_of(other).eval, of_weights.eval}
    assert len(hashes) == 3
    assert scores_of(session).eval == target.prepare(session).eval


def test_the_protocol_of_scores_is_written(scored, tmp_path):
    ((key, record),) = json.loads((scored / "scores.json").read_text()).items()
    assert set(logged(scored, "eval")) == {(key,)}
    assert {read_distance(c).eval for c in checkpoints(scored)} == {key}
    expected = dict(sampler="dpmpp_2m", steps=20, cfg_scale=1.5, seed=0, precision="fp32")
    assert expected.items() <= record["sampling"].items()
    assert record["sampling"]["vae"] == "identity"
    assert record["samples"]["count"] == COUNT
    assert record["samples"]["labels"] == "10 classes, 7 images each"
    assert record["features (digits-cnn)"]["weights_sha256"]
    assert record["reference"]["count"] == 1797

    session = a_session(tmp_path, SCORED)
    session.run.mkdir()
    (session.run / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json is missing or damaged"):
        scores_of(session)


def test_protocols_damaged_while_training_do_no_harm(tmp_path, monkeypatch):
    prescribe(monkeypatch, 2.0, 1.0)
    record = evaluation.record_protocol

    def record_and_damage(session: TrainingSession, *given: object) -> None:
        record(session, *given)
        (session.run / "scores.json").write_text("{")

    monkeypatch.setattr(evaluation, "record_protocol", record_and_damage)
    out = run(tmp_path / "run", FEW, steps=10)
    assert logged(out, FD) == [(2.0,), (1.0,)]


def test_a_best_checkpoint_removed_by_hand_does_no_harm(tmp_path, monkeypatch):
    prescribe(monkeypatch, 1.0, 3.0, 4.0)
    out = run(tmp_path / "run", FEW, steps=10)
    shutil.rmtree(out / "checkpoints" / "step-0000005")
    assert "3 at step 10 (checkpoints/step-0000010)" in info(out)
    resume(out, FEW, steps=12)
    assert names(out) == ["step-0000010", "step-0000012"]
    assert (out / "best").resolve().name == "step-0000010"
    for remaining in checkpoints(out):
        shutil.rmtree(remaining)
    tidy(out, FEW)
    assert not (out / "best").is_symlink()


def test_the_best_is_kept_on_a_file_system_without_links(tmp_path, monkeypatch, capsys):
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    prescribe(monkeypatch, 1.0, 3.0)
    out = run(tmp_path / "run", FEW, steps=10, ckpt_every=0, keep=1)
    assert names(out) == ["step-0000005", "step-0000010"]
    assert f"the best checkpoint, {out}/checkpoints/step-0000005" in capsys.readouterr().err
    assert "1 at step 5 (checkpoints/step-0000005)" in info(out)


def a_checkpoint(run: Path, step: int, *distance: object) -> Path:
    """Write one that has only its meta.json."""
    checkpoint = run / "checkpoints" / f"step-{step:07d}"
    checkpoint.mkdir(parents=True)
    scored = {"distance": dataclasses.asdict(Distance(*distance))} if distance else {}
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
    # a list without weights verifies nothing
    with pytest.raises(UserError, match=r"meta\.json does not list ema-\*\.safetensors"):
        verify_checkpoint(unscored)


def test_the_loss_curve_and_the_table_ignore_lines_without_loss(tmp_path):
    first, second = ({"step": step, "loss": 3.0 - step, "lr": 1e-3} for step in (1, 2))
    pictures = [tmp_path / name for name in ("all.png", "losses.png")]
    loss_curve([first, {"step": 2, FD: 3.0}, second], pictures[0])
    loss_curve([first, second], pictures[1])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()

    run = write_run(tmp_path / "run", step=2)
    lines = [json.dumps(line) for line in (first, {"step": 4, FD: 3.0})]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    table = " ".join(info(run).split())
    assert "trained 4 steps logged" in table
    assert "last loss 2.0" in table


# -- mistakes --------------------------------------------------------------------------------------


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
def test_mistakes_in_flags_are_refused_before_training(wrong, message, dry_run, tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path / "run", SCORED, dry_run=dry_run, **wrong)
    assert message in str(error.value)
    assert " --extractor" not in str(error.value)
    assert " --weights" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_latents_need_images_to_compare_with(tmp_path):
    encoding = dict(vae="identity", image_size=8, flips=False, count=6, shard_size=4)
    earlier = {**encoding, "checksum": None, "fingerprint": "f"}
    (tmp_path / "encoding.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="--eval-reference with their folder"):
        evaluation.choose_eval_target(dataclasses.replace(SCORED, data=str(tmp_path)), Ranks())


def test_a_folder_is_cropped_as_in_training(folder):
    config = dataclasses.replace(SCORED, data=str(folder), eval_extractor="digits-cnn")
    images = evaluation.choose_eval_target(config, Ranks()).reference.images
    source = build_source(config, load_autoencoder("identity"))
    assert len(images) == 4
    assert torch.equal(images.read(0), source.images[0])


def test_an_image_that_can_not_be_read_is_refused_before_training(tmp_path, folder):
    broken = folder / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:80])
    with pytest.raises(UserError, match=r"1\.png"):
        run(tmp_path / "run", SCORED, eval_reference=str(folder), eval_extractor="digits-cnn")
    assert not (tmp_path / "run").exists()
