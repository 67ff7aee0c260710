"""What the page of `dit play` does, without gradio: pictures, and the commands that make them."""

import shlex
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_run
from helpers.caption_runs import write_text_run
from PIL import Image

from dit.cli import main
from dit.commands.play import command, uploads
from dit.commands.play.actions import Controls, Player, first_controls
from dit.commands.play.command import with_scale
from dit.commands.play.live import while_forming
from dit.config import PlayConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling.edit import Edit, grid_request
from dit.sampling.load import load_run, load_to_sample
from dit.sampling.pipeline import build_pipeline

CPU = torch.device("cpu")
IMAGE = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(3)).byte()

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("play") / "a run")


def player_of(run: Path, **flags) -> Player:
    config = PlayConfig(run=run, precision="fp32", **flags)
    loaded = load_to_sample(run, CPU, config)
    return Player(loaded, with_scale(config, loaded.card))


def controls(**changes) -> Controls:
    values = dict(cfg_scale=2.0, sampler="euler", steps=3, seed=5, images=3, classes=(3, 1))
    return Controls(**{**values, **changes})


def typed(text: str) -> Path:
    """Run a command line as it is shown; return the newest folder that it wrote."""
    program, *words = shlex.split(text)
    assert (program, main(words)) == ("dit", 0)
    if "--out" in words:
        return Path(words[words.index("--out") + 1])
    folders = Path(words[words.index("--run") + 1], "edits").glob("*-*")
    return max(folders, key=lambda folder: (folder / "grid.png").stat().st_mtime_ns)


def files(folder: Path) -> torch.Tensor:
    names = sorted(file for file in folder.glob("*.png") if file.stem.isdigit())
    images = np.stack([np.array(Image.open(name).convert("RGB")) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# -- pictures and commands -------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "heun", "dpmpp_2m"])
def test_a_sample_forms_and_its_command_makes_the_same_pixels(run, sampler):
    shown = list(player_of(run).sample(controls(sampler=sampler, cfg_interval=(0.1, 0.8))))
    *forming, done = shown
    assert len(forming) >= 3
    assert all(not one.command for one in forming)
    # each is nearer to the result
    distances = [(one.images.int() - done.images.int()).abs().float().mean() for one in forming]
    assert distances[-1] < distances[0]
    assert done.captions == ["3", "1", "3"]
    assert torch.equal(files(typed(done.command)), done.images)


def paint() -> torch.Tensor:
    painted = torch.zeros(8, 8, dtype=torch.bool)
    painted[2:6, :5] = True
    return painted


@pytest.mark.parametrize(
    "action",
    [
        lambda player, of: player.inpaint(of, IMAGE, paint()),
        lambda player, of: player.inpaint(of, IMAGE, paint(), paste=False),
        lambda player, of: player.vary(of, IMAGE, 0.7),
        lambda player, of: player.interpolate(of, (3, 1), (4, 4), 4),
        lambda player, of: player.interpolate(of, (3, 3), (4, 9), 3),
    ],
)
def test_an_edit_forms_and_its_command_makes_the_same_pixels(run, action):
    *forming, done = action(player_of(run), controls())
    assert forming
    assert len(done.captions) == len(done.images)
    assert torch.equal(files(typed(done.command)), done.images)


def test_the_attention_is_what_dit_show_draws(run):
    player = player_of(run)
    found = player.attention(controls(), (1, 0))
    program, *words = shlex.split(found.command)
    assert (program, main(words)) == ("dit", 0)
    drawn = np.array(Image.open(run / "show" / "backward-attention.png").convert("RGB"))
    assert np.array_equal(np.array(found.sheet), drawn)

    # a click elsewhere: another token of the same image
    other = player.attention(controls(), (0, 0))
    assert not np.array_equal(np.array(other.sheet), drawn)
    assert player.tokens == (2, 2)


def test_flags_without_a_control_stay_as_they_were_typed(run):
    player = player_of(run, eta=0.5, sampler="ddim", block_cache=2, cfg_scale=2.0, cfg_channels=1)
    *_, done = player.sample(controls(sampler="ddim"))
    assert "--eta 0.5" in done.command
    assert "--block-cache 2" in done.command
    assert "--cfg-channels 1" in done.command

    # without what nothing would read
    *_, done = player.sample(controls(cfg_scale=1.0, cfg_interval=(0.2, 0.6)))
    assert "--eta" not in done.command
    assert "--cfg" not in done.command


def test_the_first_controls_are_the_flags_of_the_command(run):
    first = first_controls(load_run(run, CPU), PlayConfig(run=run, cfg_scale=3.0, seed=7))
    assert (first.cfg_scale, first.seed, first.sampler, first.steps) == (3.0, 7, "dpmpp_2m", 25)


def test_words_that_start_with_a_dash_are_no_flags(run, tmp_path):
    text = write_text_run(tmp_path)
    prompts = "a seven\n-x\n--steps 3"
    *_, done = player_of(text).sample(controls(classes=(), prompts=prompts, images=3))
    assert torch.equal(files(typed(done.command)), done.images)

    player = player_of(run)
    player.run.card.classes[:] = [f"-{name}" for name in player.run.card.classes]
    *_, done = player.sample(controls())
    assert shlex.split(done.command)[-6:-4] == ["--classes=-3", "--classes=-1"]


@pytest.mark.parametrize(
    ("settings", "flags", "scale"),
    [
        ({}, {}, 1.5),
        (dict(label_dropout=0.0), {}, 1.0),
        (dict(num_classes=0), {}, 1.0),
        (dict(num_classes=0, inner_head=True), dict(guide=Path("internal")), 1.5),
        ({}, dict(cfg_scale=1.0), 1.0),
    ],
)
def test_the_page_starts_with_the_guidance_of_previews(tmp_path, settings, flags, scale):
    player = player_of(write_run(tmp_path / "run", **settings), **flags)
    assert first_controls(player.run, player.config).cfg_scale == scale


@pytest.mark.parametrize(
    ("settings", "do"),
    [
        (dict(num_classes=0), "drop --cfg-interval"),
        (dict(objective="meanflow", meanflow_scale=2.0), "pass --cfg-scale 2, or drop"),
    ],
)
def test_flags_of_guidance_need_a_run_with_guidance(tmp_path, settings, do):
    run = write_run(tmp_path / "run", **settings)
    with pytest.raises(UserError) as error:
        player_of(run, cfg_interval=(0.2, 0.8))
    message = "--cfg-interval 0.2 0.8 for a run whose previews are not guided; expected guidance"
    assert str(error.value).startswith(f"{message} with --cfg-interval; {do}")


def test_flags_are_checked_before_the_scale_is_known():
    with pytest.raises(UserError, match="--port 0"):
        PlayConfig(run=Path("run"), port=0)
    with pytest.raises(UserError, match=r"--eta 0\.5"):
        PlayConfig(run=Path("run"), eta=0.5)


def test_a_classifier_leads_a_run_without_classes(tmp_path):
    classifier = write_run(tmp_path / "one", model="Classifier-Ti/4", label_dropout=0.0)
    player = player_of(write_run(tmp_path / "run", num_classes=0), classifier=classifier)
    first = first_controls(player.run, player.config)
    assert first.cfg_scale == 1
    *_, done = player.sample(replace(first, steps=1, images=2))
    assert done.captions == ["0", "1"]


def test_captions_are_typed_as_prompts(tmp_path):
    run = write_text_run(tmp_path)
    player = player_of(run)
    *_, done = player.sample(controls(classes=(), prompts="a seven\n\na one\n", images=2))
    assert done.captions == ["a seven", "a one"]
    assert "--prompt 'a seven' 'a one'" in done.command
    assert torch.equal(files(typed(done.command)), done.images)


def test_a_run_without_classes_has_no_captions(tmp_path):
    run = write_run(tmp_path / "run", num_classes=0)
    *_, done = player_of(run).sample(controls(classes=(), cfg_scale=1.0))
    assert done.captions == ["", "", ""]
    *_, done = player_of(run).interpolate(controls(cfg_scale=1.0), (), (1, 2), 3)
    assert len(done.images) == 3


@pytest.mark.parametrize("changes", [dict(images=65), dict(images=0), dict(steps=1001)])
def test_one_visitor_cannot_keep_the_page_busy(run, changes):
    with pytest.raises(UserError, match="expected 1 to"):
        next(player_of(run).sample(controls(**changes)))


# -- images while they form ------------------------------------------------------------------------


def edit_of(run: Path, steps: int, sampler: str = "euler") -> Edit:
    config = PlayConfig(run=run, precision="fp32", steps=steps, sampler=sampler, batch_size=2)
    loaded = load_run(run, CPU)
    pipeline = build_pipeline(loaded, with_scale(config, loaded.card), [3])
    return Edit(grid_request(pipeline, 5), 5, {})


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_batches_form_one_after_the_other(run, sampler):
    edit = edit_of(run, 1, sampler)
    *forming, (images, done) = while_forming(edit)
    assert done
    empty = [[bool((image == 235).all()) for image in shown] for shown, _ in forming]
    assert empty == [[False] * n + [True] * (5 - n) for n in (2, 4, 5)]
    # a single step: the prediction is the result
    assert torch.equal(forming[-1][0], images)


def test_sampling_stops_when_nobody_waits(run):
    edit = edit_of(run, 500)
    (request,) = edit.requests
    calls = []

    def counted(x, t, y):
        calls.append(t)
        return request.pipeline.denoise(x, t, y)

    pipeline = replace(request.pipeline, denoise=counted)
    iterator = while_forming(replace(edit, requests=(request._replace(pipeline=pipeline),)))
    next(iterator)
    iterator.close()  # waits for the thread
    assert 0 < len(calls) < 500


def test_an_error_in_sampling_reaches_the_page(run):
    edit = edit_of(run, 2)
    (request,) = edit.requests
    broken = request._replace(labels=torch.full((5,), 99))
    with pytest.raises(IndexError):
        list(while_forming(Edit((broken,), 5, {})))


# -- uploads ---------------------------------------------------------------------------------------


def test_a_drawing_is_reduced_to_the_pixels_of_the_image():
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[8:16, 16:40, 3] = 255
    layer[8:16, 40:43, 3] = 255  # less than half a pixel
    paint = uploads.painted({"layers": [layer]}, (8, 8))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1, 2:5] = True
    assert torch.equal(paint, expected)


@pytest.mark.parametrize("drawing", [None, {"layers": []}, {"layers": [np.zeros((8, 8, 4))]}])
def test_an_empty_drawing_is_refused(drawing):
    with pytest.raises(UserError, match="nothing is drawn"):
        uploads.painted(drawing, (8, 8))


def test_uploads_are_checked_and_named_without_their_folder(run, tmp_path, monkeypatch):
    loaded = load_run(run, CPU)
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    with pytest.raises(UserError, match=r"^bad.png cannot be read as an image"):
        uploads.read_upload(str(bad), loaded)
    monkeypatch.setattr(uploads, "MOST_BYTES", 4)
    with pytest.raises(UserError, match=r"^bad.png takes 0 MiB; expected at most"):
        uploads.read_upload(str(bad), loaded)


# -- the command -----------------------------------------------------------------------------------


def test_without_gradio_the_command_says_how_to_get_it(run, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(command, "version", missing)
    with pytest.raises(UserError, match="pip install gradio"):
        command.play(PlayConfig(run=run), Ranks())


@pytest.mark.parametrize("found", ["5.49.1", "6.2.0", "7.0.0"])
def test_another_gradio_is_refused(monkeypatch, found):
    monkeypatch.setattr(command, "version", lambda name: found)
    with pytest.raises(UserError, match=rf"gradio {found}; expected gradio 6.31 or a later 6.x"):
        command.require_gradio()


@pytest.mark.parametrize("found", ["6.31.0", "6.40.2rc1"])
def test_a_gradio_of_this_interface_is_accepted(monkeypatch, found):
    monkeypatch.setattr(command, "version", lambda name: found)
    command.require_gradio()
