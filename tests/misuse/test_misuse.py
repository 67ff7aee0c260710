"""A sample of the wrong uses that `make test-misuse` tries, of each kind and command."""

import fcntl
from pathlib import Path

import pytest

from dit.cli import COMMANDS
from misuse import runner, verdict
from misuse.case import Case, works
from misuse.table import CASES

SCRIPTS = ("train", "sample", "evaluate")


def sample() -> list[Case]:
    """Return the first case of each kind for the three scripts, and one of each other command."""
    chosen: dict[tuple[str, str], Case] = {}
    for case in CASES:
        if case.argv and case.argv[0] in COMMANDS and not case.fresh:
            kind = case.kind if case.argv[0] in SCRIPTS else ""
            chosen.setdefault((kind, case.argv[0]), case)
    return list(chosen.values())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures, made once for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if root.name.startswith("popen-") else root
    with (root / "misuse.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = root / "misuse"
        return folder / "fixtures" if folder.exists() else runner.make_fixtures(folder)


@pytest.mark.parametrize("case", sample(), ids=lambda case: f"{case.kind}-{case.argv[0]}")
def test_a_wrong_use_ends_as_the_table_says(case: Case, made: Path):
    ending = runner.run_case(case, made)
    assert not ending.failed, (case.name, ending)


def test_names_of_cases_differ():
    names = [(case.kind, case.name) for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("code", "err", "changed", "kind"),
    [
        (2, "error: run is missing; expected a run; check it\n", [], "clear"),
        (2, "50%\nerror: run is missing; expected a run; check it\n", [], "clear"),
        (2, "error: x is missing; expected a walk; check it\n", [], "wrong"),
        (2, "error: run is missing\nerror: run is missing\n", [], "wrong"),
        (2, "error: run is missing;\nexpected a run\n", [], "wrong"),
        (2, "error: run is missing\n", ["images/cat/0.png"], "wrong"),
        (0, "error: run is missing\n", [], "wrong"),
        (1, "error: run is missing\n", [], "wrong"),
        (1, "Traceback (most recent call last)\nKeyError: 'run'\n", [], "traceback"),
        (2, "Traceback (most recent call last)\nerror: run is missing\n", [], "traceback"),
        (-11, "error: run is missing\n", [], "traceback"),
        (None, "error: run is missing\n", [], "hang"),
    ],
)
def test_the_verdict_on_a_use_that_must_be_refused(
    code: int | None, err: str, changed: list[str], kind: str, tmp_path: Path
):
    case = Case(("sample",), "run is")
    assert verdict.judge(case, code, "", err, changed, tmp_path).kind == kind


@pytest.mark.parametrize(
    ("code", "out", "right", "kind"),
    [
        (0, "12 images\n", True, "works"),
        (0, "12 images\n", False, "wrong"),
        (0, "11 images\n", True, "wrong"),
        (2, "12 images\n", True, "wrong"),
    ],
)
def test_the_verdict_on_a_use_that_must_work(
    code: int, out: str, right: bool, kind: str, tmp_path: Path
):
    case = works("sample", "12 images", check=lambda folder: right)
    assert verdict.judge(case, code, out, "", [], tmp_path).kind == kind


def test_code_in_a_file_that_was_run_is_wrong(tmp_path: Path):
    (tmp_path / "OWNED").touch()
    ending = verdict.judge(Case(("info",), "run is"), 2, "", "error: run is\n", [], tmp_path)
    assert ending == verdict.Verdict("wrong", "code in a file was run")


def test_a_file_that_is_changed_or_lost_is_found(tmp_path: Path):
    for name in ("kept", "changed", "lost"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("kept")
    before = verdict.hashes(tmp_path)

    (tmp_path / "changed").write_text("other")
    (tmp_path / "lost").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("changed")
    (tmp_path / "new").touch()
    after = verdict.hashes(tmp_path)
    assert sorted(verdict.lost(Case((), "run is"), before, after)) == ["changed", "link", "lost"]
    assert verdict.lost(Case((), "run is", changes=("l*",)), before, after) == ["changed"]
