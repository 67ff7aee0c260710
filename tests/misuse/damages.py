"""Damages to files: what users, full disks, other programs and attackers leave behind."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from misuse.case import Damage

DELETE = object()  # as the value of `edit`: take the key away


# -- files and folders -----------------------------------------------------------------------------


def write(path: str, content: bytes | str) -> Damage:
    """Put a file there, or replace one."""
    data = content.encode() if isinstance(content, str) else content
    shown = data if len(data) < 60 else data[:40] + b"..."

    def apply(root: Path) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    return Damage(f"{path} is {shown!r}", apply)


def cut(path: str, keep: int | float) -> Damage:
    """Keep only the first bytes, a number or a share."""

    def apply(root: Path) -> None:
        size = (root / path).stat().st_size
        os.truncate(root / path, int(size * keep) if isinstance(keep, float) else keep)

    return Damage(f"{path} cut to {keep}", apply)


def flip(path: str, at: float = 0.6) -> Damage:
    """Change one byte, at this share of the file."""

    def apply(root: Path) -> None:
        data = bytearray((root / path).read_bytes())
        data[int(len(data) * at)] ^= 0x55
        (root / path).write_bytes(data)

    return Damage(f"{path} with a byte flipped at {at}", apply)


def remove(pattern: str) -> Damage:
    """Remove files or folders."""

    def apply(root: Path) -> None:
        found = list(root.glob(pattern))
        assert found, pattern
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return Damage(f"without {pattern}", apply)


def folder(path: str) -> Damage:
    """Put an empty folder in the place of a file."""

    def apply(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).mkdir(parents=True)

    return Damage(f"{path} is a folder", apply)


def link(path: str, target: str) -> Damage:
    """Put a symbolic link there."""

    def apply(root: Path) -> None:
        if (root / path).is_dir() and not (root / path).is_symlink():
            shutil.rmtree(root / path)
        (root / path).unlink(missing_ok=True)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)

    return Damage(f"{path} -> {target}", apply)


def fifo(path: str) -> Damage:
    """Put a FIFO there: whoever opens it waits for ever."""

    def apply(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(root / path)

    return Damage(f"{path} is a FIFO", apply)


def copy(source: str, target: str) -> Damage:
    """Copy a file or a folder of the fixtures."""

    def apply(root: Path) -> None:
        if (root / source).is_dir():
            shutil.copytree(root / source, root / target, dirs_exist_ok=True)
            return
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / source, root / target)

    return Damage(f"{target} copied from {source}", apply)


def mode(path: str, bits: int) -> Damage:
    """Change permissions."""
    return Damage(f"{path} with mode {bits:o}", lambda root: (root / path).chmod(bits))


def raw_name(source: str, target: bytes) -> Damage:
    """Move a file to a name that need not be UTF-8."""

    def apply(root: Path) -> None:
        os.makedirs(os.path.dirname(os.path.join(os.fsencode(root), target)), exist_ok=True)
        os.rename(os.fsencode(root / source), os.path.join(os.fsencode(root), target))

    return Damage(f"{source} is now {target!r}", apply)


# -- JSON ------------------------------------------------------------------------------------------


def edit(path: str, keys: str, value: Any) -> Damage:
    """Change a value in a JSON file, by its keys with `/` between them."""
    *outer, last = keys.split("/")

    def apply(root: Path) -> None:
        values = json.loads((root / path).read_text())
        _inner(values, outer)[_key(last)] = value
        if value is DELETE:
            del _inner(values, outer)[_key(last)]
        (root / path).write_text(json.dumps(values))

    shown = "taken out" if value is DELETE else f"= {json.dumps(value)[:60]}"
    return Damage(f"{path}: {keys} {shown}", apply)


def edit_header(path: str, change: Callable[[dict[str, Any]], object], words: str) -> Damage:
    """Change the header of a safetensors file; the tensors stay."""

    def apply(root: Path) -> None:
        data = (root / path).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (root / path).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return Damage(f"{path}: header with {words}", apply)


def edit_card(path: str, keys: str, value: Any) -> Damage:
    """Change a value of the card in a weights file's header."""
    *outer, last = keys.split("/")

    def change(header: dict[str, Any]) -> None:
        card = json.loads(header["__metadata__"]["dit"])
        _inner(card, outer)[_key(last)] = value
        header["__metadata__"]["dit"] = json.dumps(card)

    return edit_header(path, change, f"{keys} = {json.dumps(value)[:60]}")


def _inner(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values[_key(key)] if isinstance(values, list) else values[key]
    return values


def _key(key: str) -> str | int:
    return int(key) if key.isdigit() else key


# -- tensors and arrays ----------------------------------------------------------------------------


def tensors(path: str, change: Callable[[dict[str, torch.Tensor]], object], words: str) -> Damage:
    """Change the tensors of a safetensors file; the header's card stays."""

    def apply(root: Path) -> None:
        data = (root / path).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
        found = load_file(root / path)
        change(found)
        save_file(found, root / path, metadata)

    return Damage(f"{path} with {words}", apply)


def seal(checkpoint: str) -> Damage:
    """Write the sizes and hashes of a checkpoint's files anew, so that no checksum tells."""
    from dit.utils.files import sha256

    def apply(root: Path) -> None:
        meta = json.loads((root / checkpoint / "meta.json").read_text())
        for name in meta["files"]:
            file = root / checkpoint / name
            meta["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        (root / checkpoint / "meta.json").write_text(json.dumps(meta))

    return Damage("sealed again", apply)


def saved(path: str, content: Callable[[], Any], words: str) -> Damage:
    """Write a file with torch.save."""
    return Damage(f"{path} has {words}", lambda root: torch.save(content(), root / path))


def array(path: str, values: Callable[[], np.ndarray], words: str) -> Damage:
    """Write an .npy file."""
    return Damage(
        f"{path} has {words}", lambda root: np.save(root / path, values(), allow_pickle=True)
    )


def arrays(path: str, words: str, **values: Callable[[], Any]) -> Damage:
    """Write an .npz file."""

    def apply(root: Path) -> None:
        made = {name: np.asarray(value()) for name, value in values.items()}
        np.savez(root / path, **made)

    return Damage(f"{path} has {words}", apply)


def change_array(path: str, change: Callable[[np.ndarray], np.ndarray], words: str) -> Damage:
    """Replace the array of an .npy file by a function of it."""

    def apply(root: Path) -> None:
        values = change(np.load(root / path))
        np.save(root / path, values, allow_pickle=True)

    return Damage(f"{path} with {words}", apply)


def npz_bomb(path: str, name: str, shape: tuple[int, ...]) -> Damage:
    """Write an .npz file whose array is said to be enormous, and is a few bytes."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    header = text.ljust(118).encode() + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)

    def apply(root: Path) -> None:
        with zipfile.ZipFile(root / path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.npy", npy)

    return Damage(f"{path} has {name} of {shape}", apply)


class Evil:
    """An object whose unpickling writes a file."""

    def __reduce__(self) -> Any:
        return open, ("OWNED", "w")


def evil_pickle(path: str) -> Damage:
    """Write a pickle that runs code."""
    return Damage(
        f"{path} is an evil pickle",
        lambda root: (root / path).write_bytes(pickle.dumps({"a": Evil()})),
    )


# -- images ----------------------------------------------------------------------------------------


def image(path: str, mode: str = "RGB", size: tuple[int, int] = (16, 16), **save: Any) -> Damage:
    """Write an image of noise in a mode of Pillow."""

    def apply(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise(mode, size).save(root / path, **save)

    words = "".join(f" with {name}" for name in save)
    return Damage(f"{path} is {mode} {size[0]}x{size[1]}{words}", apply)


def array_image(path: str, values: Callable[[], np.ndarray], words: str) -> Damage:
    """Write an image with these values, in the mode that belongs to their type."""

    def apply(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values()).save(root / path)

    return Damage(f"{path} is {words}", apply)


def noise(mode: str = "RGB", size: tuple[int, int] = (16, 16), seed: int = 0) -> Image.Image:
    """Return an image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(seed: int = 0, form: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    noise(size=size, seed=seed).save(file, form)
    return file.getvalue()
