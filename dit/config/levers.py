"""What a training adds to the plain loss, in words: its levers that are on."""

from dit.config.training import TrainConfig


def describe_levers(config: TrainConfig) -> str:
    """Return the levers of the loss that are on, with their values; empty without any.

    Not those of the network and of the optimizer, nor the shift of times, which others describe.
    """
    found = [
        (config.loss == "velocity", "error of the velocity"),
        (config.loss == "vlb", "variational bound alone"),
        (config.cosine > 0, f"cosine of velocities, weight {config.cosine:g}"),
        (config.min_snr_gamma is not None, f"min-SNR weights, gamma {config.min_snr_gamma}"),
        (config.route > 0, f"{config.route:.0%} of the tokens skip the middle blocks"),
        (config.align is not None, _describe_alignment(config)),
    ]
    return "; ".join(words for on, words in found if on)


def _describe_alignment(config: TrainConfig) -> str:
    teacher = "late ones of the EMA" if config.align == "self" else config.align
    return (
        f"early tokens follow {teacher} in the first {config.align_until:.0%} of the steps, "
        f"weight {config.align_weight:g}"
    )
