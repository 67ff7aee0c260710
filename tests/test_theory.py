"""docs/theory.md names code that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = re.findall(r"`([^`]+)`", (ROOT / "docs" / "theory.md").read_text())
SOURCES = {
    file: file.read_text() for folder in ("dit", "tests") for file in (ROOT / folder).rglob("*.py")
}
FILES = {c: match for c in CODE if (match := re.fullmatch(r"([\w/]+\.py)(?:: (.+))?", c))}
# such as classifier.classifier_loss
NAMES = {c: match for c in CODE if (match := re.fullmatch(r"([a-z_]+)\.([A-Za-z_]+)", c))}


def defined(name, source):
    """Return a match if the source defines a function, class, method or constant."""
    return re.search(rf"^\s*(def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE)


@pytest.mark.parametrize("reference", FILES)
def test_files_define_the_names(reference):
    path, names = FILES[reference].groups(default="")
    sources = [source for file, source in SOURCES.items() if file.as_posix().endswith(f"/{path}")]
    assert sources
    for name in re.findall(r"\w+", names):
        assert any(defined(name, source) for source in sources)


@pytest.mark.parametrize("reference", NAMES)
def test_modules_define_the_names(reference):
    module, name = NAMES[reference].groups()
    assert any(defined(name, source) for file, source in SOURCES.items() if file.stem == module)


@pytest.mark.parametrize("name", [c for c in CODE if re.fullmatch(r"test_\w+", c)])
def test_tests_exist(name):
    assert any(defined(name, source) for source in SOURCES.values())


def test_the_page_names_enough_code():
    assert len(FILES) > 20
    assert len(NAMES) > 5
