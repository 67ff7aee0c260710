"""Find the network in a checkpoint of another program: its tensors, and the flags beside them."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dit.errors import UserError
from dit.runs.formats.foreign_file import READABLE, WANTED, open_foreign
from dit.runs.formats.lightningdit import modern_layers
from dit.runs.formats.other_networks import other_network
from dit.runs.formats.state_dict import StateDict, first_names

AVERAGES = ("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema")
WEIGHTS = ("model", "model_state_dict", "state_dict", "net", "network", "module", "params")
FLAGS = ("args", "config", "hyper_parameters", "hparams")
ANCHOR = "x_embedder.proj.weight"  # what is before it, in a name, is before all names


@dataclass(frozen=True)
class ForeignCheckpoint:
    """Tensors with the names of a DiT, and what else the file says.

    Args:
        file: where they come from.
        state_dict: the tensors.
        keys: keys of the dictionaries around them, such as `ema`; none of a bare state dict.
        prefix: what was before the names of all tensors, such as `module.`.
        left_out: names of tensors without that prefix, which are no part of the network.
        flags: of the training script; empty if the file has none.
    """

    file: Path
    state_dict: StateDict
    keys: tuple[str, ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Say which of the file's tensors these are; empty if they are all."""
        parts = []
        if self.keys:
            parts.append(f"the weights under `{'.'.join(self.keys)}`")
        if self.prefix:
            parts.append(f"names without `{self.prefix}`")
        if self.left_out:
            parts.append(f"without {first_names(self.left_out)}")
        return ", ".join(parts)


def read_checkpoint(file: Path) -> ForeignCheckpoint:
    """Return the network in a file; of a training checkpoint, its averaged weights.

    Raises:
        UserError: no tensors, or those of another kind of network.
    """
    loaded = open_foreign(file)
    try:
        keys, tensors = _find_tensors(loaded)
    except RecursionError:  # a dictionary that holds itself
        keys, tensors = (), {}
    if not tensors:
        raise _no_tensors(file, loaded)

    prefix = _common_prefix(tensors)
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if ANCHOR not in named or (other_network(named) and not modern_layers(named)):
        raise _other_network(file, tensors)
    left_out = tuple(name for name in tensors if not name.startswith(prefix))
    return ForeignCheckpoint(file, named, keys, prefix, left_out, _find_flags(loaded))


def _find_tensors(loaded: Any) -> tuple[tuple[str, ...], StateDict]:
    """Return the named tensors in nested dictionaries, and the keys that lead to them."""
    if not isinstance(loaded, Mapping):
        return (), {}
    # averages are better than the weights of the last step
    for key in (*AVERAGES, *WEIGHTS):
        keys, tensors = _find_tensors(loaded.get(key))
        if tensors:
            return (key, *keys), tensors
    named = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return (), named


def _find_flags(loaded: Any) -> dict[str, Any]:
    """Return the flags that are plain values, also of sections; no other ones are read."""
    for key in FLAGS:
        flags = loaded.get(key)
        if isinstance(flags, Namespace):
            flags = vars(flags)
        if isinstance(flags, Mapping):
            return _plain_values(flags)
    return {}


def _plain_values(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags that are plain values, also those in sections, as a YAML file has them."""
    found = {}
    sections = [values for values in flags.values() if isinstance(values, Mapping)]
    for values in (*sections, flags):
        for name, value in values.items():
            if isinstance(value, str | int | float | bool):
                found[name] = value
    return found


def _common_prefix(names: Mapping[str, Any]) -> str:
    """Return what DDP, torch.compile or a wrapper put before the names; an average's first."""
    found = [name.removesuffix(ANCHOR) for name in names if name.endswith(ANCHOR)]
    prefixes = [prefix for prefix in found if not prefix or prefix.endswith(".")]
    return min(prefixes, key=lambda prefix: ("ema" not in prefix, len(prefix)), default="")


def _no_tensors(file: Path, loaded: Any) -> UserError:
    given = f"{file} has no named tensors"
    if isinstance(loaded, Mapping):
        if "param_groups" in loaded:
            given = f"{file} is the state of an optimizer"
        elif loaded:
            given += f", only {first_names(map(str, loaded))}"
    return UserError(
        given, "a state dict, alone or under a key such as `ema` or `model`", f"pass {WANTED}"
    )


def _other_network(file: Path, tensors: StateDict) -> UserError:
    """Return the error for tensors of another network, which says of which."""
    kind = other_network(tensors)
    given = f"{file} is {kind}" if kind else f"{file} has tensors such as {first_names(tensors)}"
    return UserError(given, f"the tensors of {READABLE}", "check that it is the right file")
