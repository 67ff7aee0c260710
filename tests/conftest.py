"""Shared fixtures: small runs with random weights, so that no test has to train one."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# Networks this small gain nothing from threads. It must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import forked
from helpers.quicker import make_starts_quicker
from torch.utils._python_dispatch import TorchDispatchMode

from dit.build import build_network
from dit.cli import main
from dit.config import TrainConfig
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import write_weights
from dit.utils.files import sha256, write_json

ROOT = Path(__file__).parent.parent
SMALL: dict[str, int] = dict(depth=2, hidden_size=64, num_heads=2)  # of DiT-Ti in tests
TINY: dict[str, Any] = dict(vae="identity", image_size=8, model="DiT-Ti/4")
# AdamW first moves a weight by lr g / (|g| + eps): with the usual eps, the rounding of a gradient
# near 0 becomes a whole step. With an eps far above all gradients, steps are in proportion to them.
PROPORTIONAL = partial(torch.optim.AdamW, eps=1.0)
DIGITS = [str(i) for i in range(10)]


def write_run(root: Path, step: int = 3, **settings: Any) -> Path:
    """Write a run directory with one checkpoint of an untrained network; return it.

    The checkpoint has no state/, so it cannot be resumed. The network's output is not zero.
    """
    config = TrainConfig(**{**TINY, **settings})
    num_classes = 10 if config.num_classes is None else config.num_classes
    channels = 3 if config.vae == "identity" else 4
    spec = NetworkSpec(
        model=config.model,
        input_size=config.image_size,
        in_channels=channels,
        num_classes=num_classes,
        learn_sigma=config.learn_sigma,
        conditioning=config.conditioning,
        block=config.block,
        inner_head=config.inner_head,
    )
    statistics = [0.5] * channels if config.latent_norm == "data" else None
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
    """Return weights of a network whose output depends on image, time and class."""
    torch.manual_seed(0)
    network = build_network(spec)
    # these are initialised with zeros, which makes the output zero
    zero_layers = ("adaLN", "final_layer", "conv_out", "text_attn.proj", "head.", "gate")
    for name, parameter in network.named_parameters():
        if any(layer in name for layer in zero_layers):
            torch.nn.init.normal_(parameter, std=0.05)
        if "y_embedder" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return network.state_dict()


class Command:
    """`dit NAME FLAGS` in a forked process that has imported torch already.

    The sizes of networks are those of this process. No file can exceed `limit` bytes.
    """

    def __init__(self, *argv: object, limit: int | None = None) -> None:
        self.streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self.streams]
        self.process = forked.CONTEXT.Process(
            target=_command, args=([*map(str, argv)], names, limit, SIZES), daemon=True
        )
        self.process.start()

    def end(self) -> tuple[int | None, str, str]:
        """Wait for the process; return its exit code, stdout and stderr."""
        self.process.join(300)
        out, err = (file.read() for file in self.streams)
        return self.process.exitcode, out, err


def _command(argv: list[str], files: list[str], limit: int | None, sizes: dict[str, Any]) -> None:
    SIZES.update(sizes)
    # file descriptors 1 and 2, stdout and stderr
    for stream, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY), stream)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(argv))


def torchrun(*command: object, threads: int = 1, module: bool = False) -> None:
    """Run a script, or a module, with its arguments on two CPU ranks; it must exit with 0."""
    flags = "-m torch.distributed.run --standalone --nproc-per-node 2"
    launcher = [sys.executable, *flags.split(), *(["-m"] if module else []), "--"]
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
    assert "broadcast_buffers" not in done.stderr  # a warning of newer versions of PyTorch


class Copies(TorchDispatchMode):
    """Collects the tensors that operations copy from one device to another."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        # a tensor without dimensions is passed as a kernel's argument, not copied
        inputs = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.ndim]
        if isinstance(output, torch.Tensor):
            self.found += [arg for arg in inputs if arg.device != output.device]
        return output


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the tests a cache of their own; workers share compiled code, which takes minutes.

    Another run does not: one that was killed may have left half a file.
    """
    folder = tmp_path_factory.mktemp("cache")
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    shared = (base.parent if is_worker else base) / "compiled"
    shared.mkdir(exist_ok=True)
    (folder / "compiled").symlink_to(shared)
    os.environ["DIT_CACHE"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def quicker() -> None:
    """Let trainings start without counting and measuring the same again and again."""
    make_starts_quicker()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run shared by all tests of a module; do not change it."""
    return write_run(tmp_path_factory.mktemp("shared") / "run")


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """Make DiT-Ti smaller, in this process only: not for tests that start Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", SMALL)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, small_networks: None) -> Path:
    """A run whose weights are not zero, to start from."""
    return write_run(tmp_path_factory.mktemp("weights") / "run")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run: `make_run(name="run", step=3, **settings of TrainConfig)`."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)
