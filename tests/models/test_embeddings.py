import pytest
import torch

from dit.models.embeddings import position_embedding

WIDTH = 64


def on_grid(grid, trained=None):
    """[height, width, D]"""
    return position_embedding(WIDTH, grid, trained).unflatten(0, grid)


@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (7, 3)])
def test_positions_of_the_trained_grid_are_those_of_training(grid):
    torch.testing.assert_close(on_grid(grid, grid), on_grid(grid), rtol=0, atol=0)


def test_half_of_the_features_depend_on_the_column_half_on_the_row():
    table = on_grid((3, 5))
    columns, rows = table.chunk(2, dim=-1)
    assert (columns == columns[:1]).all()
    assert (rows == rows[:, :1]).all()
    assert torch.equal(table, on_grid((5, 5))[:3])


@pytest.mark.parametrize("trained", [(4, 4), (3, 6)])
@pytest.mark.parametrize("factor", [2, 3])
def test_both_grids_have_the_same_edges(trained, factor):
    """`factor` tokens cover a trained one: their centres average to its centre."""
    finer = on_grid(tuple(factor * side for side in trained), trained)
    height, width = trained
    parts = coordinates(finer).unflatten(0, (height, factor)).unflatten(2, (width, factor))
    centres = coordinates(on_grid(trained))
    torch.testing.assert_close(parts.mean(dim=(1, 3)), centres, rtol=0, atol=1e-5)
    half = (1 - 1 / factor) / 2  # of a trained token, from its centre to that of its first part
    first, last = coordinates(finer)[0, 0], coordinates(finer)[-1, -1]
    assert first.tolist() == pytest.approx([-half, -half], abs=1e-5)
    assert last.tolist() == pytest.approx([width - 1 + half, height - 1 + half], abs=1e-5)


def coordinates(table):
    """[..., D] -> [..., 2]: column and row, from waves that turn less than half a circle."""
    k = 8  # frequency 10000 ** (-8 / 16) = 1/100
    axes = []
    for features in table.double().chunk(2, dim=-1):
        sine, cosine = features.chunk(2, dim=-1)
        axes.append(torch.atan2(sine[..., k], cosine[..., k]) * 10000 ** (k / (WIDTH // 4)))
    return torch.stack(axes, dim=-1)
