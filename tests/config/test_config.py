"""Configurations: to JSON and back, help texts, and clear errors."""

import dataclasses
import json

import pytest

from dit.cli import COMMANDS
from dit.config import SampleConfig, TrainConfig, to_json
from dit.config.help import help_texts
from dit.config.presets import PRESETS
from dit.errors import UserError
from dit.utils.typed_json import WrongJson, from_json


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name, tmp_path):
    config = dataclasses.replace(PRESETS[name](), out=tmp_path, epochs=2.5, flip=False)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    assert config.preset == name


def test_questions_to_a_dry_run_are_not_saved_and_still_read():
    asked = TrainConfig(dry_run=True, gpus=(8, 64), gpu="h200")
    saved = to_json(asked)
    assert saved.keys().isdisjoint({"gpus", "gpu"})
    assert from_json(TrainConfig, saved) == TrainConfig(dry_run=True)
    assert from_json(TrainConfig, {**saved, "gpus": [8, 64], "gpu": "h200"}) == asked


def test_presets_say_what_they_cost_and_score():
    for make in PRESETS.values():
        assert {"Cost:", "Score:"} <= set(make.__doc__.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_help_text(command):
    config, _ = COMMANDS[command]
    texts = help_texts(config)
    assert all(texts[field.name].text for field in dataclasses.fields(config))


def test_an_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(WrongJson, match="label_dropout"):
        from_json(TrainConfig, {**to_json(TrainConfig()), "label_drop": 0.1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(lr=0), "--lr 0"),
        (dict(lr=float("inf")), "--lr inf"),
        (dict(label_dropout=1.0), "--label-dropout 1;"),
        (dict(cooldown=1.5), "--cooldown 1.5"),
        (dict(steps=0), "--steps 0"),
        (dict(image_size=(8, 0)), "--image-size 8 0"),
        (dict(ema_every=3), "--ema-every 3 without --ema-lengths"),
        (dict(process="flow", objective="eps"), "--objective eps"),
        (dict(process="flow", learn_sigma=True), "--learn-sigma"),
        (dict(time_sampling="loss-aware"), "--time-sampling loss-aware"),
        (dict(unet_attention=(16, 8)), "--unet-attention 16 8 with --model DiT-Ti/2"),
        (dict(model="UNet-S", precision="fp8"), "--precision fp8 with --model UNet-S"),
        (dict(process="linear", loss="vlb"), "--loss vlb and without --learn-sigma"),
        (
            dict(process="linear", loss="vlb", learn_sigma=True, min_snr_gamma=5.0),
            "--loss vlb with --min-snr-gamma 5;",
        ),
        (
            dict(objective="meanflow", process="cosine"),
            "--objective meanflow with --process cosine",
        ),
        (dict(objective="meanflow", learn_sigma=True), "--objective meanflow with --learn-sigma"),
        (dict(objective="meanflow", cosine=1.0), "--objective meanflow with --cosine 1"),
        (dict(objective="meanflow", min_snr_gamma=5.0), "--min-snr-gamma 5 with --objective"),
        (dict(objective="meanflow", meanflow_scale=2.0, num_classes=0), "with --num-classes 0"),
        (dict(meanflow_form="classic"), "--meanflow-form classic with --objective v"),
        (dict(text_encoder="digits"), "--conditioning adaln-zero with --text-encoder digits"),
        (dict(conditioning="text", num_classes=10), "--conditioning text with --num-classes 10"),
        (dict(conditioning="text", model="UNet-S"), "--conditioning text with --model UNet-S"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(UserError) as error:
        TrainConfig(**settings)
    assert named in str(error.value)


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_guidance_interval_is_ordered(interval, tmp_path):
    with pytest.raises(UserError, match="--cfg-interval"):
        SampleConfig(run=tmp_path, cfg_interval=interval)
