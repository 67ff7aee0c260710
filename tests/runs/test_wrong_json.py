"""Files of JSON with wrong values, one value at a time: a UserError that names the file, or none.

Each file that a run, latents, samples, an evaluation or a sweep has is read as its command does.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import reports
from helpers.run_pages import START
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit.commands import compare
from dit.commands.info.model import card_rows
from dit.commands.sweep.earlier import check_folder
from dit.commands.sweep.points import describe, read_point
from dit.encoders import autoencoder
from dit.encoders.autoencoder import BUNDLED, load_autoencoder
from dit.errors import UserError
from dit.evaluation.inputs.statistics import read_statistics
from dit.evaluation.samples import is_unconditional, recorded_settings
from dit.latents import shards
from dit.latents.shards import Encoding, read_note
from dit.latents.store import LatentStore
from dit.models.sizes import SIZES
from dit.report.evaluation_page import to_json
from dit.report.reference_curves import FOLDER, Reference, recent_loss
from dit.report.run_page import event_cells, machine
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import find_best, verify_checkpoint
from dit.runs.logs import read_metrics, read_starts
from dit.runs.posthoc_ema import drop_after
from dit.runs.weights import read_weights
from dit.training.monitoring.eval_protocol import read_protocols
from dit.training.monitoring.trackers import wandb_id
from dit.utils.files import write_json
from dit.utils.stored_weights import find_stored_weights

OLD = Path(__file__).parents[1] / "data" / "run-of-2257fc1"
POINT = next((OLD / "sweep" / "points").glob("*.json")).stem
SAMPLES = next((OLD / "sweep").glob("samples-*")).name
CHECKPOINT = "checkpoints/step-0000004"
ENCODING = Encoding(
    vae="identity", checksum=None, image_size=8, flips=False, count=6, shard_size=4, fingerprint="f"
)
WRONG = (
    "text",
    "odd",
    -1,
    0,
    1.5,
    True,
    None,
    [],
    {},
    [1],
    ["a"],
    {"a": 1},
    2**70,
    1e300,
    "\udcff",
)
MOST_OF_A_KIND = 2  # elements of a list, and entries of an object with many, to replace
DAMAGES = (
    *(b"", b"{", b"\xff\xfe", b"[]", b"{}", b"3", b"null", b'"x"', b"[" * 100_000, b"[[]]"),
    *(b'{"a": 1e999}', b'{"step": NaN}', b"9" * 5000, b'{"step": 1, "step": 2}', b"\0" * 64),
)


def read_log(run: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    recent_loss(lines, 4)
    for line in lines:
        if "event" in line:
            event_cells(line)


def compare_with_itself(root: Path) -> None:
    report = compare.read_report(root / "report.json")
    compare.to_text(compare.differences(report, report))


def read_reference(root: Path) -> None:
    reference = Reference.read(root / "digits.json")
    for run in reference.runs.values():
        recent_loss(run, 100)


def describe_point(root: Path) -> None:
    point = read_point(root / "sweep", POINT)
    assert point
    assert f"{point.distance:g} {point.interval} {point.evaluations:,}"
    assert describe(point.setting)


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": lambda root: card_rows(ModelCard.read(root)),
    f"{CHECKPOINT}/meta.json": lambda root: (find_best(root), verify_checkpoint(root / CHECKPOINT)),
    "metrics.jsonl": read_log,
    "machine.json": lambda root: machine(read_starts(root)),
    "scores.json": read_protocols,
    "wandb.json": lambda root: wandb_id(root, "project"),
    "ema/meta.json": lambda root: drop_after(root, 10**9),
    f"sweep/points/{POINT}.json": describe_point,
    f"sweep/{SAMPLES}/samples.json": lambda root: is_unconditional(
        recorded_settings(root / "sweep" / SAMPLES)
    ),
    "sweep/sweep.json": lambda root: check_folder(root / "sweep", 10),
    "report.json": compare_with_itself,
    "digits.json": read_reference,
    "latents/index.json": lambda root: LatentStore(root / "latents"),
    "latents/encoding.json": lambda root: shards.check_folder(root / "latents", ENCODING),
    "latents/shard-00000.json": lambda root: read_note(root / "latents", 0),
    "vae/config.json": lambda root: load_autoencoder(str(root / "vae")),
}
"""How each file is read; the root is a run that has all of them."""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The size that the network of the old run had, and a VAE that is loaded once."""
    folder = BUNDLED["digits"]
    network = autoencoder._read_network(folder, "AutoencoderKL", find_stored_weights(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", dict(depth=1, hidden_size=4, num_heads=1))
        patch.setattr(autoencoder, "_read_network", lambda *given: network)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that we read; each test puts back what it changes."""
    root = tmp_path_factory.mktemp("files") / "run"
    shutil.copytree(OLD, root)
    write_json(root / "machine.json", [{"step": 0, **START}])
    write_json(root / "wandb.json", {"project": "0123abcd"})
    listed = {"length-0.05-step-0000004.safetensors": {"bytes": 1, "sha256": "00"}}
    write_json(root / "ema" / "meta.json", {"files": listed})
    write_json(root / "sweep" / "sweep.json", {"format": 1, "asked": {"num_samples": 10}})
    write_json(root / "report.json", to_json(reports.make()))
    reference = json.loads((FOLDER / "digits.json").read_text())
    runs = {seed: lines[:3] for seed, lines in reference["runs"].items()}
    write_json(root / "digits.json", {**reference, "runs": runs})
    shutil.copytree(BUNDLED["digits"], root / "vae")
    write_latents(root / "latents")
    return root


def write_latents(folder: Path) -> None:
    folder.mkdir()
    shards.claim(folder, ENCODING)
    view = (1, 6, 8, 8)
    for shard in range(2):
        moments = torch.rand(len(ENCODING.indices(shard)), *view)
        shards.write_shard(folder, shard, [moments], view)
    labels = [np.zeros(6, np.int64)]
    shards.write_index(folder, ENCODING, 2, ["a"], labels, (3, 8, 8))


@pytest.mark.parametrize("name", READERS)
def test_a_wrong_value_is_an_error_of_one_line(root, name):
    text = (root / name).read_bytes()
    READERS[name](root)
    changed = mutants(text, lines=name.endswith(".jsonl"))
    assert find_faults(root, name, changed) == []


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_an_error_of_one_line(root, name):
    text = (root / name).read_bytes()
    halves = (text[: len(text) // 2], text[:1], text + b"}", text.replace(b'"', b"", 1))
    assert find_faults(root, name, (*DAMAGES, *halves)) == []


def find_faults(root: Path, name: str, texts: Any) -> list[tuple[str, bytes]]:
    """Return errors other than a UserError in one line with the file's path, and the content."""
    file, faults = root / name, []
    before = file.read_bytes()
    try:
        for text in texts:
            file.write_bytes(text)
            try:
                READERS[name](root)
            except UserError as error:
                # what does not fit its neighbours is an error about their folder
                named = str(file.parent) in str(error)
                if not named or "\n" in str(error):
                    faults.append((str(error), text[:200]))
            except Exception as error:
                faults.append((repr(error), text[:200]))
    finally:
        file.write_bytes(before)
    return faults


def mutants(text: bytes, lines: bool) -> Iterator[bytes]:
    """Yield the text with one value replaced at a time, by each of the wrong ones, or left out."""
    values = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    for path in paths(values):
        for wrong in (*WRONG, "leave out", "unknown key"):
            yield encode(replaced(values, path, wrong), lines)


def encode(values: Any, lines: bool) -> bytes:
    text = "".join(json.dumps(line) + "\n" for line in values) if lines else json.dumps(values)
    return text.encode()


def paths(values: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value; of long lists and objects to the first ones."""
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    alike = all(isinstance(values[key], int | float | str) for key in keys)
    for key in keys if isinstance(values, dict) and not alike else keys[:MOST_OF_A_KIND]:
        yield (*above, key)
        if isinstance(values[key], dict | list):
            yield from paths(values[key], (*above, key))


def replaced(values: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if wrong == "leave out":
        del place[path[-1]]
    elif wrong == "unknown key" and isinstance(place, dict):
        place["unknown"] = 1
    else:
        place[path[-1]] = wrong
    return changed


# -- JSON inside other files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"step": "many"},
        {"step": True},
        {"network": 3},
        {"classes": [1]},
        {"latent_mean": [0.5], "latent_std": [1.0]},
        {"of a newer version": 1},
    ],
)
def test_a_wrong_header_of_weights_names_the_file(root, tmp_path, change):
    old = next((root / CHECKPOINT).glob("*.safetensors"))
    with safe_open(old, "pt") as opened:
        header = json.loads(opened.metadata()["dit"])
    file = tmp_path / "changed.safetensors"
    save_file(load_file(old), file, {"dit": json.dumps({**header, **change})})
    with pytest.raises(UserError, match=r"the header of .*changed\.safetensors is damaged \("):
        read_weights(file)


@pytest.mark.parametrize("record", ["[", "3", "[1]", '{"networks": 3}', '{"crop": "large"}'])
def test_a_wrong_record_of_statistics_names_the_file(tmp_path, record):
    file = tmp_path / "statistics.npz"
    np.savez(file, mu=np.zeros(2), sigma=np.eye(2), record=np.array(record))
    with pytest.raises(UserError, match=r"record in .*statistics\.npz is damaged \("):
        read_statistics(file)
