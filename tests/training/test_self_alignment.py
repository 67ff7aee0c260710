"""Alignment in training: what it moves, when it ends, and what it leaves behind."""

import dataclasses

import pytest
import torch
from conftest import SMALL
from helpers import forked
from helpers.training import TINY, a_session, differing, do_step, flat, logged, run, tensors
from safetensors.torch import load_file

from dit.config import TrainConfig
from dit.diffusion.objective import Loss
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.parts import early_block
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import find_weights, latest_checkpoint
from dit.training import run_training as command
from dit.training.batches import draw_loss_inputs, read_batch

ALIGNED = dataclasses.replace(TINY, align="self", align_until=0.5)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=5, hidden_size=64, num_heads=2))


def loss_of(session, late=False):
    batch = read_batch(session.stream, 0)
    inputs = draw_loss_inputs(session.stream, batch, session.autoencoder, None, 0)
    loss = session.late_loss if late else session.loss
    return loss(inputs.x0, inputs.labels, inputs.t, inputs.eps, inputs.uniforms)


def alignment_alone(session):
    """Return the loss of --align [B] without that of the network."""

    def nothing(denoise, x0, y, t, eps):
        denoise(x0, t, y)
        return Loss(torch.zeros(len(x0)), {})

    batch = read_batch(session.stream, 0)
    inputs = draw_loss_inputs(session.stream, batch, session.autoencoder, None, 0)
    given = inputs.x0, inputs.labels, inputs.t, inputs.eps, inputs.uniforms
    return dataclasses.replace(session.loss, loss=nothing)(*given).each


def gradients(session, each):
    network, projector = session.state.network, session.state.projector
    names = dict(network.named_parameters()) | dict(projector.named_parameters("projector"))
    trained = {name: p for name, p in names.items() if p.requires_grad}
    found = torch.autograd.grad(each.mean(), list(trained.values()), allow_unused=True)
    pairs = zip(trained, found, strict=True)
    return {name for name, gradient in pairs if gradient is not None and gradient.any()}


def test_the_loss_is_added_with_its_weight(tmp_path):
    session = a_session(tmp_path, ALIGNED, align_weight=0.25)
    loss, late = loss_of(session), loss_of(session, late=True)
    torch.testing.assert_close(loss.each, late.each + 0.25 * loss.terms["align"])
    assert torch.equal(loss.terms["mse"], late.terms["mse"])
    assert 0 < loss.terms["align"].min() <= loss.terms["align"].max() < 2
    assert not late.terms["align"].any()


@pytest.mark.parametrize("conditioning", ["adaln-zero", "adaln-single", "tokens"])
def test_its_gradient_reaches_early_blocks_and_projector_alone(tmp_path, conditioning):
    """Of networks whose weights are not zero."""
    session = a_session(tmp_path, ALIGNED, conditioning=conditioning)
    for p in session.state.network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    reached = gradients(session, alignment_alone(session))
    assert not [name for name in reached if "final_layer" in name]
    early = {f"blocks.{number}." for number in range(early_block(5))}
    for name in dict(session.state.network.named_parameters()):
        if name.startswith("blocks.") and not name.startswith(tuple(early)):
            assert name not in reached
    assert {"projector.conv.weight", "projector.conv.bias", "x_embedder.proj.weight"} <= reached
    assert any(name.startswith("blocks.0.attn") for name in reached)


def test_the_teacher_is_not_trained(tmp_path):
    session = a_session(tmp_path, ALIGNED)
    before = flat(session, ema=True)
    loss_of(session).mean.backward()
    assert all(p.grad is None for p in session.state.ema.network.parameters())
    assert torch.equal(flat(session, ema=True), before)


def test_after_the_share_of_steps_it_trains_as_without(tmp_path):
    """From the same weights and moments: bit for bit."""
    aligned = a_session(tmp_path / "aligned", ALIGNED)
    plain = a_session(tmp_path / "plain")
    assert torch.equal(flat(aligned), flat(plain))
    for step in (1, 2, 3):
        do_step(aligned, step)
        do_step(plain, step)
    assert not torch.equal(flat(aligned), flat(plain))
    projector = aligned.state.projector.conv.weight.clone()

    tensors_of, source = plain.state.tensors(), aligned.state.tensors()
    for name, tensor in tensors_of.items():
        if tensor.shape == source[name].shape:
            tensor.data.copy_(source[name])
    for step in (4, 5, 6):
        do_step(aligned, step)
        do_step(plain, step)
    assert torch.equal(flat(aligned), flat(plain))
    assert torch.equal(aligned.state.projector.conv.weight, projector)


def test_a_run_resumes_exactly_and_its_weights_have_no_projector(tmp_path):
    options = dict(config=ALIGNED, steps=6, align_until=0.7, ckpt_every=2, keep=9, log_every=1)
    whole = run(tmp_path / "whole", **options)
    first = run(tmp_path / "parts", **options)
    for late in ("step-0000004", "step-0000006"):
        for file in sorted((first / "checkpoints" / late).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        (first / "checkpoints" / late).rmdir()
    run(first, **options, resume="auto")

    left, right = (tensors(latest_checkpoint(folder)) for folder in (whole, first))
    assert differing(left, right) == []
    assert {"state:projector.conv.weight", "state:optimizer.projector.conv.weight.exp_avg"} <= set(
        left
    )
    assert not [name for name in load_file(find_weights(whole)) if "projector" in name]
    # the log has the term while it is trained: 4 of 6 steps
    assert [step for step, _ in logged(whole, "align", "step")] == [
        value for value, _ in logged(first, "align", "step")
    ]
    assert len(logged(whole, "align")) == 4


def test_more_steps_do_not_align_again(tmp_path):
    """After two steps of four it has ended; in the two runs no rate depends on the last step."""
    options = dict(config=ALIGNED, cooldown=0, ckpt_every=4, log_every=1)
    whole = run(tmp_path / "whole", **options, steps=8, align_until=0.25)
    longer = run(tmp_path / "longer", **options, steps=4, align_until=0.5)
    for steps in (6, 8):
        run(longer, **options, steps=steps, align_until=0.5, resume="auto")
    left, right = (tensors(latest_checkpoint(folder)) for folder in (whole, longer))
    assert differing(left, right) == []
    assert [step for _, step in logged(longer, "align", "step")] == [1, 2]


def test_without_the_flag_a_checkpoint_has_nothing_of_it(tmp_path):
    names = a_session(tmp_path).state.tensors()
    assert not [name for name in names if "projector" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(align="self", model="UNet-S"), "--align self with --model UNet-S"),
        (dict(align_weight=1.0), "--align-weight 1 without --align"),
        (dict(align="self", align_weight=0.0), "--align-weight 0"),
        (dict(align="self", align_until=1.5), "--align-until 1.5"),
        (dict(inner_head=True, model="UNet-S"), "--inner-head with --model UNet-S"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


# -- ranks -----------------------------------------------------------------------------------------


def train_on_two_and_on_one(ranks: Ranks, out) -> None:
    """Train on both ranks, by copies and by shares, and then on one."""
    loop = command.train_with_rollback

    def train_and_save(session, *others):
        done = loop(session, *others)
        if not session.state.network.__class__.__name__.startswith("FSDP"):
            weights = session.state.network.state_dict() | {
                f"projector.{k}": v for k, v in session.state.projector.state_dict().items()
            }
            torch.save(weights, out / f"{name}-rank-{ranks.rank}.pt")
        return done

    SIZES["Ti"] = SMALL
    command.train_with_rollback = train_and_save
    config = dataclasses.replace(
        ALIGNED, inner_head=True, log_every=1, route=0.5, compile=False, global_batch_size=8
    )
    for name, parallel in (("ddp", "ddp"), ("fsdp", "fsdp")):
        command.run_training(
            dataclasses.replace(config, out=out / name, parallel=parallel, grad_accum=2), ranks
        )
    name = "one"
    if ranks.main:
        command.run_training(dataclasses.replace(config, out=out / name), Ranks())


@pytest.mark.slow
def test_two_ranks_log_what_one_process_logs(tmp_path):
    forked.run(2, train_on_two_and_on_one, tmp_path)
    first, second = (torch.load(tmp_path / f"ddp-rank-{rank}.pt") for rank in (0, 1))
    assert differing(first, second) == []
    one = logged(tmp_path / "one", "step", "loss", "inner", "grad_norm")
    for kind in ("ddp", "fsdp"):
        for ours, theirs in zip(
            one, logged(tmp_path / kind, "step", "loss", "inner", "grad_norm"), strict=True
        ):
            assert ours == pytest.approx(theirs, rel=1e-3)
        assert len(logged(tmp_path / kind, "align")) == 3
