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


def test_a_folder_here_comes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    assert find_folder("--vae", "owner/name", **FILES).samefile(tmp_path / "owner" / "name")


def test_the_hub_is_asked_for_the_wanted_files(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path)
    )
    assert find_folder("--vae", "owner/name", **FILES) == tmp_path
    assert asked == [(("owner/name",), {"allow_patterns": ["*.json"], "ignore_patterns": ["*/*"]})]


@pytest.mark.parametrize("name", ["/no/where", "./there", "~/there", "digit", "a/b/c"])
def test_what_can_be_no_name_of_the_hub_is_not_asked_for(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(UserError) as error:
        find_folder("--vae", name, **FILES)
    assert error.value.given == f"--vae {name} is not a folder"
    assert error.value.expected == "`digits`, a folder, or a hub name OWNER/NAME"


def test_out_of_reach_tells_flag_files_and_cause(monkeypatch):
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
