"""The command `dit report`: one page of a run, at its end or at any time before."""

from dit.config import ReportConfig
from dit.distributed.ranks import Ranks
from dit.report.run_page import write_page
from dit.report.run_scores import newest_verdict, read_evaluations


def report(config: ReportConfig, ranks: Ranks) -> None:
    """Write RUN/report.html; print its path and the verdict of the newest evaluation.

    Raises:
        UserError: no run, or one that has logged nothing.
    """
    if ranks.main:
        page = write_page(config.run)
        evaluations, _ = read_evaluations(config.run)
        if sentence := newest_verdict(evaluations):
            print(sentence)
        print(page)
