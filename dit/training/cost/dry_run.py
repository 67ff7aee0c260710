"""The checks and tables of --dry-run: what a configuration would train, without training it."""

from dit.distributed.ranks import Ranks
from dit.training.cost.alignment import aligned_share
from dit.training.cost.assumed import AssumedImageNet
from dit.training.cost.ddp_or_fsdp import frozen_bytes
from dit.training.cost.describe import describe
from dit.training.cost.planning import PlannedStep, scaling_table
from dit.training.finetune import find_origin
from dit.training.inputs import RunInputs
from dit.training.resolve import resolve


def dry_run(inputs: RunInputs, ranks: Ranks) -> str:
    """Return the table of a training, and with --gpus the table by number of GPUs.

    All that training checks before its first step is checked here too. Nothing is written.
    """
    card, config = inputs.card, inputs.card.config
    if config.eval_every and not isinstance(inputs.source, AssumedImageNet):
        # imported here: without --eval-every, training needs no code of evaluation
        from dit.training.monitoring.evaluation import choose_eval_target

        choose_eval_target(config, ranks)
    plan = resolve(inputs, ranks)
    if config.init and not plan.checkpoint:
        find_origin(card, config.init)

    table = ranks.on_main(lambda: describe(inputs, plan, ranks))
    if not config.gpus:
        return table

    frozen = frozen_bytes(inputs.autoencoder, inputs.encoder, inputs.vision)
    alignment = aligned_share(card, plan.steps) * inputs.alignment
    step = PlannedStep(card, inputs.text_tokens, frozen, alignment)
    images = plan.steps * config.global_batch_size
    return f"{table}\n{ranks.on_main(lambda: scaling_table(step, images))}"
