"""The environment: ranks, encodings, limits, full disks, missing tools."""

from misuse.case import Case, absent, refused, works
from misuse.damages import copy, folder, mode, raw_name
from misuse.fixtures import CNN, TRAIN

SAMPLE = "sample --run run --steps 2 --per-class 1"
ENCODE = "encode --data images --out new --vae identity --image-size 8"
TRAINING = f"train --data images {TRAIN} --out new"
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
PLAIN = {"PYTHONCOERCECLOCALE": "0", **ASCII}

RANKS = [
    refused(SAMPLE, "RANK", env={"WORLD_SIZE": "2"}),
    refused(SAMPLE, "MASTER_ADDR", env={"WORLD_SIZE": "2", "RANK": "0"}),
    refused(SAMPLE, "WORLD_SIZE", env={"WORLD_SIZE": "two"}),
    refused(SAMPLE, "WORLD_SIZE", env={"WORLD_SIZE": "-1"}),
    refused(SAMPLE, "WORLD_SIZE", env={"WORLD_SIZE": "0"}),
    works(SAMPLE, "grid", env={"WORLD_SIZE": "1"}),
    works(SAMPLE, "grid", env={"WORLD_SIZE": ""}),
    works(SAMPLE, "grid", env={"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}),
    refused(SAMPLE, "LOCAL_RANK", env={"LOCAL_RANK": "first"}),
    refused(SAMPLE, "RANK", env={"RANK": "first", "WORLD_SIZE": "2"}),
    refused(
        SAMPLE,
        "RANK",
        env={"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"},
    ),
    refused(
        SAMPLE,
        "MASTER_PORT",
        env={"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "many"},
    ),
    refused("train --steps 0", "--steps 0", env={"RANK": "x"}),
]

ENCODINGS = [
    works("sample --help", "usage: dit sample", env=ASCII, fresh=True),
    works("sample --help", "usage: dit sample", env=PLAIN, fresh=True),
    refused("train --modle x", "--modle", env=PLAIN, fresh=True),
    refused("info 图像", "expected", env=PLAIN, fresh=True),
    works(ENCODE, "12 images", env=PLAIN, fresh=True),
    works(ENCODE, "12 images", raw_name("images/cat", b"images/caf\xe9"), env=ASCII, fresh=True),
    works("compare evaluation evaluation", "comparable", env=PLAIN, fresh=True),
    works(
        f"evaluate --samples samples --reference images --crop {CNN} --out new",
        "report.html",
        env=PLAIN,
        fresh=True,
    ),
    works("report run", "report.html", env=PLAIN, fresh=True),
    works("show forward run --num-images 1 --times 2", "show", env=PLAIN, fresh=True),
]

NO_HOME = {"HOME": "/nowhere", "DIT_CACHE": None, "XDG_CACHE_HOME": None, "HF_HOME": None}
PLACES = [
    works(
        f"evaluate --samples samples --reference images --crop {CNN} --out new",
        "report",
        env=NO_HOME,
    ),
    works(
        f"evaluate --samples samples --reference images --crop {CNN} --out new",
        "report",
        env={"DIT_CACHE": "run/config.json/cache"},
    ),
    works(SAMPLE, "grid", env={"TMPDIR": "/nowhere"}),
    works(ENCODE, "12 images", env={"TMPDIR": "/nowhere"}),
    works(
        SAMPLE,
        "grid",
        folder("closed"),
        mode("closed", 0o555),
        env={"TMPDIR": "closed"},
        unprivileged=True,
    ),
    works(SAMPLE, "grid", env={"COLUMNS": "0"}),
    works(SAMPLE, "grid", env={"COLUMNS": "wide"}),
    works("train --help", "usage: dit train", env={"COLUMNS": "1"}),
    works(SAMPLE, "grid", env={"OMP_NUM_THREADS": "0"}),
    works(SAMPLE, "grid", env={"CUDA_VISIBLE_DEVICES": "7,x"}),
    works(TRAINING, "step 4/4", env={"WANDB_MODE": "nonsense"}),
    refused(f"{TRAINING} --wandb mine", "wandb"),
    refused(f"{TRAINING} --precision fp8", "fp8"),
    refused(
        f"{SAMPLE} --compile", "--no-compile", env={"PATH": "/nowhere", "CXX": None, "CC": None}
    ),
    refused(
        "evaluate --samples samples --reference images --crop --extractor inception",
        "weights-inception",
        env={"TORCH_HOME": "nowhere"},
    ),
    refused(
        "evaluate --samples samples --reference images --crop --extractor dinov2",
        "dinov2",
        env={"TORCH_HOME": "nowhere"},
    ),
]

FILES_64 = {"RLIMIT_NOFILE": 64}
MANY_SHARDS = "encode --data many --out new --vae identity --image-size 8 --shard-size 1"
LIMITS = [
    works(
        MANY_SHARDS,
        "180 images",
        *[copy("images/cat", f"many/{i:02d}") for i in range(45)],
        limits=FILES_64,
    ),
    works(
        f"train --data new {TRAIN} --out trained",
        "trained",
        *[copy("latents", "new")],
        limits=FILES_64,
    ),
    refused(ENCODE, "new", limits={"RLIMIT_FSIZE": 600}),
    refused(TRAINING, "new", limits={"RLIMIT_FSIZE": 3000}),
    refused(
        "convert release.pt new.safetensors",
        "new.safetensors",
        check=absent("new.safetensors"),
        limits={"RLIMIT_FSIZE": 3000},
    ),
    refused("ema run --ema-lengths 0.07", "ema-length", limits={"RLIMIT_FSIZE": 3000}),
    refused(
        "sample --run run --num-samples 4 --steps 2 --out new", "new", limits={"RLIMIT_FSIZE": 100}
    ),
    refused(SAMPLE, "grid", limits={"RLIMIT_FSIZE": 100}),
    refused(
        "stats --data images --extractor digits-cnn --out s.npz",
        "s.npz",
        check=absent("s.npz"),
        limits={"RLIMIT_FSIZE": 3000},
    ),
    refused(
        "report run", "report.html", check=absent("run/report.html"), limits={"RLIMIT_FSIZE": 3000}
    ),
    refused("show forward run --out new", "new", limits={"RLIMIT_FSIZE": 100}),
    refused(
        "nll --run run --num-images 2 --steps 2 --out n.json",
        "n.json",
        check=absent("n.json"),
        limits={"RLIMIT_FSIZE": 100},
    ),
    refused(
        f"evaluate --samples samples --reference images --crop {CNN} --out new",
        "new",
        limits={"RLIMIT_FSIZE": 3000},
    ),
    refused(
        f"sweep --run run --cfg-scale 1 --steps 2 --num-samples 4 {CNN} --out new",
        "new",
        limits={"RLIMIT_FSIZE": 100},
    ),
    refused(
        "train-vae --data images --image-size 16 --channels 8 8 --steps 2 --batch-size 4 "
        "--extractor digits-cnn --out new",
        "new",
        limits={"RLIMIT_FSIZE": 3000},
    ),
    refused(
        "train-classifier --run run --model Classifier-Ti/4 --steps 2 --out new",
        "new",
        limits={"RLIMIT_FSIZE": 3000},
    ),
]

MEMORY = [
    refused("train --model DiT-7B/1 --steps 2 --out new", "DiT-7B/1"),
    refused("train --model DiT-XL/2 --batch-size 65536 --out new", "--grad-accum"),
]

ENDINGS = [
    *[
        refused(line, "interrupted", code=130, interrupt=0.1)
        for line in (
            "sample --run run --num-samples 100000 --steps 2 --out new",
            TRAINING.replace("--steps 4", "--steps 100000"),
            "nll --run run --num-images 12 --steps 100000",
        )
    ],
    *[
        refused(line, "", code=1, fresh=True, unread=True)
        for line in ("--help", "train --help", "info run", "compare evaluation evaluation")
    ],
]

CASES: list[Case] = [
    *RANKS,
    *ENCODINGS,
    *PLACES,
    *LIMITS,
    *MEMORY,
    *ENDINGS,
]
