import tracemalloc

import numpy as np
import pytest
import torch

from dit.data.sample_order import batch_indices, generator, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 100, 1000, 1797, 4096, 65537])
def test_permute_is_a_bijection(size):
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, 7, 0)), np.arange(size))


@pytest.mark.parametrize("size", [(1 << 32) + 1, (1 << 40) - 3, (1 << 62) + 5])
def test_permute_has_no_collisions_beyond_32_bits(size):
    positions = np.unique(np.linspace(0, size - 1, 5000).astype(np.int64).clip(0, size - 1))
    order = permute(positions, size, 0, 0)
    assert order.min() >= 0
    assert order.max() < size
    assert len(np.unique(order)) == len(positions)
    assert 0.4 * size < order.astype(float).mean() < 0.6 * size


@pytest.mark.parametrize(("size", "batch"), [(1797, 64), (10, 64), (7, 7), (1, 5), (1000, 333)])
def test_every_epoch_holds_each_sample_once_also_within_a_batch(size, batch):
    steps = range(-(-3 * size // batch))
    stream = np.concatenate([batch_indices(step, size, batch, 3) for step in steps])
    epochs = stream[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))


def test_epochs_and_seeds_have_different_orders():
    first, second = (batch_indices(step, 1000, 1000, 0) for step in (0, 1))
    other = batch_indices(0, 1000, 1000, 1)
    for a, b in [(first, second), (first, other), (first, np.arange(1000))]:
        assert (a == b).mean() < 0.01  # 0.001 by chance
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


@pytest.mark.parametrize("batch", [1, 6, 48, 96])
def test_the_stream_does_not_depend_on_the_batch_size(batch):
    whole = batch_indices(0, 37, 96, 5)
    pieces = np.concatenate([batch_indices(step, 37, batch, 5) for step in range(96 // batch)])
    np.testing.assert_array_equal(pieces, whole)


def test_orders_are_equally_likely():
    firsts = [int(permute(np.arange(1), 10, 0, epoch)[0]) for epoch in range(5000)]
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-squared, 9 degrees, p = 0.001
    orders = [tuple(permute(np.arange(3), 3, 0, epoch).tolist()) for epoch in range(3000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # 5 degrees, p = 0.001


# -- a billion samples -----------------------------------------------------------------------------

BILLION = 10**9
LIMIT = 148.2  # of chi-squared with 99 degrees of freedom, p = 0.001


def chi_squared(values: np.ndarray, others: np.ndarray | None = None, size: int = BILLION) -> float:
    """Compare values in range(size), in 100 cells, or pairs, in 10 x 10, with uniform ones."""
    if others is None:
        cells = values * 100 // size
    else:
        cells = values * 10 // size * 10 + others * 10 // size
    expected = len(values) / 100
    return float(((np.bincount(cells, minlength=100) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [BILLION, 2**30, 2**30 + 1, 10**12])
def test_samples_are_uniform_in_any_part_of_the_data(size, seed):
    for start in (0, size // 2, size - 10**5):
        positions = np.arange(start, start + 10**5)
        order = permute(positions, size, seed, 0)
        assert chi_squared(order, size=size) < LIMIT
        assert chi_squared(order[:-1], order[1:], size) < LIMIT  # neighbours
        next_batch, next_epoch = order[256:], permute(positions, size, seed, 1)
        assert chi_squared(order[:-256], next_batch, size) < LIMIT
        assert chi_squared(order, next_epoch, size) < LIMIT
        assert chi_squared(order, permute(positions, size, seed + 1, 0), size) < LIMIT
        low = order % 100  # the last digits are as uniform as the first
        assert ((np.bincount(low, minlength=100) - 1000) ** 2 / 1000).sum() < LIMIT


def test_first_samples_are_uniform_over_seeds():
    firsts = np.array([batch_indices(0, BILLION, 1, seed)[0] for seed in range(2000)])
    assert chi_squared(firsts) < LIMIT


@pytest.mark.parametrize("size", [BILLION, 2**30 + 1])  # the latter walks up to four times
def test_memory_depends_on_the_batch_only(size):
    batch_indices(0, size, 4096, 0)
    tracemalloc.start()
    for step in (0, 10**5, size // 4096):  # the last one spans two epochs
        assert len(batch_indices(step, size, 4096, 0)) == 4096
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6  # bytes, of which the indices are 32,768


def random_numbers(*stream: int) -> list[float]:
    return torch.rand(8, generator=generator(*stream)).tolist()


def test_generators_depend_on_every_number_and_on_all_its_bits():
    streams = [
        (0,),
        (1,),
        (0, 0),
        (0, 1),
        (1, 0),
        (0, 0, 0),
        (1 << 32,),
        (1, 1 << 32),
        (1, 1 << 40),
    ]
    draws = {tuple(random_numbers(*stream)) for stream in streams}
    assert len(draws) == len(streams)
    assert random_numbers(3, 4, 5) == random_numbers(3, 4, 5)


def test_neighbouring_generators_are_independent():
    a, b = (torch.randn(20_000, generator=generator(0, i)) for i in (1, 2))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03
