"""A run with everything that its page can show."""

import json
from pathlib import Path

from PIL import Image

from dit.runs.logs import BY_TIME

FD = "FD(digits-cnn)"
START = dict(
    date="2026-01-01T00:00:00+00:00",
    device="NVIDIA H100",
    ranks=8,
    threads=4,
    arithmetic="bf16",
    flops_per_image=712e9,
    peak_flops_per_rank=989e12,
    peak_by="data sheet, dense bf16",
    versions={"dit": "0.1.0", "torch": "2.14"},
)


def log_line(step: int, **more: object) -> dict[str, object]:
    """A line of a log with everything that training writes."""
    return {
        "step": step,
        "loss": 1 / step,
        "grad_norm": 0.5,
        f"{BY_TIME}0.0-0.2": 0.9,
        f"{BY_TIME}0.8-1.0": 0.3,
        "lr": 1e-3,
        "update_ratio": 1e-3,
        "img_per_s": 200.0 + step,
        "mfu": 0.4,
        "data_wait": 0.01,
        "memory_gib": 1.5,
        **more,
    }


def write_log(run: Path, lines: list[dict[str, object]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def fill_run(run: Path) -> Path:
    """Write log, machine and samples into the folder of a run of 20 steps."""
    lines = [log_line(step) for step in range(2, 21, 2)]
    lines[4] |= {FD: 3.0, "eval": "one"}
    lines[9] |= {FD: 2.0, "eval": "one"}
    lines.insert(4, {"step": 9, "event": "skipped", "grad_norm": 812.25, "why": "<b>spike</b>"})
    write_log(run, lines)
    (run / "machine.json").write_text(json.dumps([{"step": step, **START} for step in (0, 10)]))
    (run / "samples").mkdir()
    for step in range(1, 11):
        Image.new("RGB", (40, 90), (20 * step, 0, 0)).save(run / "samples" / f"step-{step:07d}.png")
    return run
