"""Errors in Python name arguments of Python, and only commands that can be typed."""

import re

import pytest
from helpers.evaluation import random_pixels
from helpers.runs import TINY

import dit
from dit.runs.locate import locate_run
from dit.sampling.python_arguments import as_arguments

FLAG = re.compile(r"(?<![\w-])--[a-z]")


@pytest.mark.parametrize(
    ("typed", "python"),
    [
        ("--cfg-scale 3 with --sampler auto", "guidance_scale=3 with sampler auto"),
        ("pass --image-size 30 48, or less", "pass image_size=(30, 48), or less"),
        ("--cfg-interval 0.2 0.8", "cfg_interval=(0.2, 0.8)"),
        ("add --out RUN", "add out=RUN"),
        ("--data MODULE:CLASS", "data=MODULE:CLASS"),
        ("pass --repo OWNER/NAME", "pass repo=OWNER/NAME"),
        ("--model UNet-S", "model UNet-S"),
        ("pass --no-compile", "pass compile=False"),
        ("see `dit info RUN --classes`", "see `dit info RUN --classes`"),
        ("pass `--out RUN --resume auto`", "pass `out=RUN, resume='auto'`"),
        ("drop `--flip`, pass `--steps 9`", "drop `flip`, pass `num_inference_steps=9`"),
        ("pass `--no-flip --image-size 30 48`", "pass `flip=False, image_size=(30, 48)`"),
        ("pass `--resume 'my runs/a'`", "pass `resume='my runs/a'`"),
        ("pass `--resume 'x --y'`", "pass `resume='x --y'`"),
        ("pass `--resume 000-digits-DiT-Ti-2`", "pass `resume='000-digits-DiT-Ti-2'`"),
        ("pass `--resume 007`", "pass `resume='007'`"),
        (r"pass `--resume $'caf\xe9'`", r"pass `--resume $'caf\xe9'`"),
        ("pass `--resume 'a`b'`, or --steps 9", "pass `--resume 'a`b'`, or --steps 9"),
        ("--data 2024/photos with --beta2 0.9.", "data 2024/photos with beta2=0.9."),
        ("--resume 000-digits: no --out", "resume 000-digits: no out"),
    ],
)
def test_flags_become_arguments(typed, python):
    assert as_arguments(typed) == python


def load(**settings):
    return lambda run: dit.Pipeline.from_pretrained(**{"source": run, "device": "cpu", **settings})


def call(*given, **settings):
    return lambda run: dit.Pipeline.from_pretrained(run, "cpu")(*given, **settings)


def train(**settings):
    given = {"data": (random_pixels(6), [0, 1, 2] * 2), "out": "new", **settings}
    return lambda run: dit.train(TINY, **{n: run if v is RUN else v for n, v in given.items()})


RUN = object()
SEE = "'cat': no class cat; expected names of classes, or ids from 0 to 9; see pipe.classes"
NO_CUDA = "device 'cuda:99'; expected cpu"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (load(source="w/nope"), "source w/nope is neither a local folder nor"),
        (load(image_size=7), "image_size=7 with DiT-Ti/4 on vae identity"),
        (load(image_size="big"), 'image_size is "big"; expected a whole number or'),
        (load(device="cuda:99"), NO_CUDA),
        (load(device="cuda:99"), ", or no device for the fastest kind"),
        (call("cat"), SEE),
        (call(1, cfg_interval=(0.8, 0.2)), "cfg_interval=(0.8, 0.2); expected two times"),
        (call(1, classifier="nothere"), "no checkpoint in nothere, which is not there"),
        (lambda run: dit.evaluate(run, random_pixels(4)), "pass dit.Pipeline.from_pretrained('"),
        (
            train(resume=True),
            "resume=True; expected 'auto', or a run directory; pass resume='auto'",
        ),
        (train(resume="auto", out=None), "resume auto without out; expected a run directory"),
        (train(out=RUN), "pass `resume="),
        (train(out=RUN, resume="auto"), "global_batch_size=64 there, global_batch_size=16 now"),
        (train(global_batch_size=7, grad_accum=2), "pass global_batch_size=6"),
        (train(num_classes=2, data=random_pixels(4)), "expected 0, or data with classes"),
        (
            train(data="nothere"),
            "hf:NAME), or MODULE:CLASS of a data set of your own; check the path",
        ),
        (train(label_column="kind"), "label_column kind with data in-memory; expected tar shards"),
        (train(device="cuda"), "argument 'device'; expected a field of dit.TrainConfig; training"),
        (train(dry_run=True), "use the command `train.py --dry-run`"),
        (train(data=(random_pixels(2), [0.5, 1])), "if the data has columns"),
    ],
)
def test_mistakes_name_what_python_has(weights, tmp_path, monkeypatch, use, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(dit.UserError, match=re.escape(message)) as caught:
        use(weights)
    prose = "".join(str(caught.value).split("`")[::2])
    assert not FLAG.search(prose), prose


def test_a_run_that_is_not_there_is_named_by_the_flag_in_commands():
    with pytest.raises(dit.UserError, match="--run w/nope is neither"):
        locate_run("w/nope")
