"""A trained run in miniature: random weights, so that nothing has to be trained."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # networks this small gain nothing from threads; before torch comes in

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import forked
from dit.build import build_network
from dit.cli import main
from dit.config import TrainConfig
from dit.models.dit import SIZES
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import write_weights
from dit.utils.files import sha256, write_json

ROOT = Path(__file__).parent.parent
SMALL: dict[str, int] = dict(depth=2, hidden_size=64, num_heads=2)  # what DiT-Ti may be
TINY: dict[str, Any] = dict(vae="identity", image_size=8, model="DiT-Ti/4")
# AdamW first moves a weight by lr g / (|g| + eps): with the usual eps, the rounding of a gradient
# near 0 becomes a whole step. With an eps far above all gradients, steps are in proportion to them.
PROPORTIONAL = partial(torch.optim.AdamW, eps=1.0)
DIGITS = [str(i) for i in range(10)]


def write_run(root: Path, step: int = 3, **settings: Any) -> Path:
    """A run directory with one checkpoint, without state/, of an untrained network that is not zero."""
    config = TrainConfig(**{**TINY, **settings})
    num_classes = 10 if config.num_classes is None else config.num_classes
    spec = NetworkSpec(
        model=config.model,
        input_size=config.image_size,
        in_channels=3,
        num_classes=num_classes,
        learn_sigma=config.learn_sigma,
        conditioning=config.conditioning,
    )
    statistics = [0.5] * 3 if config.latent_norm == "data" else None
    card = ModelCard(
        config=config,
        network=spec,
        classes=DIGITS[:num_classes],
        latent_mean=statistics,
        latent_std=statistics,
    )
    checkpoint = root / "checkpoints" / f"step-{step:07d}"
    checkpoint.mkdir(parents=True)
    weights = checkpoint / f"ema-{config.ema:g}.safetensors"
    write_weights(weights, random_weights(spec), card, step)
    listed = {weights.name: {"bytes": weights.stat().st_size, "sha256": sha256(weights)}}
    write_json(checkpoint / "meta.json", {"step": step, "files": listed})
    write_json(root / "config.json", card.to_json())
    return root


def random_weights(spec: NetworkSpec) -> dict[str, torch.Tensor]:
    """Of a network whose output depends on image, time and class (a fresh one's is zero)."""
    torch.manual_seed(0)
    network = build_network(spec)
    for name, parameter in network.named_parameters():
        if any(
            part in name for part in ("adaLN", "final_layer", "conv_out", "text_attn.proj", "head.")
        ):
            torch.nn.init.normal_(parameter, std=0.05)
        if "y_embedder" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return network.state_dict()


class Command:
    """`dit NAME FLAGS` in a process of its own, with sizes of networks as here; it need not import torch.

    No file gets more than `limit` bytes.
    """

    def __init__(self, *argv: object, limit: int | None = None) -> None:
        self.said = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self.said]
        self.process = forked.CONTEXT.Process(
            target=_command, args=([*map(str, argv)], names, limit, SIZES), daemon=True
        )
        self.process.start()

    def end(self) -> tuple[int | None, str, str]:
        """Its exit code, and what it said on both streams."""
        self.process.join(300)
        out, err = (file.read() for file in self.said)
        return self.process.exitcode, out, err


def _command(argv: list[str], said: list[str], limit: int | None, sizes: dict[str, Any]) -> None:
    SIZES.update(sizes)
    for stream, name in enumerate(said, start=1):
        os.dup2(os.open(name, os.O_WRONLY), stream)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(argv))


def torchrun(*command: object, threads: int = 1, module: bool = False) -> None:
    """Run a script, or a module, with its arguments on two ranks on the CPU, with so many threads each; it has to end
    well."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *(["-m"] if module else []),
        "--",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*launcher, *map(str, command)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Copies(TorchDispatchMode):
    """Collects what goes from one device to another."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = (
            arg for arg in args if isinstance(arg, torch.Tensor) and arg.ndim
        )  # numbers are kernels' arguments
        if isinstance(made, torch.Tensor):
            self.found += [arg for arg in given if arg.device != made.device]
        return made


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of features for these tests alone."""
    os.environ["DIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run shared by all tests of a module: read it only."""
    return write_run(tmp_path_factory.mktemp("shared") / "run")


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """DiT-Ti is smaller: for modules that do not start Python anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", SMALL)
        yield


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run of one's own: `make_run(name="run", step=3, **settings of TrainConfig)`."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)
