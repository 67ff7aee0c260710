"""What the package says of itself to an installer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dit
from dit.distributed.shortage import EXTRAS, missing_package
from dit.utils.package import DISTRIBUTION, FILE_OF_THE_OTHER, refuse_other_package

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # what pytest and mypy need there too

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_MAKE = ("text", "data", "eval", "report", "digits", "dev")


def names(requirements):
    return {re.split(r"[<>=\[]", line)[0] for line in requirements}


def test_requirements_are_those_of_the_package_and_of_its_development():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(line for name in OF_MAKE for line in extras[name])]
    assert sorted(listed) == sorted(set(wanted))


def test_what_runs_needs_no_tool_of_development():
    extras = PROJECT["optional-dependencies"]
    running = names(PROJECT["dependencies"])
    assert not running & names(extras["dev"] + extras["docs"])
    assert not {"pytest", "mypy", "ruff"} & running


def test_all_has_every_extra_of_users():
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs", "fp8"}
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == extras


def test_an_optional_package_is_named_with_its_extra():
    for module, (package, extra) in EXTRAS.items():
        assert package in names(PROJECT["optional-dependencies"][extra])
        error = missing_package(ModuleNotFoundError(name=f"{module}.part"))
        assert f"{DISTRIBUTION}[{extra}]" in str(error)
    assert missing_package(ModuleNotFoundError(name="dit.nothing")) is None


def test_one_version_everywhere():
    cited = re.findall(r"^\s*version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert set(cited) == {dit.__version__}
    assert f"## [{dit.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_links_lead_to_the_repository():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import package_metadata as metadata
    finally:
        sys.path.pop(0)
    text = "![grid](docs/a.png) [page](docs/b.md#part) [out](https://x.org) [here](#part)"
    assert metadata.with_absolute_links(text, "https://example.org/dit") == (
        "![grid](https://example.org/dit/raw/main/docs/a.png) "
        "[page](https://example.org/dit/blob/main/docs/b.md#part) [out](https://x.org) "
        "[here](#part)"
    )


def test_the_other_dit_is_refused(tmp_path):
    refuse_other_package()
    (tmp_path / FILE_OF_THE_OTHER).touch()
    with pytest.raises(ImportError, match="information-theory"):
        refuse_other_package(tmp_path)


def test_import_loads_no_torch():
    check = "import sys, dit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
