"""Loss curves of the digits preset in fp32, bf16 and fp8, from the same seed.

    python -m benchmarks.precision [--steps 300] [--record]

The trainer's own steps, on the same batches with the same noise. Where the device has no float8 products they are
emulated: the same rounding, then products in float32. A second seed in bf16 is the yardstick: so far apart are two
trainings that are equally good. Needs torchao (`make fp8`).
"""

import argparse
import shlex
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from benchmarks.record import record
from dit.build import with_data_statistics
from dit.config import TrainConfig
from dit.distributed.float8 import convert_to_float8, has_fp8
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.latents.load import build_source
from dit.report.figures import draw_line, new_axis, new_figure, to_image
from dit.training.batches import read_batch
from dit.training.card import build_card
from dit.training.inputs import RunInputs
from dit.training.prepare import prepare
from dit.training.resolve import resolve
from dit.training.session import TrainingSession
from dit.training.trainer import take_step

PICTURE = Path("docs/images/precision.png")
WINDOW = 20  # steps behind a point of a curve
LAST = 0.2  # share of the steps that the table takes the mean loss of


class Kind(NamedTuple):
    """How a training computes."""

    precision: str
    seed: int = 0

    @property
    def title(self) -> str:
        """As in picture and table."""
        return self.precision + (", another seed" if self.seed else "")


KINDS = [Kind("fp32"), Kind("bf16"), Kind("fp8"), Kind("bf16", seed=1)]


def session_of(kind: Kind, steps: int, device: torch.device, folder: str) -> TrainingSession:
    """A run of the digits preset."""
    emulate = kind.precision == "fp8" and not has_fp8(device)
    config: Any = dict(
        precision="bf16" if emulate else kind.precision, seed=kind.seed, steps=steps, compile=False
    )
    config = TrainConfig(**config, out=Path(folder) / kind.title)
    autoencoder, ranks = load_autoencoder(config.vae, device), Ranks(device=device)
    source = build_source(config, autoencoder, ranks)
    card = build_card(config, source)
    inputs = RunInputs(card, source, with_data_statistics(autoencoder, card))
    session = prepare(inputs, resolve(inputs, ranks), ranks)
    if emulate:
        convert_to_float8(session.state.network, emulate=True)
    return session


def losses(session: TrainingSession) -> list[float]:
    """Mean losses of one window of steps after the other."""
    found = []
    for step in range(1, session.steps + 1):
        take_step(session, read_batch(session.stream, step - 1), step)
        if step % WINDOW == 0:
            found.append(session.state.means.compute_and_reset(session.ranks)["loss"])
    return found


def last(curve: list[float]) -> float:
    """Mean loss of the last steps."""
    count = max(1, round(LAST * len(curve)))
    return sum(curve[-count:]) / count


def draw(curves: dict[str, list[float]]) -> Image.Image:
    """The losses, and what they are above those of fp32."""
    figure = new_figure(9.6, 3.6)
    loss, above = (new_axis(figure, "step", (1, 2, place)) for place in (1, 2))
    for place, (title, curve) in enumerate(curves.items()):
        at = range(WINDOW, WINDOW * len(curve) + 1, WINDOW)
        ratios = [100 * (one / exact - 1) for one, exact in zip(curve, curves["fp32"], strict=True)]
        for axis, values in ((loss, curve), (above, ratios)):
            draw_line(
                axis, place, title, [(x, y, None, None) for x, y in zip(at, values, strict=True)]
            )
    loss.set_ylabel("loss")
    above.set_ylabel("loss above that of fp32, %")
    loss.legend(frameon=False, fontsize=9)
    return to_image(figure)


def main() -> None:
    """Train, draw, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=300, help=f"of each training, a multiple of {WINDOW}"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write benchmarks/results/ and docs/images/precision.png",
    )
    args = parser.parse_args()
    if find_spec("torchao") is None:
        parser.error("no torchao here: make fp8, or pip install torchao")
    if args.steps % WINDOW or args.steps <= 0:
        parser.error(f"--steps {args.steps}: a multiple of {WINDOW} expected")
    device, rows = torch.device("cuda" if torch.cuda.is_available() else "cpu"), dict[str, Any]()
    print(
        f"| arithmetic | mean loss of the last {LAST:.0%} | to fp32 | seconds |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            begin, curve = time.perf_counter(), losses(session_of(kind, args.steps, device, folder))
            row = rows[kind.title] = {
                "losses": curve,
                "last": last(curve),
                "seconds": time.perf_counter() - begin,
            }
            to_fp32 = row["last"] / rows["fp32"]["last"] - 1
            print(
                f"| {kind.title} | {row['last']:.4f} | {to_fp32:+.2%} | {row['seconds']:.0f} |",
                flush=True,
            )
    if args.record:
        draw({title: row["losses"] for title, row in rows.items()}).save(PICTURE)
        command = shlex.join(["python", "-m", "benchmarks.precision", *sys.argv[1:]])
        print(
            record(
                "precision",
                command,
                {"window": WINDOW, "emulated": not has_fp8(device), "rows": rows},
            )
        )


if __name__ == "__main__":
    main()
