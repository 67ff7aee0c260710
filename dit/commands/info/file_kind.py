"""What a file is that `dit info` was given."""

from pathlib import Path

from dit.data.image_formats import is_image
from dit.errors import UserError
from dit.utils.files import shell_quote

PICKLED = (".pt", ".pth", ".ckpt", ".bin")  # extensions of PyTorch's files


def require_pickled_weights(file: Path) -> None:
    """Refuse files that PyTorch did not write, and say what they are."""
    with file.open("rb") as opened:
        start = opened.read(16)
    # PyTorch writes zip archives, in early versions pickles
    is_pickled = start.startswith((b"PK", b"\x80")) and file.suffix != ".npz"
    if file.suffix not in PICKLED and not is_pickled:
        raise UserError(
            f"{file} is {_describe_content(file, start)}",
            "a file of weights (.safetensors, .pt), or the folder of a run, of latents or of a VAE",
            f"see what its folder is: dit info {shell_quote(file.parent)}",
        )


def _describe_content(file: Path, start: bytes) -> str:
    """Return what a file is by its first bytes, else by its name."""
    if not start:
        return "empty"
    if start.lstrip().startswith((b"{", b"[")):
        return "a JSON file"
    if is_image(file.name):
        return "an image"
    return f"a {file.suffix} file" if file.suffix else "a file of another kind"
