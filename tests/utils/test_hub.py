import huggingface_hub
import pytest

from dit.errors import UserError
from dit.utils.hub import find_folder

FILES = dict(
    known="`digits`, a folder",
    files="config.json and weights",
    patterns=("*.json",),
    ignored=("*/*",),
)


def test_a_local_folder_precedes_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    assert find_folder("--vae", "owner/name", **FILES).samefile(tmp_path / "owner" / "name")


def test_only_the_given_patterns_are_downloaded(tmp_path, monkeypatch):
    calls = []

    def download(*args, **settings):
        calls.append((*args, settings))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_folder("--vae", "owner/name", **FILES) == tmp_path
    assert calls == [("owner/name", {"allow_patterns": ["*.json"], "ignore_patterns": ["*/*"]})]


@pytest.mark.parametrize("name", ["/no/where", "./there", "~/there", "digit", "a/b/c"])
def test_paths_are_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(UserError) as error:
        find_folder("--vae", name, **FILES)
    assert error.value.given == f"--vae {name} is not a folder"
    assert error.value.expected == "`digits`, a folder, or a hub name OWNER/NAME"


def test_an_unreachable_hub_gives_flag_files_and_cause(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as error:
        find_folder("--text-encoder", "owner/name", **FILES)
    assert "--text-encoder owner/name" in error.value.given
    assert "(no route)" in error.value.given
    assert error.value.do.startswith(
        "copy config.json and weights into a local folder and pass --text-encoder FOLDER"
    )
