"""The table of wrong uses, a file for each kind."""

from misuse.case import Case
from misuse.table import flags

CASES: list[Case] = [*flags.CASES]
