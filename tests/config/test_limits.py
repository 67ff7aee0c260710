"""Upper bounds of flags: what would fill the memory or never end is refused with the reason."""

import dataclasses

import pytest

from dit.cli import COMMANDS, parse
from dit.config import TrainConfig
from dit.config.flag_names import flag_name
from dit.config.validation import LIMITS
from dit.errors import UserError

HUGE = 10**18
REQUIRED = {
    "train": "",
    "sample": "--run r",
    "evaluate": "--run r",
    "show": "forward r",
    "sweep": "--run r",
    "stats": "--data d --out o",
    "nll": "--run r",
    "encode": "--data d --out o",
    "train-vae": "--out o",
    "ema": "r --ema-lengths 0.1",
    "edit": "--run r --interpolate",
    "play": "r",
}
NUMBERS = [
    (command, field.name, "1e39" if "float" in str(field.type) else str(8 * 10**17))
    for command in REQUIRED
    for field in dataclasses.fields(COMMANDS[command][0])
    if any(word in str(field.type) for word in ("int", "float")) and field.name != "seed"
]


def refused(command: str, flags: str) -> UserError:
    with pytest.raises(UserError) as error:
        parse(COMMANDS[command][0], f"{REQUIRED[command]} {flags}".split(), f"dit {command}")
    return error.value


@pytest.mark.parametrize(("command", "name", "value"), NUMBERS)
def test_no_number_is_without_a_bound(command, name, value):
    flag = flag_name(name)
    pair = name in ("cfg_interval", "token", "seeds")
    assert refused(command, f"{flag} {value} {value if pair else ''}").given.startswith(flag)


@pytest.mark.parametrize(
    ("command", "flags", "line"),
    [
        (
            "train",
            f"--steps {HUGE}",
            f"--steps {HUGE}; expected at most 1,000,000,000 (eleven days at a thousand steps a "
            "second); change --steps",
        ),
        ("sample", "--steps 100001", "--steps 100001; expected at most 100,000 (more steps do"),
        ("sample", "--per-class 1001", "at most 1,000 (a picture of more columns cannot be viewed"),
        ("encode", "--image-size 32 65537", "--image-size 32 65537; expected at most 65,536 (such"),
        ("evaluate", "--bootstrap 100001", "at most 100,000 (an interval no longer changes"),
        ("train", "--lr 1e300", "--lr 1e+300; expected at most 1e+38 (float32 holds numbers up"),
        ("train", "--clip 1e300", "--clip 1e+300; expected at most 1e+38 (float32 holds"),
        ("train", "--time-shift 1e-300", "--time-shift 1e-300; expected a number from 0.000001"),
        ("train", "--warmup 1000000000001", "at most 1,000,000,000,000 (a trillion"),
        (
            "ema",
            "--ema-lengths 1e-300",
            "--ema-lengths 1e-300; expected lengths from 1e-09 to below 0.2887",
        ),
    ],
)
def test_the_line_says_why(command, flags, line):
    assert line in str(refused(command, flags))


def test_the_bounds_themselves_are_allowed():
    most = {name: LIMITS[name][0] for name in ("steps", "global_batch_size", "timeout")}
    assert TrainConfig(**most, image_size=65_536).steps == 10**9
