"""Train a Diffusion Transformer: python train.py, or torchrun --nproc-per-node N train.py"""

import sys

from dit.cli import train

if __name__ == "__main__":
    sys.exit(train())
