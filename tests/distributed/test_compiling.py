"""The compiler flag that GCC needs on x86."""

import platform

import pytest
from torch._inductor import config

from dit.distributed.compiling import _options

FLAG = {"cpp.march": "native -fno-tree-slp-vectorize"}


@pytest.mark.parametrize(
    ("system", "machine", "march", "expected"),
    [
        ("Linux", "x86_64", None, FLAG),
        ("Linux", "x86_64", "skylake", None),  # the user's own
        ("Linux", "x86_64", "", None),
        ("Linux", "aarch64", None, None),
        ("Darwin", "x86_64", None, None),
        ("Windows", "AMD64", None, None),
    ],
)
def test_gcc_on_x86_is_given_a_flag_unless_the_user_names_a_processor(
    system, machine, march, expected, monkeypatch
):
    if not hasattr(config.cpp, "march"):
        pytest.skip("PyTorch has the setting since 2.15")
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with config.patch({"cpp.march": march}):
        assert _options() == expected
