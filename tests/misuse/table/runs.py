"""Runs and weights files: damaged, emptied, of other types, of another network, foreign."""

import argparse

import torch

from misuse.case import Case, Damage, refused, works
from misuse.damages import (
    DELETE,
    copy,
    cut,
    edit,
    edit_card,
    edit_header,
    evil_pickle,
    flip,
    folder,
    link,
    remove,
    saved,
    seal,
    tensors,
    write,
)
from misuse.fixtures import CNN, EMA, STEP, TRAIN, release_tensors

CONFIG, META = "run/config.json", f"{STEP}/meta.json"
SAMPLE = "sample --run run --steps 2 --per-class 1"
RESUME = "train --resume run --steps 6"
OLDER = "run/checkpoints/step-0000002"
STATE = f"{STEP}/state"
INFO = "info run"
RESUMED = ("run/*",)

# -- config.json -----------------------------------------------------------------------------------


def configured(keys: str, value: object, says: str = "config.json") -> list[Case]:
    """Describe the use of a run whose card has a wrong value, in config.json and the weights."""
    damages = edit(CONFIG, keys, value), edit_card(EMA, keys, value), seal(STEP)
    return [
        refused(RESUME, says, *damages, changes=RESUMED),
        refused(SAMPLE, "ema-0.999", *damages),
    ]


WRONG_VALUES: list[tuple[str, object]] = [
    ("network", 3),
    ("network", []),
    ("network/model", 3),
    ("network/model", "DiT-Ti/5"),
    ("network/input_size", "8"),
    ("network/input_size", 0),
    ("network/input_size", [8, 8, 8]),
    ("network/in_channels", -3),
    ("network/num_classes", "3"),
    ("network/num_classes", -3),
    ("network/learn_sigma", "no"),
    ("network/conditioning", "telepathy"),
    ("network/flavour", "new"),
    ("config", []),
    ("config/lr", "fast"),
    ("config/lr", -1),
    ("config/process", "floww"),
    ("config/ema_lengths", 0.05),
    ("config/flip", "maybe"),
    ("config/image_size", [8]),
    ("config/vae", 3),
    ("config/of_the_future", 1),
    ("classes", "cat"),
    ("classes", [1, 2, 3]),
    ("latent_mean", [0.5]),
    ("latent_std", "1"),
    ("latent_std", [1.0, 0.0, 1.0]),
    ("class_counts", [4, -4, 4]),
    ("class_counts", [4]),
    ("ema_length", "long"),
]

CARDS = [
    # the newest checkpoint has the card too
    works(RESUME, "step 6/6", write(CONFIG, "[]"), changes=RESUMED),
    works(RESUME, "step 6/6", write(CONFIG, "[" * 100_000), changes=RESUMED),
    works(RESUME, "step 6/6", write(CONFIG, '{"config": 1e999}'), changes=RESUMED),
    works(RESUME, "step 6/6", cut(CONFIG, 0.5), changes=RESUMED),
    works(RESUME, "step 6/6", write(CONFIG, b"\xff\xfe"), changes=RESUMED),
    works(RESUME, "step 6/6", remove(CONFIG), changes=RESUMED),
    works(SAMPLE, "grid", remove(CONFIG)),
    refused(INFO, "config.json", write(CONFIG, "[]")),
    *[case for keys, value in WRONG_VALUES for case in configured(keys, value)],
]

# -- checkpoints -----------------------------------------------------------------------------------


def both(says: str, *damages: Damage) -> list[Case]:
    """Describe sampling and resuming after these damages."""
    return [refused(SAMPLE, says, *damages), refused(RESUME, says, *damages, changes=RESUMED)]


LISTS = [
    case
    for damage in (
        write(META, "[]"),
        write(META, "null"),
        write(META, "{"),
        write(META, ""),
        write(META, b"\xff\xfe"),
        write(META, "[" * 100_000),
        edit(META, "files", {}),
        edit(META, "files", []),
        edit(META, "files", DELETE),
        edit(META, "files/ema-0.999.safetensors", DELETE),
        edit(META, "files/ema-0.999.safetensors", 3),
        edit(META, "files/ema-0.999.safetensors/bytes", "3"),
        edit(META, "files/ema-0.999.safetensors/sha256", 3),
        edit(META, "step", "four"),
        edit(META, "step", 5),
        edit(META, "step", -4),
        edit(META, "step", 1e300),
    )
    for case in both("step-0000004", damage)
]

CHECKPOINTS = [
    *both("ema-0.999.safetensors", cut(EMA, 0.5)),
    *both("ema-0.999.safetensors", cut(EMA, 0)),
    *both("ema-0.999.safetensors", flip(EMA, 0.8)),
    *both("ema-0.999.safetensors", remove(EMA)),
    *both("ema-0.999.safetensors", write(EMA, "<html>404</html>")),
    refused(RESUME, "state", remove(STATE), changes=RESUMED),
    refused(RESUME, "state", remove(f"{STATE}/*"), changes=RESUMED),
    refused(
        RESUME, "state", cut(f"{STATE}/model-00001-of-00001.safetensors", 0.5), changes=RESUMED
    ),
    refused(RESUME, "state", write(f"{STATE}/model.safetensors.index.json", "{}"), changes=RESUMED),
    works(SAMPLE, f"{STEP} has no meta.json and is not counted; sampling from", remove(META)),
    refused(SAMPLE, "no checkpoint", remove("run/checkpoints/*")),
    refused(RESUME, "no checkpoint", remove("run/checkpoints/*"), changes=RESUMED),
    refused(SAMPLE, "no checkpoint", remove("run/checkpoints/*/meta.json")),
    refused(SAMPLE, "no checkpoint", remove("run/checkpoints"), write("run/checkpoints", "x")),
    refused(
        RESUME,
        "step-0000004",
        remove(STEP),
        copy("ddpm/checkpoints/step-0000004", STEP),
        changes=RESUMED,
    ),
    *both("step-0000004", remove(STEP), copy("classifier/checkpoints/step-0000002", STEP)),
    *both("step-0000004", remove(STEP), copy(OLDER, STEP)),
    refused(INFO, "step-0000004", flip(EMA)),
    refused(INFO, "step-0000004", edit(META, "files", {})),
    refused(INFO, "step-0000004", remove(EMA)),
    refused(INFO, "step-0000004", edit(META, "files/ema-0.999.safetensors", 3)),
    refused("train --resume new --steps 6", "new", link("new", "run/checkpoints")),
]

# -- tensors ---------------------------------------------------------------------------------------

FILE = "sample --run mine.safetensors --steps 2 --per-class 1"
MINE = copy(EMA, "mine.safetensors")


def changed(words: str, change) -> list[Case]:
    """Describe sampling from weights with other tensors, alone and in a sealed checkpoint."""
    return [
        refused(FILE, "mine.safetensors", MINE, tensors("mine.safetensors", change, words)),
        refused(SAMPLE, "ema-0.999", tensors(EMA, change, words), seal(STEP)),
    ]


BIAS = "final_layer.linear.bias"
TENSORS = [
    *changed("int8 bias", lambda t: t.update({BIAS: t[BIAS].to(torch.int8)})),
    *changed("NaN", lambda t: t.update({BIAS: t[BIAS] * float("nan")})),
    *changed("infinity", lambda t: t.update({BIAS: t[BIAS] + float("inf")})),
    *changed("another shape", lambda t: t.update({BIAS: torch.zeros(7)})),
    *changed("a scalar", lambda t: t.update({BIAS: torch.tensor(1.0)})),
    *changed("a tensor less", lambda t: t.pop(BIAS)),
    *changed("a tensor more", lambda t: t.update(extra=torch.zeros(3))),
    *changed("complex bias", lambda t: t.update({BIAS: t[BIAS].to(torch.complex64)})),
    works(
        FILE,
        "grid",
        MINE,
        tensors(
            "mine.safetensors", lambda t: t.update({n: v.half() for n, v in t.items()}), "float16"
        ),
    ),
    works(
        FILE,
        "grid",
        MINE,
        tensors(
            "mine.safetensors",
            lambda t: t.update({n: v.bfloat16() for n, v in t.items()}),
            "bfloat16",
        ),
    ),
]


def header(words: str, change) -> Case:
    """Describe sampling from weights with another header."""
    return refused(FILE, "mine.safetensors", MINE, edit_header("mine.safetensors", change, words))


HEADERS = [
    header("no metadata", lambda h: h.pop("__metadata__")),
    header("a card that is no JSON", lambda h: h["__metadata__"].update(dit="{")),
    header("a list for a card", lambda h: h["__metadata__"].update(dit="[]")),
    header("a deep card", lambda h: h["__metadata__"].update(dit="[" * 100_000)),
    header("NaN for a card", lambda h: h["__metadata__"].update(dit="NaN")),
    refused(FILE, "mine.safetensors", MINE, edit_card("mine.safetensors", "step", "ten")),
    header("no tensors", lambda h: [h.pop(n) for n in list(h) if n != "__metadata__"]),
    header("offsets beyond the end", lambda h: h[BIAS].update(data_offsets=[0, 10**15])),
    header("an unknown type", lambda h: h[BIAS].update(dtype="Q7")),
    refused(FILE, "mine.safetensors", write("mine.safetensors", b"\xff" * 8 + b"{}")),
    refused(FILE, "mine.safetensors", write("mine.safetensors", b"\0" * 8)),
    refused(FILE, "mine.safetensors", write("mine.safetensors", b"")),
    refused(FILE, "mine.safetensors", write("mine.safetensors", "version https://git-lfs\n")),
    refused(FILE, "mine.safetensors", folder("mine.safetensors")),
    refused(FILE, "mine.safetensors", MINE, cut("mine.safetensors", 0.9)),
    refused("info mine.safetensors", "mine.safetensors", MINE, cut("mine.safetensors", 0.9)),
    refused("info mine.safetensors", "mine.safetensors", write("mine.safetensors", "x")),
    refused(
        "sample --run first-stage/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model"
    ),
]

# -- logs and records ------------------------------------------------------------------------------

METRICS = "run/metrics.jsonl"
RECORDS = [
    refused("report run", "metrics.jsonl", write(METRICS, "3\n[]\n")),
    refused("report run", "metrics.jsonl", write(METRICS, '{"step": "one", "loss": "low"}\n')),
    refused("report run", "metrics.jsonl", write(METRICS, "[" * 100_000)),
    refused("report run", "metrics.jsonl", write(METRICS, b"\xff\xfe\xfd\n")),
    refused("report run", "metrics.jsonl", remove(METRICS)),
    refused("report run", "metrics.jsonl", write(METRICS, "")),
    refused("report run", "metrics.jsonl", remove(METRICS), folder(METRICS)),
    works("report run", "report.html", write("run/machine.json", "[1, 2]")),
    works("report run", "report.html", write("run/machine.json", "{")),
    works("report run", "report.html", cut(METRICS, 0.7)),
    works("report run", "report.html", write("run/scores.json", "3")),
    works(RESUME, "step 6/6", write("run/machine.json", "[1, 2]"), changes=RESUMED),
    works(RESUME, "step 6/6", cut(METRICS, 0.7), changes=RESUMED),
    refused("ema run --ema-lengths 0.07", "ema", remove("run/ema")),
    refused(
        "ema run --ema-lengths 0.07",
        "ema/",
        cut("run/ema/length-0.05-step-0000003.safetensors", 0.5),
    ),
    refused(
        "ema run --ema-lengths 0.07",
        "ema/",
        write("run/ema/length-0.05-step-0000003.safetensors", "x"),
    ),
    refused(
        "ema run --ema-lengths 0.07",
        "length-x-step-3",
        write("run/ema/length-x-step-3.safetensors", "x"),
    ),
]

# -- weights of other programs ---------------------------------------------------------------------

CONVERT = "convert mine.pt new.safetensors"


def tensors_with(**changes: object):
    """Return a function that returns the tensors of a release with other ones among them."""

    def make() -> dict[str, object]:
        found = release_tensors() | {name.replace("__", "."): t for name, t in changes.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    return make


def foreign(says: str, content, words: str) -> Case:
    """Describe the conversion of a file of torch.save."""
    return refused(CONVERT, says, saved("mine.pt", content, words))


FOREIGN = [
    refused(CONVERT, "mine.pt", evil_pickle("mine.pt")),
    refused(CONVERT, "mine.pt", write("mine.pt", "")),
    refused(CONVERT, "mine.pt", write("mine.pt", "<!DOCTYPE html><html>404</html>")),
    refused(CONVERT, "mine.pt", write("mine.pt", "version https://git-lfs.github.com/spec/v1\n")),
    refused(CONVERT, "mine.pt", write("mine.pt", b"PK\x03\x04" + bytes(200))),
    refused(CONVERT, "mine.pt", copy("images/cat/0.png", "mine.pt")),
    refused(CONVERT, "mine.pt", copy("stats.npz", "mine.pt")),
    refused(CONVERT, "mine.pt", copy("release.pt", "mine.pt"), cut("mine.pt", 0.6)),
    refused(f"convert {EMA} new.safetensors", "ema-0.999"),
    refused(CONVERT, "mine.pt", copy("tars/train-000.tar", "mine.pt")),
    foreign("mine.pt", lambda: [1, 2], "a list"),
    foreign("mine.pt", dict, "nothing"),
    foreign("mine.pt", lambda: {"a": 1}, "a number"),
    foreign("mine.pt", lambda: {"model": {"layer1.0.conv1.weight": torch.zeros(3)}}, "a ResNet"),
    foreign("mine.pt", lambda: {"unet.down.0.lora_down.weight": torch.zeros(3)}, "a LoRA"),
    foreign("mine.pt", lambda: {"state": {}, "param_groups": []}, "an optimizer"),
    foreign("mine.pt", lambda: {1: torch.zeros(3)}, "numbered tensors"),
    foreign("--format", release_tensors, "a bare state dict"),
    foreign("blocks", lambda: {"ema": tensors_with(blocks__0__attn__qkv__weight=None)()}, "no qkv"),
    foreign(
        "qkv",
        lambda: {"ema": tensors_with(blocks__1__attn__qkv__weight=torch.zeros(3, 3))()},
        "qkv of 3x3",
    ),
    foreign(
        "final_layer.linear.bias",
        lambda: {"ema": tensors_with(final_layer__linear__bias=torch.full((128,), float("nan")))()},
        "NaN",
    ),
    foreign(
        "final_layer.linear.bias",
        lambda: {
            "ema": tensors_with(final_layer__linear__bias=torch.zeros(128, dtype=torch.int8))()
        },
        "int8",
    ),
    foreign("pos_embed", lambda: {"ema": tensors_with(pos_embed=torch.zeros(1, 15, 32))()}, "15 t"),
    foreign("pos_embed", lambda: {"ema": tensors_with(pos_embed=torch.zeros(4))()}, "one axis"),
    works(
        CONVERT,
        "DiT-Ti/4",
        saved(
            "mine.pt",
            lambda: {"ema": {f"module.{n}": t for n, t in release_tensors().items()}},
            "prefixes",
        ),
    ),
    works(
        CONVERT,
        "DiT-Ti/4",
        saved(
            "mine.pt",
            lambda: {"model": {f"_orig_mod.{n}": t for n, t in release_tensors().items()}},
            "compiled prefixes",
        ),
    ),
    foreign("mine.pt", lambda: {"ema": {"x": 3}}, "a wrapped number"),
    foreign(
        "9 classes",
        lambda: {"ema": release_tensors(), "args": argparse.Namespace(num_classes=9)},
        "args of 9 classes",
    ),
]

FIRST_STAGES = [
    refused(line, "vae", damage)
    for line in ("encode --data images --out new --image-size 32 --vae ./vae",)
    for damage in (
        remove("vae/config.json"),
        write("vae/config.json", "{"),
        write("vae/config.json", "[]"),
        write("vae/config.json", "[" * 100_000),
        edit("vae/config.json", "_class_name", "UNet2DModel"),
        edit("vae/config.json", "_class_name", 3),
        edit("vae/config.json", "latent_channels", "4"),
        edit("vae/config.json", "latent_channels", 8),
        edit("vae/config.json", "block_out_channels", []),
        edit("vae/config.json", "scaling_factor", "big"),
        edit("vae/config.json", "down_block_types", ["NoBlock"]),
        remove("vae/diffusion_pytorch_model.safetensors"),
        cut("vae/diffusion_pytorch_model.safetensors", 0.5),
        write("vae/diffusion_pytorch_model.safetensors", "<html>"),
        tensors(
            "vae/diffusion_pytorch_model.safetensors",
            lambda t: t.pop(next(iter(t))),
            "a tensor less",
        ),
        tensors(
            "vae/diffusion_pytorch_model.safetensors",
            lambda t: t.update({next(iter(t)): torch.zeros(3)}),
            "another shape",
        ),
    )
] + [
    works(
        "encode --data images --out new --image-size 32 --vae ./vae",
        "12 images",
        copy(
            "vae/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ),
        remove("vae/diffusion_pytorch_model.safetensors"),
    ),
]

DIVERGED = [
    refused(
        f"train --data images {TRAIN} --lr 1e300 --steps 1 --warmup 0 --out new", "--lr 1e+300"
    ),
    refused(f"evaluate --run run --num-samples 6 {CNN} --out new", "ema-0.999", flip(EMA)),
]

CASES: list[Case] = [
    *CARDS,
    *LISTS,
    *CHECKPOINTS,
    *TENSORS,
    *HEADERS,
    *RECORDS,
    *FOREIGN,
    *FIRST_STAGES,
    *DIVERGED,
]
