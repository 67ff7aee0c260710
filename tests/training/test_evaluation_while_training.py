"""Scores during training: correct, the same on any number of ranks; the best checkpoint is kept."""

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
from helpers.training import train_run
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import forked
from dit.commands.info import info
from dit.config import SamplerConfig, TrainConfig
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
from dit.sampling.pipeline import build_pipeline
from dit.training import batches
from dit.training import checkpointing as checkpoint
from dit.training.batches import Batch, draw_batch
from dit.training.checkpointing import tidy
from dit.training.monitoring import eval_samples
from dit.training.monitoring import evaluation as scores
from dit.training.monitoring.eval_protocol import eval_key
from dit.training.monitoring.metrics import EvalResult, MetricsLog
from dit.training.monitoring.previews import sampler_settings
from dit.training.prepare import build_card, prepare
from dit.training.resilience.preemption import Stop
from dit.training.session import TrainingSession
from dit.training.trainer import train
from dit.utils.files import write_json

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
    """A small network, and a separate cache."""
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
    return train_run(SCORED, init=weights, out=tmp_path_factory.mktemp("scored") / "run")


def a_session(tmp_path: Path, **changes: object) -> TrainingSession:
    config = dataclasses.replace(SCORED, out=tmp_path / "session", **changes)
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    return prepare(build_card(config, source), source, autoencoder, Ranks())


def measured(run: Path) -> dict[int, dict[str, float]]:
    """Return the scores of a run's log by step."""
    scores_by_step = {}
    for line in read_metrics(run / "metrics.jsonl"):
        if FD in line:
            found = {name: value for name, value in line.items() if "(digits-cnn)" in name}
            scores_by_step[line["step"]] = found
    return scores_by_step


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    found = {}
    for file in checkpoint.rglob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_same_tensors(one: Path, other: Path) -> None:
    """Compare the newest checkpoints of two runs bit for bit."""
    left, right = tensors(latest_checkpoint(one)), tensors(latest_checkpoint(other))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def names(run: Path) -> list[str]:
    return [c.name for c in checkpoints(run)]


def set_distances(monkeypatch: pytest.MonkeyPatch, *distances: float) -> None:
    """Replace the distances by these, one after the other."""
    coming = iter(distances)

    def score(*_: object) -> dict[str, Score]:
        names = scores.score_names("digits-cnn")
        found = {name: Score(name, None, "higher", COUNT) for name in names}
        return {**found, FD: Score(FD, next(coming), "lower", COUNT)}

    monkeypatch.setattr(scores.references, "score", score)


def train_with_a_signal(ranks: Ranks, config: TrainConfig) -> None:
    """Train; rank 1 gets a signal while it generates its second batch of samples, of thousands."""
    calls = []
    generate_batch = eval_samples.generate

    def generate_with_a_signal(*given: object) -> Tensor:
        calls.append(given)
        if ranks.rank == 1 and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(calls) < 10, "the signal is ignored"
        return generate_batch(*given)

    SIZES["Ti"] = dict(depth=1, hidden_size=32, num_heads=1)
    eval_samples.generate = generate_with_a_signal
    train(config, ranks)


def test_a_signal_to_any_rank_ends_scoring_and_the_run_goes_on_from_there(tmp_path):
    config = dataclasses.replace(SCORED, eval_samples=10**5, out=tmp_path / "run")
    forked.run(2, train_with_a_signal, config)
    assert verify_checkpoint(latest_checkpoint(config.out))["step"] == 5
    (line,) = read_metrics(config.out / "metrics.jsonl")
    assert (line["step"], line["event"]) == (5, "unscored")


def test_a_signal_ends_a_picture():
    stop, network, calls = Stop(Ranks()), torch.nn.Identity(), []
    with stop.leaving(network):
        calls.append(network(1))
        stop.asked = True
        calls.append(network(2))
    assert [*calls, network(3)] == [1, 3]


# -- the numbers -----------------------------------------------------------------------------------


def test_scores_are_those_of_the_ema_in_the_checkpoint(scored):
    """From the saved EMA, all samples in one batch, with torch-fidelity's distance."""
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    run = load_run(scored / "checkpoints" / "step-0000010", torch.device("cpu"))
    settings = dataclasses.replace(sampler_settings(run.card), batch_size=COUNT)
    assert settings.cfg_scale > 1
    labels = torch.arange(10).repeat_interleave(COUNT // 10)
    pipeline = build_pipeline(run, settings)
    (extractor,) = load_extractors(["digits-cnn"], (), torch.device("cpu"))
    samples = generate(run, pipeline, settings, labels, torch.arange(COUNT))
    statistics = [
        fid_features_to_statistics(extractor(images).values.double())
        for images in (samples, Digits(8).images)
    ]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert measured(scored)[10][FD] == pytest.approx(expected, rel=1e-3)
    assert abs(measured(scored)[5][FD] / expected - 1) > 0.01


def test_log_and_tensorboard_have_all_scores(scored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = read_metrics(scored / "metrics.jsonl")
    with_loss = {line["step"]: "loss" in line for line in lines}
    assert with_loss == {5: False, 10: True, 15: False, 20: True}
    names = ("FD", "KID", "precision", "recall", "IS")
    assert [*measured(scored)[5]] == [f"{name}(digits-cnn)" for name in names]
    board = EventAccumulator(str(scored / "tensorboard"))
    board.Reload()
    for name in names:
        events = {event.step: event.value for event in board.Scalars(f"eval/{name}[digits-cnn]")}
        logged = {step: found[f"{name}(digits-cnn)"] for step, found in measured(scored).items()}
        assert events == pytest.approx(logged, rel=1e-6)
    with Image.open(scored / "scores.png") as picture:
        assert picture.width > 500


def test_training_is_the_same_bit_for_bit_with_and_without_scores(scored, weights, tmp_path):
    plain = train_run(QUIET, init=weights, out=tmp_path / "run")
    assert_same_tensors(plain, scored)
    plain_log, scored_log = (
        [(m["step"], m["loss"], m["grad_norm"]) for m in read_metrics(log) if "loss" in m]
        for log in (plain / "metrics.jsonl", scored / "metrics.jsonl")
    )
    assert plain_log == scored_log
    assert not (plain / "best").exists()
    assert not (plain / "scores.png").exists()


def test_nothing_is_read_while_the_ema_is_measured(tmp_path, monkeypatch):
    """The feature network sets flags of the whole process, which the encoder would see."""
    reading: list[bool] = []
    while_measured: list[bool] = []

    def slow(*given: object) -> Batch:
        reading.append(True)
        time.sleep(0.05)
        batch = draw_batch(*given)
        reading.pop()
        return batch

    def measure(*_: object) -> EvalResult:
        while_measured.append(bool(reading))
        return EvalResult()

    monkeypatch.setattr(batches, "draw_batch", slow)
    monkeypatch.setattr(scores.Scores, "measure", measure)
    train_run(FEW, eval_every=1, steps=4, out=tmp_path / "run")
    assert while_measured == [False] * 4


def write_images(folder: Path) -> None:
    """Write noise in two classes, of another shape than that of training."""
    for i, name in enumerate("aabb"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i}.png")


def scores_on(ranks: Ranks, config: TrainConfig) -> list[dict[str, object]]:
    """Return a rank's scores, and those when the last rank's EMA is not finite."""
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    session = prepare(build_card(config, source), source, autoencoder, ranks)
    evaluation = scores.choose_eval_target(config, ranks).prepare(session)
    results = [evaluation.measure(5, session.average())]
    if ranks.rank == ranks.world - 1:  # on one rank: the others must notice
        next(session.state.ema.network.parameters()).data.fill_(torch.nan)
    results.append(evaluation.measure(6, session.average()))
    return [dataclasses.asdict(result) for result in results]


def score_on_ranks(ranks: Ranks, out: Path, init: Path) -> None:
    """Measure, and train on a folder with scores and without."""
    SIZES["Ti"] = SMALL
    os.environ["OMP_NUM_THREADS"] = "2"  # with 1 rank 0 would take more for the reference
    config = dataclasses.replace(SCORED, init=init, eval_samples=150)
    found = {f"rank {ranks.rank}": scores_on(ranks, dataclasses.replace(config, out=out / "run"))}
    if ranks.main:
        found["alone"] = scores_on(Ranks(), dataclasses.replace(config, out=out / "alone"))
    folder = dict(data=str(out / "images"), eval_extractor="digits-cnn", eval_samples=20)
    config = dataclasses.replace(config, **folder, steps=3, warmup=1)
    for every in (0, 2):
        train(dataclasses.replace(config, out=out / f"every-{every}", eval_every=every), ranks)
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))


def test_two_ranks_measure_what_one_does(tmp_path, weights):
    """And train on a folder, encoded as it is read, as without scores."""
    write_images(tmp_path / "images")
    forked.run(2, score_on_ranks, tmp_path, weights)
    found = {}
    for rank in (0, 1):
        found |= json.loads((tmp_path / f"{rank}.json").read_text())
    assert found["rank 0"] == found["rank 1"] == found["alone"]
    first, nothing = found["alone"]
    assert first["leads"]
    assert first["scores"][FD] > 0
    assert nothing == dataclasses.asdict(EvalResult())
    assert_same_tensors(tmp_path / "every-0", tmp_path / "every-2")
    assert [*measured(tmp_path / "every-2")] == [2, 3]


def test_samples_that_are_not_finite_give_a_warning(tmp_path, weights, capsys):
    session = a_session(tmp_path, init=weights)
    evaluation = scores.choose_eval_target(session.config, Ranks()).prepare(session)
    ema = next(session.state.ema.network.parameters()).data
    good = ema.clone()
    ema.fill_(torch.nan)
    assert evaluation.measure(7, session.average()) == EvalResult()
    assert "warning: no scores at step 7" in capsys.readouterr().err
    ema.copy_(good)
    found = evaluation.measure(8, session.average())
    assert found.leads
    again = dataclasses.replace(found, leads=False)
    assert evaluation.measure(9, session.average()) == again  # the same samples


def test_classes_are_spread_evenly_over_few_samples(tmp_path, weights, monkeypatch):
    seen: list[tuple[int, int]] = []

    def generate_black(*given: object) -> Tensor:
        *_, labels, indices = given
        seen.extend(zip(indices.tolist(), labels.tolist(), strict=True))
        return torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(eval_samples, "generate", generate_black)
    session = a_session(tmp_path, init=weights, eval_samples=5)
    target = scores.choose_eval_target(session.config, Ranks())
    target.prepare(session).measure(1, session.average())
    assert seen == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]


# -- the best checkpoint ---------------------------------------------------------------------------


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, monkeypatch, capsys):
    set_distances(monkeypatch, 4.0, 2.5, 3.0, 2.5, 9.0, 8.0)
    config = dataclasses.replace(FEW, eval_every=2, ckpt_every=6, steps=12, keep=1)
    out = train_run(config, out=tmp_path / "run")
    assert names(out) == ["step-0000004", "step-0000012"]
    assert (out / "best").resolve() == (out / "checkpoints" / "step-0000004").resolve()
    assert not (out / "best").readlink().is_absolute(), "the run may be moved"
    assert find_weights(out / "best") == next((out / "checkpoints" / "step-0000004").glob("ema-*"))
    assert f"best        {out / 'best'} (step 4, FD(digits-cnn) 2.5)" in capsys.readouterr().out
    assert "FD(digits-cnn) 2.5 at step 4 (best)" in info(out)


def test_a_resumed_run_has_the_scores_and_the_best_of_an_undisturbed_one(scored, weights, tmp_path):
    out = tmp_path / "run"
    train_run(SCORED, init=weights, out=out, steps=10)
    with (out / "metrics.jsonl").open("a") as file:  # as a kill after step 15 leaves it
        file.write(json.dumps({"step": 15, FD: 0.0}) + "\n")
    train_run(SCORED, init=weights, out=out, resume="auto")
    assert measured(out) == measured(scored)
    assert names(out) == names(scored)
    assert (out / "best").readlink() == (scored / "best").readlink()


def test_the_best_before_counts_when_a_run_is_resumed(tmp_path, monkeypatch):
    set_distances(monkeypatch, 2.0, 3.0, 1.0)
    first = dataclasses.replace(FEW, ckpt_every=0, steps=5, keep=1, out=tmp_path / "run")
    for steps, expected in ((5, "step-0000005"), (10, "step-0000005"), (15, "step-0000015")):
        out = train_run(first, steps=steps, resume="auto")
        assert (out / "best").resolve().name == expected
    assert names(out) == ["step-0000015"]


def test_scores_may_begin_when_a_run_is_resumed(tmp_path, monkeypatch):
    set_distances(monkeypatch, 2.0)
    out = train_run(QUIET, steps=2, out=tmp_path / "run")
    more = dataclasses.replace(FEW, steps=4, out=out)
    with pytest.raises(UserError, match="eval_samples 500 there, 5 now"):
        train_run(more, resume="auto")
    train_run(more, resume=str(out))
    assert measured(out) == {4: {FD: 2.0}}


class Kill(BaseException):
    """An exception that nothing handles."""


@pytest.mark.parametrize("last", ["step-0000005", "step-0000010"])
def test_a_kill_before_the_link_is_repaired_by_resuming(last, tmp_path, monkeypatch):
    """Also when no step is left to do."""
    best = int(last.removeprefix("step-"))
    set_distances(monkeypatch, 2.0, 1.0)
    config = dataclasses.replace(
        FEW, steps=10, ckpt_every=0, keep=1, out=tmp_path / "run", resume="auto"
    )
    link = checkpoint._link

    def kill(name: Path, to: Path | None) -> None:
        if to and to.name == last:
            raise Kill
        link(name, to)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_link", kill)
        with pytest.raises(Kill):
            train(config, Ranks())
    out = tmp_path / "run"
    assert names(out) == [f"step-{step:07d}" for step in (5, 10) if step <= best]
    assert not (out / "best").exists() or (out / "best").resolve().name != last
    train_run(config, steps=best)
    assert names(out) == [last]
    assert (out / "best").resolve().name == last


def test_a_kill_while_the_log_is_rewritten_leaves_it(tmp_path, monkeypatch):
    out = train_run(QUIET, steps=4, log_every=2, out=tmp_path / "run")
    before = (out / "metrics.jsonl").read_bytes()

    def kill(*_: object) -> None:
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr("dit.training.monitoring.metrics.flush", kill)
        with pytest.raises(Kill):
            MetricsLog(out, start=2)
    assert (out / "metrics.jsonl").read_bytes() == before
    MetricsLog(out, start=2).close()
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [2]


def test_distances_to_another_reference_do_not_compare(tmp_path, monkeypatch):
    set_distances(monkeypatch, 1.0, 5.0, 6.0, 2.0)
    write_images(tmp_path / "images")
    settings = dict(steps=5, keep=1, ckpt_every=0, eval_extractor="digits-cnn")
    config = dataclasses.replace(FEW, out=tmp_path / "run", resume="auto", **settings)
    other = dataclasses.replace(config, eval_reference=str(tmp_path / "images"))
    out = train(config, Ranks())
    train_run(other, steps=12)
    assert names(out) == ["step-0000010", "step-0000012"]
    assert (out / "best").resolve().name == "step-0000010"
    train_run(config, steps=15)
    assert names(out) == ["step-0000015"]
    lines = read_metrics(out / "metrics.jsonl")
    one, two, again, back = (line["eval"] for line in lines if FD in line)
    assert one == back != two == again
    record = json.loads((out / "scores.json").read_text())
    assert [*record] == [one, two]
    references = [record[key]["reference"]["source"] for key in (one, two)]
    assert references == ["digits", str(tmp_path / "images")]


def test_the_key_depends_on_all_that_scores_depend_on():
    (extractor,) = load_extractors(["digits-cnn"], (), torch.device("cpu"))
    settings = SamplerConfig(steps=20)
    one = eval_key(5, settings, "digest", extractor)
    others = [
        eval_key(6, settings, "digest", extractor),
        eval_key(5, dataclasses.replace(settings, precision="bf16"), "digest", extractor),
        eval_key(5, dataclasses.replace(settings, cfg_scale=1.5), "digest", extractor),
        eval_key(5, settings, "other", extractor),
        eval_key(5, settings, "digest", dataclasses.replace(extractor, checksum="other")),
    ]
    assert len({one, *others}) == 6


def test_the_protocol_of_scores_is_written(scored, tmp_path):
    ((key, record),) = json.loads((scored / "scores.json").read_text()).items()
    assert {line["eval"] for line in read_metrics(scored / "metrics.jsonl") if FD in line} == {key}
    assert {read_distance(c).eval for c in checkpoints(scored)} == {key}
    settings = dict(sampler="dpmpp_2m", steps=20, cfg_scale=1.5, seed=0, precision="fp32")
    assert {**settings, "vae": "identity"}.items() <= record["sampling"].items()
    assert record["samples"]["count"] == COUNT
    assert record["samples"]["labels"] == "10 classes, 7 images each"
    assert record["features (digits-cnn)"]["weights_sha256"]
    assert record["reference"]["count"] == 1797
    session = a_session(tmp_path)
    session.run.mkdir()
    (session.run / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json is missing or damaged"):
        scores.choose_eval_target(SCORED, Ranks()).prepare(session)


def test_a_best_checkpoint_may_be_removed_by_hand(tmp_path, monkeypatch):
    set_distances(monkeypatch, 1.0, 3.0, 4.0)
    config = dataclasses.replace(FEW, steps=10, out=tmp_path / "run", resume="auto")
    out = train(config, Ranks())
    shutil.rmtree(out / "checkpoints" / "step-0000005")
    assert "3 at step 10 (checkpoints/step-0000010)" in info(out)
    train_run(config, steps=12)
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
    set_distances(monkeypatch, 1.0, 3.0)
    out = train_run(FEW, steps=10, ckpt_every=0, keep=1, out=tmp_path / "run")
    assert names(out) == ["step-0000005", "step-0000010"]
    assert f"the best checkpoint, {out}/checkpoints/step-0000005" in capsys.readouterr().err
    assert "1 at step 5 (checkpoints/step-0000005)" in info(out)


def write_checkpoint(run: Path, step: int, *distance: object) -> Path:
    """Write a checkpoint that has only its meta.json."""
    checkpoint = run / "checkpoints" / f"step-{step:07d}"
    checkpoint.mkdir(parents=True)
    scored = {"distance": Distance(*distance)._asdict()} if distance else {}
    write_json(checkpoint / "meta.json", {"step": step, **scored, "files": {}})
    return checkpoint


def test_the_best_is_the_first_of_those_comparable_with_the_newest(tmp_path):
    assert find_best(tmp_path) is None
    old = write_checkpoint(tmp_path, 1, FD, 1.0, "aaaaaa")
    write_checkpoint(tmp_path, 2, FD, 5.0, "bbbbbb")
    best = write_checkpoint(tmp_path, 3, FD, 4.0, "bbbbbb")
    write_checkpoint(tmp_path, 4, FD, 4.0, "bbbbbb")
    unscored = write_checkpoint(tmp_path, 5)
    (write_checkpoint(tmp_path, 6, FD, 0.1, "bbbbbb") / "meta.json").write_text("{")
    assert find_best(tmp_path) == Best(best, Distance(FD, 4.0, "bbbbbb"))
    assert find_best(tmp_path, "aaaaaa").checkpoint == old
    assert find_best(tmp_path, "cccccc") is None
    assert read_distance(unscored) is None
    assert verify_checkpoint(unscored) == {"step": 5, "files": {}}


def test_lines_without_loss_are_skipped(tmp_path):
    run = write_run(tmp_path / "run", step=2)
    lines = [{"step": 1, "loss": 2.0, "lr": 1e-3}, {"step": 4, FD: 3.0}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
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
        train_run(SCORED, out=tmp_path / "run", dry_run=dry_run, **wrong)
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
    write_images(tmp_path / "images")
    config = dataclasses.replace(SCORED, data=str(tmp_path / "images"), eval_extractor="digits-cnn")
    images = scores.choose_eval_target(config, Ranks()).reference.images
    source = build_source(config, load_autoencoder("identity"))
    assert len(images) == 4
    assert torch.equal(images.read(0), source._images[0])


def test_an_unreadable_image_is_refused_before_training(tmp_path):
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
