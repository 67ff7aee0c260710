"""What a card decides from the data."""

import dataclasses

import pytest
from helpers.training import TINY, a_session

from dit.config import TrainConfig
from dit.errors import UserError
from dit.training.build_card import time_shift_of


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
