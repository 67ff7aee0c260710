"""What a training prints at its start and at its end."""

from dit.models.registry import is_classifier
from dit.runs.checkpoint_files import (
    BEST,
    checkpoint_card,
    checkpoint_step,
    find_best,
    latest_checkpoint,
)
from dit.runs.posthoc_ema import FOLDER
from dit.training.checked_data import Given
from dit.training.cost.describe import start_rows
from dit.training.inputs import RunInputs
from dit.training.monitoring.previews import sample_command
from dit.training.resume import changes
from dit.training.session import TrainingSession
from dit.utils.files import command_line, shell_quote


def print_header(session: TrainingSession, inputs: RunInputs, given: Given) -> None:
    """Print what the run trains, on what, for how long, and settings that changed."""
    rows, remarks = start_rows(inputs, session.plan, session.ranks)
    for name, text in rows.items():
        if text:
            print(f"{name:<11} {given.in_words(text)}", flush=True)
    for kind, text in remarks:
        session.ranks.say([given.in_words(text)], kind)
    last = latest_checkpoint(session.run)
    before = checkpoint_card(last) if last else session.card
    if changed := changes(before, session.card):
        print(f"changed     {given.in_words('; '.join(changed.values()))}", flush=True)


def print_summary(session: TrainingSession, done: int, given: Given) -> None:
    """Print where the results are after `done` steps, and what uses them."""
    config = session.config
    if done < session.steps:
        resume = f"{command_line('train')} --resume {shell_quote(session.run)}"
        # a command has neither the images nor the network
        if given.images is not None or given.module is not None:
            resume = f"the same call with resume='auto' and out={str(session.run)!r}"
        print(f"stopped after step {done} of {session.steps}; continue with: {resume}")
        return
    if session.finished:
        longer = f"--epochs {2 * config.epochs:g}" if config.epochs else f"--steps {2 * done}"
        print(
            f"all {done} steps were done before: nothing was trained; to train longer, pass more, "
            f"such as {given.in_words(longer)}"
        )
    for name, text in _results(session, given).items():
        print(f"{name:<11} {text}")


def _results(session: TrainingSession, given: Given) -> dict[str, object]:
    """Return what a run has written, by name, in the order printed."""
    config, run = session.config, shell_quote(session.run)
    rows: dict[str, object] = {
        "run": session.run,
        "checkpoint": latest_checkpoint(session.run),
        "loss curve": session.run / "loss.png",
        "page": f"dit report {run}",
    }
    if is_classifier(config.model):
        return rows | {"accuracy": session.run / "accuracy.png"}

    if config.sample_every or config.sample_first:
        rows["samples"] = session.run / "samples"
    if config.eval_every:
        scores = session.run / "scores"
        rows["scores"] = f"{scores}.png; how they were measured: {scores}.json"
    if config.ema_lengths:
        folder = session.run / FOLDER
        rows["averages"] = f"{folder}; one of any length: dit ema {run} --ema-lengths 0.07"
    best = find_best(session.run)
    if best and (session.run / BEST).exists():
        distance = f"{best.distance.name} {best.distance.value:.4g}"
        step = checkpoint_step(best.checkpoint)
        rows["best"] = f"{session.run / BEST} (step {step}, {distance})"
    # a command may not be able to create the network that Python code passed
    by_command = sample_command(session.run, session.card)
    rows["next"] = by_command if given.module is None else "run.pipeline() of the run returned"
    return rows
