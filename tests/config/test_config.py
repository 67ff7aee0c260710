"""Configurations: JSON there and back, and clear errors."""

import dataclasses
import json

import pytest

from dit.config import EncodeConfig, EvalConfig, SampleConfig, TrainConfig, from_json, to_json
from dit.config.presets import PRESETS
from dit.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name, tmp_path):
    config = dataclasses.replace(PRESETS[name](), out=tmp_path, epochs=2.5, flip=False)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_presets_know_their_name():
    assert all(make().preset == name for name, make in PRESETS.items())


def test_every_field_has_a_help_text():
    import tyro

    for cls in (TrainConfig, SampleConfig, EvalConfig, EncodeConfig):
        help_text = tyro.extras.get_parser(cls).format_help()
        for field in dataclasses.fields(cls):
            assert f"--{field.name.replace('_', '-')}" in help_text
            assert _docstring(cls, field.name), field.name


def _docstring(cls, name):
    import tyro._docstrings as docstrings

    return docstrings.get_field_docstring(cls, name, ())


def test_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(UserError, match="label_dropout"):
        from_json(TrainConfig, {**to_json(TrainConfig()), "label_drop": 0.1})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(lr=0), "--lr 0"),
        (dict(label_dropout=1.0), "--label-dropout 1.0"),
        (dict(cooldown=1.5), "--cooldown 1.5"),
        (dict(steps=0), "--steps 0"),
        (dict(process="flow", objective="eps"), "--objective eps"),
        (dict(process="flow", learn_sigma=True), "--learn-sigma"),
    ],
)
def test_wrong_settings_are_named(wrong, named):
    with pytest.raises(UserError, match=named):
        TrainConfig(**wrong)


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_guidance_interval_is_ordered(interval, tmp_path):
    with pytest.raises(UserError, match="--cfg-interval"):
        SampleConfig(run=tmp_path, cfg_interval=interval)
