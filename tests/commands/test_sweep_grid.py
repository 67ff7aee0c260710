"""What flags of a sweep mean, and what they can not mean."""

import pytest

from dit.commands.sweep.grid import (
    check_count,
    parse_counts,
    parse_intervals,
    parse_names,
    parse_numbers,
)
from dit.errors import UserError

SAMPLERS = ("auto", "ddpm", "ddim", "euler", "heun", "dpmpp_2m")


def refused(parse, text, *more):
    with pytest.raises(UserError) as error:
        parse("--flag", text, *more)
    assert "--flag" in str(error.value)
    return error.value


def test_values_of_a_range_are_those_one_would_write():
    assert parse_numbers("--flag", "1:4:0.25") == [1 + i / 4 for i in range(13)]
    tenths = parse_numbers("--flag", "1:2:0.1")
    assert tenths == [
        1.0,
        1.1,
        1.2,
        1.3,
        1.4,
        1.5,
        1.6,
        1.7,
        1.8,
        1.9,
        2.0,
    ]  # adding 0.1 gives 1.2000000000000002
    assert (
        " ".join(f"{v:g}" for v in parse_numbers("--flag", "1.5:1.75:0.05"))
        == "1.5 1.55 1.6 1.65 1.7 1.75"
    )


def test_stop_is_there_where_a_step_lands_on_it():
    assert parse_numbers("--flag", "1:2:0.3") == [1.0, 1.3, 1.6, 1.9]
    assert parse_numbers("--flag", "2:2:1") == [2.0]


def test_lists_ranges_and_mixtures_keep_their_order_and_drop_duplicates():
    assert parse_numbers("--flag", "1,1.5,2") == [1.0, 1.5, 2.0]
    assert parse_numbers("--flag", " 1 , 2:4:1, 3,1.0,0.5") == [1.0, 2.0, 3.0, 4.0, 0.5]
    assert parse_numbers("--flag", "0") == [0.0]
    assert parse_counts("--flag", "50,10:30:10,10") == [50, 10, 20, 30]
    assert all(isinstance(v, int) for v in parse_counts("--flag", "1e2,5"))


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-1", "1:inf:1", "1:nan:1", "one", "1:4", "1:2:3:4", "0x10", "1e400"]
)
def test_what_is_no_number_is_named(text):
    assert "1:4:0.25" in refused(parse_numbers, text).expected


@pytest.mark.parametrize("text", ["", ",", "1,,2", "1,"])
def test_empty_entries(text):
    assert "an empty entry" in refused(parse_numbers, text).given
    assert "an empty entry" in refused(parse_names, text, SAMPLERS).given


def test_ranges_that_run_backwards_or_stand_still():
    error = refused(parse_numbers, "4:1:0.25")
    assert "backwards" in error.given
    assert error.do == "pass --flag 1:4:0.25"
    assert "steps of 0" in refused(parse_numbers, "1:4:0").given
    assert "'-0.5'" in refused(parse_numbers, "4:1:-0.5").given


def test_too_many_are_refused_before_they_are_made():
    assert "makes 3,000,001 settings" in refused(parse_numbers, "1:4:0.000001").given
    assert "1,000" in refused(parse_counts, "1:100000000:1").expected
    refused(parse_numbers, "0:1:1e-300")
    check_count("--flag", 1000)
    with pytest.raises(UserError, match="makes 1,001 settings"):
        check_count("--flag", 1001)


@pytest.mark.parametrize("text", ["0", "2.5", "10:11:0.5", "-3", "ten"])
def test_steps_are_whole(text):
    assert "whole numbers above 0" in refused(parse_counts, text).expected


def test_intervals():
    assert parse_intervals("--flag", "0-1,0.2-0.8,0-1.0,.5-.5") == [
        (0.0, 1.0),
        (0.2, 0.8),
        (0.5, 0.5),
    ]


@pytest.mark.parametrize("text", ["0.8-0.2", "0-2", "0.5", "-1-1", "nan-1", "0-1-1", "a-b", "0:1"])
def test_what_is_no_interval_is_named(text):
    error = refused(parse_intervals, f"0-1,{text}")
    assert f"{text!r} (in 0-1,{text})" in error.given
    assert "LOW-HIGH" in error.expected


def test_samplers():
    assert parse_names("--flag", "ddim, dpmpp_2m,ddim", SAMPLERS) == ["ddim", "dpmpp_2m"]
    error = refused(parse_names, "ddim,dpmpp2m", SAMPLERS)
    assert error.given == "--flag dpmpp2m"
    assert error.do.startswith("did you mean dpmpp_2m")
