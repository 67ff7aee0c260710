"""Files that are created beside others, and names that are not UTF-8."""

import os
import resource
import subprocess

import numpy as np
import pytest
import torch
from helpers import forked
from PIL import Image
from safetensors.torch import save_file

from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.utils.files import (
    LOCK,
    name_to_bytes,
    printable,
    shell_quote,
    write_atomically,
    write_json,
    write_text,
)
from dit.utils.pictures import gif, loss_curve, write_png


@pytest.fixture
def foreign(tmp_path):
    """A file of someone else."""
    file = tmp_path / "foreign"
    file.write_text("mine")
    return file


@pytest.mark.parametrize("place", ["out", ".out.PID"])
def test_links_in_the_place_of_a_file_are_not_followed(tmp_path, foreign, place):
    (tmp_path / place.replace("PID", str(os.getpid()))).symlink_to(foreign)
    write_text(tmp_path / "out", "ours")
    assert foreign.read_text() == "mine"
    assert (tmp_path / "out").read_text() == "ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "out"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / f".out.{os.getpid()}").write_text("a long piece of an earlier file")
    write_text(tmp_path / "out", "ours")
    assert (tmp_path / "out").read_text() == "ours"


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_a_lock_is_a_plain_file(tmp_path, foreign, kind):
    lock = tmp_path / LOCK
    make = {"link": lambda: lock.symlink_to(foreign), "FIFO": lambda: os.mkfifo(lock)}
    make.get(kind, lock.mkdir)()
    message = rf"{LOCK} is a {kind}; expected a plain file, .*; remove it, or choose another --out"
    with pytest.raises(UserError, match=message), Ranks().lock_folder(tmp_path):
        pass
    assert foreign.read_text() == "mine"


def test_a_lock_keeps_the_content_of_its_file(tmp_path):
    (tmp_path / LOCK).write_text("mine")
    with (
        Ranks().lock_folder(tmp_path),
        pytest.raises(UserError, match="another process is at work"),
        Ranks().lock_folder(tmp_path),
    ):
        pass
    with Ranks().lock_folder(tmp_path):  # released
        assert (tmp_path / LOCK).read_text() == "mine"


# -- a full disk -----------------------------------------------------------------------------------


def _weights(file):
    with write_atomically(file) as temporary:
        save_file({"x": torch.zeros(100_000)}, temporary)


def _arrays(file):
    with write_atomically(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, x=np.zeros(100_000))


def _film(file):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (99, 99, 3), np.uint8)) for _ in range(3)]
    gif(frames, file)


WRITERS = {
    "weights": _weights,
    "arrays": _arrays,
    "film": _film,
    "picture": lambda file: write_png(Image.effect_noise((200, 200), 99), file),
    "curve": lambda file: loss_curve([{"step": 1, "loss": 1.0, "lr": 1.0}], file),
    "json": lambda file: write_json(file, [0] * 9999),
}


def _write_without_space(name, file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(OSError, match=f"File too large: '{file}'") as raised:
        WRITERS[name](file)
    assert raised.value.filename == str(file)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_the_earlier_one(tmp_path, name):
    file = tmp_path / "out"
    file.write_text("earlier")
    process = forked.CONTEXT.Process(target=_write_without_space, args=(name, file))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert file.read_text() == "earlier"


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "as_bytes", "shown"),
    [
        ("café", b"caf\xc3\xa9", "café"),
        ("caf\udce9", b"caf\xe9", r"caf\xe9"),
        ("caf\udcc3\udca9", b"caf\xc3\xa9", "café"),  # as LC_ALL=C reads it
        ("\ud83d", b"\\ud83d", r"\ud83d"),
    ],
)
def test_any_name_has_bytes_and_can_be_shown(tmp_path, name, as_bytes, shown):
    assert name_to_bytes(name) == as_bytes
    assert printable(name) == shown
    if name != "\ud83d":  # half a character, of a JSON file: no name of a file
        printed = subprocess.run(
            ["bash", "-c", f"printf %s {shell_quote(name)}"], capture_output=True
        )
        assert printed.stdout == as_bytes
    write_text(tmp_path / "page", name)
    assert (tmp_path / "page").read_text(encoding="utf-8") == shown
