"""What a training adds to the plain loss, in words: its levers that are on."""

from dit.config.training import TrainConfig


def describe_levers(config: TrainConfig) -> str:
    """Return the levers of the loss that are on, with their values; empty without any.

    Not those of the network, which describes itself, and of the optimizer.
    """
    found = {
        f"loss of the {config.loss}": config.loss == "velocity",
        "variational bound alone": config.loss == "vlb",
        f"cosine of velocities, weight {config.cosine:g}": config.cosine > 0,
        f"times shifted by {_shift(config)}": config.time_shift != 1,
        f"min-SNR weights of gamma {config.min_snr_gamma}": config.min_snr_gamma is not None,
        f"{config.route:.0%} of the tokens skip the middle blocks": config.route > 0,
        f"early tokens follow {_teacher(config)} in the first {config.align_until:.0%} of the "
        f"steps, weight {config.align_weight:g}": config.align is not None,
    }
    return "; ".join(words for words, on in found.items() if on)


def _shift(config: TrainConfig) -> str:
    return config.time_shift if config.time_shift == "auto" else f"{config.time_shift:.3g}"


def _teacher(config: TrainConfig) -> str:
    return "late ones of the EMA" if config.align == "self" else str(config.align)
