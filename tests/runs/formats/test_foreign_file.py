"""What a file is, before its tensors are looked at; no code in it is run."""

import gzip
import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from helpers.foreign import dit_weights, same_tensors, saved
from PIL import Image
from safetensors.torch import save, save_file

from dit.errors import UserError
from dit.runs.checkpoint_files import latest_checkpoint
from dit.runs.formats.foreign_file import open_foreign

pytestmark = pytest.mark.usefixtures("small_networks")


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(3))
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html lang=en>", "is an HTML page"),
        (b"<html><body>404</body></html>", "is an HTML page"),
        (gzip.compress(b"weights", mtime=0), "is a packed archive"),
        (zipped(), "is a zip archive of readme.txt"),
        (npz(), "is a NumPy archive of mu.npy"),
        (png(), "is an image"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
        (b"hello, this is no checkpoint\n" * 100, "cannot be read; expected a complete .pt file"),
        (bytes(1000), "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_other_files_are_named(tmp_path, content, message, name):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} {message}"):
        open_foreign(file)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("cut", [2, 1.01])
def test_truncated_files_are_refused(tmp_path, kind, cut):
    file = saved(tmp_path, dit_weights())
    content = save(dit_weights()) if kind == "safetensors" else file.read_bytes()
    file.write_bytes(content[: int(len(content) / cut)])
    with pytest.raises(UserError, match=f"cannot be read.*complete .{kind} file"):
        open_foreign(file)


def test_safetensors_are_known_by_content(tmp_path):
    save_file(dit_weights(), tmp_path / "file.pt")
    assert same_tensors(open_foreign(tmp_path / "file.pt"), dit_weights())


class Malice:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_no_code_is_run(tmp_path, where, zipped):
    trace = tmp_path / "trace"
    content = Malice(trace) if where == "alone" else {**dit_weights(), "extra": Malice(trace)}
    file = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"would run code.*mkdir"):
        open_foreign(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # it was not harmless
    assert trace.exists()


def test_folders_are_named(tmp_path, weights):
    diffusers = tmp_path / "DiT-XL-2-256"
    diffusers.mkdir()
    (diffusers / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    (tmp_path / "other").mkdir()
    for path, message in [
        (diffusers, "is diffusers' DiTPipeline.*which has transformer, scheduler and vae"),
        (weights, "is a run or a checkpoint of this package.*dit sample --run"),
        (latest_checkpoint(weights), "is a run or a checkpoint of this package"),
        (tmp_path / "other", "is a folder"),
        (tmp_path / "nothing.pt", "no file"),
    ]:
        with pytest.raises(UserError, match=message):
            open_foreign(path)


def test_our_own_files_are_named(weights, tmp_path):
    file = next(latest_checkpoint(weights).glob("*.safetensors"))
    with pytest.raises(UserError, match=r"a weights file of this package.*dit sample --run"):
        open_foreign(file)
    state = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"network.pos_embed": torch.ones(1)}, state, {"DCP_VERSION": "1.0"})
    with pytest.raises(UserError, match="a part of a training checkpoint"):
        open_foreign(state)
