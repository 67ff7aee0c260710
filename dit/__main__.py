"""`python -m dit`, the same as `dit`."""

import sys

from dit.cli import main

sys.exit(main())
