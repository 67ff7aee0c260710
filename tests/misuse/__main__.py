"""`python -m misuse [WORDS]`: run all cases, or those whose name has these words; print a list.

It exits with 1 if any use ends in a traceback, hangs, or has another end than the table says.
"""

import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from misuse.case import Case
from misuse.runner import make_fixtures, preload, run_case
from misuse.table import CASES
from misuse.verdict import KINDS, Verdict

JOBS = 2


def main(words: str) -> int:
    """Run the cases and print their verdicts."""
    cases = [case for case in CASES if words in f"{case.kind}: {case.name}"]
    start = time.monotonic()
    preload()
    with tempfile.TemporaryDirectory(prefix="misuse-") as folder:
        made = make_fixtures(Path(folder))
        print(f"fixtures made in {time.monotonic() - start:.0f} s", flush=True)
        with ThreadPoolExecutor(JOBS) as pool:
            verdicts = list(pool.map(lambda case: _run(case, made, bool(words)), cases))

    counts = Counter(verdict.kind for verdict in verdicts)
    shown = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    print(f"\n{len(cases)} tried: {shown}; {time.monotonic() - start:.0f} s")
    return int(any(verdict.failed for verdict in verdicts))


def _run(case: Case, made: Path, verbose: bool) -> Verdict:
    verdict = run_case(case, made)
    if verdict.failed or verbose:
        print(f"{verdict.kind:<9} dit {case.name}\n          {verdict.why}", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
