"""Loss-aware times: equation 18 by hand, unbiased, calmer gradients, exact to resume."""

import dataclasses

import pytest
import torch
from conftest import torchrun
from helpers.training import prepared

from dit.commands.train import train
from dit.config import TrainConfig
from dit.diffusion.objective import Loss
from dit.diffusion.process import DDPM
from dit.diffusion.weighting import MEMORY, UNIFORM, LossAwareSampler
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.runs.checkpoint_files import latest_checkpoint
from dit.runs.logs import read_metrics
from dit.runs.weights import read_weights
from dit.training.batches import read_batch, training_times
from dit.training.build_card import build_card
from dit.training.build_loss import build_loss
from dit.training.inputs import RunInputs
from dit.training.trainer import take_step

pytestmark = pytest.mark.usefixtures("small_networks")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(*last):
    """A sampler whose times have seen these losses."""
    times = LossAwareSampler(len(last))
    for t, losses in enumerate(last, start=1):
        times.update(torch.full((len(losses),), float(t)), torch.tensor(losses))
    return times


# -- the distribution ------------------------------------------------------------------------------


def test_equation_18_by_hand():
    times = filled([3.0, 4.0] * 5, [2.0] * 10, [0.0] * 10)
    sizes = torch.tensor([12.5**0.5, 2.0, 0.0], dtype=torch.float64)  # sqrt(E[L^2])
    expected = (1 - UNIFORM) * sizes / sizes.sum() + UNIFORM / 3
    assert times.probabilities().tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_only_the_last_ten_losses_count():
    times = filled([100.0] * 3 + [1.0] * MEMORY, [50.0] + [3.0] * MEMORY)
    expected = [0.25 + 0.25 * UNIFORM, 0.75 - 0.25 * UNIFORM]
    assert times.probabilities().tolist() == pytest.approx(expected)


def test_uniform_until_every_time_has_ten_losses():
    times = filled([5.0] * 30, [1.0] * (MEMORY - 1))
    t, weights = times.draw(4000, seeded())
    assert torch.equal(weights, torch.ones(4000, dtype=torch.float64))
    assert (t == 1).double().mean().item() == pytest.approx(0.5, abs=0.03)
    times.update(torch.tensor([2.0]), torch.tensor([1.0]))
    assert times.probabilities()[0].item() == pytest.approx(5 / 6, abs=1e-3)


def test_losses_that_are_not_finite_are_not_stored():
    times = filled([1.0] * 10, [1.0] * 10)
    times.update(torch.tensor([1.0, 2.0]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(times.history, torch.ones(2, 10, dtype=torch.float64))
    assert times.counts.tolist() == [10, 10]


def test_the_weighted_mean_is_that_of_uniform_times():
    values = torch.tensor([7.0, -1.0, 0.5, 20.0, 3.0], dtype=torch.float64)  # known at each time
    times = filled(*([float(v)] * 10 for v in (7, 1, 0.5, 2, 0)))
    p = times.probabilities()
    t, weights = times.draw(200_000, seeded())
    drawn = torch.bincount(t.long() - 1) / len(t)
    assert (drawn - p).abs().max() < 0.005
    estimate = weights * values[t.long() - 1]
    assert (estimate.mean() - values.mean()).abs() < 4 * estimate.std() / len(t) ** 0.5


# -- in training -----------------------------------------------------------------------------------

AWARE = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=4,
    warmup=1,
    process="linear",
    objective="eps",
    learn_sigma=True,
    loss="vlb",
    time_sampling="loss-aware",
    sample_every=0,
    ckpt_every=2,
    log_every=1,
    precision="fp32",
)


def a_session(out, **changes):
    config = dataclasses.replace(AWARE, out=out, **changes)
    autoencoder = load_autoencoder(config.vae)
    source = build_source(config, autoencoder)
    return prepared(RunInputs(build_card(config, source), source, autoencoder))


def warm(times):
    """As after many steps: losses that fall with time."""
    times.history[:] = torch.linspace(9, 1, len(times.counts)).double()[:, None]
    times.counts[:] = MEMORY


def test_a_step_draws_times_weighs_and_stores_losses(tmp_path):
    session, seen = a_session(tmp_path / "run", grad_accum=2), []
    warm(session.state.time_sampler)

    def spy(x0, y, t, eps, uniforms):
        seen.append(t)
        each = t.float() + 0 * sum(p.sum() for p in session.network.parameters())
        return Loss(each, {"vb": each.detach() / 1000})

    batch = read_batch(session.stream, 0)
    expected, weights = training_times(session.stream, session.state.time_sampler, batch, 0)
    before = session.state.time_sampler.counts.sum()
    take_step(dataclasses.replace(session, loss=spy, late_loss=spy), batch, 1)
    assert torch.equal(torch.cat(seen), expected)
    assert not torch.equal(expected, batch.t)
    assert session.state.time_sampler.counts.sum() == before + 16
    last = expected.long()[-1] - 1
    place = (session.state.time_sampler.counts[last] - 1) % MEMORY
    assert session.state.time_sampler.history[last, place] == expected[-1]  # unweighted
    logged = dict(zip(session.state.means.names, session.state.means.sums.tolist(), strict=False))
    assert logged["loss"] == pytest.approx((weights * expected).mean().item(), rel=1e-5)
    assert logged["vb"] == pytest.approx(logged["loss"] / 1000, rel=1e-5)


def test_the_gradient_of_the_bound_is_calmer(tmp_path):
    """The variance of one image's gradient over all times of a short chain, for a fixed network."""
    process, session, draws = DDPM(steps=100), a_session(tmp_path / "run"), seeded()
    trained = [p for p in session.network.parameters() if p.requires_grad]
    loss, _ = build_loss(session.config, session.network, process)
    data = read_batch(dataclasses.replace(session.stream, batch_size=MEMORY), 0)
    losses, gradients = [], []
    for t in range(1, 101):
        eps = torch.randn(MEMORY, 3, 8, 8, generator=draws)
        each = loss(
            data.moments[:, :3],
            data.labels,
            torch.full((MEMORY,), float(t)),
            eps,
            torch.empty(MEMORY, 0),
        ).each
        losses.append(each.tolist())
        found = torch.autograd.grad(each[t % MEMORY], trained, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    g, p = torch.stack(gradients).double(), filled(*losses).probabilities()
    uniform, aware = (
        (100 * g.square().sum(1) / 100**2).sum(),
        (g.square().sum(1) / (100**2 * p)).sum(),
    )
    common = g.mean(0).square().sum()
    assert (aware - common) < 0.6 * (uniform - common)


def test_ranks_share_the_times_of_one_process(tmp_path):
    session = a_session(tmp_path / "run")
    warm(session.state.time_sampler)
    sampler = session.state.time_sampler
    whole = training_times(session.stream, sampler, read_batch(session.stream, 5), 5)
    halves = [dataclasses.replace(session.stream, ranks=Ranks(rank, 2)) for rank in range(2)]
    parts = [training_times(half, sampler, read_batch(half, 5), 5) for half in halves]
    for one, two in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(two))


def test_two_and_two_steps_are_four(tmp_path):
    part = train(dataclasses.replace(AWARE, out=tmp_path / "part", steps=2, cooldown=0), Ranks())
    again = train(dataclasses.replace(AWARE, out=part, resume=str(part), cooldown=0), Ranks())
    straight = train(dataclasses.replace(AWARE, out=tmp_path / "straight", cooldown=0), Ranks())
    one, two = (
        read_weights(next(latest_checkpoint(run).glob("ema-*"))).state_dict
        for run in (straight, again)
    )
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    logs = [
        [line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (straight, again)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4


def test_stored_losses_are_in_the_checkpoint(tmp_path):
    run = train(dataclasses.replace(AWARE, out=tmp_path / "run"), Ranks())
    session = a_session(run, resume=str(run))
    assert session.start == 4
    assert session.state.time_sampler.counts.sum() == 4 * 16
    assert (session.state.time_sampler.history > 0).sum() == 4 * 16


def test_other_runs_have_no_such_tensors(tmp_path):
    session = a_session(tmp_path / "run", time_sampling="uniform")
    assert session.state.time_sampler is None
    assert not [name for name in session.state.tensors() if name.startswith("times")]
    batch = read_batch(session.stream, 0)
    t, weights = training_times(session.stream, None, batch, 0)
    assert t is batch.t
    assert torch.equal(weights, torch.ones(16, dtype=torch.float64))


TWO_RANKS = """
import sys
import torch
from dit.distributed.ranks import ranks

with ranks() as group:
    mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64) + 10 * group.rank
    rows = group.gather(mine)
    assert rows.tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]], rows
"""


@pytest.mark.slow
def test_ranks_gather_in_order(tmp_path):
    (tmp_path / "script.py").write_text(TWO_RANKS)
    torchrun(tmp_path / "script.py")
    assert Ranks().gather(torch.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            dict(process="flow", objective="v", learn_sigma=False, loss="simple"),
            ("flow", "loss-aware"),
        ),
        (dict(learn_sigma=False, time_sampling="uniform"), ("--loss vlb", "--learn-sigma")),
        (
            dict(process="flow", objective="v", learn_sigma=False, time_sampling="uniform"),
            ("--process flow", "--loss vlb"),
        ),
        (dict(min_snr_gamma=5.0), ("--loss vlb", "--min-snr-gamma 5")),
    ],
)
def test_incompatible_settings_are_refused(flags, named):
    with pytest.raises(UserError) as error:
        dataclasses.replace(AWARE, **flags)
    assert all(name in error.value.given for name in named)
