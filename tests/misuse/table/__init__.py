"""The table of wrong uses, a file for each kind."""

import dataclasses

from misuse.case import Case
from misuse.table import data, flags, latents, paths, runs, scores, surroundings

KINDS = {
    "flags": flags.CASES,
    "paths": paths.CASES,
    "data": data.CASES,
    "latents": latents.CASES,
    "runs": runs.CASES,
    "scores": scores.CASES,
    "surroundings": surroundings.CASES,
}
CASES: list[Case] = [
    dataclasses.replace(case, kind=kind) for kind, cases in KINDS.items() for case in cases
]
