"""The order of samples as a pure function of (seed, step): no state to save, exact to resume."""

import numpy as np
import torch

# Four rounds make a Feistel network a pseudo-random permutation; two more for halves of few bits.
ROUNDS = 6


def batch_indices(step: int, size: int, global_batch: int, seed: int) -> np.ndarray:
    """Return the samples of step `step`; every epoch has its own order.

    Position p = step * global_batch + i of the endless stream is sample perm_{p // size}(p % size).
    A batch may span two epochs; an epoch holds every sample once. Memory is O(global_batch).

    Args:
        step: steps done so far.
        size: samples in the data set, at least 1.
        global_batch: samples per step, over all ranks; ranks take slices.

    Returns:
        [global_batch] int64.
    """
    start = step * global_batch
    indices = np.empty(global_batch, np.int64)
    done = 0
    while done < global_batch:  # one iteration per epoch in the batch
        epoch, offset = divmod(start + done, size)
        count = min(size - offset, global_batch - done)
        positions = np.arange(offset, offset + count)
        indices[done : done + count] = permute(positions, size, seed, epoch)
        done += count
    return indices


def permute(positions: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Apply a keyed bijection of range(size) to positions: int64 [B] -> int64 [B].

    A balanced Feistel network permutes the smallest even number of bits that holds `size`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    values = positions.astype(np.uint64)

    # cycle walking (Black and Rogaway 2002): permute values outside the range again until they
    # are inside, at most four times on average
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], half, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """Permute uint64 values of 2 * half bits."""
    bits = np.uint64(half)
    mask = np.uint64((1 << half) - 1)
    left = values >> bits
    right = values & mask
    for key in keys:
        mixed = _mix(right + key) & mask
        left, right = right, left ^ mixed
    return left << bits | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser (Steele, Lea and Flood 2014), which mixes all bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return an independent generator for each (seed, *stream), such as (seed, step, purpose)."""
    # Hashed: neighbouring seeds of torch's generators are not independent, and its CPU generator
    # reads only 32 bits of a seed, so that two of 2**32 streams are equal.
    sequence = np.random.SeedSequence([len(stream), seed, *stream])
    word = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(word))
