"""Folders of images: which files count, and the class of each, which is a subfolder of the root.

Images may lie anywhere below the folder of their class, as in torchvision's ImageFolder.
"""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dit.data.image_formats import COMMON, is_image
from dit.errors import UserError
from dit.utils.outputs import is_record

BY_PROGRAMS = frozenset(
    {
        *("__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "lost+found"),
        *("$recycle.bin", "recycler", "system volume information"),
    }
)
"""Files and folders of systems, in lower case, beside those whose names begin with a dot."""
RECORD = "samples.json"  # in folders of samples
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
NAMED = 5  # kinds of files or subfolders in a note

OUTPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a run": (("config.json", "checkpoints"), ()),
    "latents": (("encoding.json",), ("vae", "image_size")),
    "samples": ((RECORD,), ("num_samples",)),
    "an evaluation": (("report.json",), ("title", "scores", "protocol")),
    "a sweep": (("sweep.json",), ("asked", "points", "protocol")),
    "an autoencoder": (("config.json", "diffusion_pytorch_model.safetensors"), ()),
}
"""Folders that dit writes: names that lie in them, and keys of the first of those files."""


@dataclass(frozen=True)
class ImageListing:
    """The image files of a folder.

    Args:
        classes: subfolders with images, sorted; none where images lie directly in the folder.
        files: of each class, sorted, relative to its subfolder; of the folder without classes.
        notes: what the user should know of: files left out, subfolders without images.
    """

    classes: list[str]
    files: list[list[str]]
    notes: list[str]

    @property
    def paths(self) -> list[str]:
        """All files in order, relative to the folder."""
        if not self.classes:
            return self.files[0]
        pairs = zip(self.classes, self.files, strict=True)
        return [f"{name}/{file}" for name, files in pairs for file in files]

    @property
    def labels(self) -> list[str]:
        """The class of each file, in order; empty without classes."""
        pairs = zip(self.classes, self.files, strict=False)
        return [name for name, files in pairs for _ in files]


@dataclass
class _Found:
    """Images below a folder, relative to it, the kinds of other files, and folders of dit."""

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, str] = field(default_factory=dict)  # what each is, by its path


def list_images(root: Path, used: Collection[str] = ()) -> ImageListing:
    """List the images of a folder by class.

    Args:
        used: names of other files in it that are read too, and thus are not left out.

    Raises:
        UserError: no images, images both directly in the folder and below it, or several splits.
    """
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder",
            "a folder of images, or with one subfolder of images per class",
            "check the path",
        )
    direct, folders = _Found(), []
    for name, kind in _entries(root):
        if kind == "folder":
            folders.append(name)
        elif name not in used:
            _add(direct, name, kind)
    below = {name: _find_images(root / name, above=root) for name in sorted(folders)}
    classes = [name for name, found in below.items() if found.images]
    others = sum((found.others for found in below.values()), direct.others)
    outputs = [pair for found in below.values() for pair in found.outputs.items()]

    if direct.images and classes:
        first = f"{classes[0]}/{below[classes[0]].images[0]}"
        raise UserError(
            f"{root} has images both directly ({min(direct.images)}) and in subfolders ({first})",
            "one or the other: images without classes, or one subfolder of images per class",
            "move one of the two kinds away",
        )
    if direct.images:
        notes = _note_outputs(outputs) + _note_others(root, others)
        return ImageListing([], [sorted(direct.images)], notes)
    if not classes and outputs:
        folder, output = outputs[0]
        raise UserError(
            f"{root} has no images but what dit wrote: {folder} ({output})",
            "images of your own, or one folder of samples",
            f"check the path; samples that are to be a class need a folder without {RECORD}",
        )
    if not classes:
        raise UserError(
            f"{root} has no images" + (f" but {_count_kinds(others)}" if others else ""),
            f"image files ({COMMON}), or one subfolder of them per class",
            "check the path",
        )
    images = {name: below[name].images for name in classes}
    _refuse_splits(root, images)
    empty = [name for name, found in below.items() if not found.images and not found.outputs]
    notes = _note_outputs(outputs) + _note_classes(root, images, empty)
    files = [sorted(images[name]) for name in classes]
    return ImageListing(classes, files, notes + _note_others(root, others))


def find_images(root: Path) -> list[str]:
    """Return all images in a folder and below it, relative to it, sorted."""
    return sorted(_find_images(root).images)


# -- walking ---------------------------------------------------------------------------------------


def _find_images(top: Path, above: Path | None = None) -> _Found:
    """Find the images in a folder and below it.

    Links are followed, except to a folder that they lie in, which would never end.

    Args:
        above: a folder around it, where the walk begins.
    """
    found = _Found()
    around = frozenset() if above is None else frozenset({_identify(above)})
    pending = [("", around)]
    while pending:
        prefix, around = pending.pop()
        folder = top / prefix
        identity = _identify(folder)
        if identity in around:
            continue
        entries = list(_entries(folder))
        inside = prefix or above
        if inside and (output := _find_output(folder, {name for name, _ in entries})):
            found.outputs[str(folder)] = output
            continue
        for name, kind in entries:
            if kind == "folder":
                pending.append((f"{prefix}{name}/", around | {identity}))
            else:
                _add(found, prefix + name, kind)
    return found


def _find_output(folder: Path, names: set[str]) -> str | None:
    """Return what dit wrote a folder with these names as; None if it is another's."""
    for output, (files, keys) in OUTPUTS.items():
        if names.issuperset(files) and (not keys or is_record(folder / files[0], keys)):
            return output
    return None


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and kind of what lies in a folder: folder, file, or pipe or device.

    Hidden files and those that systems put into every folder are passed over.
    """
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if not entry.name.startswith(".") and entry.name.lower() not in BY_PROGRAMS:
                    yield entry.name, _kind(entry)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror})",
            "a folder that you may read",
            "check its permissions and links",
        ) from error


def _kind(entry: os.DirEntry[str]) -> str:
    # without links the type is known from the folder, which saves a call for every file
    if not entry.is_symlink():
        is_folder, is_file = entry.is_dir(), entry.is_file()
    else:
        try:
            mode = entry.stat().st_mode
        except OSError:
            return "file"  # a link that leads nowhere: reading it says so
        is_folder, is_file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
    return "folder" if is_folder else "file" if is_file else "pipe or device"


def _add(found: _Found, path: str, kind: str) -> None:
    name = path.rpartition("/")[2]
    if kind != "file":
        found.others[kind] += 1
    elif is_image(name):
        found.images.append(path)
    else:
        extension = os.path.splitext(name)[1].lower()
        found.others[extension or "without extension"] += 1


def _identify(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


# -- what is refused or told -----------------------------------------------------------------------


def _refuse_splits(root: Path, images: dict[str, list[str]]) -> None:
    """Refuse a folder whose subfolders hold the classes: `train` and `val` are no classes."""
    names = list(images)
    if len(names) > 1 and SPLITS.issuperset(name.lower() for name in names):
        raise UserError(
            f"{root} has the splits {' and '.join(names)}",
            "one data set, for splits are no classes",
            f"pass {root / names[0]}",
        )

    first = images[names[0]]
    below = sorted({path.partition("/")[0] for path in first})
    holds_classes = len(below) > 1 or names[0].lower() in SPLITS
    if len(names) == 1 and holds_classes and all("/" in path for path in first):
        inner = ", ".join(below[:NAMED])
        raise UserError(
            f"{root} has one subfolder with images, {names[0]}, and there they lie in {inner}",
            "one subfolder of images per class",
            f"pass {root / names[0]} if that folder holds the classes",
        )


def _note_classes(root: Path, images: dict[str, list[str]], empty: list[str]) -> list[str]:
    classes = list(images)
    notes: list[str] = []
    for name in classes:
        inner = sorted({path.partition("/")[0] for path in images[name] if "/" in path})
        if len(inner) > 1 and len(notes) < NAMED:
            folders = ", ".join(f"{name}/{folder}" for folder in inner[:NAMED])
            more = ", …" if len(inner) > NAMED else ""
            notes.append(f"class {name} has the images of {folders}{more}")
    if len(classes) == 1:
        notes.append(
            f"{root} has one class, {classes[0]}; pass {root / classes[0]} for images without class"
        )
    alike = Counter(unicodedata.normalize("NFC", name) for name in classes)
    for name in sorted(name for name, count in alike.items() if count > 1):
        notes.append(
            f"{alike[name]} subfolders of {root} are called {name}, in composed and in decomposed "
            "letters: they are different classes; put the images into one of them if not"
        )
    if empty:
        names = ", ".join(empty[:NAMED]) + (", …" if len(empty) > NAMED else "")
        noun = "subfolder" if len(empty) == 1 else "subfolders"
        notes.append(f"{len(empty)} {noun} of {root} without images: no class ({names})")
    return notes


def _note_outputs(outputs: list[tuple[str, str]]) -> list[str]:
    """Say which folders are no data because dit wrote them."""
    named = [f"{folder} ({output})" for folder, output in outputs[:NAMED]]
    if len(outputs) > NAMED:
        named.append("…")
    return [f"not read, as dit wrote it: {', '.join(named)}"] if named else []


def _note_others(root: Path, others: Counter[str]) -> list[str]:
    total = others.total()
    noun = "file" if total == 1 else "files"
    return [f"{total:,} {noun} left out in {root} ({_count_kinds(others)})"] if others else []


def _count_kinds(others: Counter[str]) -> str:
    counts = [f"{count:,} {kind}" for kind, count in others.most_common(NAMED)]
    if len(others) > NAMED:
        counts.append("…")
    return ", ".join(counts)
