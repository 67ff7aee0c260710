"""Values of a sweep's flags, and those that are refused."""

import pytest

from dit.commands.sweep.parameter_grid import (
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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1:4:0.25", [1 + i / 4 for i in range(13)]),
        # adding 0.1 in binary would give 1.2000000000000002
        ("1:2:0.1", [float(f"1.{i}") for i in range(10)] + [2.0]),
        ("1.5:1.75:0.05", [1.5, 1.55, 1.6, 1.65, 1.7, 1.75]),
        ("1:2:0.3", [1.0, 1.3, 1.6, 1.9]),  # STOP only where a step lands on it
        ("2:2:1", [2.0]),
        (" 1 , 2:4:1, 3,1.0,0.5", [1.0, 2.0, 3.0, 4.0, 0.5]),
        ("0", [0.0]),
    ],
)
def test_lists_and_ranges_of_numbers(text, values):
    assert parse_numbers("--flag", text) == values


def test_counts_intervals_and_names():
    assert parse_counts("--flag", "50,10:30:10,10") == [50, 10, 20, 30]
    assert all(isinstance(value, int) for value in parse_counts("--flag", "1e2,5"))
    intervals = parse_intervals("--flag", "0-1,0.2-0.8,0-1.0,.5-.5")
    assert intervals == [(0.0, 1.0), (0.2, 0.8), (0.5, 0.5)]
    assert parse_names("--flag", "ddim, dpmpp_2m,ddim", SAMPLERS) == ["ddim", "dpmpp_2m"]


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-1", "1:inf:1", "1:nan:1", "one", "1:4", "1:2:3:4", "0x10", "1e400"]
)
def test_what_is_no_number_is_refused(text):
    assert "1:4:0.25" in refused(parse_numbers, text).expected


@pytest.mark.parametrize("text", ["", ",", "1,,2", "1,"])
def test_empty_entries_are_refused(text):
    assert "an empty entry" in refused(parse_numbers, text).given
    assert "an empty entry" in refused(parse_names, text, SAMPLERS).given


def test_ranges_that_run_backwards_or_stand_still_are_refused():
    error = refused(parse_numbers, "4:1:0.25")
    assert "backwards" in error.given
    assert error.do == "pass --flag 1:4:0.25"
    assert "steps of 0" in refused(parse_numbers, "1:4:0").given
    assert "'-0.5'" in refused(parse_numbers, "4:1:-0.5").given


def test_too_many_values_are_refused_before_they_exist():
    assert "makes 3,000,001 settings" in refused(parse_numbers, "1:4:0.000001").given
    assert "1,000" in refused(parse_counts, "1:100000000:1").expected
    refused(parse_numbers, "0:1:1e-300")
    check_count("--flag", 1000)
    with pytest.raises(UserError, match="makes 1,001 settings"):
        check_count("--flag", 1001)


@pytest.mark.parametrize("text", ["0", "2.5", "10:11:0.5", "-3", "ten"])
def test_steps_that_are_not_whole_are_refused(text):
    assert "whole numbers above 0" in refused(parse_counts, text).expected


@pytest.mark.parametrize("text", ["0.8-0.2", "0-2", "0.5", "-1-1", "nan-1", "0-1-1", "a-b", "0:1"])
def test_what_is_no_interval_is_refused(text):
    error = refused(parse_intervals, f"0-1,{text}")
    assert f"{text!r} (in 0-1,{text})" in error.given
    assert "LOW-HIGH" in error.expected


def test_unknown_names_are_refused_with_a_suggestion():
    error = refused(parse_names, "ddim,dpmpp2m", SAMPLERS)
    assert error.given == "--flag dpmpp2m"
    assert error.do.startswith("did you mean dpmpp_2m")
