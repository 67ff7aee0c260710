"""The command `dit report`: one page of a run, at its end or at any time before."""

from dit.config import ReportConfig
from dit.distributed.ranks import Ranks
from dit.report.run_page import write_page


def report(config: ReportConfig, ranks: Ranks) -> None:
    """Write RUN/report.html and print its path.

    Raises:
        UserError: no run, or one that has logged nothing.
    """
    if ranks.main:
        print(write_page(config.run))
