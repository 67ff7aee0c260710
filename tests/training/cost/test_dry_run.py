"""What --dry-run prints, and what it refuses."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.image_data import paint
from helpers.step_memory import step_memory

from dit.build import build_network
from dit.commands.train import train
from dit.commands.train_classifier import train_classifier
from dit.config import ClassifierConfig, TrainConfig
from dit.config.presets import PRESETS
from dit.distributed.device import uses_bf16
from dit.distributed.ranks import Ranks
from dit.encoders.text import load_text_encoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.registry import count_parameters, multiply_adds
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost import measured_time
from dit.training.cost.alignment import alignment_flops
from dit.training.cost.assumed import load_or_assume_autoencoder
from dit.training.cost.ddp_or_fsdp import describe_memory, frozen_bytes
from dit.training.cost.expected import seconds_between
from dit.training.cost.flops import training_flops
from dit.training.cost.measured_time import Pace, expected_pace
from dit.training.cost.memory import Layout
from dit.training.optimizer import optimizer_flops

TINY = TrainConfig(
    model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=16, dry_run=True
)
CPU = torch.device("cpu")


def printed_rows(capsys, start=TINY, **changes):
    """Return the table as a mapping."""
    train(dataclasses.replace(start, dry_run=True, **changes), Ranks())
    table = capsys.readouterr().out.partition("\n\n")[0]
    return dict(line.split(maxsplit=1) for line in table.splitlines())


def spec(model, **changes):
    shape = dict(input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
    return NetworkSpec(model=model, **{**shape, **changes})


@pytest.mark.parametrize(
    ("changes", "structure"),
    [
        ({}, "Diffusion Transformer, adaln-zero conditioning, 4 tokens of 4 x 4 latents"),
        (
            dict(conditioning="in-context"),
            "Diffusion Transformer, in-context conditioning, 4 tokens of 4 x 4 latents",
        ),
        (dict(model="UNet-S"), "U-Net of 3 levels"),
    ],
)
def test_every_network_is_described(capsys, changes, structure):
    rows = printed_rows(capsys, **changes)
    assert rows["model"].startswith(changes.get("model", "DiT-Ti/4"))
    assert rows["model"].endswith(f"parameters; {structure}")
    assert "10 classes" in rows["data"]
    assert "predicts v, label dropout 0.1" in rows["diffusion"]


def test_classifier_and_unconditional(capsys):
    rows = printed_rows(capsys, model="Classifier-Ti/4", label_dropout=0.0)
    assert rows["diffusion"] == "flow, predicts the class of noised latents"
    rows = printed_rows(capsys, num_classes=0)
    assert ", unconditional, " in rows["data"]
    assert rows["diffusion"] == "flow, predicts v"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=9, lr=1.0, keep=5, recompute="full", gpus=(8,)), None),
        (dict(model="DiT-Ti/2"), "--model DiT-Ti/4 there, --model DiT-Ti/2 now"),
        (dict(global_batch_size=16), "--batch-size 64 there, --batch-size 16 now"),
        (dict(num_classes=12), "--num-classes"),
        (dict(conditioning="adaln"), "conditioning"),
        (dict(out=Path("elsewhere")), "with --out elsewhere"),
        (dict(steps=2), "--steps 2 for .*, which has done 3"),
        (dict(resume=None), "has checkpoints"),
    ],
)
def test_a_resumed_run_is_checked_as_in_training(make_run, capsys, changes, message):
    run = make_run()
    resumed = dataclasses.replace(ModelCard.read(run).config, out=run, resume=str(run))
    if message is None:
        assert "memory" in printed_rows(capsys, resumed, **changes)
        return
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(resumed, **changes, dry_run=dry_run), Ranks())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="DiT-Ti/2"), "has a network of model DiT-Ti/4, not DiT-Ti/2"),
        (dict(init=Path("nowhere")), "no checkpoint in nowhere"),
    ],
)
def test_initial_weights_are_checked(make_run, capsys, changes, message):
    init = make_run()
    assert "memory" in printed_rows(capsys, init=init)
    with pytest.raises(UserError, match=message):
        printed_rows(capsys, **{"init": init, **changes})


def test_a_text_encoder_adds_tokens_and_frozen_weights(capsys):
    encoder = load_text_encoder("digits")
    rows = printed_rows(capsys, conditioning="text")
    network = spec("DiT-Ti/4", conditioning="text", text_width=64)
    macs = multiply_adds(network.model, 8, **network.sizes)
    assert rows["compute"].startswith(f"{macs / 1e9:.3g} G")
    need = step_memory(network, 16, bf16=uses_bf16(CPU, "auto"), text_tokens=8).total
    need += 4 * count_parameters(encoder.network)
    assert f"about {need / 2**30:.2f} GiB" in rows["memory"]


def test_alignment_and_inner_head_are_counted(capsys):
    """A teacher's pass over 4 of 6 blocks, and 3 x 3 products on 4 tokens of 256 features."""
    plain = printed_rows(capsys)["compute"]
    assert "--align" not in plain
    network = spec("DiT-Ti/4")
    macs = multiply_adds(network.model, **network.sizes)
    last = 256 * 2 * 256 + 4 * 256 * 48  # modulation, and 48 numbers a token
    whole = macs - last - 4 * 48 * 256 - 2 * 256**2  # without embeddings, also of times
    flops = 2 * (macs - last - whole * 2 / 6) + 6 * 9 * 4 * 256**2
    aligned = printed_rows(capsys, align="self", align_until=0.25)["compute"]
    assert aligned == f"{plain}, and {flops / 1e9:.3g} for --align in the first 25% of the steps"

    headed = printed_rows(capsys, inner_head=True)
    # modulation of two vectors an image, and 48 numbers a token
    head = 6 * (256 * 2 * 256 + 4 * 256 * 48)
    assert f"{(6 * macs + head) / 1e9:.3g} GFLOP to train" in headed["compute"]
    assert "an inner head after block 2" in headed["model"]


def test_alignment_and_muon_take_time():
    """Beside the FLOPs of training; grids of samples have neither."""

    def pace(alignment=0.0, **changes):
        config = dataclasses.replace(TINY, **changes)
        source = SimpleNamespace(classes=["a"] * 10)
        return expected_pace(spec("DiT-Ti/4"), config, source, 0, Ranks(), alignment)

    plain, aligned, muon = pace(), pace(alignment=1e9), pace(optimizer="muon")
    flops = training_flops(spec("DiT-Ti/4"), TINY)
    assert aligned.step == plain.step
    assert aligned.align == pytest.approx(plain.step * 1e9 / flops)
    assert plain.align == 0
    products = optimizer_flops(build_network(spec("DiT-Ti/4")), TrainConfig(optimizer="muon"))
    assert muon.step == pytest.approx(plain.step * (1 + products / (16 * flops)))
    assert plain.grid == aligned.grid == muon.grid > 0


def test_the_table_by_gpus_has_the_mean_of_alignment(capsys):
    def speed(**changes):
        many = dict(global_batch_size=2**14, gpus=(1,), steps=8)
        train(dataclasses.replace(TINY, **many, **changes), Ranks())
        rows = capsys.readouterr().out.partition("\n\n")[2].splitlines()
        printed = dict(row.rsplit(maxsplit=1) for row in rows)["images/s"]
        return float(printed.replace(",", ""))

    # so many images that the optimizer's share is small
    network, config = spec("DiT-Ti/4"), dataclasses.replace(TINY, align="self")
    ratio = alignment_flops(network, config) / training_flops(network, TINY)
    plain = speed()
    half = speed(align="self", align_until=0.5)
    whole = speed(align="self", align_until=1.0)
    assert plain > half > whole
    # a step has other parts too; those of --align grow by its share
    assert (plain / half - 1) / (plain / whole - 1) == pytest.approx(0.5, rel=0.1)
    assert plain / whole == pytest.approx(1 + ratio, rel=0.05)


def test_the_plan_says_measured_only_of_steps_that_were_timed(capsys, monkeypatch):
    monkeypatch.setattr(measured_time, "fastest_seconds", lambda work, device: 0.5)
    minutes = dict(minutes=2, sample_every=0)
    assert "s a step measured" in printed_rows(capsys, **minutes)["time"]
    assert "s a step measured" in printed_rows(capsys, align="self", **minutes)["time"]
    assert "s a step expected" in printed_rows(capsys, recompute="full", **minutes)["time"]
    assert "s a step expected" in printed_rows(capsys)["time"]


def test_the_steps_of_alignment_take_longer_and_a_resumed_run_has_the_rest():
    pace = Pace(1.0, align=0.5)
    assert seconds_between(0, 10, pace, None) == 10
    assert seconds_between(0, 10, pace, 4) == 12
    assert seconds_between(0, 2, pace, 4) == 3
    assert seconds_between(3, 10, pace, 4) == 7.5
    assert seconds_between(6, 10, pace, 4) == 4


def test_memory_is_printed_by_part(capsys):
    rows = printed_rows(capsys, precision="fp32", grad_accum=2)
    need = step_memory(spec("DiT-Ti/4"), 8, Layout(grad_accum=2))
    parts = {"weights": need.weights, "optimizer": need.optimizer, "gradients": need.gradients}
    for name, size in parts.items():
        assert f" {name} {size / 2**30:.2f}" in rows["memory"]
    assert "bf16" not in rows["memory"]


def test_the_network_is_built_once(capsys, monkeypatch):
    built = []

    def build(spec):
        built.append(spec.model)
        return build_network(spec)

    monkeypatch.setattr("dit.training.inputs.build_network", build)
    for module in ("describe", "expected"):
        assert not hasattr(importlib.import_module(f"dit.training.cost.{module}"), "build_network")
    printed_rows(capsys)
    assert built == ["DiT-Ti/4"]


def test_frozen_networks_count():
    need = step_memory(spec("DiT-Ti/4"), 8)
    network = torch.nn.Linear(2**14, 2**13, bias=False)
    coder = SimpleNamespace(codec=SimpleNamespace(network=network))
    assert frozen_bytes(coder, SimpleNamespace(network=network)) == 2**30
    assert frozen_bytes(SimpleNamespace(codec=object()), None) == 0
    alone, more = describe_memory(need, 0), describe_memory(need, 2**30)
    assert more == f"about {1 + need.total / 2**30:.2f}{alone[10:]}, frozen networks 1.00"


def test_levers_that_are_on_are_listed_with_their_values(capsys):
    changes = dict(cosine=1.0, time_shift="auto", route=0.5, align="self")
    rows = printed_rows(capsys, **changes)
    assert rows["levers"] == (
        "cosine of velocities, weight 1; 50% of the tokens skip the "
        "middle blocks; early tokens follow late ones of the EMA in the first 40% of the steps, "
        "weight 0.5"
    )
    # sqrt(3 x 8 x 8 / 4096): far below 1, where samples were far worse
    assert rows["diffusion"].startswith("flow, times shifted by 0.217, predicts v")
    assert rows["warning"].startswith("times shifted by 0.217: training sees little noise")
    rows = printed_rows(capsys)
    assert "levers" not in rows
    assert "warning" not in rows


def test_the_time_of_compiling_is_told(capsys):
    assert "compiling takes" in printed_rows(capsys, compile=True)["time"]
    assert "compiling takes" not in printed_rows(capsys, compile=False)["time"]


# -- without data and network ----------------------------------------------------------------------

IMAGENET = dataclasses.replace(PRESETS["imagenet-256"](), model="DiT-S/8", global_batch_size=8)


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """Neither data nor a cached autoencoder, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)


def test_known_shapes_are_assumed(nothing_here, capsys):
    rows = printed_rows(capsys, IMAGENET, latent_norm="data", epochs=1)
    assumed = "imagenet: not found here; ImageNet assumed, 1,281,167 images in 1,000 classes"
    assert rows["data"] == f"{assumed}, flips on"
    assert rows["latents"].startswith("4x32x32 from 256x256 pixels, stabilityai/sd-vae-ft-ema")
    assert rows["latents"].endswith("its weights are not here, their shapes are assumed")
    assert "frozen networks 0.31" in rows["memory"]  # 83.7 M parameters
    assert rows["schedule"].startswith("160,146 steps of 8 images (1.0 epochs)")
    assert "warning" not in rows  # such as one of classes without images
    assert "lr 0.0001; EMA" in rows["schedule"]
    rows = printed_rows(capsys, IMAGENET, warmup=5)
    assert "lr 0.0001 after 5 steps; EMA" in rows["schedule"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(vae="someone/sd-vae-ft-ema"), "--vae someone/sd-vae-ft-ema is neither a local"),
        (dict(vae="stabilityai/sd-vae-new"), "--vae stabilityai/sd-vae-new is neither a local"),
        (dict(data="imagenet/trian"), "--data imagenet/trian is neither `digits` nor a folder"),
        (dict(preset="digits"), "--data imagenet is neither `digits` nor a folder"),
        (dict(image_size=100), "--image-size 100 with --vae stabilityai/sd-vae-ft-ema"),
        (dict(gpus=(3,)), "--batch-size 8 on --gpus 3"),
    ],
)
def test_unknown_shapes_and_mistakes_are_refused(nothing_here, capsys, changes, message):
    with pytest.raises(UserError, match=message):
        printed_rows(capsys, IMAGENET, **changes)


def test_no_data_is_assumed_for_a_run_with_a_checkpoint(nothing_here, make_run, capsys):
    run = make_run(preset="imagenet-256", data="imagenet")
    resumed = dataclasses.replace(ModelCard.read(run).config, resume=str(run), out=run)
    with pytest.raises(UserError, match="--data imagenet is neither `digits` nor a folder"):
        printed_rows(capsys, resumed)


def test_assumed_data_have_the_classes_of_the_run_to_be_guided(nothing_here, make_run, capsys):
    run = make_run(preset="imagenet-256", data="imagenet")
    train_classifier(ClassifierConfig(run=run, model="Classifier-Ti/4", dry_run=True), Ranks())
    assert "ImageNet assumed, 1,281,167 images in 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["images", "digits"])
def test_images_need_no_weights_of_the_autoencoder(nothing_here, tmp_path, capsys, data):
    for name in ("a/1.png", "b/2.png"):
        paint(tmp_path / "images" / name)
    flow = dataclasses.replace(PRESETS["imagenet-256-flow"](), model="DiT-S/8")
    rows = printed_rows(capsys, flow, data=data, image_size=64, global_batch_size=8)
    assert rows["latents"].startswith("4x8x8 from 64x64 pixels")
    assert "not found" not in rows["data"]


def test_the_table_by_gpus_is_appended(nothing_here, capsys):
    train(dataclasses.replace(IMAGENET, dry_run=True, gpus=(1, 8)), Ranks())
    rows = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert rows[0].split() == ["GPUs", "1", "8", "8"]
    assert rows[-1].startswith("GPU-hours for 3,200,000 images")  # steps x batch


def test_an_assumed_autoencoder_has_the_checksum_of_latents_that_are_here(nothing_here, tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    (folder / "encoding.json").write_text("{}")
    entries = dict(shape=[4, 32, 32], classes=["a"], mean=[0] * 4, std=[1] * 4, captions=False)
    entries |= dict(vae="x", checksum="5b", image_size=256, flips=False, fingerprint="")
    entries |= dict(
        count=1, shard_size=1, shards=[dict(file="shard-00000.npy", count=1, sha256="")]
    )
    (folder / "index.json").write_text(json.dumps(entries))
    np.save(folder / "shard-00000.npy", np.zeros((1, 1, 8, 32, 32), np.float16))
    np.save(folder / "labels.npy", np.zeros(1, np.int64))
    config = dataclasses.replace(IMAGENET, data=str(folder))
    autoencoder = load_or_assume_autoencoder(config, None, CPU)
    assert build_source(config, autoencoder).shape == (4, 32, 32)
