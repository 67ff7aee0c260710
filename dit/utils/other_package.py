"""The other package of this import name: discrete information theory, `dit` on PyPI.

In one environment the two overwrite each other's files, and neither works.
"""

from pathlib import Path

DISTRIBUTION = "diffusion-transformer"  # the name of this one on PyPI
PACKAGE = Path(__file__).parents[1]
ITS_FILE = "samplespace.py"  # the other has it, this one not


def refuse_other_package(package: Path = PACKAGE) -> None:
    """Raise an ImportError if the other package was installed into the folder of this one."""
    if (package / ITS_FILE).exists():
        raise ImportError(
            f"two packages share {package}: {DISTRIBUTION} and the information-theory package "
            f"dit; use an environment for each: pip uninstall -y dit {DISTRIBUTION}, then "
            f"pip install {DISTRIBUTION}"
        )
