"""Power-function averages in closed form."""

import numpy as np


def step_weights(gamma: float, end: int, steps: int) -> np.ndarray:
    """Return the weights of steps 1 … `steps` in an average that ends at `end`."""
    k = np.minimum(np.arange(steps + 1), end) / end
    return np.diff(k ** (gamma + 1))
