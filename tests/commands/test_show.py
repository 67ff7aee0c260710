from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_weights
from PIL import Image

from dit import cli
from dit.build import build_text_encoder
from dit.commands.show import (
    Moment,
    backward,
    choose,
    choose_gaze,
    evenly,
    forward,
    look,
    own_latents,
    parse_times,
    read,
    recorded,
    show,
    words,
)
from dit.config import ShowConfig, TrainConfig
from dit.data.captions import DIGIT_CAPTIONS
from dit.data.sources import load_images
from dit.diffusion.process import DDPM, Flow, add_noise
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import write_weights
from dit.sampling.generate import ImageNoise, generate
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline
from dit.utils.pictures import grid

CPU, ALONE = torch.device("cpu"), Ranks()
LABELS = torch.tensor([3, 1, 3])


def config(run: Path, direction: str = "backward", **settings) -> ShowConfig:
    return ShowConfig(
        **{
            **dict(direction=direction, run=run, precision="fp32", steps=4, num_images=3),
            **settings,
        }
    )


def planned(path: Path, **settings):
    run, asked = load_run(path, CPU), config(path, **settings)
    return run, build_pipeline(run, asked), asked


# -- the two ways ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        dict(sampler="dpmpp_2m", cfg_scale=2.0, seed=7),
        dict(sampler="heun", cfg_interval=(0.2, 0.8), cfg_scale=3.0),
        dict(sampler="ddim", eta=1.0, batch_size=2),
    ],
)
def test_the_end_is_bitwise_what_is_sampled(tiny_run: Path, settings):
    run, plan, asked = planned(tiny_run, **settings)
    trace = backward(run, plan, asked, LABELS)
    images = generate(run, plan, asked, LABELS, torch.arange(3))
    assert torch.equal(run.autoencoder.decode(trace[-1].x_t), images)
    assert [float(m.t) for m in trace] == plan.times.tolist()


def test_a_step_leads_from_each_moment_to_the_next(tiny_run: Path):
    """DDIM's x_s = alpha_s x0 + sigma_s eps, with eps as the rest of x_t when x0 is taken away."""
    run, plan, asked = planned(tiny_run, sampler="ddim")
    trace = backward(run, plan, asked, LABELS)
    for here, there in zip(trace[:-1], trace[1:], strict=True):
        at = plan.process.coefficients(here.t)
        eps = (here.x_t - at.alpha.float() * here.x0) / at.sigma.float()
        assert (add_noise(plan.process, here.x0, eps, there.t) - there.x_t).abs().max() < 1e-5
    assert torch.equal(trace[0].x_t, ImageNoise(0, range(3), (3, 8, 8), CPU)())


def test_of_two_calls_at_a_time_the_second_is_kept(tiny_run: Path):
    _, plan, _ = planned(tiny_run, sampler="heun")
    calls = []
    counting = recorded(lambda x_t, t, y: calls.append(x_t) or plan.denoise(x_t, t, y), trace := [])
    plan.sampler(
        counting, plan.process, torch.ones(1, 3, 8, 8), LABELS[:1], plan.times, lambda: None
    )
    assert (len(calls), len(trace)) == (7, 4)
    assert [m.x_t is call for m, call in zip(trace, calls[0::2], strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("process", "objective"), [("flow", "v"), ("linear", "eps"), ("cosine", "v")]
)
def test_forward_adds_the_same_noise_at_all_times(make_run, process: str, objective: str):
    path = make_run(process=process, objective=objective)
    run, plan, asked = planned(path, direction="forward", seed=5)
    trace = forward(run, plan, asked, LABELS, 4)
    x0, eps = own_latents(run, LABELS, 5), ImageNoise(5, range(3), (3, 8, 8), CPU)()
    assert float(trace[0].t) == 0
    assert float(trace[-1].t) == float(plan.process.times(1)[0])
    for moment in trace:
        assert torch.equal(moment.x_t, add_noise(plan.process, x0, eps, moment.t))
        assert torch.equal(moment.x0, plan.denoise(moment.x_t, moment.t, LABELS).x0)
    spread = choose(trace, 4, plan.process)
    steps = torch.stack([moment.t for moment in spread]).diff()
    assert (steps - steps.mean()).abs().max() <= (1 if process != "flow" else 1e-12)
    _, cached, _ = planned(
        path, direction="forward", seed=5, block_cache=2
    )  # nothing is carried between its times
    assert all(
        torch.equal(a.x0, b.x0)
        for a, b in zip(trace, forward(run, cached, asked, LABELS, 4), strict=True)
    )
    given = forward(run, plan, asked, LABELS, [0.2, 0.5])
    assert [float(m.t) / plan.process.end for m in given] == pytest.approx([0.2, 0.5])


def test_forward_takes_the_runs_own_images_of_the_classes_asked_for(tiny_run: Path):
    run = load_run(tiny_run, CPU)
    images = load_images("digits", 8)
    own = {label: images.images[images.labels == label].float() / 127.5 - 1 for label in (1, 3)}
    found = own_latents(run, LABELS, 0)
    where = [
        (own[int(label)] - x0).abs().flatten(1).amax(1)
        for label, x0 in zip(LABELS, found, strict=True)
    ]
    assert all(distance.min() < 1e-6 for distance in where)
    assert where[0].argmin() != where[2].argmin(), "an image twice"
    assert not torch.equal(found, own_latents(run, LABELS, 1))


def test_forward_of_an_unconditional_run_takes_any_image(make_run):
    run = load_run(make_run(num_classes=0), CPU)
    assert (
        own_latents(run, torch.zeros(30, dtype=torch.long), 0).flatten(1).unique(dim=0).shape[0]
        == 30
    )


# -- attention ---------------------------------------------------------------------------------------------------


def test_look_is_a_row_of_the_maps(tiny_run: Path):
    run, plan, asked = planned(tiny_run)
    last = backward(run, plan, asked, LABELS)[1]
    asked = config(tiny_run, layers="1,4", token=(1, 0))
    gaze = choose_gaze(run, asked)
    weights = look(run, asked, gaze, LABELS, last)
    assert weights.shape == (2, 2, 2)
    assert (weights.sum((1, 2)) - 1).abs().max() < 1e-5
    other = look(run, asked, gaze._replace(token=(0, 1)), LABELS, last)
    assert not torch.equal(weights, other)
    assert choose_gaze(run, config(tiny_run)).layers == [0, 2, 3, 5]
    assert choose_gaze(run, config(tiny_run)).token == (1, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(layers="0,6"), "--layers 0,6 with DiT-Ti/4; expected layers from 0 to 5"),
        (dict(layers="all"), "--layers all with DiT-Ti/4; expected layers from 0 to 5"),
        (
            dict(token=(0, 2)),
            "--token 0 2 with 2 x 2 tokens; expected a row from 0 to 1 and a column from 0 to 1",
        ),
        (
            dict(times="1.5"),
            "--times 1.5; expected a number of times, 2 or more, or times from 0 (data) to 1 (noise)",
        ),
        (dict(times="1"), "--times 1;"),
        (dict(times="a,b"), "--times a,b;"),
        (dict(classes="10"), "--classes 10; expected class ids from 0 to 9"),
    ],
)
def test_mistakes_name_both_sides(tiny_run: Path, tmp_path: Path, settings, said: str):
    with pytest.raises(UserError) as error:
        show(config(tiny_run, out=tmp_path / "out", **settings), ALONE)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_forward_without_its_data(make_run, tmp_path: Path):
    path = make_run(data=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone, is not there; .* backward"):
        show(config(path, "forward"), ALONE)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    settings = TrainConfig(vae="identity", image_size=8, model="DiT-Ti/4", conditioning="text")
    encoder = build_text_encoder(settings, CPU)
    spec = NetworkSpec(
        model=settings.model,
        input_size=8,
        in_channels=3,
        num_classes=10,
        learn_sigma=False,
        conditioning="text",
        text_width=encoder.width,
    )
    card = ModelCard(
        config=settings,
        network=spec,
        classes=list(DIGIT_CAPTIONS),
        text_encoder_sha256=encoder.checksum,
    )
    write_weights(
        file := tmp_path_factory.mktemp("text") / "run.safetensors", random_weights(spec), card, 1
    )
    return file


def test_words_of_a_caption_and_where_they_are_looked_up(text_run: Path):
    run, plan, asked = planned(text_run)
    assert words(run, 7) == {1: "a", 2: "seven"}
    moment = backward(run, plan, asked, LABELS)[1]
    gaze = choose_gaze(run, config(text_run, layers="1,2"))
    weights = read(run, asked, gaze, LABELS, moment)
    assert weights.shape == (8, 2, 2)
    assert (weights.sum(0) - 1).abs().max() < 1e-5, (
        "each patch attends to words with weights of sum 1"
    )
    single = [read(run, asked, gaze._replace(layers=[layer]), LABELS, moment) for layer in (1, 2)]
    assert (weights - (single[0] + single[1]) / 2).abs().max() < 1e-6


def test_prompts_are_drawn(text_run: Path, tmp_path: Path, monkeypatch):
    drawn = []

    def seen(*args, **options):
        drawn.append((args[1], options.get("headings")))
        return grid(*args, **options)

    monkeypatch.setattr("dit.utils.pictures.grid", seen)
    show(
        config(text_run, prompt=("a nine",), num_images=1, times="2", steps=2, out=tmp_path), ALONE
    )
    assert (
        ["a nine", "predicted x₀"],
        ["t = 1.00\nα 0.00  σ 1.00", "t = 0.00\nα 1.00  σ 0.00"],
    ) in drawn
    assert ["predicted x₀", "a", "nine"] in [labels for labels, _ in drawn]
    assert {f.name for f in tmp_path.iterdir()} >= {"backward-words.png", "backward-words.gif"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(direction="forward"), "--prompt 'a nine' with forward; expected one of the two"),
        (dict(classes="1"), "--prompt 'a nine' with --classes 1; expected one of the two"),
    ],
)
def test_prompts_are_for_backward_alone(tiny_run: Path, settings, said: str):
    with pytest.raises(UserError) as error:
        config(tiny_run, prompt=("a nine",), **settings)
    assert said in str(error.value)


# -- flags and pictures ------------------------------------------------------------------------------------------


def test_times():
    assert parse_times("8") == 8
    assert parse_times("0.2,0.5,1") == [0.2, 0.5, 1.0]
    assert parse_times("0.5") == [0.5]
    assert evenly(range(29), 8) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert evenly("abc", 5) == ["a", "b", "c"]


def test_choose_takes_the_nearest_once(tiny_run: Path):
    run, plan, asked = planned(tiny_run)
    trace = backward(run, plan, asked, LABELS)  # at 1, 0.75, 0.5, 0.25, 0
    assert [float(m.t) for m in choose(trace, [0.9, 0.95, 0.3, 0.0], Flow())] == [1.0, 0.25, 0.0]
    assert [float(m.t) for m in choose(trace, 3, Flow())] == [1.0, 0.5, 0.0]


def test_choose_counts_steps_of_ddpm_as_parts_of_all():
    trace = [Moment(torch.tensor(float(t)), *torch.zeros(2, 1)) for t in (1000, 750, 500, 250, 0)]
    assert [float(m.t) for m in choose(trace, [0.9, 0.3, 0.0], DDPM())] == [1000.0, 250.0, 0.0]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pictures_are_where_they_are_said_to_be(
    tiny_run: Path, tmp_path: Path, direction: str, capsys
):
    settings = [
        "--steps",
        "3",
        "--num-images",
        "2",
        "--times",
        "3",
        "--layers",
        "0,3",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(["show", direction, str(tiny_run), *settings]) == 0
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        f"{direction}{what}.{kind}" for what in ("", "-attention") for kind in ("png", "gif")
    ]
    with (
        Image.open(files[0]) as way,
        Image.open(files[2]) as attention,
        Image.open(files[1]) as film,
    ):
        assert way.height > attention.height > 3 * 96  # 4 rows, 3 rows
        assert film.n_frames == (4 if direction == "backward" else 25)


def test_a_mistake_is_told_to_every_rank(tiny_run: Path):
    """Where only rank 0 knew of it, the others would wait for ever."""
    shared = []

    class Two(Ranks):
        def share(self, value):
            shared.append(value)
            return value

    with pytest.raises(UserError, match="--layers 9"):
        show(config(tiny_run, layers="9"), Two(world=2))
    assert [str(error) for _, error in shared] == [str(shared[0][1])]
    assert "--layers 9" in str(shared[0][1])


def test_the_picture_ends_with_the_sampled_images(tiny_run: Path, tmp_path: Path):
    asked = config(tiny_run, out=tmp_path, classes="3,1", num_images=2, times="3")
    show(asked, ALONE)
    run = load_run(tiny_run, CPU)
    images = generate(run, build_pipeline(run, asked), asked, torch.tensor([3, 1]), torch.arange(2))
    sheet = np.array(Image.open(tmp_path / "backward.png"))
    for image, top in zip(images, (0, 2), strict=True):
        big = image.permute(1, 2, 0).numpy().repeat(12, 0).repeat(12, 1)
        right = sheet[:, -100:-4]  # the last column
        found = [y for y in range(len(sheet) - 95) if np.array_equal(right[y : y + 96], big)]
        assert len(found) == 2, "the image and, as its own prediction, the image again"
        assert top * 96 < found[0] < (top + 1) * 130


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
        dict(conditioning="cross-attention"),
        dict(process="linear", learn_sigma=True, objective="eps"),
    ],
)
def test_other_runs(make_run, tmp_path: Path, settings):
    path = make_run(**settings)
    for direction in ("forward", "backward"):
        show(
            config(
                path, direction, out=tmp_path / "out", num_images=2, times="0.2,0.8", layers="3"
            ),
            ALONE,
        )
    assert len(list((tmp_path / "out").iterdir())) == 8
