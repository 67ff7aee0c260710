"""Scores during training: right, the same on any number of ranks, without a trace in the weights; the best one kept."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_run
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dit.build import Run, SamplingPlan, build_card, build_sampling, build_source, load_run
from dit.config import SamplerConfig, TrainConfig
from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation.networks.load import load_extractors
from dit.evaluation.scores.metrics import Score
from dit.generate import generate
from dit.hardware import Ranks
from dit.info import info
from dit.latents.autoencoder import load_autoencoder
from dit.models.dit import SIZES
from dit.pictures import loss_curve
from dit.runs import Best, checkpoints, find_best, find_weights, latest, read_metrics
from dit.training import scores
from dit.training.job import Job
from dit.training.previews import sampler_settings
from dit.training.trainer import prepare, train

ROOT = Path(__file__).parent.parent
COUNT = 70  # two batches, the second one not full
QUIET = TrainConfig(**TINY, global_batch_size=16, steps=20, warmup=2, cooldown=0, sample_every=0, ckpt_every=10,
                    log_every=10, precision="fp32", keep=9)
SCORED = dataclasses.replace(QUIET, eval_every=5, eval_samples=COUNT)
FEW = dataclasses.replace(SCORED, eval_samples=5)
FD = "FD(digits-cnn)"


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A small network, a cache of one's own, and no time spent on what real images score."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", dict(depth=2, hidden_size=64, num_heads=2))
        patch.setenv("DIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(scores.references.metrics, "compute_floor", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory, surroundings):
    """A run whose weights are not zero, to start from."""
    return write_run(tmp_path_factory.mktemp("weights") / "run")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, weights):
    """A run of 20 steps, scored after every fifth."""
    return train(dataclasses.replace(SCORED, init=weights, out=tmp_path_factory.mktemp("scored") / "run"), Ranks())


def a_job(tmp_path: Path, **changes: object) -> Job:
    config = dataclasses.replace(SCORED, out=tmp_path / "job", **changes)
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    return prepare(build_card(config, source), source, autoencoder, Ranks())


def measured(run: Path) -> dict[int, dict[str, float]]:
    """The scores of a run's log by step."""
    lines = {line["step"]: line for line in read_metrics(run / "metrics.jsonl") if FD in line}
    return {step: {k: v for k, v in line.items() if "(digits-cnn)" in k} for step, line in lines.items()}


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    return {k: v for file in sorted(checkpoint.rglob("*.safetensors")) for k, v in load_file(file).items()}


def names(run: Path) -> list[str]:
    return [c.name for c in checkpoints(run)]


def prescribe(monkeypatch: pytest.MonkeyPatch, *distances: float) -> None:
    """Let the distances be these, one after the other."""
    coming = iter(distances)

    def score(*_: object) -> dict[str, Score]:
        found = {name: Score(name, None, "higher", COUNT) for name in scores.score_names("digits-cnn")}
        return {**found, FD: Score(FD, next(coming), "lower", COUNT)}

    monkeypatch.setattr(scores.references, "score", score)


# -- the numbers -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_ema_in_the_checkpoint(scored):
    """Through another door: the saved EMA, samples one batch at a time, torch-fidelity's distance."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    run = load_run(scored / "checkpoints" / "step-0000010", torch.device("cpu"))
    settings = dataclasses.replace(sampler_settings(SCORED), batch_size=COUNT)
    assert settings.cfg_scale > 1
    labels = torch.arange(10).repeat_interleave(COUNT // 10)
    plan = build_sampling(run.denoise, run.card, settings)
    (extractor,) = load_extractors(["digits-cnn"], (), torch.device("cpu"))
    sides = (generate(run, plan, settings, labels, torch.arange(COUNT)), Digits(8).images)
    statistics = [fid_features_to_statistics(extractor(images).values.double()) for images in sides]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert measured(scored)[10][FD] == pytest.approx(expected, rel=1e-3)
    assert abs(measured(scored)[5][FD] / expected - 1) > 0.01


def test_log_and_tensorboard_have_all_scores(scored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = read_metrics(scored / "metrics.jsonl")
    assert [(line["step"], "loss" in line) for line in lines] == [(5, False), (10, True), (15, False), (20, True)]
    assert [*measured(scored)[5]] == [f"{s}(digits-cnn)" for s in ("FD", "KID", "precision", "recall", "IS")]
    board = EventAccumulator(str(scored / "tensorboard"))
    board.Reload()
    for name in measured(scored)[5]:
        tag = next(tag for tag in board.Tags()["scalars"] if tag.startswith(f"eval/{name.split('(')[0]}"))
        events = [(event.step, event.value) for event in board.Scalars(tag)]
        assert events == [(step, pytest.approx(found[name], rel=1e-6)) for step, found in measured(scored).items()]
    with Image.open(scored / "scores.png") as picture:
        assert picture.width > 500


def test_training_is_the_same_bit_for_bit_with_and_without_scores(scored, weights, tmp_path):
    plain = train(dataclasses.replace(QUIET, init=weights, out=tmp_path / "run"), Ranks())
    left, right = tensors(latest(plain)), tensors(latest(scored))
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []
    logs = [[(m["step"], m["loss"], m["grad_norm"]) for m in read_metrics(r / "metrics.jsonl") if "loss" in m]
            for r in (plain, scored)]
    assert logs[0] == logs[1]
    assert not (plain / "best").exists()
    assert not (plain / "scores.png").exists()


TWO_RANKS = """
import dataclasses, json, sys
from pathlib import Path

from dit.build import build_card, build_source
from dit.config import TrainConfig
from dit.hardware import Ranks, ranks
from dit.latents.autoencoder import load_autoencoder
from dit.models.dit import SIZES
from dit.training.trainer import prepare, train

SIZES["Ti"] = dict(depth=2, hidden_size=64, num_heads=2)
train(TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, dry_run=True), Ranks())
evaluation = [name for name in sys.modules if name.startswith(("dit.evaluation", "torch_fidelity"))]
assert not evaluation, f"{evaluation} imported without --eval-every"

from dit.training import scores

out, init = map(Path, sys.argv[1:])
config = TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=16, init=init, out=out / "run",
                     eval_every=5, eval_samples=150, precision="fp32")


def measure(ranks):
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    job = prepare(build_card(config, source), source, autoencoder, ranks)
    judge = scores.choose_comparison(config, ranks).prepare(job)
    found = judge.measure(5)
    if ranks.rank == ranks.world - 1:
        next(job.state.ema.network.parameters()).data.fill_(float("nan"))  # on one rank: the others must hear of it
    return [found, judge.measure(6)]


with ranks() as group:
    found = {f"rank {group.rank}": measure(group)}
    if group.main:
        found["alone"] = measure(Ranks())
(out / f"{group.rank}.json").write_text(json.dumps(found))
"""


def test_two_ranks_measure_what_one_does(tmp_path, weights):
    """And the code of evaluation is imported only where it is asked for."""
    script = tmp_path / "script.py"
    script.write_text(TWO_RANKS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*torchrun, str(script), str(tmp_path), str(weights)], env=environment, cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {k: v for r in (0, 1) for k, v in json.loads((tmp_path / f"{r}.json").read_text()).items()}
    assert found["rank 0"] == found["rank 1"] == found["alone"]
    (values, leads), nothing = found["alone"]
    assert leads
    assert values[FD] > 0
    assert nothing == [{}, False]


def test_samples_that_are_not_finite_cost_a_warning_only(tmp_path, weights, capsys):
    job = a_job(tmp_path, init=weights)
    judge = scores.choose_comparison(job.config, Ranks()).prepare(job)
    ema = next(job.state.ema.network.parameters()).data
    good = ema.clone()
    ema.fill_(torch.nan)
    assert judge.measure(7) == ({}, False)
    assert "warning: no scores at step 7" in capsys.readouterr().err
    ema.copy_(good)
    values, leads = judge.measure(8)
    assert leads
    assert np.isfinite([*values.values()]).all()
    assert judge.measure(9) == (values, False), "the same samples each time, and no better than before"


def test_classes_are_spread_evenly_over_few_samples(tmp_path, weights, monkeypatch):
    seen: list[tuple[int, int]] = []

    def black(run: Run, plan: SamplingPlan, settings: SamplerConfig, labels: Tensor, indices: Tensor) -> Tensor:
        seen.extend(zip(indices.tolist(), labels.tolist(), strict=True))
        return torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(scores, "generate", black)
    job = a_job(tmp_path, init=weights)
    for count in (5, 20):
        config = dataclasses.replace(job.config, eval_samples=count)
        scored = dataclasses.replace(job, card=dataclasses.replace(job.card, config=config))
        scores.choose_comparison(config, Ranks()).prepare(scored).measure(1)
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
    out = train(dataclasses.replace(FEW, eval_every=2, ckpt_every=0, steps=7, keep=1, out=tmp_path / "run"), Ranks())
    assert names(out) == ["step-0000006", "step-0000007"]
    assert find_best(read_metrics(out / "metrics.jsonl")) == Best(6, FD, 2.0)


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


def test_a_best_checkpoint_removed_by_hand_is_no_harm(tmp_path, monkeypatch):
    prescribe(monkeypatch, 1.0, 3.0, 4.0)
    config = dataclasses.replace(FEW, steps=10, out=tmp_path / "run", resume="auto")
    out = train(config, Ranks())
    shutil.rmtree(out / "checkpoints" / "step-0000005")
    assert "1 at step 5 (its checkpoint was removed)" in info(out)
    train(dataclasses.replace(config, steps=12), Ranks())
    assert names(out) == ["step-0000010", "step-0000012"]
    assert not (out / "best").is_symlink()


def test_the_best_is_kept_where_there_are_no_links(tmp_path, monkeypatch, capsys):
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    prescribe(monkeypatch, 1.0, 3.0)
    out = train(dataclasses.replace(FEW, steps=10, ckpt_every=0, keep=1, out=tmp_path / "run"), Ranks())
    assert names(out) == ["step-0000005", "step-0000010"]
    assert f"the best checkpoint, {out}/checkpoints/step-0000005" in capsys.readouterr().err
    assert "1 at step 5 (checkpoints/step-0000005)" in info(out)


def test_the_best_is_the_first_of_the_network_that_scored_last():
    lines = [{"step": 1, "FID": 1.0}, {"step": 2, FD: 5.0}, {"step": 3, FD: 4.0}, {"step": 4, FD: 4.0}, {"step": 5}]
    assert find_best(lines) == Best(3, FD, 4.0)
    assert find_best(lines, "FID") == Best(1, "FID", 1.0)
    assert find_best([{"step": 1, "sFID": 1.0, "loss": 2.0}]) is None


def test_the_loss_curve_and_the_table_pass_over_lines_without_loss(tmp_path):
    lines = [{"step": 1, "loss": 2.0, "lr": 1e-3}, {"step": 2, FD: 3.0}, {"step": 3, "loss": 1.0, "lr": 1e-3}]
    pictures = [tmp_path / name for name in ("all.png", "losses.png")]
    for part, picture in zip((lines, [lines[0], lines[2]]), pictures, strict=True):
        loss_curve(part, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    run = write_run(tmp_path / "run", step=2)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines[0], {"step": 4, FD: 3.0})))
    table = " ".join(info(run).split())
    assert "trained 4 steps logged" in table
    assert "last loss 2.0" in table
    assert "best score FD(digits-cnn) 3 at step 4" in table


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(eval_reference="nowhere"), "nowhere"),
    (dict(eval_extractor="nonsense"), "--eval-extractor nonsense"),
    (dict(eval_weights="file.pth"), "--eval-weights"),
    (dict(eval_extractor="inception", eval_weights="file.pth"), "file.pth"),
])
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
        scores.choose_comparison(dataclasses.replace(SCORED, data=str(tmp_path / "latents")), Ranks())


def test_a_folder_is_cropped_as_in_training(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        picture.save(tmp_path / "images" / name / "1.png")
    config = dataclasses.replace(SCORED, data=str(tmp_path / "images"), eval_extractor="digits-cnn")
    images = scores.choose_comparison(config, Ranks()).reference.images
    source = build_source(config, load_autoencoder("identity"))
    assert len(images) == 2
    assert torch.equal(images.read(0), source._images[0])


def test_an_image_that_can_not_be_read_ends_it_before_training(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((8, 8), 50).convert("RGB").save(folder / f"{i}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:80])
    config = dataclasses.replace(SCORED, out=tmp_path / "run", eval_reference=str(folder), eval_extractor="digits-cnn")
    with pytest.raises(UserError, match=r"1\.png"):
        train(config, Ranks())
    assert not (tmp_path / "run").exists()
