import pytest
import torch

from dit.models.embeddings import position_embedding

WIDTH = 64


@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (7, 3)])
def test_positions_of_the_trained_grid_are_those_of_training(grid):
    torch.testing.assert_close(
        position_embedding(WIDTH, grid, grid), position_embedding(WIDTH, grid), rtol=0, atol=0
    )


def test_rows_and_columns_are_told_apart_and_know_only_themselves():
    table = position_embedding(WIDTH, (3, 5)).unflatten(0, (3, 5))
    columns, rows = table.chunk(2, dim=-1)
    assert (columns == columns[:1]).all()
    assert (rows == rows[:, :1]).all()
    square = position_embedding(WIDTH, (5, 5)).unflatten(0, (5, 5))
    assert torch.equal(table, square[:3])


@pytest.mark.parametrize("trained", [(4, 4), (3, 6)])
@pytest.mark.parametrize("factor", [2, 3])
def test_both_grids_have_the_same_edges(trained, factor):
    """`factor` tokens lie on each trained one: their middles average to its middle, the outermost an edge away."""
    finer = tuple(factor * side for side in trained)
    table = angles(position_embedding(WIDTH, finer, trained).unflatten(0, finer))
    blocks = (
        table.unflatten(0, (trained[0], factor)).unflatten(2, (trained[1], factor)).mean(dim=(1, 3))
    )
    middles = angles(position_embedding(WIDTH, trained).unflatten(0, trained))
    torch.testing.assert_close(blocks, middles, rtol=0, atol=1e-5)
    half = (1 - 1 / factor) / 2  # of a trained token, from its middle to that of its first part
    assert table[0, 0].tolist() == pytest.approx([-half, -half], abs=1e-5)
    assert table[-1, -1].tolist() == pytest.approx(
        [trained[1] - 1 + half, trained[0] - 1 + half], abs=1e-5
    )


def angles(table: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [..., 2]: column and row, read off the lower frequencies, which turn less than half a circle."""
    features = table.double().chunk(2, dim=-1)
    found = []
    for axis in features:
        sine, cosine = axis.chunk(2, dim=-1)
        k = 8  # frequency 10000 ** (-8 / 16) = 1/100
        found.append(torch.atan2(sine[..., k], cosine[..., k]) * 10000 ** (k / (WIDTH // 4)))
    return torch.stack(found, dim=-1)


def test_stretched_positions_are_near_the_table_enlarged():
    trained, finer = (8, 8), (16, 12)
    table = position_embedding(WIDTH, trained).T.reshape(1, WIDTH, *trained)
    enlarged = torch.nn.functional.interpolate(table, finer, mode="bicubic", align_corners=False)
    exact = position_embedding(WIDTH, finer, trained).T.reshape(1, WIDTH, *finer)
    difference = (enlarged - exact)[..., 2:-2, 2:-2].abs()  # a table knows nothing beyond its ends
    assert difference.max() < 0.06
    assert difference.mean() < 0.005
