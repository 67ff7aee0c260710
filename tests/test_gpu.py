"""What only a CUDA device can show."""

import dataclasses
import json

import pytest
import torch

from benchmarks.memory import BOUND, measure
from dit.commands.nll import nll
from dit.commands.train import train
from dit.commands.train_classifier import train_classifier
from dit.commands.train_vae.command import train_vae
from dit.config import ClassifierConfig, NllConfig, SamplerConfig, TrainConfig, VaeConfig
from dit.distributed.float8 import has_fp8
from dit.distributed.ranks import Ranks
from dit.runs.checkpoint_files import find_weights, latest_checkpoint, verify_checkpoint
from dit.runs.logs import read_metrics
from dit.runs.weights import read_weights, write_weights
from dit.sampling.generate import sample_latents
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = Ranks(device=torch.device("cuda", 0))
CONFIG = TrainConfig(steps=40, log_every=10, sample_every=20, ckpt_every=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained with compile and bf16, the defaults on CUDA."""
    out = tmp_path_factory.mktemp("gpu") / "run"
    return train(dataclasses.replace(CONFIG, out=out), CUDA)


def test_compiled_bf16_training_learns(run):
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    verify_checkpoint(latest_checkpoint(run))


def test_latents_are_those_of_the_cpu(run):
    config, indices = SamplerConfig(precision="fp32", steps=8, cfg_scale=1.5), torch.arange(6)
    made = []
    for device in ("cpu", "cuda"):
        loaded = load_run(run, torch.device(device))
        plan = build_pipeline(loaded, config)
        made.append(sample_latents(plan, indices, indices).cpu())
    assert (made[0] - made[1]).abs().max() < 1e-2 * made[0].abs().max()


def weaker(run, file):
    """Weights that differ from those of a run, in a file."""
    weights = read_weights(find_weights(run))
    write_weights(
        file,
        {name: 0.9 * tensor for name, tensor in weights.state_dict.items()},
        weights.card,
        weights.step,
    )
    return file


@pytest.mark.parametrize(
    "settings",
    [
        dict(batch_size=2),
        dict(batch_size=32),
        dict(batch_size=2, block_cache=2),
        dict(batch_size=2, guide=True),
    ],
    ids=["graph", "whole", "cached", "two-graphs"],
)
def test_compiled_sampling_makes_the_same_images(settings, tiny_run, tmp_path):
    """Five images in batches of two (or one batch that is filled up), guided now and then."""
    guided = (
        {"guide": weaker(tiny_run, tmp_path / "weak.safetensors")} if "guide" in settings else {}
    )
    config = SamplerConfig(
        precision="fp32", steps=6, cfg_scale=2.0, cfg_interval=(0.2, 0.8), **settings | guided
    )
    torch.compiler.reset()
    loaded, made = load_run(tiny_run, CUDA.device), []
    for one in (config, dataclasses.replace(config, compile=True)):
        plan = build_pipeline(loaded, one)
        made.append(
            torch.cat(
                [
                    sample_latents(plan, mine, mine).cpu()
                    for mine in torch.arange(5).split(config.batch_size)
                ]
            )
        )
    torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-4 * made[0].abs().max().item())


@pytest.mark.parametrize(
    "settings",
    [
        dict(conditioning="text"),
        dict(conditioning="cross-attention"),
        dict(model="UNet-S"),
        dict(
            process="linear",
            objective="eps",
            learn_sigma=True,
            loss="vlb",
            time_sampling="loss-aware",
        ),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_other_networks_train_compiled_and_sample(settings, tmp_path):
    out = train(dataclasses.replace(CONFIG, out=tmp_path / "run", steps=20, **settings), CUDA)
    assert len(read_metrics(out / "metrics.jsonl")) >= 2
    loaded, config = load_run(out, CUDA.device), SamplerConfig(steps=4, cfg_scale=2.0)
    plan = build_pipeline(loaded, config)
    made = sample_latents(plan, torch.arange(6), torch.arange(6))
    assert made.isfinite().all()
    assert made.std() > 0.1


def test_classifier_guides_under_autocast(run, tmp_path):
    classifier = train_classifier(
        ClassifierConfig(run=run, out=tmp_path / "classifier", steps=20), CUDA
    )
    loaded, indices = load_run(run, CUDA.device), torch.arange(6)
    by_classifier = dict(classifier=classifier, classifier_scale=5.0)
    plain, guided, exact = (
        sample_latents(build_pipeline(loaded, config), indices, indices)
        for config in (
            SamplerConfig(steps=4, precision="bf16"),
            SamplerConfig(steps=4, precision="bf16", **by_classifier),
            SamplerConfig(steps=4, precision="fp32", **by_classifier),
        )
    )
    assert guided.dtype == plain.dtype == torch.float32
    assert (guided - plain).abs().max() > 2 * (guided - exact).abs().max() > 0


def test_steps_of_a_vq_first_stage(tmp_path):
    config = VaeConfig(
        out=tmp_path / "vq", kind="vq", image_size=16, channels=(16, 16), steps=40, gan_weight=0.5
    )
    out = train_vae(config, CUDA)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["l1"] < lines[0]["l1"]
    assert "discriminator" in lines[-1]


@pytest.mark.parametrize(
    "settings", [dict(), dict(process="linear", objective="eps")], ids=["ode", "vlb"]
)
def test_likelihood_is_that_of_the_cpu(settings, make_run):
    run = make_run(**settings)
    bits = []
    for ranks in (Ranks(), CUDA):
        report = nll(
            NllConfig(run=run, num_images=4, steps=10, out=run / f"{ranks.device.type}.json"), ranks
        )
        bits.append(json.loads(report.read_text())["bits_per_dim"])
    assert bits[0] == pytest.approx(bits[1], rel=1e-2)


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(compile=False, conditioning="in-context"), dict(recompute="selective")],
    ids=["compiled", "odd-tokens", "recompute"],
)
def test_float8_training_learns_as_bf16_does(settings, run, tmp_path):
    if not has_fp8(CUDA.device):
        pytest.skip("needs float8 products")
    pytest.importorskip("torchao")
    out = train(
        dataclasses.replace(CONFIG, out=tmp_path / "run", precision="fp8", **settings), CUDA
    )
    exact = (
        run
        if "conditioning" not in settings
        else train(
            dataclasses.replace(CONFIG, out=tmp_path / "bf16", precision="bf16", **settings), CUDA
        )
    )
    ends = [read_metrics(folder / "metrics.jsonl")[-1]["loss"] for folder in (out, exact)]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_memory_is_what_dry_run_prints(recompute):
    found = measure(dict(model="DiT-B/2", batch=32, precision="bf16", recompute=recompute), CUDA)
    assert abs(found["error"]) < BOUND
