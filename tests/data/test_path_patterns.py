"""Patterns of files: braces and wildcards."""

import pytest

from dit.data.path_patterns import expand_pattern, require_files
from dit.errors import UserError


def test_braces_keep_their_order_and_name_what_is_missing(tmp_path):
    (tmp_path / "b-00.tar").touch()
    pattern = f"{tmp_path}/{{b,a}}-{{00..01}}.tar"
    files = expand_pattern(pattern)
    assert [file.name for file in files] == ["b-00.tar", "b-01.tar", "a-00.tar", "a-01.tar"]
    with pytest.raises(UserError, match=r"3 of the 4 files .* are missing: .*b-01\.tar"):
        require_files(pattern, files)


def test_wildcards_give_existing_files_sorted(tmp_path):
    for name in ("2.tar", "1.tar", "x.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in expand_pattern(f"{tmp_path}/*.tar")] == ["1.tar", "2.tar"]


def test_a_range_that_would_fill_the_memory_is_refused():
    with pytest.raises(
        UserError, match=r"train-\{000\.\.999999999\}.tar names more than 1,000,000"
    ):
        expand_pattern("train-{000..999999999}.tar")
