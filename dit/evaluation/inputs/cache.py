"""Features of images kept on the disk, named by all that they come from, so that no reference is looked at twice."""

import functools
import hashlib
import json
import os
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
from dit.utils.files import write_atomically

FORMAT = 1  # to be raised when this package reads images or runs a network in another way
LAYERS = ("values", "logits", "spatial")
LIBRARIES = (
    "torch",
    "torch-fidelity",
    "timm",
    "pillow",
)  # they decode, resize and run the networks

Entry = tuple[Features, str]
"""What one network says of the images, and a SHA-256 over all pixels."""


def extract_cached(
    images: ImageSet,
    extractors: Sequence[Extractor],
    batch_size: int,
    ranks: Ranks,
    title: str,
    use: bool,
) -> Extracted:
    """As `extract`, but what was computed before comes from the cache, and the rest in one pass over the images.

    An entry counts where every rank sees it; rank 0 writes. A damaged entry is removed and made again; a cache that can
    not be written costs a warning.

    Args:
        use: False leaves the cache alone.

    Raises:
        UserError: as `extract`.
    """
    folder = cache_folder()
    if not use or folder is None:
        return extract(images, extractors, batch_size, ranks, title)
    contents = ranks.on_main(images.contents)
    paths = ranks.share({e.name: folder / f"{_key(contents, e)}.safetensors" for e in extractors})
    found = {
        name: entry for name, path in paths.items() if (entry := _read_everywhere(path, ranks))
    }
    if found and ranks.main:
        print(f"{title} ({', '.join(found)}): from the cache", file=sys.stderr, flush=True)
    missing = [e for e in extractors if e.name not in found]
    if missing:
        made = extract(images, missing, batch_size, ranks, title)
        found |= {name: (features, made.digest) for name, features in made.networks.items()}
    if ranks.main:
        for extractor in missing:
            _write(paths[extractor.name], *found[extractor.name])
    _, digest = found[(missing or extractors)[0].name]
    return Extracted({e.name: found[e.name][0] for e in extractors}, digest)


def cache_folder() -> Path | None:
    """Where features are kept: in $DIT_CACHE, $XDG_CACHE_HOME/dit or ~/.cache/dit; None without a home."""
    try:
        own = os.environ.get("DIT_CACHE")
        root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dit"
        return root.expanduser() / "features"
    except RuntimeError:
        return None


def _key(contents: str, extractor: Extractor) -> str:
    """SHA-256 over all that features depend on.

    Libraries and the kind of device are part of it: TF32 convolutions alone move features by a thousandth, and a report
    names the versions that its scores were made with. The batch size, which moves the last bit, is not: it would cost
    hits and change no score.
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


def _read_everywhere(path: Path, ranks: Ranks) -> Entry | None:
    """The entry, if all ranks can read it."""
    entry = _read(path, remove=ranks.main)
    seen = ranks.total(torch.tensor(float(entry is not None), device=ranks.device))
    return entry if seen == ranks.world else None


def _read(path: Path, remove: bool) -> Entry | None:
    """An entry, mapped from the disk; None where there is none, or a damaged one, which goes if `remove` says so."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if metadata["checksum"] == _checksum(tensors, metadata["pixels"]):
            return Features(**tensors), metadata["pixels"]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError):
        pass
    if remove:
        with suppress(OSError):
            path.unlink()
    return None


def _write(path: Path, features: Features, digest: str) -> None:
    layers = {name: getattr(features, name) for name in LAYERS}
    tensors = {name: layer.contiguous() for name, layer in layers.items() if layer is not None}
    try:
        with write_atomically(path) as beside:
            beside.touch()
            mode = beside.stat().st_mode
            save_file(tensors, beside, {"pixels": digest, "checksum": _checksum(tensors, digest)})
            beside.chmod(mode)  # safetensors keeps its files private
    except (OSError, SafetensorError) as error:
        _warn(path.parent, str(error))


def _checksum(tensors: dict[str, Tensor], digest: str) -> str:
    """SHA-256 of an entry, for safetensors notices a file cut short, but not a flipped bit."""
    whole = hashlib.sha256(
        json.dumps([digest, {name: list(tensors[name].shape) for name in sorted(tensors)}]).encode()
    )
    for name in sorted(tensors):
        whole.update(tensors[name].view(-1).numpy().data)
    return whole.hexdigest()


@functools.cache
def _warn(folder: Path, error: str) -> None:
    """Once for each kind of trouble."""
    print(
        f"warning: features can not be kept in {folder} ({error}); set DIT_CACHE to another folder",
        file=sys.stderr,
        flush=True,
    )
