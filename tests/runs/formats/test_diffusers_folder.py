"""Folders of a DiT as diffusers saves them, or as they were in 2022: read, sampled, converted."""

import json
import shutil

import pytest
import torch
from helpers.autoencoders import save_tiny
from helpers.exports import CPU, images_of

from dit.cli import main
from dit.errors import UserError
from dit.runs.weights import read_header
from dit.sampling.load import load_run

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("small_networks")

LABELS = {0: "tench, Tinca tinca", 1: "crane", 2: "crane, bird", 3: "cat"}


@pytest.fixture(scope="module")
def released(small_networks, tmp_path_factory):
    """A pipeline with diffusers' own settings, which are not ours: epsilon, four classes."""
    root = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=2,
        sample_size=8,
        in_channels=2,
        out_channels=4,
        num_embeds_ada_norm=4,
    ).eval()
    first = transformer.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        first.class_embedder.embedding_table.weight.normal_()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())
    vae = diffusers.AutoencoderKL.from_pretrained(save_tiny(root / "vae"))
    scheduler = diffusers.DDIMScheduler(beta_end=0.02, clip_sample=False)
    diffusers.DiTPipeline(transformer, vae, scheduler).save_pretrained(root / "DiT")
    change(root / "DiT" / "model_index.json", id2label=LABELS)
    return root / "DiT", transformer


@pytest.fixture
def folder(released, tmp_path):
    """A copy to change."""
    return shutil.copytree(released[0], tmp_path / "DiT")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def as_of_2022(folder):
    """Rename the class, leave out what was not there, and pickle the weights."""
    transformer = folder / "transformer"
    change(transformer / "config.json", _class_name="Transformer2DModel", num_vector_embeds=None)
    safe = transformer / "diffusion_pytorch_model.safetensors"
    saved = diffusers.models.modeling_utils.load_state_dict(safe)
    torch.save({**saved, "pos_embed.pos_embed": torch.ones(1, 16, 64)}, safe.with_suffix(".bin"))
    safe.unlink()
    return folder


@pytest.mark.parametrize("layout", [lambda folder: folder, as_of_2022])
def test_a_pipeline_is_read_exactly_as_diffusers_computes_it(released, folder, layout):
    run = load_run(layout(folder), CPU)
    spec, config = run.card.network, run.card.config
    assert (spec.model, spec.num_classes, spec.learn_sigma) == ("DiT-Ti/2", 4, True)
    assert (spec.time_endpoint, spec.mlp_norm_eps) == (True, 1e-5)
    assert (config.process, config.objective, config.image_size) == ("linear", "eps", 16)
    assert run.card.classes == ["tench", "crane", "crane, bird", "cat"]
    x, t, y = torch.randn(4, 2, 8, 8), torch.tensor([0, 40, 500, 999]), torch.tensor([0, 3, 2, 4])
    with torch.no_grad():
        theirs, ours = released[1](x, t, y).sample, run.denoise.network(x, t.float(), y)
    assert theirs.std() > 0.1
    assert (theirs - ours).abs().max() < 2e-6 * theirs.abs().max()
    assert (images_of(run, [0, 1], steps=2, sampler="ddim", cfg_scale=2.0) >= 0).all()


@pytest.mark.parametrize(
    ("scheduler", "process", "objective"),
    [
        (dict(prediction_type="v_prediction"), "linear", "v"),
        (dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample"), "cosine", "x0"),
    ],
)
def test_the_scheduler_says_process_and_objective(folder, scheduler, process, objective):
    change(folder / "scheduler" / "scheduler_config.json", **scheduler)
    config = load_run(folder, CPU).card.config
    assert (config.process, config.objective) == (process, objective)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("scheduler/scheduler_config.json", dict(beta_schedule="scaled_linear"), "scaled_linear"),
        ("scheduler/scheduler_config.json", dict(beta_end=0.012), "0.0001 to 0.012"),
        ("scheduler/scheduler_config.json", dict(num_train_timesteps=500), "of 1000 steps"),
        ("transformer/config.json", dict(num_layers=3), "3 blocks, 2 heads of 32"),
        ("transformer/config.json", dict(norm_type="layer_norm"), "norm_type layer_norm"),
        ("transformer/config.json", dict(activation_fn="geglu"), "activation_fn geglu"),
        ("transformer/config.json", dict(num_layers="x"), "transformer/config.json"),
    ],
)
def test_other_networks_and_processes_are_refused(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(UserError, match=message):
        load_run(folder, CPU)


def test_a_pipeline_of_another_network_is_none_of_ours(folder):
    change(folder / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(UserError, match="pipeline of diffusers with a FluxTransformer2DModel"):
        load_run(folder, CPU)


def test_it_is_converted_and_the_next_line_works_as_typed(folder, tmp_path, capsys):
    out = tmp_path / "dit.safetensors"
    assert main(["convert", str(folder), str(out), "--classes", "a", "b", "c", "d"]) == 0
    said = capsys.readouterr().out
    assert "10000^(-i/127)" in said
    command = said.splitlines()[-1].split("next: dit ")[1]
    assert main([*command.split(), "--steps", "1", "--per-class", "1"]) == 0
    assert read_header(out)[0].classes == ["a", "b", "c", "d"]
    settings = dict(labels=[0, 1], steps=2, sampler="ddim")
    assert (images_of(out, **settings) - images_of(folder, **settings)).abs().max() == 0

    # its files say these
    assert main(["convert", str(folder), str(out), "--format", "dit"]) == 2
    assert "--format dit for" in capsys.readouterr().err
    # the autoencoders of 2022 are pickles
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert main(["convert", str(folder), str(out)]) == 2
    assert "--vae stabilityai/sd-vae-ft-ema" in capsys.readouterr().err
    assert main(["convert", str(folder), str(out), "--vae", "tiny"]) == 0


def test_info_says_what_a_folder_is(folder, capsys):
    assert main(["info", str(folder)]) == 0
    assert (
        "weights            transformer/diffusion_pytorch_model.safetensors"
        in capsys.readouterr().out
    )
    assert main(["info", str(folder), "--classes"]) == 0
    assert "0  tench" in capsys.readouterr().out
