"""The cost of a setting: evaluations of networks for one image."""

import dataclasses
from typing import cast

import torch
from torch import nn

from dit.config import SamplerConfig
from dit.encoders.text import Captioned
from dit.sampling.generate import sample_latents
from dit.sampling.load import LoadedRun, with_classifier_labels
from dit.sampling.pipeline import build_pipeline


def count_evaluations(run: LoadedRun, setting: SamplerConfig) -> int:
    """Count the rows that networks compute for one image, those of guidance included.

    One image is sampled: guidance intervals and second-order steps make a formula unreliable.
    """
    labelled = with_classifier_labels(run, setting.classifier)
    pipeline = build_pipeline(labelled, dataclasses.replace(setting, compile=False))
    rows: list[int] = []
    hooks = []
    for network in pipeline.networks:
        inner = network.network if isinstance(network, Captioned) else network
        module = cast(nn.Module, inner)
        hooks.append(
            module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        )
    try:
        one = torch.zeros(1, dtype=torch.int64)
        sample_latents(pipeline, one, one)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(rows)
