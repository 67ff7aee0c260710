"""Weights as other programs save them."""

import argparse
from pathlib import Path

import torch

from dit.build import build_network
from dit.runs.card import NetworkSpec

TABLE = "y_embedder.embedding_table.weight"
SIT = dict(path_type="Linear", prediction="velocity")
REPA = dict(path_type="linear", prediction="v")


def dit_spec(**changes):
    sizes = dict(model="DiT-Ti/4", input_size=16, in_channels=3, num_classes=5, learn_sigma=True)
    return NetworkSpec(**(sizes | changes))


def dit_weights(**changes):
    """Weights without zeros, of a DiT with five classes and a null class."""
    torch.manual_seed(0)
    weights = build_network(dit_spec(**changes)).state_dict()
    for name, tensor in weights.items():
        if name != "pos_embed":
            tensor += 0.1 * torch.randn_like(tensor)
    return weights


def repa_weights():
    """Weights of REPA: no variance, and a projector that only training uses."""
    projectors = {f"projectors.0.{i}.weight": torch.randn(8, 8) for i in (0, 2, 4)}
    return dit_weights(learn_sigma=False) | projectors


def checkpoint(weights, **flags):
    """A training checkpoint, with the flags of its training script."""
    args = argparse.Namespace(**flags)
    return {"model": weights, "ema": weights, "opt": {"lr": 1e-4}, "args": args}


def saved(folder: Path, content, name="file.pt", **options) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def without(state_dict, *names):
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


def same_tensors(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
