"""The command `dit train`, or train.py: train, or continue, a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from dit.config import TrainConfig
from dit.distributed.float8 import require_fp8
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.registry import check_name
from dit.runs.card import ModelCard
from dit.training.cost.dry_run import describe
from dit.training.finetune import find_origin
from dit.training.inputs import RunInputs, load_inputs
from dit.training.monitoring.trackers import require_wandb
from dit.training.prepare import prepare
from dit.training.resilience.preemption import stop_on_signals
from dit.training.resolve import resolve
from dit.training.run_directory import find_run, note_start, with_restart, write_card
from dit.training.summary import print_header, print_summary
from dit.training.trainer import train_with_rollback

if TYPE_CHECKING:
    from dit.training.monitoring.evaluation import EvalTarget


def train(asked: TrainConfig, ranks: Ranks, parent_card: ModelCard | None = None) -> Path | None:
    """Train, or continue, a run; return its directory, or None after a dry run.

    Args:
        parent_card: of a run whose latent statistics and classes this one shares.

    Raises:
        UserError: settings, data or files that do not fit; numbers that are not finite.
    """
    config = with_restart(asked, ranks)
    last = check(config, ranks)
    inputs = load_inputs(config, ranks, last, parent_card)
    target = choose_eval_target(config, ranks)
    if config.dry_run:
        dry_run(inputs, ranks)
        return None

    session = prepare(inputs.card, inputs.source, inputs.autoencoder, ranks, inputs.encoder)
    scores = target.prepare(session) if target else None
    with ranks.alone_in(session.run), stop_on_signals(ranks) as stop:
        if ranks.main:
            if not session.finished:
                print_header(session)
            write_card(session.run, session.card, session.finished)
        note_start(session.run, asked, ranks)
        done = train_with_rollback(session, scores, stop)
    if ranks.main:
        print_summary(session, done)
    return session.run


def check(config: TrainConfig, ranks: Ranks) -> Path | None:
    """Refuse mistakes before anything is loaded; return the checkpoint to continue from, if any."""
    check_name(config.model, config.conditioning)
    divisor = ranks.world * config.grad_accum
    if config.global_batch_size % divisor:
        count = f"{ranks.world} rank{'s' if ranks.world > 1 else ''}"
        raise UserError(
            f"--global-batch-size {config.global_batch_size} on {count} with --grad-accum "
            f"{config.grad_accum}",
            f"a multiple of {divisor}",
            "change one of them",
        )
    _, last = find_run(config, ranks)
    require_wandb(config.wandb)
    require_fp8(config.precision, ranks.device)
    return last


def choose_eval_target(config: TrainConfig, ranks: Ranks) -> "EvalTarget | None":
    """Return what --eval-every compares with; without it, no code of evaluation is imported."""
    if not config.eval_every:
        return None
    from dit.training.monitoring import evaluation

    return evaluation.choose_eval_target(config, ranks)


def dry_run(inputs: RunInputs, ranks: Ranks) -> None:
    """Print what the run would train."""
    card, encoder = inputs.card, inputs.encoder
    plan = resolve(card, len(inputs.source.labels), inputs.autoencoder, encoder, ranks)
    if card.config.init and not plan.checkpoint:
        find_origin(card, card.config.init)
    if ranks.main:
        choice = plan.parallel
        print(describe(card, inputs.source, inputs.autoencoder, ranks, choice, encoder))
