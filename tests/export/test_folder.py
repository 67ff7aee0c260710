"""`dit export`, and what is uploaded: a folder to move, its model card, nothing of this machine."""

import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import yaml
from helpers.caption_runs import write_text_run
from helpers.exports import CPU, STATISTICS, images_of, write_latent_run

from dit.cli import main
from dit.encoders.text import BUNDLED
from dit.errors import UserError
from dit.export.diffusers import export_diffusers
from dit.export.folder import save_folder
from dit.export.hub import push_to_hub
from dit.report.text import number
from dit.runs.checkpoint_files import checksum_entry
from dit.runs.weights import read_header, write_weights
from dit.sampling.load import load_run, with_prompts
from dit.utils.files import sha256, write_json

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def run(small_networks, tmp_path_factory):
    return load_run(write_latent_run(tmp_path_factory.mktemp("run"), card=STATISTICS), CPU)


def texts_of(folder):
    """All that is readable in a folder, headers of weights included."""
    return b"\n".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_folder_moves_and_names_nothing_of_this_machine(run, tmp_path):
    ours = images_of(run, steps=2, cfg_scale=1.5)
    save_folder(run, tmp_path / "out").rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert (images_of(moved, steps=2, cfg_scale=1.5) - ours).abs().max() == 0
    assert not [name for name in (b"/home/me", b"/tmp") if name in texts_of(moved)]
    card, step = read_header(moved / "model.safetensors")
    assert (card.config.data, card.config.vae, step) == ("photos", str(moved / "vae"), 7)
    assert json.loads((moved / "config.json").read_text())["classes"] == run.card.classes
    # it can be exported again, elsewhere only
    with pytest.raises(UserError, match="holds the weights to export"):
        save_folder(load_run(moved, CPU), moved)
    again = save_folder(load_run(moved, CPU), tmp_path / "again")
    assert (images_of(again, steps=2, cfg_scale=1.5) - ours).abs().max() == 0


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    text = "mine; others I made with dit export"
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match=r"holds README.md"):
        save_folder(run, tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_an_export_that_was_interrupted_can_be_repeated(run, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("dit.export.folder.write_model_card", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_folder(run, out)
    (out / "notes.txt").write_text("mine")
    assert (save_folder(run, out) / "README.md").exists()
    assert (out / "notes.txt").exists()


def test_the_card_says_what_data_recipe_licence_and_use(run, tmp_path):
    out = tmp_path / "cats"
    assert main(["export", str(run.weights.path), "--out", str(out), "--license", "mit"]) == 0
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    assert huggingface_hub.ModelCard(text).data.library_name == "dit"
    for part in (
        "dit sample --run cats",
        "![samples](sample.png)",
        "Trained on `photos`. Classes: 0, 1,",
        "| network | DiT-Ti/4",
        "| steps | 7 |",
        "These weights were not scored.",
    ):
        assert part in body
    assert "from_pretrained" not in body
    assert (out / "sample.png").stat().st_size > 100


def test_the_card_has_scores_of_these_weights_with_their_protocol(run, tmp_path):
    evaluation = run.home / "evaluation"
    for name, weights in (("", sha256(run.weights.path)), ("other", "0" * 64)):
        value = 12.5 if not name else 99.5
        report = {
            "format": 2,
            "scores": {"FID": {"value": value, "floor": None}},
            "memorisation": [],
            "protocol": {
                "samples": {"count": 500, "size": "16x16"},
                "sampling": {"weights_sha256": weights, "sampler": "heun", "steps": 25},
                "reference": {"source": "photos", "count": 900},
            },
        }
        (evaluation / name).mkdir(parents=True, exist_ok=True)
        (evaluation / name / "report.json").write_text(json.dumps(report))
    text = (save_folder(run, tmp_path / "out") / "README.md").read_text()
    assert f"| FID | {number(12.5)} |" in text
    assert "samples: 500 images of 16x16; sampler: heun, 25 steps" in text
    assert "reference: photos, 900 images" in text
    assert "99.5" not in text


# -- hub -------------------------------------------------------------------------------------------


class StandIn:
    """What push_to_hub calls of huggingface_hub.HfApi."""

    def __init__(self, token=None):
        self.token = token
        StandIn.last = self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.created = repo_id, private, exist_ok
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(
        self, *, repo_id, folder_path, ignore_patterns, delete_patterns, commit_message
    ):
        self.deleted = delete_patterns
        self.files = {
            str(file.relative_to(folder_path)): file.read_bytes()
            for file in folder_path.rglob("*")
            if file.is_file() and file.name not in ignore_patterns
        }
        self.message = commit_message


def test_a_run_is_uploaded_without_the_state_of_its_optimizer(make_run, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    path = make_run()
    checkpoint = path / "checkpoints" / "step-0000003"
    state = checkpoint / "state" / "optimizer.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"secret")
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["files"]["state/optimizer.safetensors"] = checksum_entry(state)
    write_json(checkpoint / "meta.json", meta)
    argv = ["export", str(path), "--to", "hub", "--repo", "me/cats", "--private"]
    assert main(argv) == 0
    assert capsys.readouterr().out == (
        "me/cats is at https://huggingface.co/me/cats; next: dit sample --run me/cats\n"
    )
    api = StandIn.last
    assert api.created == ("me/cats", True, True)
    assert api.message == "DiT-Ti/4 at step 3"
    assert not [name for name, content in api.files.items() if b"secret" in content]
    # a network that was there before, in our own format, would be read first
    assert {"model.safetensors", "transformer/*"} <= set(api.deleted)
    assert sorted(api.files) == [
        "README.md",
        "model_index.json",
        "pipeline.py",
        "sample.png",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/network.py",
    ]
    assert b'from_pretrained("me/cats", custom_pipeline="me/cats"' in api.files["README.md"]
    assert b"dit sample --run me/cats" in api.files["README.md"]


def test_what_the_hub_refuses_is_one_error(run, monkeypatch):
    class Refusing(StandIn):
        def create_repo(self, *args, **settings):
            raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    with pytest.raises(UserError, match=r"me/cats cannot be written to .*401.*hf auth login"):
        push_to_hub(run, "me/cats", token="t")
    assert StandIn.last.token == "t"
    with pytest.raises(UserError, match="OWNER/NAME"):
        push_to_hub(run, "cats")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--to folder without --out"),
        ("--to hub", "--to hub without --repo"),
        ("--to hub --repo a/b --out c", "--out c with --to hub"),
        ("--out c --repo a/b", "--repo a/b with --to folder"),
        ("--out c --stock", "--stock with --to folder"),
    ],
)
def test_flags_that_nothing_reads_are_refused(run, flags, message, capsys):
    assert main(["export", str(run.weights.path), *flags.split()]) == 2
    assert message in capsys.readouterr().err


# -- captions --------------------------------------------------------------------------------------


def test_a_network_of_captions_has_a_folder_with_its_encoder_but_no_pipeline(tmp_path, monkeypatch):
    run = load_run(write_text_run(tmp_path / "run"), CPU)
    few = with_prompts(run, ["a seven"])
    out = save_folder(few, tmp_path / "out")
    # all captions, not those that were to be drawn
    assert read_header(out / "model.safetensors")[0].classes == run.card.classes
    assert "pipeline_tag: text-to-image" in (out / "README.md").read_text()
    with pytest.raises(UserError, match="--conditioning text for diffusers"):
        export_diffusers(run, tmp_path / "pipeline")
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    push_to_hub(run, "me/captions")
    assert "model.safetensors" in StandIn.last.files
    assert "pipeline.py" not in StandIn.last.files

    # an encoder that is a folder goes with it
    encoder = tmp_path / "encoder"
    shutil.copytree(BUNDLED, encoder)
    card = replace(run.card, config=replace(run.card.config, text_encoder=str(encoder)))
    file = tmp_path / "own.safetensors"
    write_weights(file, run.weights.state_dict, card, 3)
    out = save_folder(load_run(file, CPU), tmp_path / "whole")
    shutil.rmtree(encoder)
    file.unlink()
    again = load_run(out, CPU)
    assert again.card.config.text_encoder == str(out / "text_encoder")
    settings = dict(steps=2, labels=[1, 2])
    assert (images_of(again, **settings) - images_of(run, **settings)).abs().max() == 0
