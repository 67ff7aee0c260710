"""The pipeline in Python: the images of sample.py, in threads too, and clear errors."""

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import write_run
from helpers.caption_runs import write_text_run
from helpers.samples import pixels

import dit
from dit.commands.sample import sample
from dit.config import SampleConfig
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned
from dit.sampling.load import without_captions
from dit.utils import pictures

CLASSES = ["7", 3, "0", 3]
PLAIN = dict(precision="fp32")
SETTINGS = [
    dict(guidance_scale=2.0, num_inference_steps=3, sampler="heun", seed=5),
    dict(guidance_scale=1.0, num_inference_steps=4, sampler="euler", seed=5),
    dict(guidance_scale=3.0, num_inference_steps=6, sampler="dpmpp_2m", seed=1, block_cache=2),
    dict(guidance_scale=1.5, num_inference_steps=5, seed=2, cfg_interval=(0.2, 0.8)),
]


@pytest.fixture(scope="module")
def pipe(weights):
    return dit.Pipeline.from_pretrained(weights, device="cpu")


def as_integers(images):
    return torch.stack([torch.from_numpy(np.array(image)).int() for image in images])


@pytest.mark.parametrize("settings", SETTINGS)
def test_images_are_those_of_sample_py_bit_for_bit(pipe, weights, tmp_path, settings):
    out = pipe(CLASSES, num_images=6, batch_size=4, **settings, **PLAIN)
    flags = dict(settings)
    flags |= dict(cfg_scale=flags.pop("guidance_scale"), steps=flags.pop("num_inference_steps"))
    config = SampleConfig(
        run=weights, num_samples=6, classes=("7,3,0,3",), batch_size=4, out=tmp_path, **flags
    )
    assert torch.equal(
        as_integers(out.images), pixels(sample(dataclasses.replace(config, **PLAIN), Ranks()))
    )
    assert out.labels == [7, 3, 0, 3, 7, 3]


def test_images_are_those_of_the_grid_of_sample_py(pipe, weights, tmp_path):
    labels = [2, 2, 9, 9]
    out = pipe(labels, num_inference_steps=3, output_type="pt", **PLAIN)
    file = tmp_path / "grid.png"
    config = SampleConfig(run=weights, classes=("2,9",), per_class=2, steps=3, out=file, **PLAIN)
    sample(config, Ranks())
    images = (out.images * 255).round().to(torch.uint8)
    expected = pictures.grid(images, ["2", "9"], 2, pictures.fitting_scale(8))
    assert np.array_equal(np.array(pictures.Image.open(file)), np.array(expected))


def test_without_classes_there_is_one_image_of_each_as_in_sample_py(pipe, weights, tmp_path):
    out = pipe(num_images=12, num_inference_steps=2, **PLAIN)
    config = SampleConfig(run=weights, num_samples=12, steps=2, precision="fp32", out=tmp_path)
    assert torch.equal(as_integers(out.images), pixels(sample(config, Ranks())))


def test_output_types_are_the_same_pixels(pipe):
    kinds = {
        kind: pipe([1, 2], num_inference_steps=2, output_type=kind, **PLAIN).images
        for kind in ("pil", "np", "pt", "latent")
    }
    numbers = as_integers(kinds["pil"])
    assert kinds["np"].shape == (2, 8, 8, 3)
    assert np.array_equal((kinds["np"] * 255).round(), numbers.numpy())
    assert torch.equal((kinds["pt"] * 255).round().int(), numbers.permute(0, 3, 1, 2))
    decoded = pipe.run.autoencoder.decode(kinds["latent"])
    assert torch.equal(decoded.int(), numbers.permute(0, 3, 1, 2))
    # they may be trained on
    kinds["latent"].clone().requires_grad_().sum().backward()


def test_one_class_alone_makes_one_image(pipe):
    assert pipe("7", num_inference_steps=1).labels == [7]
    assert pipe(np.int64(7), num_inference_steps=1).labels == [7]
    assert pipe(torch.tensor([7, 1]), num_inference_steps=1).labels == [7, 1]


def test_threads_with_other_settings_get_the_images_of_calls_in_sequence(pipe):
    calls = [dict(one, classes=[label] * 3, **PLAIN) for label in (0, 4) for one in SETTINGS]
    expected = [pipe(output_type="latent", **call).images for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = pool.map(lambda call: pipe(output_type="latent", **call).images, calls)
            assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_the_callback_sees_the_latents_after_each_step(pipe, sampler):
    settings = dict(sampler=sampler, num_inference_steps=4, output_type="latent", **PLAIN)
    seen = []

    def look(called, step, timestep, values):
        assert called is pipe
        seen.append((step, timestep, values["latents"].clone()))

    out = pipe([1, 2, 3], callback_on_step_end=look, batch_size=2, **settings)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] * 2  # two batches
    assert [time for _, time, _ in seen[:4]] == [1000, 750, 500, 250]
    assert torch.equal(torch.cat([seen[3][2], seen[7][2]]), out.images)
    # looking changes nothing
    assert torch.equal(out.images, pipe([1, 2, 3], batch_size=2, **settings).images)
    # an Euler step from latents that were seen leads to the next that were seen
    if sampler == "euler":
        denoise = pipe.run.denoise
        (_, _, x), (_, began, then) = seen[0], seen[1]
        with torch.inference_mode():
            t, s = torch.tensor([began / 1000, 0.5], dtype=torch.float64)
            prediction = denoise(x, t, torch.tensor([1, 2]))
            after = (1 - s.item()) * prediction.x0 + s.item() * prediction.eps
        assert (after - then).abs().max() < 1e-6


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("at", [1, 3])
def test_sampling_continues_from_the_latents_that_the_callback_returns(pipe, sampler, at):
    settings = dict(sampler=sampler, num_inference_steps=4, output_type="latent", **PLAIN)
    other = torch.full((2, 3, 8, 8), 0.25)
    seen = {}

    def replace(_, step, time, values):
        seen[step] = values["latents"].clone()
        return {"latents": other} if step == at else None

    out = pipe([1, 2], callback_on_step_end=replace, **settings)
    if at == 3:
        assert torch.equal(out.images, other)
    elif sampler == "euler":
        with torch.inference_mode():
            t = torch.tensor(0.5, dtype=torch.float64)
            prediction = pipe.run.denoise(other, t, torch.tensor([1, 2]))
            after = 0.75 * prediction.x0 + 0.25 * prediction.eps
        assert (after - seen[2]).abs().max() < 1e-6
    else:
        unchanged = pipe([1, 2], **settings).images
        assert (out.images - unchanged).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        ([10], {}, "class 10; expected ids from 0 to 9"),
        ([-1], {}, "class -1; expected ids from 0 to 9"),
        (["10"], {}, "no class 10"),
        (["cat"], {}, "no class cat"),
        ([1.5], {}, "class 1.5 of type float"),
        ([True], {}, "class True of type bool"),
        ([None], {}, "class None of type NoneType"),
        ([], {}, "no classes"),
        (1, dict(sampler="eulr"), 'sampler is "eulr"; expected "auto" or "ddpm"'),
        (1, dict(num_inference_steps=0), "num_inference_steps=0"),
        (1, dict(num_inference_steps="many"), 'num_inference_steps is "many"; expected a whole'),
        (1, dict(guidance_scale=-1.0), "guidance_scale=-1"),
        (1, dict(guidance_scale="high"), 'guidance_scale is "high"; expected a number'),
        (1, dict(seed=-1), "seed=-1"),
        (1, dict(seed=1.5), "seed is 1.5; expected a whole number"),
        (1, dict(output_type="jpg"), "output_type 'jpg'; expected one of pil, pt, np, latent"),
        (1, dict(num_images=0), "num_images 0"),
        (1, dict(cfg_scale=2.0), "cfg_scale in a call of the pipeline; expected no such argument"),
        (1, dict(guidance=2.0), "argument 'guidance'; expected one of sampler"),
        (1, dict(image_size=16), "image_size in a call"),
        (1, dict(eta=0.5), "eta=0.5 with sampler auto"),
        (1, dict(variance="learned", sampler="ddpm"), "variance learned"),
        (1, dict(negative_prompt="a"), "negative_prompt 'a'"),
        (1, dict(guide=torch), "guide of type module"),
    ],
)
def test_mistakes_are_errors_that_name_arguments(pipe, classes, settings, message):
    with pytest.raises(dit.UserError, match=re.escape(message)):
        pipe(classes, **settings)


def test_a_run_without_classes(make_run, small_networks):
    pipe = dit.Pipeline.from_pretrained(make_run(num_classes=0), device="cpu")
    assert len(pipe(num_images=3, num_inference_steps=2).images) == 3
    for classes, settings, message in (
        ([0], {}, "class 0 for a run without classes"),
        (None, dict(guidance_scale=2.0), "guidance_scale=2 for a run without classes"),
    ):
        with pytest.raises(dit.UserError, match=message):
            pipe(classes, **settings)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 3.5])
def test_devices_that_are_not_there(weights, pipe, device):
    for use in (
        lambda: dit.Pipeline.from_pretrained(weights, device=device),
        lambda: pipe.to(device),
    ):
        with pytest.raises(dit.UserError, match=f"device '{device}'; expected cpu.* pass device="):
            use()
    assert pipe.device.type == "cpu"


def test_a_pipeline_that_moves_returns_itself(pipe):
    before = pipe(1, num_inference_steps=2, output_type="latent").images
    assert pipe.to("cpu") is pipe
    assert torch.equal(pipe(1, num_inference_steps=2, output_type="latent").images, before)


@pytest.mark.parametrize(
    "write", [lambda path: write_run(path, vae="digits", image_size=32), write_text_run]
)
def test_everything_that_computes_moves(tmp_path, small_networks, monkeypatch, write):
    pipe = dit.Pipeline.from_pretrained(write(tmp_path / "run"), "cpu")
    # a device that every machine has
    monkeypatch.setattr("dit.api.pipeline.find_device", torch.device)
    run = pipe.to("meta").run
    assert {pipe.device.type, run.autoencoder.device.type} == {"meta"}
    networks = [without_captions(run.denoise.network), getattr(run.autoencoder.codec, "network", 0)]
    if isinstance(run.denoise.network, Captioned):
        networks.append(run.denoise.network.captions.encoder.network)
    for module in (part for network in networks if network for part in network.modules()):
        # tensors that are neither parameters nor buffers would stay
        plain = [one for one in vars(module).values() if isinstance(one, torch.Tensor)]
        assert all(one.is_meta for one in [*module.parameters(), *module.buffers(), *plain])


def test_another_size_is_that_of_sample_py(weights, tmp_path):
    pipe = dit.Pipeline.from_pretrained(weights, "cpu", image_size=16)
    assert pipe.image_size == (16, 16)
    config = SampleConfig(run=weights, num_samples=2, steps=2, image_size=16, precision="fp32")
    folder = sample(dataclasses.replace(config, classes=("1",), out=tmp_path), Ranks())
    out = pipe([1, 1], num_inference_steps=2, **PLAIN)
    assert torch.equal(as_integers(out.images), pixels(folder))
    assert repr(pipe) == "Pipeline(DiT-Ti/4 of 10 classes, 16 x 16 px, cpu)"
