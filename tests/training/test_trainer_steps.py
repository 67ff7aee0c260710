"""What one step of training does, on one rank and on two, and what training writes down."""

import copy
import dataclasses
import io
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import forked
from helpers.training import TINY, a_session, differing, do_step, first_moment, flat, logged, run
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dit.build import build_denoiser
from dit.config import SamplerConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.latents.on_the_fly import MemoryLatents
from dit.models import unet
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import (
    checkpoint_step,
    checkpoints,
    latest_checkpoint,
    verify_checkpoint,
)
from dit.runs.logs import read_metrics
from dit.runs.weights import Weights, read_weights
from dit.sampling.generate import sample_latents
from dit.sampling.image_grid import sample_grid
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import build_pipeline
from dit.training import build_loss, checkpointing
from dit.training import run_training as command
from dit.training.batches import Batch, read_batch
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring import previews
from dit.training.trainer import take_step
from dit.utils import pictures

pytestmark = pytest.mark.usefixtures("small_networks")


# -- one step --------------------------------------------------------------------------------------


class WithoutPeers(Ranks):
    """A rank that does not communicate."""

    def sum(self, values):
        return values


def test_every_image_and_step_has_noise_of_its_own_on_any_number_of_ranks(tmp_path):
    session, seen = a_session(tmp_path, global_batch_size=64), []

    def spy(x0, y, t, eps, uniforms):
        seen.append(torch.stack([x0, eps], dim=1))
        return session.loss(x0, y, t, eps, uniforms)

    # With mean 0 and deviation 1, x0 is the posterior's noise.
    moments = torch.cat([torch.zeros(64, 3, 8, 8), torch.ones(64, 3, 8, 8)], dim=1)
    times = torch.full((64,), 0.5, dtype=torch.float64)
    batch = Batch(moments, torch.zeros(64, dtype=torch.long), times)
    for rank, world, step in [(0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 2, 1)]:
        mine = Batch(*(part[: 64 // world] for part in batch))
        stream = dataclasses.replace(session.stream, ranks=WithoutPeers(rank, world))
        spied = dataclasses.replace(session, stream=stream, loss=spy, late_loss=spy)
        take_step(spied, mine, step)
    one, two, *halves = seen
    assert torch.equal(one, torch.cat(halves))

    draws = torch.cat([one, two]).flatten(0, 1).flatten(1)  # [images and steps and uses, values]
    of_images = torch.corrcoef(draws.unflatten(1, (3, -1))[:, 0]).fill_diagonal_(0)
    assert of_images.abs().max() < 0.65  # of 64 values
    of_steps = torch.corrcoef(torch.cat([one, two], dim=1).transpose(0, 1).flatten(1))
    assert of_steps.fill_diagonal_(0).abs().max() < 0.05
    assert abs(draws.std() - 1) < 0.02
    assert abs(draws.mean()) < 0.02


@pytest.mark.portable
@pytest.mark.parametrize("clip", [0.0, 1e-2])
def test_accumulation_moves_weights_moments_and_average_as_full_batches_do(
    clip, tmp_path, weights, monkeypatch
):
    """AdamW steps in proportion to gradients here: rounding stays small, a wrong scale does not."""
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1.0))
    settings = dict(init=weights, clip=clip, lr=1.0, warmup=0, cooldown=0, ema=0.5)
    full, parts = (a_session(tmp_path, **settings, grad_accum=n) for n in (1, 4))
    start = flat(full)
    for step in range(1, 5):
        for session in (do_step(full, step), do_step(parts, step)):
            assert all(p.grad is None for p in session.state.network.parameters())
    assert torch.allclose(parts.state.means.sums, full.state.means.sums, rtol=1e-4)

    def moved(session):
        return flat(session) - start, flat(session, ema=True) - start, first_moment(session)

    for expected, found in zip(moved(full), moved(parts), strict=True):
        assert expected.norm() > 1e-4
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.portable
def test_clipping_bounds_the_gradient_and_the_log_has_its_norm_before(tmp_path, weights):
    clipped, free = (do_step(a_session(tmp_path, init=weights, clip=clip)) for clip in (1e-3, 0.0))
    assert first_moment(clipped).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)
    norm = first_moment(free).norm().item() / 0.1
    assert norm > 1
    for means in (clipped.state.means, free.state.means):
        assert means.sums[means.names.index("grad_norm")].item() == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("step", [1, 3, 10])
def test_the_schedule_sets_the_size_of_the_step(step, tmp_path):
    """AdamW's first step moves a weight by its learning rate, whatever the gradient."""
    session = a_session(tmp_path, steps=10, lr=1e-3, warmup=4, cooldown=0.5)
    before = flat(session)
    rate = learning_rate(session.config, step - 1, 10)
    assert rate < 0.7e-3
    moved = (flat(do_step(session, step)) - before).abs().max()
    assert moved.item() == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("views", "flip", "low", "high"),
    [(2, None, 0.44, 0.56), (2, True, 0.44, 0.56), (2, False, 0, 0), (1, None, 0, 0)],
)
def test_half_of_the_images_are_mirrored_where_data_and_user_allow_it(
    views, flip, low, high, tmp_path
):
    moments = torch.arange(views).reshape(1, -1, 1, 1, 1).expand(100, views, 6, 8, 8)
    source = MemoryLatents(moments, np.arange(100) % 10, [str(i) for i in range(10)])
    session = a_session(tmp_path, source=source, flip=flip, global_batch_size=64)
    batches = [read_batch(session.stream, position) for position in range(30)]
    mirrored = torch.stack([batch.moments[:, 0, 0, 0] for batch in batches])
    assert low <= mirrored.mean() <= high
    if high:
        assert mirrored.std(dim=0).min() > 0  # every place of the batch, now and then
        assert mirrored.mean(dim=1).min() > 0.1


# -- two ranks -------------------------------------------------------------------------------------


def noise_of(time: float, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(time * 2**31)))


def train_on_two_and_on_one(ranks: Ranks, out: Path, init: Path) -> None:
    """Train with noise that depends on the image alone, on both ranks and then on one."""
    loss, loop = build_loss.diffusion_loss, command.train_with_rollback

    def loss_with_noise_of_the_image(denoise, x0, y, t, eps, **options):
        eps = torch.stack([noise_of(time, x0.shape[1:]) for time in t.tolist()])
        return loss(denoise, x0, y, t, eps, **options)

    def train_and_save(session, *others):
        done = loop(session, *others)
        name = f"world-{session.ranks.world}-rank-{session.ranks.rank}.pt"
        torch.save(session.state.network.state_dict(), out / name)
        return done

    SIZES["Ti"] = SMALL
    build_loss.diffusion_loss = loss_with_noise_of_the_image
    command.train_with_rollback = train_and_save
    torch.optim.AdamW = partial(torch.optim.AdamW, eps=1.0)  # steps in proportion to gradients
    config = dataclasses.replace(
        TINY, steps=3, warmup=0, lr=1.0, clip=0, cooldown=0, log_every=1, init=init, compile=False
    )
    command.run_training(dataclasses.replace(config, out=out / "two", grad_accum=2), ranks)
    if ranks.main:
        command.run_training(dataclasses.replace(config, out=out / "one"), Ranks())


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns(tmp_path, weights):
    forked.run(2, train_on_two_and_on_one, tmp_path, weights)
    ranks = ("1-rank-0", "2-rank-0", "2-rank-1")
    one, first, second = (torch.load(tmp_path / f"world-{name}.pt") for name in ranks)
    assert differing(first, second) == []
    assert max((first[k] - one[k]).abs().max() for k in one) < 1e-5
    start = read_weights(next(weights.glob("checkpoints/*/*.safetensors"))).state_dict
    assert max((first[k] - start[k]).abs().max() for k in one) > 0.01
    logs = [logged(tmp_path / name, "loss", "grad_norm") for name in ("one", "two")]
    assert np.allclose(*logs, rtol=1e-5)


KINDS = {
    "vlb": dict(
        process="linear",
        objective="eps",
        learn_sigma=True,
        loss="vlb",
        time_sampling="loss-aware",
    ),
    "text": dict(conditioning="text", route=0.5),
    "unet": dict(model="UNet-S"),
    "in-context": dict(conditioning="in-context"),
    "single": dict(conditioning="adaln-single", optimizer="muon", route=0.5),
    "modern": dict(block="modern+nobias", conditioning="tokens"),
    "muon": dict(optimizer="muon", weight_decay=0.1),
    "velocity": dict(objective="x0", loss="velocity", cosine=1.0, time_shift="auto"),
    "routed": dict(route=0.5, conditioning="tokens", block="plain+rope"),
    "classifier": dict(model="Classifier-Ti/4", label_dropout=0.0),
}


def train_every_kind_twice(ranks: Ranks, out: Path) -> None:
    """Train each kind of network; then again from the checkpoint before the last."""
    loop, name = command.train_with_rollback, ""

    def train_and_save(session, *others):
        done, sampler = loop(session, *others), session.state.time_sampler
        tensors = session.state.network.state_dict()
        tensors |= {"times": sampler.history} if sampler else {}
        torch.save(tensors, out / f"{name}-rank-{ranks.rank}.pt")
        return done

    SIZES["Ti"] = SMALL
    unet.SIZES["S"] = dict(block_out_channels=(32, 64), layers_per_block=1, attention_sides=(4,))
    command.train_with_rollback = train_and_save
    config = dataclasses.replace(
        TINY, global_batch_size=8, steps=4, warmup=0, lr=1e-2, ckpt_every=2, resume="auto"
    )
    for name, changes in KINDS.items():
        asked = dataclasses.replace(config, out=out / name, compile=False, **changes)
        command.run_training(asked, ranks)
        ranks.on_main(lambda folder=asked.out: shutil.rmtree(checkpoints(folder)[-1]))
        name = f"{name}-again"
        command.run_training(asked, ranks)


@pytest.mark.slow
def test_two_ranks_stay_equal_and_resume_for_every_kind_of_network(tmp_path):
    forked.run(2, train_every_kind_twice, tmp_path)
    for kind in KINDS:
        one, two = (torch.load(tmp_path / f"{kind}-rank-{rank}.pt") for rank in (0, 1))
        again = [torch.load(tmp_path / f"{kind}-again-rank-{rank}.pt") for rank in (0, 1)]
        assert differing(one, two) == []
        assert differing(*again) == []
        assert max((one[name] - again[0][name]).abs().max() for name in one) < 1e-6
        assert logged(tmp_path / kind, "step") == [(2,), (4,)]


# -- what a run writes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory, weights):
    """Four steps from weights that are not zero, with all checkpoints and pictures."""
    out = tmp_path_factory.mktemp("steps") / "run"
    return run(out, init=weights, steps=4, ckpt_every=1, keep=4, sample_every=2)


def state(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for file in checkpoint.glob("state/*.safetensors"):
        tensors |= load_file(file)
    prefix += "."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.mark.portable
def test_ema_in_the_checkpoint_follows_the_trained_weights(four_steps, weights):
    expected = read_weights(next(weights.glob("checkpoints/*/*.safetensors"))).state_dict
    for step, folder in enumerate(checkpoints(four_steps), start=1):
        trained, decay = state(folder, "network"), min(TINY.ema, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * trained[k] for k, v in expected.items()}
        sampled = read_weights(folder / "ema-0.999.safetensors").state_dict
        for ema in (state(folder, "ema"), sampled):
            assert ema.keys() == expected.keys()
            for name, values in expected.items():
                # A step rounds twice, here and in the trainer, by half an eps of float32 each time.
                rounding = 4 * 2**-24 * values.abs().max()
                assert (ema[name] - values).abs().max() <= step * rounding, name
    assert step == 4
    assert max((trained[k] - v).abs().max() for k, v in expected.items()) > 1e-4


def test_checkpoints_are_written_by_a_stager_that_closes_itself(monkeypatch, tmp_path):
    """As PyTorch 2.11's does after its first use."""

    class Single(checkpointing.DefaultStager):
        def stage(self, tensors):
            staged = super().stage(tensors)
            self._state_dict_stager.close()
            return staged

    monkeypatch.setattr(checkpointing, "DefaultStager", Single)
    out = run(tmp_path / "run", steps=3, ckpt_every=1, keep=3)
    assert [verify_checkpoint(one)["step"] for one in checkpoints(out)] == [1, 2, 3]


def test_only_checkpoints_beside_training_have_low_priority(monkeypatch, tmp_path):
    lowered = set()
    write = checkpointing.Saver._write
    written = {}

    def noted(saver, step, *state):
        written[step] = threading.get_ident()
        write(saver, step, *state)

    monkeypatch.setattr(
        checkpointing, "_lower_priority", lambda: lowered.add(threading.get_ident())
    )
    monkeypatch.setattr(checkpointing.Saver, "_write", noted)
    run(tmp_path, steps=3, ckpt_every=1)
    assert {step: thread in lowered for step, thread in written.items()} == {
        1: True,
        2: True,
        3: False,
    }


def test_previews_are_samples_of_the_ema(four_steps):
    names = {path.name for path in (four_steps / "samples").iterdir()}
    assert names == {"step-0000002.png", "step-0000004.png", "strip.png", "strip.gif"}

    loaded = load_run(four_steps, torch.device("cpu"))
    network = copy.deepcopy(loaded.denoise.network)
    network.load_state_dict(state(latest_checkpoint(four_steps), "network"))
    trained = dataclasses.replace(loaded, denoise=build_denoiser(loaded.card.config, network))
    drawn = np.asarray(Image.open(four_steps / "samples" / "step-0000004.png")).astype(int)
    of_ema, of_trained = (np.abs(drawn - preview(r)).mean() for r in (loaded, trained))
    assert of_ema < 0.05
    assert of_trained > 0.5


def preview(loaded: LoadedRun) -> np.ndarray:
    settings = dataclasses.replace(
        previews.SETTINGS, precision="fp32", cfg_scale=previews.CFG_SCALE
    )
    pipeline = build_pipeline(loaded, settings)
    images, _ = sample_grid(pipeline, previews.PER_CLASS)
    scale = pictures.fitting_scale(images.shape[-1])
    picture = pictures.grid(images, loaded.card.classes, previews.PER_CLASS, scale)
    return np.asarray(picture).astype(int)


def test_tensorboard_has_the_numbers_of_the_log_and_the_pictures(four_steps):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(four_steps / "tensorboard"))
    board.Reload()
    lines = read_metrics(four_steps / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    for tag in ("train/loss", "optim/grad_norm", "optim/lr", "speed/img_per_s"):
        name = tag.split("/")[1]
        scalars = [(event.step, event.value) for event in board.Scalars(tag)]
        assert scalars == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]

    images = board.Images("samples")
    assert [event.step for event in images] == [2, 4]
    shown = Image.open(io.BytesIO(images[-1].encoded_image_string))
    written = Image.open(four_steps / "samples" / "step-0000004.png")
    assert np.array_equal(np.asarray(shown), np.asarray(written))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_training_on_cpu_has_the_losses_of_eager(tmp_path, weights):
    settings = dict(init=weights, log_every=1)
    runs = [run(tmp_path / str(c), compile=c, **settings) for c in (False, True)]
    eager, compiled = (np.array(logged(out, "loss")) for out in runs)
    assert len(eager) == 6
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert (compiled != eager).any(), "not compiled"
    names = [sorted(state(latest_checkpoint(out), "network")) for out in runs]
    assert names[0] == names[1], "the compiler's names of weights must not get into checkpoints"


# -- a kill while a checkpoint is written ----------------------------------------------------------


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    out, dice = tmp_path / "run", random.Random(0)
    config = dataclasses.replace(TINY, out=out, resume="auto", ckpt_every=1, keep=2, steps=10_000)
    for _ in range(3):
        before = latest_checkpoint(out)
        process = forked.CONTEXT.Process(target=train_small, args=(config,))
        process.start()
        try:
            for _ in range(7):  # a stopped process leaves what a killed one leaves
                os.kill(process.pid, signal.SIGCONT)
                stop_while_writing(process, out, before, dice.uniform(0, 0.08))
                verify_checkpoint(latest_checkpoint(out))
        finally:
            process.kill()
            process.join()
        assert list((out / "checkpoints").glob(".step-*")), "not killed while writing"
        done = verify_checkpoint(latest_checkpoint(out))["step"]
        assert done > (checkpoint_step(before) if before else 0)

    command.run_training(dataclasses.replace(config, steps=done + 2), Ranks())
    assert [verify_checkpoint(c)["step"] for c in checkpoints(out)] == [done + 1, done + 2]
    steps = logged(out, "step")
    assert steps == sorted(set(steps))


def train_small(config: TrainConfig) -> None:
    SIZES["Ti"] = SMALL
    command.run_training(config, Ranks())


def stop_while_writing(
    process: multiprocessing.Process, out: Path, before: Path | None, delay: float
) -> None:
    """Stop the process while it writes a checkpoint, later than its first."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.005)  # until a system call under way has ended
        hidden = list((out / "checkpoints").glob(".step-*"))
        if latest_checkpoint(out) not in (None, before) and hidden:
            return
        os.kill(process.pid, signal.SIGCONT)
    raise AssertionError("no checkpoint was ever being written")


# -- what can be trained ---------------------------------------------------------------------------

STEPS = 100
COMBINATIONS = [
    *(("linear", objective, False) for objective in ("eps", "x0", "v")),
    *(("cosine", objective, False) for objective in ("eps", "x0", "v")),
    *(("flow", objective, False) for objective in ("x0", "v")),
    ("linear", "eps", True),
    ("linear", "v", True),
    ("cosine", "v", True),
]


@pytest.mark.parametrize(("process", "objective", "learn_sigma"), COMBINATIONS)
def test_every_process_and_objective_trains_into_latents_of_plausible_size(
    process, objective, learn_sigma, tmp_path
):
    session = a_session(
        tmp_path,
        process=process,
        objective=objective,
        learn_sigma=learn_sigma,
        global_batch_size=64,
        lr=2e-3,
        steps=STEPS,
        warmup=10,
        cooldown=0.5,
    )
    for step in range(1, STEPS + 1):
        do_step(session, step)

    denoise = build_denoiser(session.config, session.state.ema.network)
    weights = Weights(session.run, session.card, STEPS, {})
    loaded = LoadedRun(weights, denoise, session.autoencoder, session.ranks.device)
    settings = SamplerConfig(steps=100, precision="fp32")
    labels = torch.arange(30) % 10
    latents = sample_latents(build_pipeline(loaded, settings), labels, torch.arange(30))
    data = session.stream.source.read(np.arange(500), np.zeros(500, bool))[:, :3]
    assert latents.isfinite().all()
    # A predicted eps errs most: its x0 at the start is 158 times its error, and cosine alphas then
    # rise fast.
    assert 0.4 < latents.std() < (6 if (process, objective) == ("cosine", "eps") else 3)
    assert abs(latents.mean() - data.mean()) < 0.5 * data.std()
