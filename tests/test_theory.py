"""docs/theory.md names code that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = re.findall(r"`([^`]+)`", (ROOT / "docs" / "theory.md").read_text())
SOURCES = {
    file: file.read_text() for folder in ("dit", "tests") for file in (ROOT / folder).rglob("*.py")
}
FILES = {c: match for c in CODE if (match := re.fullmatch(r"([\w/]+\.py)(?:: (.+))?", c))}
NAMES = {
    c: match for c in CODE if (match := re.fullmatch(r"([a-z_]+)\.([A-Za-z_]+)", c))
}  # classifier.classifier_loss


def defined(name, source):
    """A function, class or method, or a constant."""
    return re.search(rf"^\s*(def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE)


@pytest.mark.parametrize("said", FILES)
def test_files_hold_what_is_named_in_them(said):
    path, names = FILES[said].groups(default="")
    sources = [source for file, source in SOURCES.items() if file.as_posix().endswith(f"/{path}")]
    assert sources
    for name in re.findall(r"\w+", names):
        assert any(defined(name, source) for source in sources)


@pytest.mark.parametrize("said", NAMES)
def test_modules_hold_what_is_named_in_them(said):
    module, name = NAMES[said].groups()
    assert any(defined(name, source) for file, source in SOURCES.items() if file.stem == module)


@pytest.mark.parametrize("name", [c for c in CODE if re.fullmatch(r"test_\w+", c)])
def test_tests(name):
    assert any(defined(name, source) for source in SOURCES.values())


def test_there_is_something_to_look_up():
    assert len(FILES) > 20
    assert len(NAMES) > 5
