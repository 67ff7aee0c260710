"""The table of wrong uses, a file for each kind."""

import dataclasses

from misuse.case import Case
from misuse.table import flags, paths

KINDS = {"flags": flags.CASES, "paths": paths.CASES}
CASES: list[Case] = [
    dataclasses.replace(case, kind=kind) for kind, cases in KINDS.items() for case in cases
]
