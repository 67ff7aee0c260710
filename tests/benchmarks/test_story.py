"""The experiments of docs/story.md: run once, never mixed, continued after a stop."""

import pytest

from benchmarks import experiments, story
from benchmarks.experiments import Lab, claim, done


@pytest.fixture
def typed(monkeypatch):
    """The commands that would have run."""
    commands = []
    monkeypatch.setattr(experiments, "perform", commands.append)
    return commands


def test_another_command_in_the_same_folder_is_refused(tmp_path):
    assert not claim(tmp_path / "a" / "command.txt", "dit train --steps 4")
    assert claim(tmp_path / "a" / "command.txt", "dit train --steps 4")
    with pytest.raises(SystemExit, match="--steps 8"):
        claim(tmp_path / "a" / "command.txt", "dit train --steps 8")


def test_a_stopped_training_continues_and_a_finished_one_is_not_repeated(tmp_path, typed, make_run):
    lab = Lab(tmp_path, steps=3, samples=10)
    with pytest.raises(SystemExit, match="stopped"):
        lab.trained("run", "--seed 1")
    assert "--seed 1 --steps 3" in typed[0]

    run = make_run(step=3)  # tmp_path / "run"
    assert done(run, 3)
    assert not done(run, 4)
    assert lab.trained("run", "--seed 1") == run
    assert len(typed) == 1


def test_every_table_has_a_marker_in_the_docs(tmp_path):
    file = tmp_path / "story.md"
    file.write_text((story.DOCS / "story.md").read_text())
    tables = {name: f"table of {name}" for name in (*story.CHAPTERS, "floor", "trade", "bits")}
    story.write_tables(tables, file)
    story.write_tables(tables, file)  # replaces the tables, adds nothing
    text = file.read_text()
    assert all(text.count(table) == 1 for table in tables.values())


def test_steps_of_the_same_name_are_equal():
    steps = {}
    for chapter in story.CHAPTERS.values():
        for key, step in chapter.items():
            assert steps.setdefault(key, step)[1:] == step[1:]
            assert step.run in (*story.RUNS, *story.conditioning.VARIANTS)
