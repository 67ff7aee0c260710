"""Pictures of how a run noises its data and denoises it again: what it sees, what it predicts, where it looks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit.config import ShowConfig
from dit.data.sources import data_exists
from dit.diffusion.process import Denoise, Prediction, Process, add_noise
from dit.distributed.device import autocast
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.attention_maps import attention_maps, text_maps
from dit.models.dit import DiT
from dit.sampling.generate import ImageNoise, check_finite, sample_latents
from dit.sampling.load import LoadedRun, class_ids, load_to_sample, prompted
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.utils import pictures
from dit.utils.files import make_folder, write_atomically

CELL = 96  # pixels that small images are enlarged to, about
LAYERS = 4  # whose attention is drawn, unless --layers asks for others
FRAMES, MOST_FRAMES = 25, 100  # of a film: of one that noises, about; of any
FILM = 5000  # milliseconds of a film, about
MOST_WORDS = 12  # of a caption
NOISY, PREDICTED = "xₜ", "predicted x₀"

Item = TypeVar("Item")
Times = int | list[float]  # how many, or which: 0 is data, 1 is noise


class Moment(NamedTuple):
    """Latents on their way, and the data that the network takes them for."""

    t: Tensor  # []
    x_t: Tensor  # [N, C, h, w]
    x0: Tensor  # [N, C, h, w]


def show(config: ShowConfig, ranks: Ranks) -> Path:
    """Draw `forward` or `backward` as PNG and GIF, and the network's attention on the way; the folder they are in.

    Raises:
        UserError: flags that do not fit the run, or no data for `forward`; see also `load_to_sample`.
    """
    run = load_to_sample(config.run, ranks.device, config)
    run = prompted(run, config.prompt) if config.prompt else run
    out = config.out or run.home / "show"
    ranks.on_main(lambda: _show(run, config, out))
    return out


def _show(run: LoadedRun, config: ShowConfig, out: Path) -> None:
    plan, labels, times = (
        build_pipeline(run, config),
        _labels(run, config),
        parse_times(config.times),
    )
    gaze = choose_gaze(run, config)
    make_folder(out)
    ahead = config.direction == "forward"
    moments = (
        forward(run, plan, config, labels, times) if ahead else backward(run, plan, config, labels)
    )
    chosen, film = choose(moments, times, plan.process), evenly(moments, MOST_FRAMES)
    _draw_way(run, labels, chosen, film, out / config.direction)
    if gaze is None:
        print(
            f"no picture of attention: {run.card.network.model} does not attend from patch to patch"
        )
        return
    _draw_attention(run, config, gaze, labels, chosen, film, out / f"{config.direction}-attention")
    if run.card.network.conditioning == "text":
        _draw_words(run, config, gaze, labels, chosen, film, out / f"{config.direction}-words")


# -- the two ways ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward(
    run: LoadedRun, plan: SamplingPipeline, config: ShowConfig, labels: Tensor, times: Times
) -> list[Moment]:
    """Images of the run's own data under more and more of the same noise, with guidance as in sampling.

    A number of times is spread from 0 to where sampling begins, with others between them for the film.

    Raises:
        UserError: the data is not there any more, or has no images of a class.
    """
    process, x0 = plan.process, own_latents(run, labels, config.seed)
    eps = ImageNoise(config.seed, range(len(x0)), run.latent_shape, run.device)()
    if isinstance(times, int):
        between = max(1, round(FRAMES / (times - 1)))
        end = float(process.times(1)[0]) / process.end
        times = torch.linspace(0, end, (times - 1) * between + 1, dtype=torch.float64).tolist()
    moments = []
    for part in times:
        t = torch.tensor(part * process.end, dtype=torch.float64)
        t = t.round() if process.end > 1 else t  # DDPM counts steps
        x_t = add_noise(process, x0, eps, t)
        with autocast(run.device, config.precision), plan.one_batch():
            moments.append(Moment(t, x_t, plan.denoise(x_t, t, labels.to(run.device)).x0))
    return moments


def own_latents(run: LoadedRun, labels: Tensor, seed: int) -> Tensor:
    """Latents [N, C, h, w] of images that the run was trained on, one of each label [N], chosen by the seed.

    Raises:
        UserError: the data is not there any more, or has no images of a class.
    """
    config = run.card.config
    if not data_exists(config.data):
        raise UserError(
            f"the data of {run.home}, {config.data}, is not there",
            "what it was trained on",
            "bring it back, or look at `dit show backward`, which needs no data",
        )
    source = build_source(replace(config, flip=False), run.autoencoder)
    order = np.random.default_rng(seed).permutation(len(source.labels))
    indices = np.resize(order, len(labels))
    if run.card.classes and source.classes:
        members = {label: order[source.labels[order] == label] for label in set(labels.tolist())}
        empty = [label for label, found in members.items() if not len(found)]
        if empty:
            raise UserError(
                f"no image of class {empty[0]} in {config.data}",
                "a class that the data has",
                "pass other --classes",
            )
        turns = {label: cycle(found) for label, found in members.items()}
        indices = np.array([next(turns[label]) for label in labels.tolist()])
    moments = source.read(indices, np.zeros(len(indices), bool))
    return run.autoencoder.draw(moments, torch.zeros(len(indices), *run.latent_shape))


@torch.inference_mode()
def backward(
    run: LoadedRun, plan: SamplingPipeline, config: ShowConfig, labels: Tensor
) -> list[Moment]:
    """All steps of sampling; the last moment holds the latents of the images that sample.py makes."""
    batches = zip(
        labels.split(config.batch_size),
        torch.arange(len(labels)).split(config.batch_size),
        strict=True,
    )
    traces = [_sampled(run, plan, config, *batch) for batch in batches]
    return [
        Moment(parts[0].t, torch.cat([m.x_t for m in parts]), torch.cat([m.x0 for m in parts]))
        for parts in zip(*traces, strict=True)
    ]


def _sampled(
    run: LoadedRun, plan: SamplingPipeline, config: ShowConfig, labels: Tensor, indices: Tensor
) -> list[Moment]:
    trace: list[Moment] = []
    plan = replace(plan, denoise=recorded(plan.denoise, trace))
    latents = sample_latents(run, plan, config, labels, indices)
    check_finite(latents, labels, indices)
    return [*trace, Moment(plan.times[-1], latents, latents)]


def recorded(denoise: Denoise, trace: list[Moment]) -> Denoise:
    """A map of denoisers, as guidance is: the same predictions, written down as the sampler asks for them.

    Where a sampler asks twice at a time, as heun does, the place that it goes on from is the second.
    """

    def recording(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        said = denoise(x_t, t, y)
        if trace and trace[-1].t == t:
            trace.pop()
        trace.append(Moment(t, x_t, said.x0))
        return said

    return recording


# -- attention ---------------------------------------------------------------------------------------------------


class Gaze(NamedTuple):
    """Where to look into a network, and from where in the image."""

    network: DiT
    layers: list[int]
    token: tuple[int, int]  # row and column


def choose_gaze(run: LoadedRun, config: ShowConfig) -> Gaze | None:
    """Layers and token that `config` asks for; nothing for networks that are no DiT.

    Raises:
        UserError: layers or a token that the network does not have.
    """
    network = run.denoise.network
    network = network.network if isinstance(network, Captioned) else network
    if not isinstance(network, DiT):
        return None
    depth = len(network.blocks)
    layers = (
        parse_layers(config.layers) if config.layers is not None else evenly(range(depth), LAYERS)
    )
    if not layers or max(layers) >= depth:
        raise UserError(
            f"--layers {config.layers} with {run.card.network.model}",
            f"layers from 0 to {depth - 1}, separated by commas",
            "pass other --layers",
        )
    height, width = (side // network.patch_size for side in run.latent_shape[1:])
    row, column = config.token or (height // 2, width // 2)
    if row >= height or column >= width:
        raise UserError(
            f"--token {row} {column} with {height} x {width} tokens",
            f"a row from 0 to {height - 1} and a column from 0 to {width - 1}",
            "pass another --token",
        )
    return Gaze(network, layers, (row, column))


@torch.inference_mode()
def look(run: LoadedRun, config: ShowConfig, gaze: Gaze, labels: Tensor, moment: Moment) -> Tensor:
    """How much the chosen token of the first image attends to each, [layers, rows, columns], without guidance."""
    rows, columns = _grid(run, gaze)
    query = gaze.token[0] * columns + gaze.token[1]
    with attention_maps(gaze.network, gaze.layers) as maps, autocast(run.device, config.precision):
        run.denoise(moment.x_t[:1], moment.t, labels[:1].to(run.device))
    image = [
        maps[layer][0, query, : rows * columns] for layer in gaze.layers
    ]  # in-context tokens come after it
    return torch.stack(image).unflatten(-1, (rows, columns))


@torch.inference_mode()
def read(run: LoadedRun, config: ShowConfig, gaze: Gaze, labels: Tensor, moment: Moment) -> Tensor:
    """How much each token of the first image attends to those of its caption, mean over layers, [S, rows, columns]."""
    with text_maps(gaze.network, gaze.layers) as maps, autocast(run.device, config.precision):
        run.denoise(moment.x_t[:1], moment.t, labels[:1].to(run.device))
    return (
        torch.stack([maps[layer][0] for layer in gaze.layers])
        .mean(0)
        .T.unflatten(-1, _grid(run, gaze))
    )


def words(run: LoadedRun, label: int) -> dict[int, str]:
    """The tokens of a caption by their place, without those that only mark its start and end."""
    captioned = run.denoise.network
    assert isinstance(captioned, Captioned)
    tokenizer = captioned.captions.encoder.tokenizer
    ids = tokenizer(
        captioned.captions.texts[label],
        truncation=True,
        max_length=captioned.captions.encoder.length,
    )["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    there = [
        (place, token)
        for place, token in enumerate(tokens)
        if ids[place] not in tokenizer.all_special_ids
    ]
    return {place: token.removesuffix("</w>").lstrip("▁Ġ") for place, token in there[:MOST_WORDS]}


def _grid(run: LoadedRun, gaze: Gaze) -> tuple[int, int]:
    _, height, width = run.latent_shape
    return height // gaze.network.patch_size, width // gaze.network.patch_size


# -- pictures ----------------------------------------------------------------------------------------------------


def _draw_way(
    run: LoadedRun, labels: Tensor, chosen: list[Moment], film: list[Moment], name: Path
) -> None:
    """Two rows for each image: the latents on their way, and what the network takes them for."""

    def column(moment: Moment) -> Tensor:  # [2 N, 3, H, W]
        pair = torch.stack(
            [run.autoencoder.decode(moment.x_t), run.autoencoder.decode(moment.x0)], dim=1
        )
        return pair.flatten(0, 1).cpu()

    def frame(moment: Moment) -> Image.Image:
        images = column(moment).unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        return pictures.grid(images, [NOISY, PREDICTED], len(labels), _scale(run), headings=names)

    names = [run.card.class_name(int(label)) if run.card.classes else "" for label in labels]
    images = torch.stack([column(moment) for moment in chosen], dim=1).flatten(0, 1)
    rows = [row for name in names for row in (name or NOISY, PREDICTED)]
    sheet = pictures.grid(
        images, rows, len(chosen), _scale(run), headings=_headings(run, chosen), together=2
    )
    _save(run, name, sheet, film, [frame(moment) for moment in film])


def _draw_attention(
    run: LoadedRun,
    config: ShowConfig,
    gaze: Gaze,
    labels: Tensor,
    chosen: list[Moment],
    film: list[Moment],
    name: Path,
) -> None:
    """A row for each layer: what the outlined token of the first image looks at, over what the network predicts."""

    def column(moment: Moment) -> Tensor:  # [1 + layers, 3, H, W]
        images = _heated(run, moment, look(run, config, gaze, labels, moment))
        return pictures.outline(images, gaze.token, _grid(run, gaze))

    rows = [PREDICTED, *(f"layer {layer}" for layer in gaze.layers)]
    _draw_rows(run, column, rows, chosen, film, name)


def _draw_words(
    run: LoadedRun,
    config: ShowConfig,
    gaze: Gaze,
    labels: Tensor,
    chosen: list[Moment],
    film: list[Moment],
    name: Path,
) -> None:
    """A row for each word of the first image's caption: where in the image it is looked up."""
    caption = words(run, int(labels[0]))

    def column(moment: Moment) -> Tensor:  # [1 + words, 3, H, W]
        return _heated(run, moment, read(run, config, gaze, labels, moment)[list(caption)])

    _draw_rows(run, column, [PREDICTED, *caption.values()], chosen, film, name)


def _heated(run: LoadedRun, moment: Moment, weights: Tensor) -> Tensor:
    """What is predicted of the first image, and each of the weights [K, rows, columns] over it: [1 + K, 3, H, W]."""
    factor = _scale(run)
    image = pictures.enlarge(run.autoencoder.decode(moment.x0[:1]).cpu(), (factor, factor))
    return torch.cat([image, pictures.heat(image.expand(len(weights), -1, -1, -1), weights)])


def _draw_rows(
    run: LoadedRun,
    column: Callable[[Moment], Tensor],
    rows: list[str],
    chosen: list[Moment],
    film: list[Moment],
    name: Path,
) -> None:
    images = torch.stack([column(moment) for moment in chosen], dim=1).flatten(0, 1)
    sheet = pictures.grid(images, rows, len(chosen), headings=_headings(run, chosen))
    _save(
        run,
        name,
        sheet,
        film,
        [pictures.grid(column(moment), None, len(rows), headings=rows) for moment in film],
    )


def _save(
    run: LoadedRun, name: Path, sheet: Image.Image, film: list[Moment], frames: list[Image.Image]
) -> None:
    """NAME.png and NAME.gif, where each frame tells its time."""
    times = [heading.replace("\n", "   ") for heading in _headings(run, film)]
    titled = [pictures.strip([frame], [time]) for frame, time in zip(frames, times, strict=True)]
    with write_atomically(name.with_suffix(".png")) as beside:
        sheet.save(beside, format="PNG")
    with write_atomically(name.with_suffix(".gif")) as beside:
        pictures.gif(titled, beside, min(500, max(40, FILM // len(film))))
    print(f"{name}.png\n{name}.gif")


def _scale(run: LoadedRun) -> int:
    return pictures.fitting_scale(max(run.image_size), CELL)


def _headings(run: LoadedRun, moments: Sequence[Moment]) -> list[str]:
    process, headings = run.denoise.process, []
    for moment in moments:
        at = process.coefficients(moment.t)
        time = f"{float(moment.t):.0f}" if process.end > 1 else f"{float(moment.t):.2f}"
        headings.append(f"t = {time}\nα {float(at.alpha):.2f}  σ {float(at.sigma):.2f}")
    return headings


# -- flags -------------------------------------------------------------------------------------------------------


def _labels(run: LoadedRun, config: ShowConfig) -> Tensor:
    """Class ids [N]: those of --classes in turn, or some of all."""
    classes = class_ids(config.classes, run.card)
    if config.classes is None:
        classes = pictures.spread(classes, config.num_images)
    return torch.tensor([classes[i % len(classes)] for i in range(config.num_images)])


def parse_times(text: str) -> Times:
    """How many times, such as `8`; or which, such as `0.2,0.5`, where 0 is data and 1 is noise.

    Raises:
        UserError: neither.
    """
    if text.isdecimal() and int(text) > 1:
        return int(text)
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if text.isdecimal() or not times or not all(0 <= time <= 1 for time in times):
        raise UserError(
            f"--times {text}",
            "a number of times, 2 or more, or times from 0 (data) to 1 (noise), "
            "separated by commas",
            "such as --times 8, or --times 0.2,0.5,0.8",
        )
    return times


def parse_layers(text: str) -> list[int]:
    """Layers such as `0,5`; none where the text is something else."""
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.strip().isdecimal() for part in parts) else []


def choose(moments: Sequence[Moment], times: Times, process: Process) -> list[Moment]:
    """So many moments, the first and the last among them, or those nearest to the times, without doubles."""
    if isinstance(times, int):
        return evenly(moments, times)
    near = [
        min(range(len(moments)), key=lambda i: abs(float(moments[i].t) / process.end - time))
        for time in times
    ]
    return [moments[i] for i in dict.fromkeys(near)]


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spaced from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
