"""`dit show`: the moments of both directions, attention maps, and the files they are drawn to."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.caption_runs import write_text_run
from PIL import Image

from dit import cli
from dit.commands.show import (
    Moment,
    attention_query,
    backward,
    caption_words,
    evenly,
    forward,
    parse_times,
    patch_attention,
    record_moments,
    select_moments,
    show,
    word_attention,
)
from dit.config import ShowConfig
from dit.data.sources import load_images
from dit.diffusion.process import DDPM, Flow, add_noise
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.sampling.generate import ImageNoise, generate
from dit.sampling.load import load_run
from dit.sampling.own_data import training_latents
from dit.sampling.pipeline import build_pipeline
from dit.utils.pictures import grid

pytestmark = pytest.mark.usefixtures("narrow")
CPU, ALONE = torch.device("cpu"), Ranks()
LABELS = torch.tensor([3, 1, 3])


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Make DiT-Ti narrower, with all of its blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Ti", dict(SIZES["Ti"], hidden_size=64, num_heads=2))
        yield


def config(run: Path, direction: str = "backward", **settings) -> ShowConfig:
    defaults = dict(direction=direction, run=run, precision="fp32", steps=4, num_images=3)
    return ShowConfig(**{**defaults, **settings})


def pipeline_of(run: Path, **settings):
    return build_pipeline(load_run(run, CPU), config(run, **settings))


# -- the two directions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        dict(sampler="dpmpp_2m", cfg_scale=2.0, seed=7),
        dict(sampler="heun", cfg_interval=(0.2, 0.8), cfg_scale=3.0),
        dict(sampler="ddim", eta=1.0, batch_size=2),
    ],
)
def test_the_end_is_bitwise_what_is_sampled(tiny_run: Path, settings):
    pipeline = pipeline_of(tiny_run, **settings)
    trace = backward(pipeline, LABELS)
    images = generate(pipeline, LABELS, torch.arange(3))
    assert torch.equal(pipeline.run.autoencoder.decode(trace[-1].x_t), images)
    assert [float(m.t) for m in trace] == pipeline.times.tolist()


def test_a_step_leads_from_each_moment_to_the_next(tiny_run: Path):
    """DDIM's x_s = alpha_s x0 + sigma_s eps, with eps as the rest of x_t when x0 is taken away."""
    pipeline = pipeline_of(tiny_run, sampler="ddim")
    trace = backward(pipeline, LABELS)
    for now, after in zip(trace[:-1], trace[1:], strict=True):
        at = pipeline.process.coefficients(now.t)
        eps = (now.x_t - at.alpha.float() * now.x0) / at.sigma.float()
        assert (add_noise(pipeline.process, now.x0, eps, after.t) - after.x_t).abs().max() < 1e-5
    assert torch.equal(trace[0].x_t, ImageNoise(0, range(3), (3, 8, 8), CPU)())


def test_of_two_calls_at_a_time_the_second_is_kept(tiny_run: Path):
    pipeline = pipeline_of(tiny_run, sampler="heun")
    calls, trace = [], []

    def denoise(x_t, t, y):
        calls.append(x_t)
        return pipeline.denoise(x_t, t, y)

    recording, x = record_moments(denoise, trace), torch.ones(1, 3, 8, 8)
    pipeline.sampler(recording, pipeline.process, x, LABELS[:1], pipeline.times, lambda: None)
    assert (len(calls), len(trace)) == (7, 4)
    assert all(m.x_t is call for m, call in zip(trace, calls[0::2], strict=True))


@pytest.mark.parametrize(
    ("process", "objective"), [("flow", "v"), ("linear", "eps"), ("cosine", "v")]
)
def test_forward_adds_the_same_noise_at_all_times(make_run, process: str, objective: str):
    path = make_run(process=process, objective=objective)
    pipeline = pipeline_of(path, direction="forward", seed=5)
    trace = forward(pipeline, LABELS, 4)
    x0 = training_latents(pipeline.run, LABELS, 5)
    eps = ImageNoise(5, range(3), (3, 8, 8), CPU)()
    assert float(trace[0].t) == 0
    assert float(trace[-1].t) == float(pipeline.process.times(1)[0])
    for moment in trace:
        assert torch.equal(moment.x_t, add_noise(pipeline.process, x0, eps, moment.t))
        assert torch.equal(moment.x0, pipeline.denoise(moment.x_t, moment.t, LABELS).x0)

    steps = torch.stack([moment.t for moment in select_moments(trace, 4, pipeline.process)]).diff()
    assert (steps - steps.mean()).abs().max() <= (1 if process != "flow" else 1e-12)
    # the block cache keeps nothing between these times
    cached = forward(pipeline_of(path, direction="forward", seed=5, block_cache=2), LABELS, 4)
    assert all(torch.equal(a.x0, b.x0) for a, b in zip(trace, cached, strict=True))
    given = forward(pipeline, LABELS, [0.2, 0.5])
    assert [float(m.t) / pipeline.process.end for m in given] == pytest.approx([0.2, 0.5])


def test_forward_takes_different_training_images_of_the_classes(tiny_run: Path):
    run, images = load_run(tiny_run, CPU), load_images("digits", 8)
    latents = training_latents(run, LABELS, 0)
    nearest = []
    for label, x0 in zip(LABELS.tolist(), latents, strict=True):
        own = images.images[images.labels == label].float() / 127.5 - 1
        distances = (own - x0).abs().flatten(1).amax(1)
        assert distances.min() < 1e-6
        nearest.append(int(distances.argmin()))
    assert nearest[0] != nearest[2], "an image twice"
    assert not torch.equal(latents, training_latents(run, LABELS, 1))


def test_forward_of_an_unconditional_run_takes_any_image(make_run):
    run = load_run(make_run(num_classes=0), CPU)
    latents = training_latents(run, torch.zeros(30, dtype=torch.long), 0)
    assert len(latents.flatten(1).unique(dim=0)) == 30


def test_forward_without_its_data(make_run, tmp_path: Path):
    path = make_run(data=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone, is not there; .* backward"):
        show(config(path, "forward"), ALONE)


# -- attention -------------------------------------------------------------------------------------


def test_patch_attention_is_a_row_of_the_maps(tiny_run: Path):
    pipeline = pipeline_of(tiny_run)
    moment = backward(pipeline, LABELS)[1]
    query = attention_query(pipeline.run, config(tiny_run, layers="1,4", token=(1, 0)))
    weights = patch_attention(pipeline, query, LABELS, moment)
    assert weights.shape == (2, 2, 2)
    assert (weights.sum((1, 2)) - 1).abs().max() < 1e-5
    other = patch_attention(pipeline, query._replace(token=(0, 1)), LABELS, moment)
    assert not torch.equal(weights, other)
    default = attention_query(pipeline.run, config(tiny_run))
    assert (default.layers, default.token) == ([0, 2, 3, 5], (1, 1))


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    return write_text_run(tmp_path_factory.mktemp("text"))


def test_words_of_a_caption_and_the_patches_that_attend_to_them(text_run: Path):
    pipeline = pipeline_of(text_run)
    assert caption_words(pipeline.run, 7) == {1: "a", 2: "seven"}
    moment = backward(pipeline, LABELS)[1]
    query = attention_query(pipeline.run, config(text_run, layers="1,2"))
    weights = word_attention(pipeline, query, LABELS, moment)
    assert weights.shape == (8, 2, 2)
    assert (weights.sum(0) - 1).abs().max() < 1e-5, "weights of a patch over the words"
    first, second = (
        word_attention(pipeline, query._replace(layers=[layer]), LABELS, moment) for layer in (1, 2)
    )
    assert (weights - (first + second) / 2).abs().max() < 1e-6


def test_prompts_are_drawn(text_run: Path, tmp_path: Path, monkeypatch):
    rows, headings = [], []

    def recording(*args, **options):
        rows.append(args[1])
        headings.append(options.get("headings"))
        return grid(*args, **options)

    monkeypatch.setattr("dit.utils.pictures.grid", recording)
    asked = dict(prompt=("a nine",), num_images=1, times="2", steps=2, out=tmp_path)
    show(config(text_run, **asked), ALONE)
    sheet = rows.index(["a nine", "predicted x₀"])
    assert headings[sheet] == ["t = 1.00\nα 0.00  σ 1.00", "t = 0.00\nα 1.00  σ 0.00"]
    assert ["predicted x₀", "a", "nine"] in rows
    assert {f.name for f in tmp_path.iterdir()} >= {"backward-words.png", "backward-words.gif"}


# -- flags -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(layers="0,6"), "--layers 0,6 with DiT-Ti/4; expected layers from 0 to 5"),
        (dict(layers="all"), "--layers all with DiT-Ti/4; expected layers from 0 to 5"),
        (dict(token=(0, 2)), "--token 0 2 with 2 x 2 tokens; expected a row from 0 to 1 and a"),
        (dict(times="1.5"), "--times 1.5; expected a number of times, from 2 to 9999, or times"),
        (dict(times="1"), "--times 1;"),
        (dict(times="a,b"), "--times a,b;"),
        (dict(classes=("10",)), "--classes 10: no class 10; expected names of classes, or class"),
        (dict(prompt=("a nine",), direction="forward"), "--prompt 'a nine' with forward;"),
        (dict(prompt=("a nine",), classes=("1",)), "--prompt 'a nine' with --classes 1;"),
    ],
)
def test_flags_that_do_not_fit(tiny_run: Path, tmp_path: Path, settings, message: str):
    with pytest.raises(UserError) as error:
        show(config(tiny_run, out=tmp_path / "out", **settings), ALONE)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_shared_with_every_rank(tiny_run: Path):
    """If only rank 0 knew of it, the others would wait."""
    shared = []

    class Two(Ranks):
        def broadcast(self, value):
            shared.append(value)
            return value

    with pytest.raises(UserError, match="--layers 9"):
        show(config(tiny_run, layers="9"), Two(world=2))
    ((_, error),) = shared
    assert "--layers 9" in str(error)


def test_times_and_moments_nearest_to_them(tiny_run: Path):
    assert parse_times("8") == 8
    assert parse_times("0.2,0.5,1") == [0.2, 0.5, 1.0]
    assert parse_times("0.5") == [0.5]
    assert evenly(range(29), 8) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert evenly("abc", 5) == ["a", "b", "c"]
    for process, times in ((Flow(), (1, 0.75, 0.5, 0.25, 0)), (DDPM(), (1000, 750, 500, 250, 0))):
        trace = [Moment(torch.tensor(float(t)), *torch.zeros(2, 1)) for t in times]
        nearest = select_moments(trace, [0.9, 0.95, 0.3, 0.0], process)
        assert [float(m.t) / process.end for m in nearest] == [1.0, 0.25, 0.0]
        spread = select_moments(trace, 3, process)
        assert [float(m.t) / process.end for m in spread] == [1.0, 0.5, 0.0]


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pictures_are_where_the_output_says(tiny_run: Path, tmp_path: Path, direction, capsys):
    flags = f"--steps 3 --num-images 2 --times 3 --layers 0,3 --out {tmp_path}"
    assert cli.main(["show", direction, str(tiny_run), *flags.split()]) == 0
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        f"{direction}{what}.{kind}" for what in ("", "-attention") for kind in ("png", "gif")
    ]
    latents, film, attention, _ = map(Image.open, files)
    assert latents.height > attention.height > 3 * 96  # 4 rows, 3 rows
    assert film.n_frames == (4 if direction == "backward" else 25)


def test_the_picture_ends_with_the_sampled_images(tiny_run: Path, tmp_path: Path):
    asked = config(tiny_run, out=tmp_path, classes=("3,1",), num_images=2, times="3")
    show(asked, ALONE)
    pipeline = build_pipeline(load_run(tiny_run, CPU), asked)
    images = generate(pipeline, torch.tensor([3, 1]), torch.arange(2))
    sheet = np.array(Image.open(tmp_path / "backward.png"))
    last_column = sheet[:, -100:-4]
    for image, row in zip(images, (0, 2), strict=True):
        big = image.permute(1, 2, 0).numpy().repeat(12, 0).repeat(12, 1)
        tops = [y for y in range(len(sheet) - 95) if np.array_equal(last_column[y : y + 96], big)]
        assert len(tops) == 2, "the image and, as its own prediction, the image again"
        assert row * 96 < tops[0] < (row + 1) * 130


def test_guidance_that_is_learned_and_given_too_is_noted_once(make_run, tmp_path: Path, capsys):
    path = make_run(objective="meanflow", meanflow_scale=2.0)
    show(config(path, out=tmp_path, steps=2, num_images=1, cfg_scale=1.5), ALONE)
    assert capsys.readouterr().err.count("learned guidance of scale 2") == 1


def test_a_unet_has_no_maps(make_run, tmp_path: Path, capsys):
    path = make_run(model="UNet-S", image_size=16)
    show(config(path, out=tmp_path / "out", steps=2, num_images=1), ALONE)
    assert "no picture of attention: UNet-S" in capsys.readouterr().out
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["backward.gif", "backward.png"]


@pytest.mark.parametrize(
    "settings",
    [
        dict(image_size=(8, 16)),
        dict(conditioning="in-context"),
        dict(conditioning="adaln-single"),
        dict(conditioning="cross-attention"),
        dict(process="linear", learn_sigma=True, objective="eps"),
    ],
)
def test_other_runs(make_run, tmp_path: Path, settings):
    path, out = make_run(**settings), tmp_path / "out"
    asked = dict(out=out, num_images=2, times="0.2,0.8", layers="3")
    for direction in ("forward", "backward"):
        show(config(path, direction, **asked), ALONE)
    assert len(list(out.iterdir())) == 8
