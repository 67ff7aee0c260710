"""What one step of training does, on one rank and on two, and what training writes down."""

import copy
import dataclasses
import io
import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, torchrun, write_run
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dit.build import build_denoiser
from dit.config import SamplerConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.latents.load import build_source
from dit.latents.online import MemoryLatents
from dit.models.dit import SIZES
from dit.runs.checkpoints import checkpoints, latest_checkpoint, verify_checkpoint
from dit.runs.metrics import read_metrics
from dit.runs.weights import Weights, read_weights
from dit.sampling.generate import sample_latents
from dit.sampling.grid import sample_grid
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.pipeline import build_pipeline
from dit.training import checkpointing as checkpoint
from dit.training.batches import Batch, draw_batch
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring import previews
from dit.training.prepare import build_card, prepare
from dit.training.session import TrainingSession
from dit.training.trainer import train, train_step
from dit.utils import pictures

TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=6,
    warmup=2,
    sample_every=0,
    ckpt_every=0,
    log_every=2,
    precision="fp32",
)
pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, small_networks):
    """A run whose weights are not zero, to start from."""
    return write_run(tmp_path_factory.mktemp("weights") / "run")


def a_session(tmp_path: Path, **changes: object) -> TrainingSession:
    config = dataclasses.replace(TINY, out=tmp_path / "session", **changes)
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    return prepare(build_card(config, source), source, autoencoder, Ranks())


def do_step(session: TrainingSession, step: int = 1) -> TrainingSession:
    train_step(session, draw_batch(session, step - 1), step)
    return session


def flat(session: TrainingSession) -> Tensor:
    return torch.cat([p.detach().flatten() for p in session.state.network.parameters()])


def flat_average(session: TrainingSession) -> Tensor:
    return torch.cat([p.flatten() for p in session.state.ema.network.parameters()])


def first_moment(session: TrainingSession) -> Tensor:
    """AdamW's running mean of the gradient: (1 - beta1) times the gradient after one step."""
    return torch.cat(
        [values["exp_avg"].flatten() for values in session.state.optimizer.state.values()]
    )


# -- one step ----------------------------------------------------------------------------------------------------


def test_every_image_and_step_has_noise_of_its_own_on_any_number_of_ranks(tmp_path):
    session, seen = a_session(tmp_path, global_batch_size=64), []

    def spy(x0, y, t, eps):
        seen.append(torch.stack([x0, eps], dim=1))
        return session.loss(x0, y, t, eps)

    unit = torch.cat(
        [torch.zeros(64, 3, 8, 8), torch.ones(64, 3, 8, 8)], dim=1
    )  # x0 is the posterior's noise
    batch = Batch(
        unit, torch.zeros(64, dtype=torch.long), torch.full((64,), 0.5, dtype=torch.float64)
    )
    for rank, world, step in [(0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 2, 1)]:
        mine = Batch(*(part[: 64 // world] for part in batch))
        train_step(dataclasses.replace(session, ranks=Alone(rank, world), loss=spy), mine, step)
    one, two, *halves = seen
    assert torch.equal(one, torch.cat(halves))
    draws = torch.cat([one, two]).flatten(0, 1).flatten(1)  # [images and steps and uses, values]
    assert (
        torch.corrcoef(draws.unflatten(1, (3, -1))[:, 0]).fill_diagonal_(0).abs().max() < 0.65
    )  # of 64 values
    assert (
        torch.corrcoef(torch.cat([one, two], dim=1).transpose(0, 1).flatten(1))
        .fill_diagonal_(0)
        .abs()
        .max()
        < 0.05
    )
    assert abs(draws.std() - 1) < 0.02
    assert abs(draws.mean()) < 0.02


class Alone(Ranks):
    """A rank whose peers are not there."""

    def total(self, values):
        return values


@pytest.mark.portable
def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, weights):
    """Without clipping, which would hide a wrong scale."""
    whole, parts = (
        do_step(a_session(tmp_path, init=weights, clip=0, grad_accum=n)) for n in (1, 4)
    )
    expected = first_moment(whole)
    assert expected.norm() > 0.1
    assert (first_moment(parts) - expected).norm() < 1e-5 * expected.norm()
    assert torch.allclose(parts.state.window.sums, whole.state.window.sums, rtol=1e-5)


@pytest.mark.portable
@pytest.mark.parametrize("clip", [0.0, 1e-2])
def test_accumulation_over_steps_moves_weights_moments_and_average_as_whole_batches_do(
    clip, tmp_path, weights, monkeypatch
):
    """AdamW with steps in proportion to gradients, so that rounding stays small and a wrong scale does not."""
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1.0))
    settings = dict(init=weights, clip=clip, lr=1.0, warmup=0, cooldown=0, ema=0.5)
    whole, parts = (a_session(tmp_path, **settings, grad_accum=n) for n in (1, 4))
    start = flat(whole)
    for step in range(1, 5):
        do_step(whole, step)
        do_step(parts, step)
        assert all(
            p.grad is None for session in (whole, parts) for p in session.state.network.parameters()
        )
    for values in (flat, first_moment, flat_average):
        expected = values(whole)
        moved = expected if values is first_moment else expected - start
        assert moved.norm() > 1e-4
        assert (values(parts) - expected).norm() < 1e-4 * moved.norm()


@pytest.mark.portable
def test_clipping_bounds_the_gradient_and_the_log_has_its_norm_before(tmp_path, weights):
    clipped, free = (do_step(a_session(tmp_path, init=weights, clip=clip)) for clip in (1e-3, 0.0))
    assert first_moment(clipped).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)
    norm = first_moment(free).norm().item() / 0.1
    assert norm > 1
    for window in (clipped.state.window, free.state.window):
        assert window.sums[window.names.index("grad_norm")].item() == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("step", [1, 3, 10])
def test_the_schedule_sets_the_size_of_the_step(step, tmp_path):
    """AdamW's first step moves a weight by its learning rate, whatever the gradient."""
    session = a_session(tmp_path, steps=10, lr=1e-3, warmup=4, cooldown=0.5)
    before, rate = flat(session), learning_rate(session.config, step - 1, 10)
    assert rate < 0.7e-3
    assert (flat(do_step(session, step)) - before).abs().max().item() == pytest.approx(
        rate, rel=1e-3
    )


@pytest.mark.parametrize(
    ("views", "flip", "low", "high"),
    [(2, None, 0.44, 0.56), (2, True, 0.44, 0.56), (2, False, 0, 0), (1, None, 0, 0)],
)
def test_half_of_the_images_are_mirrored_where_data_and_user_allow_it(
    views, flip, low, high, tmp_path
):
    session = a_session(tmp_path, flip=flip, global_batch_size=64)
    moments = torch.arange(views).reshape(1, -1, 1, 1, 1).expand(100, views, 6, 8, 8)
    session = dataclasses.replace(
        session, source=MemoryLatents(moments, np.zeros(100, np.int64), session.source.classes)
    )
    drawn = torch.stack(
        [draw_batch(session, step).moments[:, 0, 0, 0] for step in range(30)]
    )  # 1 where mirrored
    assert low <= drawn.mean() <= high
    if high:
        assert drawn.std(dim=0).min() > 0  # every place of the batch, now and then
        assert drawn.mean(dim=1).min() > 0.1


# -- two ranks ---------------------------------------------------------------------------------------------------

TWO_RANKS = """
import dataclasses, sys
from functools import partial
from pathlib import Path

import torch

from dit import build
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks, ranks
from dit.models.dit import SIZES
from dit.training import trainer

SIZES["Ti"] = dict(depth=2, hidden_size=64, num_heads=2)

out, init = map(Path, sys.argv[1:])
loss, loop = build.diffusion_loss, trainer.train_with_rollback


def noise(time, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(time * 2**31)))


def loss_with_noise_of_the_image(denoise, x0, y, t, eps, **options):
    return loss(denoise, x0, y, t, torch.stack([noise(time, x0.shape[1:]) for time in t.tolist()]), **options)


def loop_then_save(session, *others):
    done = loop(session, *others)
    torch.save(session.state.network.state_dict(), out / f"world-{session.ranks.world}-rank-{session.ranks.rank}.pt")
    return done


build.diffusion_loss, trainer.train_with_rollback = loss_with_noise_of_the_image, loop_then_save
torch.optim.AdamW = partial(torch.optim.AdamW, eps=1.0)  # steps in proportion to gradients: rounding stays small
config = TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=16, steps=3, warmup=0, lr=1.0,
                     clip=0, cooldown=0, sample_every=0, log_every=1, precision="fp32", compile=False, init=init)
with ranks() as group:
    trainer.train(dataclasses.replace(config, out=out / "two", grad_accum=2), group)
if group.main:
    trainer.train(dataclasses.replace(config, out=out / "one"), Ranks())
"""


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns(tmp_path, weights):
    script = tmp_path / "script.py"
    script.write_text(TWO_RANKS)
    torchrun(script, tmp_path, weights)
    one, first, second = (
        torch.load(tmp_path / f"world-{name}.pt") for name in ("1-rank-0", "2-rank-0", "2-rank-1")
    )
    assert [k for k in one if not torch.equal(first[k], second[k])] == []
    assert max((first[k] - one[k]).abs().max() for k in one) < 1e-5
    start = read_weights(next(weights.glob("checkpoints/*/*.safetensors"))).state_dict
    assert max((first[k] - start[k]).abs().max() for k in one) > 0.01
    logs = [
        [(m["loss"], m["grad_norm"]) for m in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("one", "two")
    ]
    assert np.allclose(*logs, rtol=1e-5)


EVERY_KIND = """
import dataclasses, shutil, sys
from pathlib import Path

import torch

from dit.config import TrainConfig
from dit.distributed.ranks import ranks
from dit.models import dit, unet
from dit.runs.checkpoints import checkpoints
from dit.training import trainer

dit.SIZES["Ti"] = dict(depth=2, hidden_size=64, num_heads=2)
unet.SIZES["S"] = dict(block_out_channels=(32, 64), layers_per_block=1, attention_sides=(4,))
KINDS = {
    "vlb": dict(process="linear", objective="eps", learn_sigma=True, loss="vlb", time_sampling="loss-aware"),
    "text": dict(conditioning="text"),
    "unet": dict(model="UNet-S"),
    "in-context": dict(conditioning="in-context"),
    "classifier": dict(model="Classifier-Ti/4", label_dropout=0.0),
}
out, loop, name = Path(sys.argv[1]), trainer.train_with_rollback, ""


def loop_then_save(session, *others):
    done = loop(session, *others)
    times = {"times": session.state.times.history} if session.state.times else {}
    torch.save({**session.state.network.state_dict(), **times}, out / f"{name}-rank-{session.ranks.rank}.pt")
    return done


trainer.train_with_rollback = loop_then_save
config = TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=8, steps=4, warmup=0, lr=1e-2,
                     sample_every=0, log_every=2, ckpt_every=2, precision="fp32", compile=False, resume="auto")
with ranks() as group:
    for kind, changes in KINDS.items():
        name, asked = kind, dataclasses.replace(config, out=out / kind, **changes)
        trainer.train(asked, group)
        group.on_main(lambda: shutil.rmtree(checkpoints(asked.out)[-1]))
        name = f"{kind}-again"
        trainer.train(asked, group)
"""


@pytest.mark.slow
def test_two_ranks_stay_together_and_go_on_for_every_kind_of_network(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(EVERY_KIND)
    torchrun(script, tmp_path)
    for kind in ("vlb", "text", "unet", "in-context", "classifier"):
        one, two, *again = (
            torch.load(tmp_path / f"{kind}{part}-rank-{rank}.pt")
            for part in ("", "-again")
            for rank in (0, 1)
        )
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
        assert [name for name in one if not torch.equal(again[0][name], again[1][name])] == []
        assert max((one[name] - again[0][name]).abs().max() for name in one) < 1e-6
        assert [line["step"] for line in read_metrics(tmp_path / kind / "metrics.jsonl")] == [2, 4]


# -- what a run writes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights):
    """Four steps from weights that are not zero, with all checkpoints and pictures."""
    out = tmp_path_factory.mktemp("steps") / "run"
    return train(
        dataclasses.replace(
            TINY, out=out, init=weights, steps=4, ckpt_every=1, keep=4, sample_every=2
        ),
        Ranks(),
    )


def state(checkpoint: Path, what: str) -> dict[str, Tensor]:
    tensors = {
        k: v for file in checkpoint.glob("state/*.safetensors") for k, v in load_file(file).items()
    }
    return {k.removeprefix(f"{what}."): v for k, v in tensors.items() if k.startswith(f"{what}.")}


@pytest.mark.portable
def test_ema_in_the_checkpoint_follows_the_trained_weights(run, weights):
    expected = read_weights(next(weights.glob("checkpoints/*/*.safetensors"))).state_dict
    for step, folder in enumerate(checkpoints(run), start=1):
        trained, decay = state(folder, "network"), min(TINY.ema, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * trained[k] for k, v in expected.items()}
        for ema in (
            state(folder, "ema"),
            read_weights(folder / "ema-0.999.safetensors").state_dict,
        ):
            assert ema.keys() == expected.keys()
            for name, values in expected.items():
                rounding = (
                    4 * 2**-24 * values.abs().max()
                )  # of a step: twice half an eps, here and there
                assert (ema[name] - values).abs().max() <= step * rounding, name
    assert step == 4
    assert max((trained[k] - v).abs().max() for k, v in expected.items()) > 1e-4


def test_checkpoints_need_no_stager_that_lasts(monkeypatch, tmp_path):
    """PyTorch 2.11's closes itself after its first use, here as there."""

    class Single(checkpoint.DefaultStager):
        def stage(self, tensors):
            staged = super().stage(tensors)
            self._state_dict_stager.close()
            return staged

    monkeypatch.setattr(checkpoint, "DefaultStager", Single)
    out = train(
        dataclasses.replace(TINY, out=tmp_path / "run", steps=3, ckpt_every=1, keep=3), Ranks()
    )
    assert [verify_checkpoint(one)["step"] for one in checkpoints(out)] == [1, 2, 3]


def test_previews_are_samples_of_the_ema(run):
    loaded = load_run(run, torch.device("cpu"))
    network = copy.deepcopy(loaded.denoise.network)
    network.load_state_dict(state(latest_checkpoint(run), "network"))
    trained = dataclasses.replace(loaded, denoise=build_denoiser(loaded.card.config, network))
    drawn = np.asarray(Image.open(run / "samples" / "step-0000004.png")).astype(int)
    of_ema, of_trained = (np.abs(drawn - preview(r)).mean() for r in (loaded, trained))
    assert of_ema < 0.05
    assert of_trained > 0.5


def preview(run: LoadedRun) -> np.ndarray:
    settings = dataclasses.replace(
        previews.SETTINGS, precision="fp32", cfg_scale=previews.CFG_SCALE
    )
    plan = build_pipeline(run, settings)
    images, _ = sample_grid(plan, previews.PER_CLASS)
    scale = pictures.fitting_scale(images.shape[-1])
    return np.asarray(pictures.grid(images, run.card.classes, previews.PER_CLASS, scale)).astype(
        int
    )


def test_tensorboard_has_the_numbers_of_the_log_and_the_pictures(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    for group, name in (
        ("train", "loss"),
        ("optim", "grad_norm"),
        ("optim", "lr"),
        ("speed", "img_per_s"),
    ):
        scalars = [(event.step, event.value) for event in board.Scalars(f"{group}/{name}")]
        assert scalars == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    images = board.Images("samples")
    assert [event.step for event in images] == [2, 4]
    picture = Image.open(io.BytesIO(images[-1].encoded_image_string))
    assert np.array_equal(
        np.asarray(picture), np.asarray(Image.open(run / "samples" / "step-0000004.png"))
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_training_on_cpu_has_the_losses_of_eager(tmp_path, weights):
    config = dataclasses.replace(TINY, init=weights, log_every=1)
    runs = [
        train(dataclasses.replace(config, out=tmp_path / str(c), compile=c), Ranks())
        for c in (False, True)
    ]
    eager, compiled = (
        [line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in runs
    )
    assert len(eager) == 6
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert compiled != eager, "not compiled"
    names = [sorted(state(latest_checkpoint(run), "network")) for run in runs]
    assert names[0] == names[1], "the compiler's names of weights must not get into checkpoints"


# -- a kill in the midst of a checkpoint -------------------------------------------------------------------------


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    processes = multiprocessing.get_context(
        "forkserver"
    )  # real processes that need not import torch each
    processes.set_forkserver_preload(
        ["dit.training.trainer", "torch.utils.tensorboard", "sklearn.datasets", "pytest"]
    )
    out, dice = tmp_path / "run", random.Random(0)
    config = dataclasses.replace(TINY, out=out, resume="auto", ckpt_every=1, keep=2, steps=10_000)
    for _ in range(3):
        before = latest_checkpoint(out)
        process = processes.Process(target=train_small, args=(config,))
        process.start()
        try:
            for _ in range(20):  # a process held still leaves what a killed one leaves
                os.kill(process.pid, signal.SIGCONT)
                stop_while_writing(process, out, before, dice.uniform(0, 0.08))
                verify_checkpoint(latest_checkpoint(out))
        finally:
            process.kill()
            process.join()
        assert list((out / "checkpoints").glob(".step-*")), "not killed while writing"
        assert verify_checkpoint(latest_checkpoint(out))["step"] > (
            step_of(before) if before else 0
        )
    done = step_of(latest_checkpoint(out))
    train(dataclasses.replace(config, steps=done + 2), Ranks())
    assert [verify_checkpoint(c)["step"] for c in checkpoints(out)] == [done + 1, done + 2]
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def train_small(config: TrainConfig) -> None:
    SIZES["Ti"] = SMALL
    train(config, Ranks())


def stop_while_writing(
    process: multiprocessing.Process, out: Path, before: Path | None, delay: float
) -> None:
    """Hold the process still at some moment in a checkpoint, later than its first."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.005)  # until a system call under way has ended
        if latest_checkpoint(out) not in (None, before) and list(
            (out / "checkpoints").glob(".step-*")
        ):
            return
        os.kill(process.pid, signal.SIGCONT)
    raise AssertionError("no checkpoint was ever being written")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


# -- what can be trained -----------------------------------------------------------------------------------------

STEPS = 100
COMBINATIONS = [
    ("linear", "eps", False),
    ("linear", "x0", False),
    ("linear", "v", False),
    ("linear", "eps", True),
    ("linear", "v", True),
    ("cosine", "eps", False),
    ("cosine", "x0", False),
    ("cosine", "v", False),
    ("cosine", "v", True),
    ("flow", "x0", False),
    ("flow", "v", False),
]


@pytest.mark.parametrize(("process", "objective", "learn_sigma"), COMBINATIONS)
def test_every_process_and_objective_trains_into_latents_of_sound_size(
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
    run = LoadedRun(
        Weights(session.run, session.card, STEPS, {}),
        denoise,
        session.autoencoder,
        session.ranks.device,
    )
    settings = SamplerConfig(steps=100, precision="fp32")
    labels = torch.arange(30) % 10
    latents = sample_latents(build_pipeline(run, settings), labels, torch.arange(30))
    data = session.source.read(np.arange(500), np.zeros(500, bool))[:, :3]
    assert latents.isfinite().all()
    # a predicted eps errs most: its x0 at the start is 158 times its error, and cosine alphas then rise fast
    assert 0.4 < latents.std() < (6 if (process, objective) == ("cosine", "eps") else 3)
    assert abs(latents.mean() - data.mean()) < 0.5 * data.std()
