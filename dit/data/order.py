"""The order of samples as a pure function of (seed, step): no state to save, exact to resume."""

import numpy as np
import torch

ROUNDS = (
    6  # four make a Feistel network a pseudo-random permutation; two more for halves of few bits
)


def batch_indices(step: int, size: int, global_batch: int, seed: int) -> np.ndarray:
    """Which samples step `step` trains on; every pass over the data has its own order.

    Position p = step * global_batch + i of the endless stream takes sample perm_{p // size}(p % size), so batches
    run on from one pass into the next and each pass holds every sample once. Memory is O(global_batch).

    Args:
        step: steps done so far.
        size: samples in the data set, at least 1.
        global_batch: samples per step, over all ranks; ranks take slices.
        seed: another seed, other orders.

    Returns:
        [global_batch] int64.
    """
    start = step * global_batch
    indices = np.empty(global_batch, np.int64)
    done = 0
    while done < global_batch:  # one turn per pass that the batch touches
        epoch, offset = divmod(start + done, size)
        count = min(size - offset, global_batch - done)
        indices[done : done + count] = permute(np.arange(offset, offset + count), size, seed, epoch)
        done += count
    return indices


def permute(positions: np.ndarray, size: int, *key: int) -> np.ndarray:
    """A keyed bijection of range(size), at the given positions: int64 [B] -> int64 [B].

    A balanced Feistel network permutes the smallest even number of bits that holds `size`; values outside the
    range walk on along their cycle until they fall into it (Black and Rogaway 2002), four turns on average at most.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], half, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """Permute uint64 values of 2 * half bits."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return left << bits | right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): each bit of the output depends on all of the input."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each (seed, *stream), such as (seed, step, purpose) or (seed, image).

    Numbers are hashed, for neighbouring seeds of torch's generators are not independent and its CPU generator
    reads 32 bits of its seed alone; two streams in 2**32 meet. The length of the stream counts too.
    """
    words = np.random.SeedSequence([len(stream), seed, *stream]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]))
