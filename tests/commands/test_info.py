import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dit.cli import main
from dit.commands.info import card_rows, info, table
from dit.commands.train_vae.networks import create_network, save
from dit.config import VaeConfig
from dit.encoders.autoencoder import BUNDLED, WEIGHTS
from dit.errors import UserError
from dit.models.registry import create_model, parameters
from dit.runs.card import ModelCard
from dit.utils.files import sha256


def rows(text: str) -> dict[str, str]:
    """The table as a mapping; wrapped lines are joined."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            name, value = line.split("  ", 1)
            found[name] = value.strip()
        else:
            found[name] += " " + line.strip()
    return found


def test_run(make_run):
    home = make_run(lr=0.01)
    (home / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.25}\n{"step": 4, "lo'
    )
    said = rows(info(home))
    network = create_model(
        "DiT-Ti/4", input_size=8, in_channels=3, num_classes=10, learn_sigma=False
    )
    assert said["model"] == "DiT-Ti/4"
    assert said["parameters"] == f"{parameters(network):,}"
    assert said["latents"] == "3 x 8 x 8"
    assert said["images"] == "8x8 pixels"
    assert said["class names"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert said["autoencoder"] == "identity"
    assert said["process"].startswith("flow matching")
    assert said["EMA decay"] == "0.999"
    assert said["trained"] == "3 steps logged, of 560 steps"
    assert said["last loss"] == "0.2500"
    assert said["checkpoint 3"].endswith("1 file, checksums verified")


@pytest.mark.parametrize(
    ("settings", "network"),
    [
        (
            dict(conditioning="in-context"),
            "Diffusion Transformer, in-context conditioning, 4 tokens of 4 x 4 latents",
        ),
        (dict(model="UNet-S"), "U-Net of 3 levels"),
        (dict(model="Classifier-Ti/4", label_dropout=0), "classifier, 4 tokens of 4 x 4 latents"),
    ],
)
def test_every_network_is_named(make_run, settings, network):
    said = rows(info(make_run(**settings)))
    assert said["network"] == network
    assert (said["objective"] == "class of noised latents") == network.startswith("classifier")


def test_damage_is_told(make_run):
    home = make_run()
    weights = next(home.glob("checkpoints/*/ema-*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "DAMAGED" in rows(info(home))["checkpoint 3"]
    assert "DAMAGED" in rows(info(weights.parent))["files"]


def test_checkpoint_and_file_tell_the_same(tiny_run: Path):
    checkpoint = next(tiny_run.glob("checkpoints/*"))
    by_folder, by_file = rows(info(checkpoint)), rows(info(next(checkpoint.glob("ema-*"))))
    assert by_file["step"] == "3"
    assert {k: v for k, v in by_folder.items() if k not in ("checkpoint", "files")} == {
        k: v for k, v in by_file.items() if k != "weights"
    }


def test_release_file(tmp_path: Path):
    network = create_model("DiT-Ti/4", input_size=8, in_channels=4, num_classes=5, learn_sigma=True)
    torch.save(network.state_dict(), tmp_path / "DiT.pt")
    said = rows(info(tmp_path / "DiT.pt"))
    assert "original DiT release" in said["weights"]
    assert (said["model"], said["classes"], said["learned variance"]) == ("DiT-Ti/4", "5", "yes")
    assert said["stored as"] == "float32"


def test_bundled_first_stage():
    said = rows(info(BUNDLED))
    config = json.loads((BUNDLED / "config.json").read_text())
    assert (said["kind"], said["latent channels"]) == ("KL (AutoencoderKL)", "4")
    assert said["factor"].startswith("4 pixels")
    assert said["latents scaled by"].startswith(f"mean {config['latents_mean'][0]:.3g} ")
    assert said["weights"] == f"SHA-256 {sha256(BUNDLED / WEIGHTS)}"


def test_first_stage_of_ones_own(tmp_path: Path):
    config = VaeConfig(
        out=tmp_path, kind="vq", channels=(8, 8), latent_channels=2, codebook_size=5
    ).resolved()
    save(create_network(config), tmp_path, torch.tensor([0.25, 0.5]), torch.tensor([2.0, 3.0]))
    scores = {"PSNR": 23.456, "rFD(inception)": "not available"}
    (tmp_path / "report.json").write_text(json.dumps({"held_out": 1200, "scores": scores}))
    said = rows(info(tmp_path))
    assert said["kind"] == "VQ (VQModel, 5 entries)"
    assert (said["factor"][0], said["latent channels"]) == ("2", "2")
    assert said["latents scaled by"] == "mean 0.25 0.5, deviation 2 3"
    assert (said["held out"], said["PSNR"], said["rFD(inception)"]) == (
        "1,200 images",
        "23.46",
        "not available",
    )
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match="can not be loaded"):
        info(tmp_path)


def test_captions_are_no_classes(make_run):
    card = ModelCard.read(make_run())
    spec = replace(card.network, conditioning="text", text_width=8, num_classes=30)
    said = dict(
        card_rows(
            replace(card, network=spec, classes=["a seven", "a one"], text_encoder_sha256="5b")
        )
    )
    assert said["captions"] == "a seven, a one, … (28 more)"
    assert "caption dropout" in said
    assert not {"classes", "class names", "label dropout"} & {*said}


def test_what_is_no_checkpoint(tmp_path: Path, tiny_run: Path):
    with pytest.raises(UserError, match="nothing at"):
        info(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither config.json nor meta.json"):
        info(tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(next(tiny_run.glob("checkpoints/*/ema-*")).read_bytes()[:100])
    with pytest.raises(UserError, match="can not be read"):
        info(cut)


def test_run_without_checkpoint(make_run):
    home = make_run()
    for file in home.glob("checkpoints/*/*"):
        file.unlink()
    said = rows(info(home))
    assert said["trained"].startswith("no step logged")
    assert not any(name.startswith("checkpoint") for name in said)


def test_table_wraps():
    text = table([("short", "a"), ("a longer name", "word " * 40)])
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.splitlines()[0] == "short          a"
    assert rows(text)["a longer name"].count("word") == 40


def test_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(tiny_run)]) == 0
    assert rows(capsys.readouterr().out)["model"] == "DiT-Ti/4"
    assert json.loads((tiny_run / "config.json").read_text())["network"]["model"] == "DiT-Ti/4"
