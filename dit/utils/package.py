"""What this package is: its version, and its name where `dit` is another package."""

import os  # pathlib would take longer to import than all of this

__version__ = "0.2.0"

DISTRIBUTION = "diffusion-transformer"  # on PyPI
FOLDER = os.path.dirname(os.path.dirname(__file__))
FILE_OF_THE_OTHER = "samplespace.py"


def refuse_other_package(folder: str | os.PathLike = FOLDER) -> None:
    """Raise an ImportError if the other `dit` of PyPI was installed over this package.

    That one is of discrete information theory. In one environment the two overwrite each other.
    """
    if os.path.exists(os.path.join(folder, FILE_OF_THE_OTHER)):
        raise ImportError(
            f"two packages share {folder}: {DISTRIBUTION} and the information-theory package "
            f"dit; use an environment for each: pip uninstall -y dit {DISTRIBUTION}, then "
            f"pip install {DISTRIBUTION}"
        )
