"""A training from its settings to its last checkpoint, for commands and the Python interface."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.runs.card import ModelCard
from dit.training.checked_data import NOTHING, Given, note_data
from dit.training.checks import check_and_find_checkpoint
from dit.training.cost.dry_run import dry_run
from dit.training.cost.fit import require_memory
from dit.training.inputs import load_inputs
from dit.training.prepare import prepare
from dit.training.resilience.preemption import stop_on_signals
from dit.training.resolve import resolve
from dit.training.run_directory import note_start, with_restart, write_card
from dit.training.summary import print_header, print_summary
from dit.training.trainer import train_with_rollback

if TYPE_CHECKING:
    from dit.training.monitoring.evaluation import EvalTarget


@dataclass(frozen=True)
class Trained:
    """A run after its training: fewer steps are done than it has if a signal stopped it."""

    run: Path
    done: int
    steps: int
    model: str


def run_training(
    asked: TrainConfig,
    ranks: Ranks,
    parent_card: ModelCard | None = None,
    given: Given = NOTHING,
) -> Trained | None:
    """Train, or continue, a run; return what was done, or None after a dry run.

    Args:
        parent_card: of a run whose latent statistics and classes this one shares.
        given: images and a network that Python code passed.

    Raises:
        UserError: settings, data or files that do not fit; numbers that are not finite.
    """
    # the hub may have answered some ranks only, which would choose another autoencoder
    asked = ranks.broadcast(asked)
    config = with_restart(asked, ranks)
    last = check_and_find_checkpoint(config, ranks)
    inputs = load_inputs(config, ranks, last, parent_card, given)
    if config.dry_run:
        tables = dry_run(inputs, ranks)
        if ranks.main:
            print(tables)
        return None

    target = choose_eval_target(config, ranks, given)
    plan = resolve(inputs, ranks)
    require_memory(inputs, plan, ranks)
    session = prepare(inputs, plan, ranks)
    scores = target.prepare(session) if target else None
    with ranks.lock_folder(session.run), stop_on_signals(ranks) as stop:
        if ranks.main:
            if not session.finished:
                print_header(session, inputs, given)
            # the card comes first: with it the folder is a run, even if a kill follows
            write_card(session.run, session.card, session.finished)
            if not session.finished:
                note_data(session.run, session.stream.source)
        note_start(session.run, asked, ranks)
        done = train_with_rollback(session, scores, stop)
    if ranks.main:
        print_summary(session, done, given)
    return Trained(session.run, done, session.steps, session.card.network.model)


def choose_eval_target(config: TrainConfig, ranks: Ranks, given: Given) -> "EvalTarget | None":
    """Return what --eval-every compares with; without it, no code of evaluation is imported."""
    if not config.eval_every:
        return None
    from dit.training.monitoring import evaluation

    return evaluation.choose_eval_target(config, ranks, given.images)
