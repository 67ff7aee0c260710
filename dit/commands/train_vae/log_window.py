"""The values of the steps since the last line of the log, which has their means."""

import torch
from torch import Tensor

PREFIX = "log."  # of names in checkpoints


class LogWindow:
    """Values by name, one for each step that has it."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, logged: dict[str, Tensor]) -> None:
        """Add the values of a step, each of shape []."""
        for name, value in logged.items():
            self.values.setdefault(name, []).append(value)

    def take_means(self) -> dict[str, float]:
        """Return the mean of each value over the steps that have it, and start again."""
        means = {}
        for name, values in self.values.items():
            means[name] = float(torch.stack(values).cpu().double().mean())
        self.values.clear()
        return means

    def tensors(self) -> dict[str, Tensor]:
        """Return the values by their name in checkpoints."""
        # numbered: the order of names is that of the log
        return {
            f"{PREFIX}{number}.{name}": torch.stack(values)
            for number, (name, values) in enumerate(self.values.items())
        }

    def restore(self, stored: dict[str, Tensor]) -> None:
        """Take the values out of the tensors of a checkpoint."""
        keys = [key for key in stored if key.startswith(PREFIX)]
        for key in sorted(keys, key=lambda key: int(key.split(".")[1])):
            name = key.split(".", 2)[2]
            self.values[name] = list(stored.pop(key))
