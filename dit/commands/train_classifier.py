"""The command `dit train-classifier`: a run that learns to tell the classes of noised latents."""

from pathlib import Path

from dit.config import ClassifierConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.registry import is_classifier
from dit.runs.checkpoints import checkpoint_step, find_weights, latest_checkpoint
from dit.runs.weights import Weights, read_weights
from dit.training.trainer import train
from dit.utils.files import shell_quote


def train_classifier(config: ClassifierConfig, ranks: Ranks) -> Path | None:
    """Train, or continue, a classifier for a run; its directory (None after a dry run).

    Raises:
        UserError: no run, one without classes to tell apart, or what `train` refuses.
    """
    guided = read_weights(find_weights(config.run))
    asked = settings_for(config, guided)
    out = train(asked, ranks, parent_card=guided.card)
    last = latest_checkpoint(out) if out else None
    if ranks.main and last and checkpoint_step(last) == asked.steps:
        print(
            f"next        python sample.py --run {shell_quote(config.run)} --classifier {shell_quote(out)} "
            "--classifier-scale 2"
        )
    return out


def settings_for(config: ClassifierConfig, guided: Weights) -> TrainConfig:
    """The settings of training: data, latents and noise are the run's.

    Raises:
        UserError: a run of captions, a classifier, or a network of another kind than a classifier.
    """
    card = guided.card
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
            "Classifier-{Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}",
            "pass --model Classifier-Ti/2",
        )
    theirs = card.config
    return TrainConfig(
        preset=theirs.preset,
        data=config.data or theirs.data,
        vae=theirs.vae,
        image_size=theirs.image_size,
        num_classes=card.network.num_classes or None,
        flip=theirs.flip,
        latent_norm=theirs.latent_norm,
        model=config.model,
        process=theirs.process,
        objective="v",
        time_sampling="logit-normal"
        if theirs.time_sampling == "loss-aware"
        else theirs.time_sampling,
        time_shift=theirs.time_shift,
        label_dropout=0.0,
        steps=config.steps,
        global_batch_size=config.global_batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        precision=config.precision,
        compile=config.compile,
        recompute=config.recompute,
        seed=config.seed,
        out=_out(config, guided.home),
        resume=config.resume,
        sample_every=config.steps,
        ckpt_every=config.ckpt_every,
        log_every=config.log_every,
        dry_run=config.dry_run,
    )


def _out(config: ClassifierConfig, home: Path) -> Path:
    named = None if config.resume in (None, "auto") else config.resume
    return config.out or Path(named or home / "classifier")
