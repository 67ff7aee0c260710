"""Muon: its iteration, its steps beside PyTorch's, shares of ranks, skipped steps, resuming."""

import dataclasses

import pytest
import torch
from helpers import forked
from helpers.training import TINY, a_session, do_step
from torch import nn
from torch.distributed.tensor import distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from dit.config import TrainConfig
from dit.distributed.parallel import full_tensor, shard
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.conditioning import CONDITIONINGS
from dit.models.registry import create_model
from dit.training import muon
from dit.training.monitoring.update_ratio import update_ratio
from dit.training.muon import MuonAdamW, orthogonalise, split_parameters
from dit.training.optimizer import build_optimizer, optimizer_flops, update_weights

GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def reference(x):
    """The iteration as printed (2502.16982, equation 2), on one matrix in float64."""
    x = x / x.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


@pytest.mark.portable
@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_the_iteration_is_as_printed(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    for given, found in zip(matrices, orthogonalise(matrices), strict=True):
        torch.testing.assert_close(found, reference(given), rtol=1e-9, atol=1e-12)
        u, _, vt = torch.linalg.svd(given, full_matrices=False)
        # the same singular vectors, and values near 1
        values = (u.T @ found @ vt.T).diagonal()
        torch.testing.assert_close(u @ values.diag() @ vt, found, rtol=1e-6, atol=1e-9)
        assert values.min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize("block", ["plain", "modern"])
def test_flops_are_those_of_the_products_in_a_step(block):
    """Of matrices, of some that are several in one, and of none beside."""
    sizes = dict(input_size=8, in_channels=4, num_classes=10, conditioning="cross-attention")
    network = create_model("DiT-Ti/4", block=block, **sizes)
    config = TrainConfig(optimizer="muon")
    optimizer = build_optimizer(network, config)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert optimizer_flops(network, config) == counter.get_total_flops() > 0
    assert optimizer_flops(network, TrainConfig()) == 0


def test_steps_are_those_of_pytorch(monkeypatch):
    """Beside torch.optim.Muon, which rounds to bfloat16: here it is given our precision."""
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 10), torch.randn(4, 6, 10)
    # both ways to round that it has had
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    other = nn.Parameter(torch.ones(3))
    one = MuonAdamW([(ours, 1)], [other], 0.1, (0.9, 0.99), 0.2)
    two = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        ours.grad, theirs.grad, other.grad = gradient, gradient.clone(), torch.ones(3)
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - start).abs().max() > 0.1


@pytest.mark.portable
def test_matrices_are_orthogonal_in_the_precision_of_training():
    torch.manual_seed(0)
    start, gradient = torch.randn(16, 24), torch.randn(16, 24)
    steps = {}
    for precision in ("fp32", "bf16"):
        weight = nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        MuonAdamW(
            [(weight, 1)], [nn.Parameter(torch.ones(1))], 0.1, (0.9, 0.99), 0, precision
        ).step()
        steps[precision] = weight.detach() - start
    error = (steps["bf16"] - steps["fp32"]).norm() / steps["fp32"].norm()
    # five iterations, each rounded to 8 bits
    assert 1e-4 < error < 3e-2


def test_other_weights_step_as_with_adamw():
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    matrix = nn.Parameter(torch.ones(2, 2))
    one = MuonAdamW([(matrix, 1)], [ours], 0.1, (0.9, 0.99), 0.2)
    two = torch.optim.AdamW([theirs], 0.1, (0.9, 0.99), weight_decay=0.2, fused=True)
    for _ in range(3):
        ours.grad, theirs.grad, matrix.grad = (torch.randn(3), None, torch.ones(2, 2))
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    assert torch.equal(ours, theirs)


def test_queries_keys_and_values_are_orthogonal_each_by_itself():
    torch.manual_seed(0)
    gradient = torch.randn(12, 4) * torch.tensor([1.0, 100.0, 1e4]).repeat_interleave(4)[:, None]
    stacked = nn.Parameter(torch.zeros(12, 4))
    parts = [nn.Parameter(torch.zeros(4, 4)) for _ in range(3)]
    stacked.grad = gradient
    MuonAdamW([(stacked, 3)], [nn.Parameter(torch.ones(1))], 0.1, (0.9, 0.99), 0).step()
    for part, rows in zip(parts, gradient.chunk(3), strict=True):
        part.grad = rows
        MuonAdamW([(part, 1)], [nn.Parameter(torch.ones(1))], 0.1, (0.9, 0.99), 0).step()
    torch.testing.assert_close(stacked, torch.cat(parts))


@pytest.mark.parametrize("at_once", [1, 300, 2**24])
def test_matrices_step_together_as_each_by_itself(at_once, monkeypatch):
    """Of two shapes, one of them stacked; in batches of one, of two, and of all."""
    torch.manual_seed(0)
    monkeypatch.setattr(muon, "AT_ONCE", at_once)
    shapes = [(6, 8, 1), (18, 8, 3), (6, 8, 1), (8, 6, 1)]
    together = [nn.Parameter(torch.randn(rows, size)) for rows, size, _ in shapes]
    alone = [nn.Parameter(matrix.detach().clone()) for matrix in together]
    matrices = [(matrix, count) for matrix, (*_, count) in zip(together, shapes, strict=True)]
    groups = [matrices]
    groups += [[(matrix, count)] for matrix, (*_, count) in zip(alone, shapes, strict=True)]
    optimizers = [
        MuonAdamW(group, [nn.Parameter(torch.ones(1))], 0.1, (0.9, 0.99), 0.1) for group in groups
    ]
    for _ in range(2):
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            update_weights(optimizer, 0.1, GO)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "stacked"),
    [("plain", [3, 1, 1, 1]), ("modern", [3, 1, 2, 1])],  # qkv, proj, fc1, fc2
)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else(block, stacked, conditioning):
    width = 12 if conditioning == "text" else None
    sizes = dict(input_size=8, in_channels=3, num_classes=5, text_width=width)
    network = create_model("DiT-Ti/4", block=block, conditioning=conditioning, **sizes)
    matrices, others = split_parameters(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    # cross-attention has three more: q, kv and proj, after those of self-attention and MLP
    if conditioning in ("cross-attention", "text"):
        stacked = [*stacked, 1, 2, 1]
    assert [count for _, count in matrices[: len(stacked)]] == stacked
    assert all(
        names[id(p)].startswith("blocks.") and "adaLN" not in names[id(p)] for p, _ in matrices
    )
    assert len(matrices) == len(stacked) * len(network.blocks)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {names[id(p)] for p in [*others, *(p for p, _ in matrices)]} == trained


def test_a_unet_has_no_such_matrices():
    with pytest.raises(UserError, match="--optimizer muon with --model UNet-S"):
        TrainConfig(model="UNet-S", optimizer="muon")


def test_a_skipped_step_changes_nothing():
    matrix, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = MuonAdamW([(matrix, 1)], [other], 0.1, (0.9, 0.99), 0.1)
    matrix.grad, other.grad = torch.randn(2, 2), torch.randn(2)
    update_weights(optimizer, 0.1, GO)
    before = matrix.clone(), optimizer.state[matrix]["momentum"].clone(), other.clone()
    assert update_ratio(optimizer) > 0
    matrix.grad, other.grad = torch.full((2, 2), torch.nan), torch.full((2,), torch.inf)
    update_weights(optimizer, 0.1, SKIP)
    assert torch.equal(matrix, before[0])
    assert torch.equal(optimizer.state[matrix]["momentum"], before[1])
    assert torch.equal(other, before[2])
    assert update_ratio(optimizer) == 0


def test_the_logged_update_is_that_of_the_weights(tmp_path):
    session = a_session(tmp_path, dataclasses.replace(TINY, optimizer="muon", weight_decay=0.1))
    do_step(session, 1)
    before = [p.detach().clone() for p in session.state.network.parameters()]
    do_step(session, 2)
    after = [p.detach() for p in session.state.network.parameters()]
    trained = [p.requires_grad for p in session.state.network.parameters()]
    moved = [a - b for a, b, t in zip(after, before, trained, strict=True) if t]
    weights = [a for a, t in zip(after, trained, strict=True) if t]
    expected = nn.utils.get_total_norm(moved) / nn.utils.get_total_norm(weights)
    torch.testing.assert_close(update_ratio(session.state.optimizer), expected, rtol=1e-3, atol=0)


def shares_step_as_the_whole(ranks: Ranks) -> None:
    whole, shared = (
        create_model("DiT-Ti/4", input_size=8, in_channels=3, num_classes=5) for _ in range(2)
    )
    shared.load_state_dict(whole.state_dict())
    shard(shared, {"pos_embed"}, ranks, "fp32")
    optimizers = [
        MuonAdamW(*split_parameters(network), 0.1, (0.9, 0.99), 0.1) for network in (whole, shared)
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for one, share in zip(whole.parameters(), shared.parameters(), strict=True):
            if one.requires_grad:
                one.grad = torch.randn(one.shape, generator=generator)
                share.grad = distribute_tensor(one.grad, share.device_mesh, share.placements)
        for optimizer in optimizers:
            update_weights(optimizer, 0.1, GO)
    for one, share in zip(whole.parameters(), shared.parameters(), strict=True):
        gathered = full_tensor(share.detach())
        torch.testing.assert_close(gathered, one.detach(), rtol=1e-5, atol=1e-6)


def test_shares_of_two_ranks_step_as_the_whole():
    forked.run(2, shares_step_as_the_whole)
