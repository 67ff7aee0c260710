"""Mean and covariance of features, as files publish them: read in every known layout, and written."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.dinov2 import DINOV2
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.inputs.archives import open_npz, read_array
from dit.utils.files import write_atomically

INCEPTION_WIDTH = 2048
ALIASES = {"fid": INCEPTION, "fd_dinov2": DINOV2}  # EDM2's names of networks: ours
KEY = re.compile(r"(?:(?P<network>.+?)[/._])?(?P<part>(?:mu|sigma)(?:_s)?)")
LAYOUTS = (
    "mu [D] and sigma [D, D] (ADM, also mu_s and sigma_s; EDM, MAR, torch-fidelity), or NETWORK/mu and "
    "NETWORK/sigma (dit stats; EDM2: fid/mu, fd_dinov2/mu, ...)"
)
EXPECTED = "mean [D] and covariance [D, D] of finite real numbers, in float32 or float64"

Pair = tuple[Tensor, Tensor]
"""Mean [D] and covariance [D, D], float64."""


class Moments(NamedTuple):
    """What a network's features look like on average, and those of its spatial layer where they are known."""

    features: Pair
    spatial: Pair | None = None


@dataclass(frozen=True)
class Statistics:
    """Means and covariances of a reference's features: all that some references publish.

    Args:
        networks: moments by the name of the feature network, "" where the file does not name it.
        count: number of images, where the file tells.
        record: what `dit stats` wrote of how the statistics were made; empty of other files.
    """

    path: Path
    networks: Mapping[str, Moments]
    count: int | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels, where `dit stats` recorded it; else of the numbers."""
        if pixels := self.record.get("pixels_sha256"):
            return str(pixels)
        whole = hashlib.sha256()
        for name in sorted(self.networks):
            whole.update(name.encode())
            for pair in self.networks[name]:
                for array in pair or ():
                    whole.update(array.numpy().tobytes())
        return whole.hexdigest()

    def of(self, extractor: Extractor) -> Moments | str:
        """The statistics that this network's features may be compared with, or the reason why there are none.

        Moments without a name are Inception's if 2,048 wide, for that is what files without names hold; else they
        belong to whichever network has their width. Other weights or preprocessing than the file's record names are a
        reason and no error: another network of the same evaluation, or images beside the statistics, may still serve.

        Raises:
            UserError: statistics of the spatial layer of another width than the network's.
        """
        found = self.networks.get(extractor.name) or self.networks.get("")
        if found is None:
            return (
                f"{self.path} has statistics of {', '.join(self.networks)}, not of {extractor.name}"
            )
        width, named = len(found.features[0]), extractor.name in self.networks
        if width != extractor.widths[0]:
            return f"{self.path} has statistics of {width} values, {extractor.name} gives {extractor.widths[0]}"
        if not named and width == INCEPTION_WIDTH and extractor.name != INCEPTION:
            return f"{self.path} has statistics of {width} values without a name, which are taken for Inception's"
        self._check_spatial(found, extractor)
        return self._difference(extractor) or found

    def _check_spatial(self, found: Moments, extractor: Extractor) -> None:
        width = extractor.widths[2]
        if found.spatial and width and len(found.spatial[0]) != width:
            raise UserError(
                f"mu_s of {len(found.spatial[0])} values in {self.path}",
                f"the {width} of {extractor.name}'s spatial layer",
                "pass other statistics",
            )

    def _difference(self, extractor: Extractor) -> str:
        """How the network differs from the one that the record describes; nothing where it does not."""
        made = self.record.get("networks", {}).get(extractor.name, {})
        if made.get("checksum", extractor.checksum) != extractor.checksum:
            return (
                f"{self.path} was made with other weights of {extractor.name} (SHA-256 {made['checksum'][:8]}, "
                f"here {extractor.checksum[:8]})"
            )
        if made.get("preprocessing", extractor.preprocessing) != extractor.preprocessing:
            return (
                f"{self.path} was made with another preprocessing for {extractor.name} ({made['preprocessing']}; "
                f"here {extractor.preprocessing})"
            )
        return ""


# -- reading -----------------------------------------------------------------------------------------------------


def read_statistics(path: Path) -> Statistics | None:
    """Statistics of an .npz file; None of a file that holds images (`arr_0`) alone.

    Layouts: plain `mu`, `sigma` and, of ADM's spatial layer, `mu_s`, `sigma_s` (ADM 2105.05233, EDM 2206.00364, MAR,
    torch-fidelity); one pair for each network, `NETWORK/mu` and so on ('.' and '_' serve as well), as `dit stats`
    writes them, or with EDM2's names of metrics, `fid` and `fd_dinov2` (2312.02696). `num_images` is read with them.

    Raises:
        UserError: damaged, a pickle, other keys, one of a pair without the other, shapes that do not fit, values that
            are not finite, not real or too coarse.
    """
    with open_npz(path) as file:
        keys = _by_network(file.files, path)
        if not keys and "arr_0" in file.files:
            return None
        if not keys:
            raise UserError(
                f"{path} holds {', '.join(file.files) or 'nothing'}",
                LAYOUTS,
                "check the path, or make statistics with dit stats",
            )
        networks = {name: _moments(file, path, parts) for name, parts in keys.items()}
        return Statistics(path, networks, _count(file, path), _record(file, path))


def _by_network(keys: list[str], path: Path) -> dict[str, dict[str, str]]:
    """Network -> part (mu, sigma, mu_s, sigma_s) -> key in the file."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if match := KEY.fullmatch(key):
            name = match["network"] or ""
            parts = found.setdefault(ALIASES.get(name, name), {})
            if match["part"] in parts:
                raise UserError(
                    f"{path} holds both {parts[match['part']]} and {key}",
                    "one of the two",
                    "write the file again without the other",
                )
            parts[match["part"]] = key
    return found


def _moments(file: Any, path: Path, parts: dict[str, str]) -> Moments:
    features = _pair(file, path, parts, "mu", "sigma")
    if features is None:
        raise UserError(
            f"{path} holds {', '.join(parts.values())} alone",
            LAYOUTS,
            "write mu and sigma beside them",
        )
    return Moments(features, _pair(file, path, parts, "mu_s", "sigma_s"))


def _pair(file: Any, path: Path, parts: dict[str, str], *wanted: str) -> Pair | None:
    keys = [parts.get(part) for part in wanted]
    if keys == [None, None]:
        return None
    if None in keys:
        raise UserError(
            f"{path} holds {', '.join(file.files)}",
            f"{' and '.join(wanted)} together: {LAYOUTS}",
            "write the file again",
        )
    mean, covariance = (read_array(file, path, key) for key in keys if key)
    given = " and ".join(
        f"{key} {list(a.shape)}" for key, a in zip(keys, (mean, covariance), strict=True)
    )
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{given} in {path}", EXPECTED, "pass the statistics file of your feature network"
        )
    return _plain(mean, keys[0], path), _plain(covariance, keys[1], path)


def _plain(array: np.ndarray, key: str | None, path: Path) -> Tensor:
    """As float64, once it is known to lose nothing."""
    if array.dtype.kind not in "fiu" or array.dtype == np.float16:
        why = (
            "complex: a matrix square root went wrong"
            if array.dtype.kind == "c"
            else str(array.dtype)
        )
        raise UserError(f"{key} in {path} is {why}", EXPECTED, "compute the statistics again")
    if not np.isfinite(array).all():
        raise UserError(f"{key} in {path} is not finite", EXPECTED, "compute the statistics again")
    return torch.from_numpy(array.astype(np.float64))


def _count(file: Any, path: Path) -> int | None:
    if "num_images" not in file.files:
        return None
    value = read_array(file, path, "num_images")
    return int(value) if value.size == 1 and value.dtype.kind in "iuf" else None


def _record(file: Any, path: Path) -> dict[str, Any]:
    """The record that `dit stats` leaves; empty of files by others."""
    if (
        "record" not in file.files
        or (text := read_array(file, path, "record")).dtype.kind != "U"
        or text.ndim
    ):
        return {}
    try:
        record = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise UserError(
            f"record in {path} is no JSON ({error})",
            "the file that dit stats wrote",
            "write it again",
        ) from error
    return record if isinstance(record, dict) else {}


# -- writing -----------------------------------------------------------------------------------------------------


def write_statistics(
    path: Path, networks: Mapping[str, Moments], count: int, record: dict[str, Any]
) -> None:
    """The file that `read_statistics` reads; Inception's are there under plain names too, for other evaluators."""
    arrays: dict[str, np.ndarray] = {
        "num_images": np.array(count),
        "record": np.array(json.dumps(record)),
    }
    for name, moments in networks.items():
        for prefix in (f"{name}/", *([""] if name == INCEPTION else [])):
            arrays |= _named(moments.features, prefix, "")
            arrays |= _named(moments.spatial, prefix, "_s") if moments.spatial else {}
    with write_atomically(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _named(pair: Pair, prefix: str, suffix: str) -> dict[str, np.ndarray]:
    return {
        f"{prefix}{part}{suffix}": value.numpy()
        for part, value in zip(("mu", "sigma"), pair, strict=True)
    }
