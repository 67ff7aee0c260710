"""Inception's weights: found, downloaded, and checked before torch-fidelity loads them."""

import io
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.errors import UserError
from dit.files import replacing

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, which PyTorch's convention puts in the name



def inception_cache() -> Path:
    """Where torch-fidelity looks for Inception's weights, and puts them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def find_inception() -> Path:
    """Inception's weights from torch-fidelity's cache, downloaded if they are not there.

    Raises:
        UserError: not there and no download, naming the file, its place and the flag.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = inception_cache()
    if not path.is_file():
        try:
            with replacing(path) as beside:
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(beside), hash_prefix=INCEPTION_SHA256)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(f"Inception's weights {INCEPTION_FILE} are not here and can not be downloaded ({error})",
                            f"the file {path}",
                            f"download {URL_INCEPTION_V3} elsewhere, and put it there or pass it as --weights FILE",
                            ) from error
    return check_inception(path)


def check_inception(path: Path) -> Path:
    """`path`, once it is known to be safe to load: torch-fidelity would run any code that a pickle holds.

    Raises:
        UserError: missing, not loadable as plain tensors, or not Inception's tensors.
    """
    if not path.is_file():
        raise UserError(f"--weights {path} does not exist", f"the file {INCEPTION_FILE}", "check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"weights {path} are no plain file of tensors",
            f"an intact {INCEPTION_FILE}",
            "download the file again; nothing in it was run",
        ) from error
    given, wanted = _shapes(state), _inception_shapes()
    if given != wanted:
        wrong = next(k for k in [*wanted, *given] if given.get(k) != wanted.get(k))
        raise UserError(f"weights {path} are not Inception's: tensor {wrong} is {given.get(wrong, 'missing')}",
                        f"{wanted.get(wrong, 'no such tensor')}, as in {INCEPTION_FILE}",
                        "pass that file as --weights")
    return path


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _inception_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that torch-fidelity's network loads, read off the network without weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Shapes(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        network = Shapes(INCEPTION, ["2048"], feature_extractor_weights_path=nothing)
    return _shapes(network.state_dict())


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without the batch counters that PyTorch fills in where a file lacks them."""
    tensors = state.items() if isinstance(state, dict) else ()
    return {k: tuple(v.shape) for k, v in tensors if isinstance(v, Tensor) and not k.endswith("num_batches_tracked")}
