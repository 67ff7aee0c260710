"""What the cases need: a tiny run and what the commands make of it, once for all cases."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

from misuse.damages import encoded

ASSETS = Path(__file__).parents[2] / "dit" / "assets"
SMALL = dict(depth=2, hidden_size=32, num_heads=2)  # of DiT-Ti in all cases
CLASSES = ("cat", "dog", "owl")
PER_CLASS = 4
STEP = "run/checkpoints/step-0000004"
EMA = f"{STEP}/ema-0.999.safetensors"

TINY = "--vae identity --image-size 8 --model DiT-Ti/4"
TRAIN = f"{TINY} --batch-size 4 --steps 4 --warmup 1 --sample-every 0 --log-every 1"
CNN = "--extractor digits-cnn --bootstrap 0"
COMMANDS = [
    f"train --data images {TRAIN} --ckpt-every 2 --ema-lengths 0.05 0.1 --ema-every 1 --out run",
    f"train --data images {TRAIN} --process linear --objective eps --learn-sigma "
    "--time-sampling uniform --out ddpm",
    f"train --data captions {TRAIN} --conditioning text --text-encoder digits --out text",
    "train-classifier --run run --model Classifier-Ti/4 --steps 2 --batch-size 4 "
    "--warmup 1 --out classifier",
    "encode --data images --vae identity --image-size 8 --shard-size 5 --out latents",
    "sample --run run --num-samples 12 --steps 2 --out samples",
    "sample --run run --num-samples 12 --steps 2 --format npz --out packed",
    "stats --data images --image-size 8 --extractor digits-cnn --out stats.npz",
    f"evaluate --samples samples --reference images --crop {CNN} --out evaluation",
    f"sweep --run run --cfg-scale 1,2 --steps 2 --num-samples 4 {CNN} --out sweep",
    "nll --run run --num-images 2 --steps 2",
    "train-vae --data images --image-size 16 --channels 8 8 --steps 2 --batch-size 4 "
    "--extractor digits-cnn --out first-stage",
]


def make(root: str) -> None:
    """Write all fixtures into a new folder; a process of its own does it, to change SIZES."""
    from dit.cli import main
    from dit.models.sizes import SIZES

    SIZES["Ti"] = dict(SMALL)
    Path(root).mkdir(parents=True)
    os.chdir(root)
    write_images()
    write_tars()
    write_table()
    shutil.copytree(ASSETS / "digits-vae", "vae")
    for line in COMMANDS:
        code = main(line.split())
        assert code == 0, (line, code)
    write_release()


def write_images() -> None:
    """Write class folders, a flat folder, and a folder with captions."""
    number = 0
    rows = []
    for name in CLASSES:
        for i in range(PER_CLASS):
            for file in (f"images/{name}/{i}.png", f"flat/{number}.png", f"captions/{number}.png"):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).write_bytes(encoded(number))
            rows.append(json.dumps({"file_name": f"{number}.png", "text": f"a {name}"}))
            number += 1
    Path("captions/metadata.jsonl").write_text("\n".join(rows) + "\n")


def write_tars() -> None:
    """Write two WebDataset shards."""
    Path("tars").mkdir()
    for shard in range(2):
        members = {}
        for i in range(4):
            number = 4 * shard + i
            members[f"{number:04d}.png"] = encoded(number)
            members[f"{number:04d}.cls"] = str(number % 3).encode()
        Path(f"tars/train-{shard:03d}.tar").write_bytes(tar(members))


def tar(members: dict[str, bytes]) -> bytes:
    """Return a tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet(**columns: list[object]) -> bytes:
    """Return a parquet file; of a column of bytes, an image column."""
    import pyarrow
    from pyarrow.parquet import write_table

    made: dict[str, object] = {}
    for name, values in columns.items():
        if values and isinstance(values[0], bytes):
            made[name] = [{"bytes": value, "path": None} for value in values]
        else:
            made[name] = values
    file = io.BytesIO()
    write_table(pyarrow.table(made), file)
    return file.getvalue()


def write_table() -> None:
    """Write a table of images and classes."""
    Path("table").mkdir()
    content = parquet(image=[encoded(i) for i in range(6)], label=[0, 1, 2, 0, 1, 2])
    Path("table/train-00000.parquet").write_bytes(content)


def release_tensors() -> dict[str, object]:
    """Return tensors with the names and shapes of the DiT release."""
    import torch

    from dit.build import build_network
    from dit.models.sizes import SIZES
    from dit.runs.card import NetworkSpec

    SIZES["Ti"] = dict(SMALL)
    spec = NetworkSpec(
        model="DiT-Ti/4", input_size=16, in_channels=4, num_classes=5, learn_sigma=True
    )
    torch.manual_seed(0)
    return build_network(spec).state_dict()


def write_release() -> None:
    """Write a training checkpoint of the DiT release."""
    import torch

    torch.save({"ema": release_tensors(), "model": release_tensors()}, "release.pt")
