"""What only a CUDA device can show."""

import dataclasses

import pytest
import torch

from dit.config import SamplerConfig, TrainConfig
from dit.generate import sample_latents
from dit.hardware import Ranks
from dit.plan import build_sampling
from dit.runs import latest, verify
from dit.trained import load_run
from dit.training.metrics_log import read_metrics
from dit.training.trainer import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CONFIG = TrainConfig(steps=40, log_every=10, sample_every=20, ckpt_every=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained with compile and bf16, the defaults on CUDA."""
    out = tmp_path_factory.mktemp("gpu") / "run"
    return train(dataclasses.replace(CONFIG, out=out), Ranks(device=torch.device("cuda", 0)))


def test_compiled_bf16_training_learns(run):
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    verify(latest(run))


def test_latents_are_those_of_the_cpu(run):
    config, indices = SamplerConfig(precision="fp32", steps=8, cfg_scale=1.5), torch.arange(6)
    made = []
    for device in ("cpu", "cuda"):
        loaded = load_run(run, torch.device(device))
        plan = build_sampling(loaded, config)
        made.append(sample_latents(loaded, plan, config, indices, indices).cpu())
    assert (made[0] - made[1]).abs().max() < 1e-2 * made[0].abs().max()
