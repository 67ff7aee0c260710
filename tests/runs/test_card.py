"""The card of a run: values that no training writes are refused as it is read."""

from pathlib import Path

import pytest

from dit.errors import UserError
from dit.runs.card import ModelCard, NetworkSpec
from dit.utils.files import write_json

OLD = Path(__file__).parents[1] / "data" / "run-of-2257fc1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(class_counts=[4] * 9 + [-4]), "class_counts .*, not a number of images for each of"),
        (dict(class_counts=[4] * 9), "class_counts .*, not a number of images for each of 10"),
        (dict(class_counts=[4] * 11), "class_counts .*, not a number of images for each of 10"),
        (dict(latent_std=[0.0]), r"latent_std \[0.0\], not numbers above 0"),
        (dict(latent_std=[1.0, 2.0]), "latent_std of length 2, not a value for each of 1 channels"),
    ],
)
def test_counts_and_statistics_fit_classes_and_channels(tmp_path, change, message):
    values = ModelCard.read(OLD).to_json()
    values["network"]["in_channels"] = 1
    values |= dict(latent_mean=None, latent_std=None)
    write_json(tmp_path / "config.json", values)
    assert len(ModelCard.read(tmp_path).classes) == 10

    write_json(tmp_path / "config.json", values | change)
    with pytest.raises(UserError, match=message):
        ModelCard.read(tmp_path)


def test_blocks_are_compared_by_their_layers():
    """Cards of runs are compared for --init, --resume and in the protocol of samples."""
    sizes = dict(model="DiT-S/2", input_size=8, in_channels=3, num_classes=2, learn_sigma=False)
    one, two = (
        NetworkSpec(block=block, **sizes) for block in ("plain+rope+qknorm", "plain+qknorm+rope")
    )
    assert one == two
    assert one.summary == two.summary
    assert "block" not in NetworkSpec(block="plain+rope-rope", **sizes).summary
    assert one != NetworkSpec(block="plain+rope", **sizes)
