"""`dit export --to diffusers`: the same images bit for bit, and the folder back as --run."""

import importlib
import shutil

import diffusers
import numpy as np
import pytest
import torch
from helpers.exports import CLASSES, CPU, DDPM, STATISTICS, images_of, write_latent_run

from dit.cli import main
from dit.errors import UserError
from dit.export.diffusers import export_diffusers
from dit.runs.weights import read_weights
from dit.sampling.load import load_run

pytestmark = pytest.mark.usefixtures("small_networks")

RUNS = {
    "ddpm, learned variance": dict(**DDPM),
    "flow, statistics of the data": dict(card=STATISTICS),
    "modern blocks on a VQ": dict(
        block="modern", kind="vq", vae=dict(latents_mean=[0.1, 0.2], latents_std=[0.7, 0.9])
    ),
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Keep the copies of pipeline.py that diffusers makes out of the user's cache."""
    utilities = importlib.import_module("diffusers.utils.dynamic_modules_utils")
    monkeypatch.setattr(utilities, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def load_pipeline(folder):
    return diffusers.DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(folder), trust_remote_code=True
    )


def in_steps(images):
    """Images in 0 … 1 as whole numbers of 0 … 255."""
    steps = np.asarray(images) * 255
    assert np.abs(steps - steps.round()).max() < 1e-3
    return torch.from_numpy(steps.round()).int()


@pytest.fixture(scope="module")
def exported(small_networks, tmp_path_factory):
    """A run and its folder."""
    root = tmp_path_factory.mktemp("exported")
    file = write_latent_run(root, **DDPM)
    return file, export_diffusers(load_run(file, CPU), root / "out")


@pytest.mark.parametrize("name", RUNS)
def test_diffusers_makes_the_same_images(name, tmp_path):
    file = write_latent_run(tmp_path, **RUNS[name])
    channels = 1 if "ddpm" in name else None
    sampler = "ddpm" if "ddpm" in name else "heun"
    settings = dict(cfg_channels=channels, sampler=sampler, cfg_interval=(0.1, 0.9))
    ours = images_of(file, steps=4, cfg_scale=1.5, seed=5, **settings)

    folder = export_diffusers(load_run(file, CPU), tmp_path / "out")
    # what is exported needs nothing of the run
    moved = shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "first-stage")
    pipe = load_pipeline(moved)
    theirs = pipe(CLASSES, 1.5, 4, seed=5, output_type="np", **settings).images
    assert (in_steps(theirs) - ours).abs().max() == 0
    # back, as --run
    assert (images_of(moved, steps=4, cfg_scale=1.5, seed=5, **settings) - ours).abs().max() == 0


def test_a_pipeline_takes_names_ids_and_generators(exported):
    _, folder = exported
    pipe = load_pipeline(folder)
    assert pipe.config.id2label["3"] == "3"
    settings = dict(num_inference_steps=2, sampler="ddim")
    image, other = pipe(["3", 3], seed=1, **settings).images
    assert (image.size, image.mode) == ((16, 16), "RGB")
    assert image != other  # each has a stream of its own
    assert np.array_equal(image, pipe([3], seed=1, **settings).images[0])
    # a generator moves on, as everywhere in diffusers
    generator = torch.Generator().manual_seed(0)
    first, second = (
        pipe([3], generator=generator, output_type="pt", **settings).images for _ in range(2)
    )
    assert first.shape == (1, 3, 16, 16)
    assert not torch.equal(first, second)
    (again,) = pipe(
        [3], generator=generator.manual_seed(0), output_type="pt", return_dict=False, **settings
    )
    assert torch.equal(first, again)


@pytest.mark.parametrize(("label", "given"), [(10, "class 10"), (-1, "class -1"), ("cat", "cat")])
def test_labels_that_are_no_class_are_refused(exported, label, given):
    with pytest.raises(UserError, match=given):
        load_pipeline(exported[1])([label], num_inference_steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(guidance_scale=-1), "guidance_scale=-1; expected 0 or more"),
        (dict(guidance_scale="2"), 'guidance_scale is "2"; expected a number'),
        (dict(num_inference_steps=0), "num_inference_steps=0; expected"),
        (dict(num_inference_steps=2000), "num_inference_steps=2000; expected at most 1000"),
        (dict(cfg_interval=(0.1, 0.5)), "with guidance_scale=1; expected"),
        (dict(class_labels=[10]), "class_labels with class 10; expected ids from 0 to 9"),
        (dict(class_labels=[10]), "; see pipe.config.id2label"),
        (dict(class_labels=["cat"]), "; see pipe.config.id2label"),
        (dict(class_labels=[]), "class_labels is empty"),
        (dict(sampler="magic"), 'sampler is "magic"'),
        (dict(cfg_scale=2), "no such argument; pass guidance_scale"),
        (dict(steps=5), "no such argument; pass num_inference_steps"),
        (dict(steps=5, cfg_scale=2), "no such argument; pass "),
        (dict(scale=2), "argument 'scale'; expected one of"),
    ],
)
def test_mistakes_are_named_as_the_arguments_of_the_call(exported, settings, message):
    pipe = load_pipeline(exported[1])
    with pytest.raises(UserError) as error:
        pipe(**{"class_labels": [3], "num_inference_steps": 1, **settings})
    assert message in str(error.value)
    assert "--" not in str(error.value)


def test_a_pipeline_of_an_earlier_version_is_served(exported):
    pipe = load_pipeline(exported[1])
    images = pipe([3], 1.5, 2, sampler="ddim", output_type="pt").images
    earlier = dict(cfg_scale=1.5, steps=2, seed=0, sampler="ddim")
    assert torch.equal(pipe.transformer.sample(pipe.vae, [3], earlier) / 255, images)


def test_half_precision_is_a_setting_of_the_call(exported):
    _, folder = exported
    with pytest.raises(ValueError, match="precision='bf16'"):
        diffusers.DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=True, torch_dtype=torch.float16
        )


def test_what_diffusers_saves_again_is_the_same_network(exported, tmp_path):
    file, folder = exported
    load_pipeline(folder).save_pretrained(tmp_path / "again")
    settings = dict(steps=2, sampler="ddim")
    difference = images_of(tmp_path / "again", **settings) - images_of(file, **settings)
    assert difference.abs().max() == 0


def test_the_command_says_what_to_type_next(exported, tmp_path, capsys):
    file, _ = exported
    out = tmp_path / "out"
    assert main(["export", str(file), "--to", "diffusers", "--out", str(out)]) == 0
    line = capsys.readouterr().out
    assert line == f"network in {out}; next: dit sample --run {out}\n"
    grid = ["--steps", "1", "--per-class", "1", "--sampler", "ddim"]
    assert main(["sample", "--run", str(out), *grid]) == 0
    assert next((out / "samples").glob("grid-*.png"))
    # again, in its place
    assert main(["export", str(file), "--to", "diffusers", "--out", str(out)]) == 0
    assert main(["info", str(out)]) == 0
    assert (
        "weights            transformer/diffusion_pytorch_model.safetensors"
        in capsys.readouterr().out
    )


def test_weights_lie_there_once_with_their_card(exported):
    file, folder = exported
    saved = read_weights(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.step == 7
    assert saved.card.config.vae == str(folder / "vae")
    assert saved.home == folder
    before = read_weights(file).state_dict
    assert all(torch.equal(saved.state_dict[name], before[name]) for name in before)
    assert len(list(folder.rglob("*.safetensors"))) == 2
