"""The command `dit train-classifier`: train a classifier of noised latents, to guide a run with."""

from pathlib import Path

from dit.commands.train import train
from dit.config import ClassifierConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.latents.load import require_latents_of
from dit.models.registry import is_classifier
from dit.runs.checkpoint_files import checkpoint_step, find_weights, latest_checkpoint
from dit.runs.weights import Weights, read_weights
from dit.utils.files import command_line, shell_quote

SHARED = ("preset", "vae", "image_size", "flip", "latent_norm", "process", "time_shift")
"""Settings of the guided run that hold for its classifier."""
OWN = (
    *("model", "steps", "global_batch_size", "lr", "weight_decay", "warmup", "seed"),
    *("precision", "compile", "recompute", "resume", "ckpt_every", "log_every", "dry_run"),
)
"""Settings that the command has flags for."""


def train_classifier(config: ClassifierConfig, ranks: Ranks) -> Path | None:
    """Train, or continue, a classifier for a run; return its directory, or None after a dry run.

    Raises:
        UserError: no run, one without classes, or what `train` refuses.
    """
    guided = read_weights(find_weights(config.run))
    settings = settings_for(config, guided)
    require_latents_of(guided.card, config.run, settings.data)
    out = train(settings, ranks, parent_card=guided.card)
    last = latest_checkpoint(out) if out else None
    if ranks.main and last and checkpoint_step(last) == settings.steps:
        run, classifier = shell_quote(config.run), shell_quote(out)
        flags = f"--classifier {classifier} --classifier-scale 2"
        print(f"next        {command_line('sample')} --run {run} {flags}")
    return out


def settings_for(config: ClassifierConfig, guided: Weights) -> TrainConfig:
    """Return the settings of training: data, latents and noise are the guided run's."""
    card, theirs = guided.card, guided.card.config
    if is_classifier(card.network.model):
        raise UserError(
            f"--run {config.run} is a {card.network.model}",
            "a diffusion run",
            "pass the run to be guided",
        )
    if card.network.conditioning == "text":
        raise UserError(
            f"--run {config.run} was trained on captions (--conditioning text)",
            "a run with classes",
            "guide it with --cfg-scale, or a weaker run with --guide",
        )
    if not is_classifier(config.model):
        raise UserError(
            f"--model {config.model}",
            "Classifier-{Mi,Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}",
            "pass --model Classifier-Ti/2",
        )

    # A loss-aware sampler learns from the diffusion loss, which a classifier does not have.
    loss_aware = theirs.time_sampling == "loss-aware"
    resumed = None if config.resume in (None, "auto") else Path(config.resume)
    return TrainConfig(
        **{name: getattr(theirs, name) for name in SHARED},
        **{name: getattr(config, name) for name in OWN},
        data=config.data or theirs.data,
        # the columns of other data would have other names
        image_column=None if config.data else theirs.image_column,
        label_column=None if config.data else theirs.label_column,
        num_classes=card.network.num_classes or None,
        objective="v",
        time_sampling="logit-normal" if loss_aware else theirs.time_sampling,
        label_dropout=0.0,
        sample_every=config.steps,
        out=config.out or resumed or guided.home / "classifier",
    )
