"""Score samples against a reference: python evaluate.py --run RUN"""

import sys

from dit.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
