"""Cache of features on the disk, keyed by everything that they depend on."""

import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit.distributed.device import device_kind, library_versions
from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.features import Extracted, Features, extract
from dit.evaluation.inputs.images import ImageSet
from dit.utils.cache import cache_root
from dit.utils.files import write_atomically

FORMAT = 1  # raise it when this package reads images or runs a network differently
LAYERS = ("values", "logits", "spatial")
LIBRARIES = ("torch", "torch-fidelity", "timm", "pillow")  # decode, resize, run the networks

Entry = tuple[Features, str]
"""Features of one network, and a SHA-256 over all pixels."""


def extract_cached(
    images: ImageSet,
    extractors: Sequence[Extractor],
    batch_size: int,
    ranks: Ranks,
    title: str,
    use: bool,
) -> Extracted:
    """Return what `extract` does, from the cache where possible, the rest in one pass.

    A cache that cannot be written costs a warning.

    Args:
        use: False neither reads nor writes the cache.
    """
    folder = cache_folder()
    if not use or folder is None:
        return extract(images, extractors, batch_size, ranks, title)

    contents = ranks.on_main(images.contents)
    paths = ranks.broadcast(
        {e.name: folder / f"{_key(contents, e)}.safetensors" for e in extractors}
    )
    # An entry counts only if all ranks can read it, for they extract together.
    entries = {name: _read_on_all_ranks(path, ranks) for name, path in paths.items()}
    found = {name: entry for name, entry in entries.items() if entry}
    if found and ranks.main:
        print(f"{title} ({', '.join(found)}): from the cache", file=sys.stderr, flush=True)

    missing = [e for e in extractors if e.name not in found]
    if missing:
        extracted = extract(images, missing, batch_size, ranks, title)
        found |= {name: (value, extracted.digest) for name, value in extracted.networks.items()}
    if ranks.main:
        for extractor in missing:
            _write(paths[extractor.name], *found[extractor.name])

    _, digest = found[(missing or extractors)[0].name]
    return Extracted({e.name: found[e.name][0] for e in extractors}, digest)


def cache_folder() -> Path | None:
    """Return the folder of features in `cache_root`; None without a home."""
    root = cache_root()
    return root / "features" if root else None


def _key(contents: str, extractor: Extractor) -> str:
    """Return a SHA-256 over all that features depend on.

    It includes libraries and the kind of device: TF32 convolutions alone move features by 1e-3, and
    a report names the versions that computed its scores. It excludes the batch size, which moves
    the last bit: it would cost hits and change no score.
    """
    parts = [
        FORMAT,
        contents,
        extractor.name,
        extractor.checksum,
        extractor.preprocessing,
        device_kind(extractor.device),
        library_versions(*LIBRARIES),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_on_all_ranks(path: Path, ranks: Ranks) -> Entry | None:
    """Return the entry if all ranks can read it, else None on all of them."""
    entry = _read(path, remove=ranks.main)
    readers = ranks.sum(torch.tensor(float(entry is not None), device=ranks.device))
    return entry if readers == ranks.world else None


def _read(path: Path, remove: bool) -> Entry | None:
    """Return an entry; None where it is missing or damaged. `remove` deletes a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if metadata["checksum"] == _checksum(tensors, metadata["pixels"]):
            return Features(**tensors), metadata["pixels"]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError):
        pass  # damaged
    if remove:
        with suppress(OSError):
            path.unlink()
    return None


def _write(path: Path, features: Features, digest: str) -> None:
    layers = {name: getattr(features, name) for name in LAYERS}
    tensors = {name: layer.contiguous() for name, layer in layers.items() if layer is not None}
    try:
        with write_atomically(path) as beside:
            # safetensors makes its files private: the usual permissions are restored.
            beside.touch()
            mode = beside.stat().st_mode
            save_file(tensors, beside, {"pixels": digest, "checksum": _checksum(tensors, digest)})
            beside.chmod(mode)
    except (OSError, SafetensorError) as error:
        _warn(path.parent, str(error))


def _checksum(tensors: dict[str, Tensor], digest: str) -> str:
    """Return a SHA-256 of an entry: safetensors notices a truncated file, but not a flipped bit."""
    shapes = {name: list(tensors[name].shape) for name in sorted(tensors)}
    checksum = hashlib.sha256(json.dumps([digest, shapes]).encode())
    for name in sorted(tensors):
        checksum.update(tensors[name].view(-1).numpy().data)
    return checksum.hexdigest()


@functools.cache  # one warning for each kind of error
def _warn(folder: Path, error: str) -> None:
    advice = "set DIT_CACHE to another folder"
    print(f"warning: features cannot be kept in {folder} ({error}); {advice}", file=sys.stderr)
