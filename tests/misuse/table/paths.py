"""Paths that are missing, of another kind, forbidden, foreign, or badly named."""

from misuse.case import Case, refused, works
from misuse.damages import copy, fifo, link, mode, raw_name, write
from misuse.fixtures import CNN, EMA, STEP, TRAIN

ENCODE = "--vae identity --image-size 8"
LONG = "x" * 300
DEEP = "/".join(["deep"] * 900)

MISSING = [
    refused("sample --run nowhere", "nowhere"),
    refused("sample --run run/checkpoints/step-0000009", "step-0000009"),
    refused("sample --run nowhere.safetensors", "nowhere.safetensors"),
    refused(f"evaluate --run nowhere --reference images {CNN}", "nowhere"),
    refused(f"evaluate --samples nowhere --reference images {CNN}", "nowhere"),
    refused(f"evaluate --samples samples --reference nowhere {CNN}", "nowhere"),
    refused(f"evaluate --samples samples --reference nowhere.npz {CNN}", "nowhere.npz"),
    refused(f"evaluate --samples samples --reference images --train-data nowhere {CNN}", "nowhere"),
    refused("show forward nowhere", "nowhere"),
    refused("edit --run nowhere --interpolate", "nowhere"),
    refused("edit --run run --variations nowhere.png", "nowhere.png"),
    refused("edit --run run --inpaint images/cat/0.png --mask nowhere.png", "nowhere.png"),
    refused("sweep --run nowhere", "nowhere"),
    refused("nll --run nowhere", "nowhere"),
    refused("nll --run run --data nowhere", "nowhere"),
    refused("compare evaluation nowhere", "nowhere"),
    refused("convert nowhere.pt new.safetensors", "nowhere.pt"),
    refused("export nowhere --out new", "nowhere"),
    refused("export images --out new", "images"),
    refused("ema nowhere --ema-lengths 0.05", "nowhere"),
    refused("report nowhere", "nowhere"),
    refused("info nowhere", "nowhere"),
    refused("encode --data nowhere --out new", "nowhere"),
    refused("encode --data 'nowhere-*.tar' --out new", "nowhere-*.tar"),
    refused("encode --data images --out new --vae ./nowhere --image-size 32", "nowhere"),
    refused("encode --data images --out new --vae no/such-vae --image-size 32", "no/such-vae"),
    refused("encode --data hf:no/such-data --out new --vae identity", "no/such-data"),
    refused("stats --data nowhere --out s.npz --extractor digits-cnn", "nowhere"),
    refused("train --data nowhere", "nowhere"),
    refused("train --resume nowhere", "nowhere"),
    refused(f"train --data images {TRAIN} --init nowhere --out new", "nowhere"),
    refused("train-vae --data nowhere --out new", "nowhere"),
    refused("train-vae --data images --out new --lpips nowhere.pth --image-size 16", "nowhere.pth"),
    refused("train-vae --resume nowhere", "nowhere"),
    refused("train-vae --resume run", "run"),
    refused("train-vae --resume first-stage --steps 3", "--steps 3"),
    refused("train-classifier --run nowhere", "nowhere"),
    refused("train-classifier --run run --data nowhere --out new", "nowhere"),
    refused("train-classifier --run run --resume nowhere", "nowhere"),
    refused("sample --run run --guide nowhere --cfg-scale 2", "nowhere"),
    refused("sample --run run --classifier nowhere", "nowhere"),
]

OTHER_KINDS = [
    refused("sample --run images", "images"),
    refused("sample --run latents", "latents"),
    refused("sample --run vae", "vae"),
    refused("sample --run stats.npz", "stats.npz"),
    refused("sample --run images/cat/0.png", "0.png"),
    refused("sample --run release.pt", "dit convert"),
    refused("sample --run run/config.json", "config.json"),
    refused("edit --run run --variations run/config.json", "run/config.json cannot be read as an"),
    refused("edit --run run --variations images/cat/0.png --out samples", "no edit.json"),
    refused(f"sample --run {STEP}/meta.json", "meta.json"),
    refused(f"sample --run {STEP}/state", "state"),
    refused(f"evaluate --samples run --reference images {CNN}", "--samples run"),
    refused(f"evaluate --samples latents --reference images {CNN}", "latents"),
    refused(f"evaluate --samples stats.npz --reference images {CNN}", "stats.npz"),
    refused(f"evaluate --samples samples --reference run {CNN}", "run"),
    refused(f"evaluate --samples samples --reference latents {CNN}", "latents"),
    refused(f"evaluate --samples images/cat/0.png --reference images {CNN}", "0.png"),
    refused(f"evaluate --samples /dev/null --reference images {CNN}", "/dev/null"),
    refused(f"evaluate --samples samples --reference /dev/zero {CNN}", "/dev/zero"),
    refused("sample --run /dev/null", "/dev/null"),
    refused("sample --run /dev/zero", "/dev/zero"),
    refused("info /dev/zero", "/dev/zero"),
    refused("info images", "images"),
    refused("info stats.npz", "stats.npz"),
    refused("info images/cat/0.png", "0.png"),
    refused("convert /dev/zero new.safetensors", "/dev/zero"),
    refused("convert images new.safetensors", "images"),
    refused("convert /dev/null new.safetensors", "/dev/null"),
    refused("compare /dev/null evaluation", "/dev/null"),
    refused("compare run evaluation", "run"),
    refused("report images", "images"),
    refused("ema vae --ema-lengths 0.05", "vae"),
    refused("encode --data run --out new", "run"),
    refused("encode --data latents --out new", "latents"),
    refused("encode --data images/cat/0.png --out new", "0.png"),
    refused("encode --data /dev/zero --out new", "/dev/zero"),
    refused("encode --data /dev/null --out new", "/dev/null"),
    refused("encode --data stats.npz --out new", "stats.npz"),
    refused("encode --data images --out new --image-size 32 --vae run", "run"),
    refused("encode --data images --out new --image-size 32 --vae ./images", "images"),
    refused("train --data run", "run"),
    refused("train --data vae", "vae"),
    refused("train --resume images", "images"),
    refused(f"train --resume {STEP}", STEP),
    refused(f"train --data images {TRAIN} --init images --out new", "images"),
    refused(f"train --data images {TRAIN} --init classifier --out new", "classifier"),
    refused("train-vae --data latents --out new", "latents"),
    refused("train-classifier --run vae", "vae"),
    refused("nll --run run --data latents/index.json", "index.json"),
    *[
        refused(line, "pipe", fifo("pipe"))
        for line in (
            "sample --run pipe",
            "info pipe",
            f"evaluate --samples pipe --reference images {CNN}",
            f"evaluate --samples samples --reference pipe {CNN}",
            "convert pipe new.safetensors",
            "compare pipe evaluation",
            "encode --data pipe --out new",
            "train --data pipe",
            "stats --data pipe --out s.npz --extractor digits-cnn",
            "nll --run run --data pipe",
        )
    ],
    refused("train --resume run", "is a pipe", link("run", "pipe"), fifo("pipe")),
]

LINKS = [
    refused("sample --run loop", "loop", link("loop", "loop")),
    refused("encode --data loop --out new", "loop", link("loop", "loop")),
    refused("info loop", "loop", link("loop", "loop")),
    refused(f"evaluate --samples loop --reference images {CNN}", "loop", link("loop", "loop")),
    refused("encode --data images --out loop --image-size 8", "loop", link("loop", "loop")),
    refused("sample --run dangling", "dangling", link("dangling", "nowhere")),
    works(f"encode --data images --out new {ENCODE}", "12 images", link("images/cat/again", "..")),
    works(
        f"encode --data images --out new {ENCODE}", "12 images", link("images/cat/again", "../cat")
    ),
    works(f"encode --data other --out new {ENCODE}", "12 images", link("other", "images")),
    works("sample --run other --steps 2 --per-class 1", "grid", link("other", "run")),
    refused(
        "sample --run run --steps 2 --per-class 1 --out precious.png",
        "precious.png",
        write("precious.png", "precious"),
    ),
]

LOCKS = [
    refused(line, ".lock", link(f"{place}/.lock", "../precious"), write("precious", "precious"))
    for line, place in (
        ("train --resume run --steps 6", "run"),
        (f"encode --data images --out latents {ENCODE} --shard-size 5", "latents"),
        ("train-vae --data images --image-size 16 --steps 2 --out new", "new"),
        (f"sweep --run run --cfg-scale 1,2 --steps 2 --num-samples 4 {CNN} --out sweep", "sweep"),
    )
]

FOREIGN_OUTPUTS = [
    refused("convert release.pt release.pt", "release.pt"),
    refused("export run --out run", "--out run holds the weights"),
    refused("export run --out images", "--out images holds"),
    refused("export run --to diffusers --out release.pt", "release.pt is a file"),
    refused("convert release.pt ./release.pt", "release.pt"),
    refused("convert release.pt new.pt", "new.pt"),
    refused(f"convert release.pt {EMA}", EMA),
    refused("convert release.pt images", "images"),
    refused(
        "convert release.pt mine.safetensors", "mine.safetensors", write("mine.safetensors", "mine")
    ),
    refused(
        f"evaluate --samples samples --reference images --crop {CNN} --out mine",
        "report.md",
        write("mine/report.md", "my own notes"),
    ),
    refused(
        f"evaluate --samples samples --reference images --crop {CNN} --out mine",
        "report.json",
        write("mine/report.json", "{}"),
    ),
    refused(
        f"evaluate --samples samples --reference images --crop {CNN} --out mine",
        "report.html",
        write("mine/report.html", "<html>my page</html>"),
    ),
    refused("nll --run run --num-images 2 --steps 2 --out run/config.json", "config.json"),
    refused("nll --run run --num-images 2 --steps 2 --out run/metrics.jsonl", "metrics.jsonl"),
    refused(
        "nll --run run --num-images 2 --steps 2 --out mine.json",
        "mine.json",
        write("mine.json", '{"mine": 1}'),
    ),
    refused(
        f"sweep --run run --cfg-scale 1 --steps 2 --num-samples 4 {CNN} --out images", "images"
    ),
    refused(
        f"sweep --run run --cfg-scale 1 --steps 2 --num-samples 4 {CNN} --out mine",
        "sweep.json",
        write("mine/sweep.json", "{}"),
    ),
    refused("stats --data images --extractor digits-cnn --out run/config.json", "config.json"),
    refused(
        "stats --data images --extractor digits-cnn --out mine.npz",
        "mine.npz",
        write("mine.npz", "mine"),
    ),
    refused(
        "stats --data packed/samples.npz --extractor digits-cnn --out packed/samples.npz",
        "samples.npz",
    ),
    refused(f"ema run --ema-lengths 0.05 --out {EMA}", EMA),
    refused(
        "ema run --ema-lengths 0.05 --out mine.safetensors",
        "mine.safetensors",
        write("mine.safetensors", "mine"),
    ),
    refused("sample --run run --steps 2 --per-class 1 --out images/cat/0.png", "0.png"),
    refused("sample --run run --num-samples 2 --steps 2 --out images", "images"),
    refused("sample --run run --num-samples 2 --steps 2 --out flat", "flat"),
    refused("sample --run run --num-samples 2 --steps 2 --out run", "run"),
    refused("sample --run run --num-samples 2 --steps 2 --out .", "--out"),
    refused("encode --data images --out images --image-size 8 --vae identity", "images"),
    refused("encode --data images --out run --image-size 8 --vae identity", "run"),
    refused(f"train --data images {TRAIN} --out images", "images"),
    refused(f"train --data images {TRAIN} --out run", "run"),
    refused(f"train --data images {TRAIN} --out latents", "latents"),
    refused("train-vae --data images --image-size 16 --steps 2 --out images", "images"),
    refused("train-vae --data images --image-size 16 --steps 2 --out first-stage", "first-stage"),
    refused("train-classifier --run run --steps 2 --out run", "run"),
    refused("train-classifier --run run --steps 2 --out classifier", "classifier"),
    refused(
        "show forward run --out mine",
        "mine",
        write("mine/forward.png", "my own picture"),
        write("mine/forward.gif", "my own film"),
    ),
    refused("report run", "report.html", write("run/report.html", "<html>mine</html>")),
]

OWN_OUTPUTS = [
    works(
        f"evaluate --samples samples --reference images --crop {CNN} --out evaluation",
        "evaluation",
        changes=("evaluation/*",),
    ),
    works(
        "stats --data images --image-size 8 --extractor digits-cnn --out stats.npz",
        "stats.npz",
        changes=("stats.npz",),
    ),
    works("nll --run run --num-images 2 --steps 3", "bits/dim", changes=("run/nll.json",)),
    works("sample --run run --num-samples 12 --steps 2 --out samples", "12 images"),
    works(
        "encode --data images --vae identity --image-size 8 --shard-size 5 --out latents",
        "12 images",
        # the images lie elsewhere than when the fixture was made
        changes=("latents/encoding.json", "latents/index.json"),
    ),
    works(
        f"sweep --run run --cfg-scale 1,2 --steps 2 --num-samples 4 {CNN} --out sweep",
        "sweep",
        changes=("sweep/*",),
    ),
    refused("sample --run run --num-samples 12 --steps 3 --out samples", "samples"),
    refused("sample --run ddpm --num-samples 12 --steps 2 --out samples", "samples"),
    refused("encode --data flat --vae identity --image-size 8 --out latents", "latents"),
    refused("encode --data images --vae identity --image-size 16 --out latents", "latents"),
]

FORBIDDEN = [
    refused(line, says, mode(path, bits), unprivileged=True)
    for line, says, path, bits in (
        (f"encode --data images --out new {ENCODE}", "0.png", "images/cat/0.png", 0),
        (f"encode --data images --out new {ENCODE}", "cat", "images/cat", 0),
        (f"encode --data images --out flat/new {ENCODE}", "flat", "flat", 0o555),
        ("sample --run run", "ema-0.999", EMA, 0),
        ("sample --run run --steps 2 --out flat/grid.png", "flat", "flat", 0o555),
        ("sample --run run --steps 2 --num-samples 2 --out flat/new", "flat", "flat", 0o555),
        (f"train --data images {TRAIN} --out flat/new", "flat", "flat", 0o555),
        ("train --resume run --steps 6", "run", "run", 0o555),
        ("report run", "run", "run", 0o555),
        ("ema run --ema-lengths 0.05", "run", "run", 0o555),
        ("nll --run run --num-images 2 --steps 2", "nll.json", "run", 0o555),
        ("convert release.pt flat/new.safetensors", "flat", "flat", 0o555),
        ("convert release.pt new.safetensors", "release.pt", "release.pt", 0),
        ("compare evaluation evaluation", "report.json", "evaluation/report.json", 0),
        ("info latents", "index.json", "latents/index.json", 0),
        ("info run", "step-0000004", f"{STEP}/meta.json", 0),
        (
            "train --data latents --vae identity --image-size 8",
            "labels.npy",
            "latents/labels.npy",
            0,
        ),
        (f"evaluate --samples samples --reference stats.npz {CNN}", "stats.npz", "stats.npz", 0),
        (
            f"evaluate --samples samples --reference images --crop {CNN} --out flat/e",
            "flat",
            "flat",
            0o555,
        ),
        ("stats --data images --extractor digits-cnn --out flat/s.npz", "flat", "flat", 0o555),
        ("show forward run --out flat/show", "flat", "flat", 0o555),
        (
            f"sweep --run run --cfg-scale 1 --steps 2 --num-samples 4 {CNN} --out flat/s",
            "flat",
            "flat",
            0o555,
        ),
        ("train-vae --data images --image-size 16 --out flat/vae", "flat", "flat", 0o555),
    )
]

FORBIDDEN.append(
    refused(
        "train --resume run --steps 6",
        "checkpoints",
        mode("run/checkpoints", 0o555),
        unprivileged=True,
        changes=("run/*",),
    )
)

NAMES = [
    refused(f"info {LONG}", "File name too long"),
    refused(f"sample --run {LONG}", "File name too long"),
    refused(f"train --vae identity --out {LONG}", "File name too long"),
    refused(f"encode --data {LONG} --out new", "xxx"),
    refused(f"encode --data images {ENCODE} --out {LONG}", "too long"),
    refused(f"evaluate --samples {LONG} --reference images {CNN}", "too long"),
    refused(f"compare {LONG} evaluation", "too long"),
    refused(f"convert release.pt {LONG}.safetensors", "too long"),
    refused(f"sample --run run --steps 2 --out {LONG}.png", "too long"),
    refused(f"info {DEEP * 3}", "too long"),
    refused(["info", "a\nb"], "a b"),
    refused(["sample", "--run", "\udcffrun"], "\\xffrun"),
    refused(["encode", "--data", "\udcff", "--out", "new"], "\\xff"),
    refused(["info", "a\x1b[31mred"], "red"),
    works(
        f"encode --data 'my images' --out 'my latents' {ENCODE}",
        "12 images",
        copy("images", "my images"),
    ),
    works(f"encode --data 'a\nb' --out new {ENCODE}", "12 images", copy("images", "a\nb")),
    works(f"encode --data 图像 --out 潜 {ENCODE}", "12 images", copy("images", "图像")),
    works("sample --run './my run' --steps 2 --per-class 1", "grid", copy("run", "my run")),
    works("sample --run ./--run --steps 2 --per-class 1", "grid", copy("run", "--run")),
    works(
        f"encode --data images --out new {ENCODE}",
        "12 images",
        raw_name("images/cat/0.png", b"images/cat/caf\xe9.png"),
    ),
    works(
        f"encode --data images --out new {ENCODE}",
        "12 images",
        raw_name("images/cat", b"images/caf\xe9"),
    ),
    works(
        f"train --data images {TRAIN} --out new",
        "step 4/4",
        raw_name("images/cat", b"images/caf\xe9"),
    ),
    works(
        ["encode", "--data", "caf\udce9", "--out", "new", *ENCODE.split()],
        "12 images",
        raw_name("images", b"caf\xe9"),
    ),
    works(
        ["encode", "--data", "images", "--out", "caf\udce9", *ENCODE.split()],
        "12 images",
    ),
    # safetensors opens no such path
    refused(
        ["sample", "--run", "caf\udce9", "--steps", "2", "--per-class", "1"],
        "not valid UTF-8",
        raw_name("run", b"caf\xe9"),
    ),
    works(
        f"evaluate --samples samples --reference images --crop {CNN} --out new",
        "report",
        raw_name("images/cat/0.png", b"images/cat/caf\xe9.png"),
    ),
    refused(f"encode --data images --out images/cat/0.png {ENCODE}", "0.png"),
    refused(f"encode --data images --out images/cat/0.png/new {ENCODE}", "0.png"),
    refused(f"train --data images {TRAIN} --out stats.npz", "stats.npz"),
    refused("sample --run run --steps 2 --out stats.npz/a.png", "stats.npz"),
    refused("convert release.pt stats.npz/a.safetensors", "stats.npz"),
    refused(f"evaluate --samples samples --reference images --crop {CNN} --out stats.npz", "stats"),
    refused("show forward run --out stats.npz", "stats.npz"),
    refused("stats --data images --extractor digits-cnn --out stats.npz/s.npz", "stats.npz"),
    refused("stats --data images --extractor digits-cnn --out images", "images"),
    refused("train-vae --data images --image-size 16 --out stats.npz", "stats.npz"),
    refused(f"encode --data images --out /proc/new {ENCODE}", "/proc/new"),
    refused(f"encode --data images --out pipe {ENCODE}", "pipe", fifo("pipe")),
    # no device of the system: run by root, a command that replaces files would replace it
    refused("convert release.pt pipe.safetensors", "pipe", fifo("pipe.safetensors")),
    refused("nll --run run --num-images 2 --steps 2 --out pipe", "pipe", fifo("pipe")),
    refused("sample --run run --steps 2 --per-class 1 --out pipe.png", "pipe", fifo("pipe.png")),
]

CASES: list[Case] = [
    *FOREIGN_OUTPUTS,
    *LOCKS,
    *MISSING,
    *OTHER_KINDS,
    *LINKS,
    *OWN_OUTPUTS,
    *FORBIDDEN,
    *NAMES,
]
