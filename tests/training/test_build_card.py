"""What a card decides from the data."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.training import TINY, a_session

from dit.config import TrainConfig
from dit.errors import UserError
from dit.training.build_card import build_card, time_shift_of


def test_times_are_shifted_by_the_size_of_the_latents(tmp_path):
    """2510.11690: the root of the numbers of a latent over 4096; 1 for f8d4 at 256 px."""
    assert time_shift_of((4, 32, 32)) == 1
    assert time_shift_of((4, 8, 8)) == 0.25
    assert time_shift_of((768, 16, 16)) == pytest.approx(6.93, abs=0.01)
    session = a_session(tmp_path, dataclasses.replace(TINY, time_shift="auto"))
    expected = (3 * 8 * 8 / 4096) ** 0.5
    assert session.card.config.time_shift == session.stream.process.shift == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(loss="velocity", process="linear"), "--loss velocity with --process linear"),
        (dict(cosine=1.0, process="linear"), "--cosine 1 with --process linear"),
        (dict(loss="velocity", min_snr_gamma=5.0), "--loss velocity with --min-snr-gamma 5"),
        (dict(route=0.5, model="UNet-S"), "--route 0.5 with --model UNet-S"),
        (dict(route=1.0), "--route 1;"),
        (dict(time_shift=0.0), "--time-shift 0;"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**flags)


class ConstantLatents:
    """One class of latents whose second channel never changes."""

    labels, classes, flips, shape = np.zeros(4, np.int64), ["a"], False, (3, 8, 8)

    def statistics(self):
        return torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])


def test_a_channel_that_never_changes_is_not_scaled_by_the_data():
    config = dataclasses.replace(TINY, latent_norm="data")
    with pytest.raises(UserError, match=r"\[1.0, 0.0, 1.0\] .*pass --latent-norm vae"):
        build_card(config, ConstantLatents())
    assert build_card(TINY, ConstantLatents()).network.num_classes == 1
