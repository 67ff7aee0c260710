"""MODULE:CLASS: code of the user's own, from the current directory or installed."""

import importlib
import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from dit.errors import UserError, did_you_mean

NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.<>]*")
SCRIPT = "__main__"


def is_class_name(name: str) -> bool:
    """Return whether a text has the form MODULE:CLASS."""
    return NAME.fullmatch(name) is not None


def class_name(kind: type) -> str:
    """Return MODULE:CLASS of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def lies_in(name: str, folders: Iterable[Path]) -> bool:
    """Return whether the code of MODULE:CLASS, not imported before, lies in one of the folders."""
    package = name.partition(":")[0].partition(".")[0]
    if package in sys.modules:
        return False
    found = PathFinder.find_spec(package, [*sys.path, os.getcwd()])
    if found is None:
        return False
    places = [found.origin] if found.origin else list(found.submodule_search_locations or ())
    parents = {parent for place in places for parent in Path(place).resolve().parents}
    return any(folder.resolve() in parents for folder in folders)


def import_class(flag: str, name: str, what: str, base: type = object) -> type:
    """Return the class MODULE:CLASS.

    Args:
        flag: that names it, `what`: what it is a class of, such as `a network`; for messages.
        base: what it must be a subclass of.
    """
    module_name, _, wanted = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # it stays, for what the module may import later
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code can fail in any way
        raise UserError(
            f"{flag} {name}: importing {module_name} fails ({reason(error)})",
            "MODULE:CLASS, with a module that can be imported",
            "correct the name or the module, or change to the folder that holds it",
        ) from error

    found = getattr(module, wanted, None)
    if isinstance(found, type) and issubclass(found, base):
        return found
    where = getattr(module, "__file__", None) or module_name
    do = "write one there"
    if module_name == SCRIPT:
        do = "move the class into a file of its own, which other programs can import"
    elif classes := [key for key, v in vars(module).items() if _is_own(v, base, module_name)]:
        do = did_you_mean(wanted, classes, f"it has {', '.join(classes)}")
    raise UserError(
        f"{flag} {name}: {where} has no class {wanted!r} of {what}",
        "a class" if base is object else f"a subclass of torch.nn.{base.__name__}",
        do,
    )


def _is_own(value: object, base: type, module: str) -> bool:
    """Return whether a value is such a class, and, where any would do, of that module itself."""
    if not (isinstance(value, type) and issubclass(value, base)):
        return False
    return base is not object or value.__module__ == module


def reason(error: BaseException) -> str:
    """Return an exception of any kind as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
