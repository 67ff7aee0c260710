"""Sample images from a run: python sample.py --run RUN --cfg-scale 4"""

import sys

from dit.cli import sample

if __name__ == "__main__":
    sys.exit(sample())
