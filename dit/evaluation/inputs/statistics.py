"""Mean and covariance of features in .npz files: every published layout is read, one is written."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.dinov2 import DINOV2
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.inputs.archives import open_npz, read_array
from dit.utils.files import write_atomically
from dit.utils.image_size import Size
from dit.utils.outputs import require_own_file
from dit.utils.typed_json import WrongJson, parse_json

INCEPTION_WIDTH = 2048
ALIASES = {"fid": INCEPTION, "fd_dinov2": DINOV2}  # EDM2's names of networks: ours
KEY = re.compile(r"(?:(?P<network>.+?)[/._])?(?P<part>(?:mu|sigma)(?:_s)?)")
LAYOUTS = (
    "mu [D] and sigma [D, D] (ADM, also mu_s and sigma_s; EDM, MAR, torch-fidelity), or NETWORK/mu "
    "and NETWORK/sigma (dit stats; EDM2: fid/mu, fd_dinov2/mu, ...)"
)
EXPECTED = "mean [D] and covariance [D, D] of finite real numbers, in float32 or float64"

Pair = tuple[Tensor, Tensor]
"""Mean [D] and covariance [D, D], float64."""


class Moments(NamedTuple):
    """Moments of a network's features, and of its spatial layer where they are known."""

    features: Pair
    spatial: Pair | None = None


class RecordedNetwork(TypedDict):
    """A feature network in the record of `dit stats`."""

    checksum: str
    preprocessing: str


class Record(TypedDict, total=False):
    """What is read of the record of `dit stats`; it may hold more."""

    data: str
    pixels_sha256: str
    size: str
    crop: Size | None
    networks: dict[str, RecordedNetwork]


def digest_of_numbers(networks: Mapping[str, Moments]) -> str:
    """Return the SHA-256 of all moments and the names of their networks."""
    total = hashlib.sha256()
    for name in sorted(networks):
        total.update(name.encode())
        for pair in networks[name]:
            for array in pair or ():
                total.update(array.numpy().tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Statistics:
    """Means and covariances of a reference's features: all that some references publish.

    Args:
        networks: moments by the name of the feature network, "" where the file does not name it.
        count: number of images, where the file records it.
        record: how `dit stats` made the statistics; empty for files of others.
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
        return digest_of_numbers(self.networks)

    def of(self, extractor: Extractor) -> Moments | str:
        """Return the moments to compare this network's features with, or why there are none.

        A reason is no error: another network of the same evaluation may have statistics.
        """
        found = self.networks.get(extractor.name) or self.networks.get("")
        if found is None:
            names = ", ".join(self.networks)
            return f"{self.path} has statistics of {names}, not of {extractor.name}"

        width, expected = len(found.features[0]), extractor.widths[0]
        if width != expected:
            return (
                f"{self.path} has statistics of {width} values, {extractor.name} gives {expected}"
            )
        # Files without names hold Inception's statistics by convention, if 2,048 values wide.
        unnamed = extractor.name not in self.networks
        if unnamed and width == INCEPTION_WIDTH and extractor.name != INCEPTION:
            return (
                f"{self.path} has statistics of {width} values without a name, "
                "which are taken for Inception's"
            )

        self._check_spatial(found, extractor)
        return self._difference(extractor) or found

    def _check_spatial(self, found: Moments, extractor: Extractor) -> None:
        """Refuse statistics of a spatial layer of another width."""
        width = extractor.widths[2]
        if found.spatial and width and len(found.spatial[0]) != width:
            raise UserError(
                f"mu_s of {len(found.spatial[0])} values in {self.path}",
                f"the {width} of {extractor.name}'s spatial layer",
                "pass other statistics, or write them again without mu_s and sigma_s",
            )

    def _difference(self, extractor: Extractor) -> str:
        """Return how the network differs from the recorded one; "" where it does not."""
        recorded = self.record.get("networks", {}).get(extractor.name, {})
        checksum = recorded.get("checksum", extractor.checksum)
        preprocessing = recorded.get("preprocessing", extractor.preprocessing)
        if checksum != extractor.checksum:
            what, old, new = "weights of", f"SHA-256 {checksum[:8]}", extractor.checksum[:8]
        elif preprocessing != extractor.preprocessing:
            what, old, new = "preprocessing for", preprocessing, extractor.preprocessing
        else:
            return ""
        return f"{self.path} was made with other {what} {extractor.name} ({old}; now {new})"


# -- reading ---------------------------------------------------------------------------------------


def read_statistics(path: Path) -> Statistics | None:
    """Return the statistics of an .npz file; None of a file that holds images (`arr_0`) alone.

    Layouts: plain `mu`, `sigma` and, of ADM's spatial layer, `mu_s`, `sigma_s` (ADM 2105.05233,
    EDM 2206.00364, MAR, torch-fidelity); or one pair for each network, `NETWORK/mu` and so on ('.'
    and '_' serve as well), as `dit stats` writes them, or with EDM2's names, `fid` and `fd_dinov2`
    (2312.02696). `num_images` is read with them.
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
    """Return network -> part (mu, sigma, mu_s, sigma_s) -> key in the file."""
    found: dict[str, dict[str, str]] = {}
    for match in filter(None, map(KEY.fullmatch, keys)):
        name = match["network"] or ""
        parts = found.setdefault(ALIASES.get(name, name), {})
        if match["part"] in parts:
            raise UserError(
                f"{path} holds both {parts[match['part']]} and {match[0]}",
                "one of the two",
                "write the file again without the other",
            )
        parts[match["part"]] = match[0]
    return found


def _moments(file: Any, path: Path, parts: dict[str, str]) -> Moments:
    spatial = parts.keys() & {"mu_s", "sigma_s"}
    needed = {"mu", "sigma"} | ({"mu_s", "sigma_s"} if spatial else set())
    if missing := sorted(needed - parts.keys()):
        raise UserError(
            f"{path} holds {', '.join(parts.values())}, not {', '.join(missing)}",
            LAYOUTS,
            "write the file again with all of them",
        )
    pair = _pair(file, path, parts["mu"], parts["sigma"])
    if not spatial:
        return Moments(pair)
    spatial_pair = _pair(file, path, parts["mu_s"], parts["sigma_s"])
    return Moments(pair, spatial_pair)


def _pair(file: Any, path: Path, mu: str, sigma: str) -> Pair:
    mean = read_array(file, path, mu)
    covariance = read_array(file, path, sigma)
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{mu} {list(mean.shape)} and {sigma} {list(covariance.shape)} in {path}",
            EXPECTED,
            "pass the statistics file of your feature network",
        )
    return _to_float64(mean, mu, path), _to_float64(covariance, sigma, path)


def _to_float64(array: np.ndarray, key: str, path: Path) -> Tensor:
    # Complex covariances come from a matrix square root that went wrong; float16 is too coarse.
    if array.dtype.kind not in "fiu" or array.dtype == np.float16:
        raise UserError(f"{key} in {path} is {array.dtype}", EXPECTED, "compute them again")
    if not np.isfinite(array).all():
        raise UserError(f"{key} in {path} is not finite", EXPECTED, "compute them again")
    return torch.from_numpy(array.astype(np.float64))


def _count(file: Any, path: Path) -> int | None:
    if "num_images" not in file.files:
        return None
    value = read_array(file, path, "num_images")
    return int(value) if value.size == 1 and value.dtype.kind in "iuf" else None


def _record(file: Any, path: Path) -> dict[str, Any]:
    """Return the record that `dit stats` leaves; empty for files of others."""
    text = read_array(file, path, "record") if "record" in file.files else np.zeros(1)
    if text.ndim or text.dtype.kind != "U":
        return {}
    try:
        return {**parse_json(str(text), Record)}
    except WrongJson as error:
        given = f"record in {path} is damaged ({error})"
        raise UserError(given, "the file that dit stats wrote", "write it again") from None


# -- writing ---------------------------------------------------------------------------------------


def require_own_statistics(out: Path, data: str) -> None:
    """Refuse to overwrite a file that dit stats did not write, or wrote of other data."""

    def is_own(file: Path) -> bool:
        try:
            statistics = read_statistics(file)
        except UserError:
            return False
        return statistics is not None and bool(statistics.record)

    require_own_file(out, "stats", is_own)
    statistics = read_statistics(out) if out.exists() else None
    before = statistics.record.get("data", data) if statistics else data
    if Path(before).expanduser().resolve() != Path(data).expanduser().resolve():
        raise UserError(
            f"{out} has the statistics of {before}, not of {data}",
            "a new file, or one of the same data",
            "pass another --out, or move that file away",
        )


def write_statistics(
    path: Path, networks: Mapping[str, Moments], count: int, record: dict[str, Any]
) -> None:
    """Write the file that `read_statistics` reads."""
    arrays = {"num_images": np.array(count), "record": np.array(json.dumps(record))}
    for name, moments in networks.items():
        # Other evaluators look for Inception's moments under the plain names.
        for prefix in (f"{name}/", "") if name == INCEPTION else (f"{name}/",):
            for suffix, pair in zip(("", "_s"), moments, strict=True):
                if pair:
                    arrays[f"{prefix}mu{suffix}"] = pair[0].numpy()
                    arrays[f"{prefix}sigma{suffix}"] = pair[1].numpy()

    with write_atomically(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
