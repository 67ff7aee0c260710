"""What `--data` names: digits, or a folder of images."""

import difflib
from pathlib import Path

from dit.data.captions import DIGIT_CAPTIONS, CaptionedFolder
from dit.data.images import Digits, ImageFolder, Images, Size
from dit.errors import UserError, nearest


def load_images(data: str, image_size: Size, captions: bool = False) -> Images:
    """The images that `--data` names: `digits`, or a folder, flat (no classes) or with one subfolder per class.

    Args:
        captions: whether classes are captions: the digits spelled out, or those of the folder's metadata.jsonl.

    Raises:
        UserError: neither of the two; or as `Digits`, `ImageFolder` and `CaptionedFolder` do.
    """
    if data == "digits":
        digits = Digits(image_size)
        digits.classes = list(DIGIT_CAPTIONS) if captions else digits.classes
        return digits
    path = Path(data).expanduser()
    if path.is_dir():
        return (CaptionedFolder if captions else ImageFolder)(path, image_size)
    beside = [str(path.with_name(p.name)) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    likely = difflib.get_close_matches(data, beside, n=3)
    raise UserError(f"--data {data} is neither `digits` nor a folder", "an existing folder",
                    nearest(data, [*likely, "digits"]))
