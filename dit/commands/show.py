"""`dit show`: pictures of noising and denoising, with the predictions and the attention maps."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from dit.config import ShowConfig
from dit.diffusion.process import Denoise, Prediction, Process, add_noise
from dit.distributed.device import autocast
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.models.attention_maps import attention_maps, text_maps
from dit.models.dit import DiT
from dit.sampling.classes import class_ids
from dit.sampling.generate import ImageNoise, require_finite, sample_latents
from dit.sampling.load import LoadedRun, load_to_sample, with_prompts, without_captions
from dit.sampling.own_data import training_latents
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.utils import pictures
from dit.utils.outputs import create_folder, require_outside, require_own_file, signature

CELL = 96  # pixels to which small images are enlarged, about
LAYERS = 4  # attention maps, unless --layers is given
FORWARD_FRAMES = 25
MOST_FRAMES = 100
FILM = 5000  # length of a film in milliseconds, about
MOST_WORDS = 12  # of a caption
NOISY = "xₜ"
PREDICTED = "predicted x₀"

Item = TypeVar("Item")
Times = int | list[float]  # how many, or which: 0 is data, 1 is noise


class Moment(NamedTuple):
    """Latents at one time, and the data that the network predicts from them."""

    t: Tensor  # []
    x_t: Tensor  # [N, C, h, w]
    x0: Tensor  # [N, C, h, w]


class AttentionQuery(NamedTuple):
    """The layers and the token whose attention is drawn."""

    network: DiT
    layers: list[int]
    token: tuple[int, int]  # row and column

    def tokens(self, run: LoadedRun) -> tuple[int, int]:
        """Return rows and columns of tokens in an image."""
        _, height, width = run.latent_shape
        patch = self.network.patch_size
        return height // patch, width // patch


def show(config: ShowConfig, ranks: Ranks) -> Path:
    """Draw `forward` or `backward` as PNG and GIF, with attention maps; return their folder.

    Raises:
        UserError: Flags that do not fit the run, or no data for `forward`.
    """
    run = load_to_sample(config.run, ranks.device, config)
    if config.prompt:
        run = with_prompts(run, config.prompt)
    out = config.out or run.home / "show"
    ranks.on_main(lambda: _show(run, config, out))
    return out


def _show(run: LoadedRun, config: ShowConfig, out: Path) -> None:
    # predictions of single times: no steps to average over
    if config.direction == "forward" and config.sampler == "auto" and run.card.network.interval:
        config = replace(config, sampler="dpmpp_2m")
    pipeline = build_pipeline(run, config)
    labels, notes = labels_to_show(run, config)
    for note in [*notes, *pipeline.notes]:
        print(f"note: {note}", file=sys.stderr)
    times = parse_times(config.times)
    query = attention_query(run, config)
    # in a run, show/ is the command's own
    if config.out:
        require_outside(out, run.card.config.data)
    create_folder(out)
    if config.out:
        for name in file_names(config.direction):
            require_own_file(out / name, "show")

    if config.direction == "forward":
        moments = forward(pipeline, labels, times)
    else:
        moments = backward(pipeline, labels)
    columns = select_moments(moments, times, pipeline.process)
    frames = evenly(moments, MOST_FRAMES)
    story = Story(pipeline, labels, columns, frames, out / config.direction)

    _draw_latents(story)
    if query is None:
        model = run.card.network.model
        print(f"no picture of attention: {model} does not attend from patch to patch")
        return
    _draw_attention(story, query)
    if run.card.network.conditioning == "text":
        _draw_words(story, query)


# -- the two directions --------------------------------------------------------------------------


@torch.inference_mode()
def forward(pipeline: SamplingPipeline, labels: Tensor, times: Times) -> list[Moment]:
    """Noise images of the run's own data, the same noise at all times, and predict x0 from each.

    A number of times is spread from 0 to the start of sampling, with more between for the film.
    """
    run = pipeline.run
    settings = pipeline.settings
    process = pipeline.process
    x0 = training_latents(run, labels, settings.seed)
    noise = ImageNoise(settings.seed, range(len(x0)), run.latent_shape, run.device)
    eps = noise()
    labels = labels.to(run.device)

    if isinstance(times, int):
        frames_between = max(1, round(FORWARD_FRAMES / (times - 1)))
        frames = (times - 1) * frames_between + 1
        end = float(process.times(1)[0]) / process.end
        times = torch.linspace(0, end, frames, dtype=torch.float64).tolist()

    moments = []
    for time in times:
        t = torch.tensor(time * process.end, dtype=torch.float64)
        t = t.round() if process.end > 1 else t  # a DDPM has whole times
        x_t = add_noise(process, x0, eps, t)
        with autocast(run.device, settings.precision), pipeline.clearing_block_cache():
            prediction = pipeline.denoise(x_t, t, labels)
        moments.append(Moment(t, x_t, prediction.x0))
    return moments


@torch.inference_mode()
def backward(pipeline: SamplingPipeline, labels: Tensor) -> list[Moment]:
    """Return all steps of sampling; the last has the latents of the images of sample.py."""
    size = pipeline.settings.batch_size
    indices = torch.arange(len(labels))
    batches = zip(labels.split(size), indices.split(size), strict=True)
    # the same batches as sample.py, for the same images
    traces = [_sample_batch(pipeline, y, i) for y, i in batches]

    moments = []
    for parts in zip(*traces, strict=True):
        x_t = torch.cat([part.x_t for part in parts])
        x0 = torch.cat([part.x0 for part in parts])
        moments.append(Moment(parts[0].t, x_t, x0))
    return moments


def _sample_batch(pipeline: SamplingPipeline, labels: Tensor, indices: Tensor) -> list[Moment]:
    trace: list[Moment] = []
    recording = replace(pipeline, denoise=record_moments(pipeline.denoise, trace))
    latents = sample_latents(recording, labels, indices)
    require_finite(latents, labels, indices)
    return [*trace, Moment(pipeline.times[-1], latents, latents)]


def record_moments(denoise: Denoise, trace: list[Moment]) -> Denoise:
    """Return the same denoiser, which also appends its inputs and predictions to `trace`."""

    def recording(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        prediction = denoise(x_t, t, y)
        # heun calls twice at a time; it continues from the second
        if trace and trace[-1].t == t:
            trace.pop()
        trace.append(Moment(t, x_t, prediction.x0))
        return prediction

    return recording


# -- attention -----------------------------------------------------------------------------------


def attention_query(run: LoadedRun, config: ShowConfig) -> AttentionQuery | None:
    """Return the layers and the token of the flags; None for networks that are no DiT."""
    network = without_captions(run.denoise.network)
    # a U-Net attends at several resolutions, not from patch to patch
    if not isinstance(network, DiT):
        return None

    depth = len(network.blocks)
    layers = evenly(range(depth), LAYERS)
    if config.layers is not None:
        layers = parse_layers(config.layers)
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
    return AttentionQuery(network, layers, (row, column))


@torch.inference_mode()
def patch_attention(
    pipeline: SamplingPipeline, query: AttentionQuery, labels: Tensor, moment: Moment
) -> Tensor:
    """Return the attention of the token to all patches of the first image, without guidance.

    The shape is [layers, rows, columns].
    """
    rows, columns = query.tokens(pipeline.run)
    token = query.token[0] * columns + query.token[1]
    with attention_maps(query.network, query.layers) as maps:
        _denoise_first(pipeline, labels, moment)
    # in-context tokens come after those of the image
    image = [maps[layer][0, token, : rows * columns] for layer in query.layers]
    return torch.stack(image).unflatten(-1, (rows, columns))


@torch.inference_mode()
def word_attention(
    pipeline: SamplingPipeline, query: AttentionQuery, labels: Tensor, moment: Moment
) -> Tensor:
    """Return the attention of all patches of the first image to its caption, mean over layers.

    The shape is [S, rows, columns], with S tokens in the caption.
    """
    with text_maps(query.network, query.layers) as maps:
        _denoise_first(pipeline, labels, moment)
    # [T, S]: each patch has weights over the words, drawn as one image for each word
    layers = [maps[layer][0] for layer in query.layers]
    mean = torch.stack(layers).mean(0)
    return mean.T.unflatten(-1, query.tokens(pipeline.run))


def _denoise_first(pipeline: SamplingPipeline, labels: Tensor, moment: Moment) -> None:
    run = pipeline.run
    label = labels[:1].to(run.device)
    with autocast(run.device, pipeline.settings.precision):
        run.denoise(moment.x_t[:1], moment.t, label)


def caption_words(run: LoadedRun, label: int) -> dict[int, str]:
    """Return the tokens of a caption by position, without those that mark its start and end."""
    captioned = run.denoise.network
    assert isinstance(captioned, Captioned)
    encoder = captioned.captions.encoder
    tokenizer = encoder.tokenizer
    text = captioned.captions.texts[label]

    ids = tokenizer(text, truncation=True, max_length=encoder.length)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    words: dict[int, str] = {}
    for position, token in enumerate(tokens):
        is_word = ids[position] not in tokenizer.all_special_ids
        if is_word and len(words) < MOST_WORDS:
            # marks of CLIP's, T5's and GPT's tokenizers for where a word ends or begins
            words[position] = token.removesuffix("</w>").lstrip("▁Ġ")
    return words


# -- pictures ------------------------------------------------------------------------------------


LATENTS, ATTENTION, WORDS = "", "-attention", "-words"  # what a picture shows, in its name


def file_names(direction: str) -> list[str]:
    """Return the names of all pictures of a direction."""
    names = [direction + what for what in (LATENTS, ATTENTION, WORDS)]
    return [name + ending for name in names for ending in (".png", ".gif")]


@dataclass(frozen=True)
class Story:
    """What all pictures of one command share: columns of the sheets, frames of the films."""

    pipeline: SamplingPipeline
    labels: Tensor
    columns: list[Moment]
    frames: list[Moment]
    name: Path  # of the files, without their endings

    @property
    def run(self) -> LoadedRun:
        """The run."""
        return self.pipeline.run

    @property
    def scale(self) -> int:
        """How many times an image is enlarged."""
        return pictures.fitting_scale(max(self.run.image_size), CELL)

    def headings(self, moments: Sequence[Moment]) -> list[str]:
        """Return time, alpha and sigma of each moment, in two lines."""
        process = self.pipeline.process
        decimals = 0 if process.end > 1 else 2
        headings = []
        for moment in moments:
            at = process.coefficients(moment.t)
            time = f"t = {float(moment.t):.{decimals}f}"
            signal = f"α {float(at.alpha):.2f}"
            noise = f"σ {float(at.sigma):.2f}"
            headings.append(f"{time}\n{signal}  {noise}")
        return headings

    def stack(self, column: Callable[[Moment], Tensor]) -> Tensor:
        """Return all columns of a sheet, row by row, uint8 [rows * columns, 3, H, W]."""
        columns = [column(moment) for moment in self.columns]
        return torch.stack(columns, dim=1).flatten(0, 1)

    def sheet(self, column: Callable[[Moment], Tensor], rows: list[str]) -> Image.Image:
        """Draw all columns with a label for each row, and the times above."""
        headings = self.headings(self.columns)
        return pictures.grid(self.stack(column), rows, len(self.columns), headings=headings)

    def save(self, what: str, sheet: Image.Image, frames: list[Image.Image]) -> None:
        """Write NAME + what as .png and, with the time over each frame, as .gif."""
        file = f"{self.name}{what}"
        times = [heading.replace("\n", "   ") for heading in self.headings(self.frames)]
        # a GIF has no other place for the time
        titled = []
        for frame, time in zip(frames, times, strict=True):
            titled.append(pictures.strip([frame], [time]))
        milliseconds = min(500, max(40, FILM // len(frames)))

        made_by = signature("show")
        pictures.write_png(sheet, Path(f"{file}.png"), made_by)
        pictures.gif(titled, Path(f"{file}.gif"), milliseconds, made_by)
        print(f"{file}.png\n{file}.gif")


def _draw_latents(story: Story) -> None:
    """Draw two rows for each image: decoded x_t, and the x0 that the network predicts from it."""
    run = story.run
    labels = story.labels
    names = [run.card.class_name(int(label)) if run.card.classes else "" for label in labels]

    def column(moment: Moment) -> Tensor:  # [2 N, 3, H, W]
        noisy = run.autoencoder.decode(moment.x_t)
        predicted = run.autoencoder.decode(moment.x0)
        return torch.stack([noisy, predicted], dim=1).flatten(0, 1).cpu()

    def frame(moment: Moment) -> Image.Image:
        # all noisy images in one row, all predictions in the other
        pairs = column(moment).unflatten(0, (-1, 2))
        images = pairs.transpose(0, 1).flatten(0, 1)
        rows = [NOISY, PREDICTED]
        return pictures.grid(images, rows, len(labels), story.scale, headings=names)

    rows = [row for name in names for row in (name or NOISY, PREDICTED)]
    sheet = pictures.grid(
        story.stack(column),
        rows,
        len(story.columns),
        story.scale,
        headings=story.headings(story.columns),
        together=2,
    )
    story.save(LATENTS, sheet, [frame(moment) for moment in story.frames])


def attention_column(story: Story, query: AttentionQuery) -> Callable[[Moment], Tensor]:
    """Return a function that draws a moment: the predicted image, and under each layer's weights.

    The token of the query is outlined.
    """

    def column(moment: Moment) -> Tensor:  # [1 + layers, 3, H, W]
        weights = patch_attention(story.pipeline, query, story.labels, moment)
        maps = _heatmaps(story, moment, weights)
        return pictures.outline(maps, query.token, query.tokens(story.run))

    return column


def _draw_attention(story: Story, query: AttentionQuery) -> None:
    """Draw a row for each layer: the attention of the outlined token, over the predicted image."""
    _draw_maps(story, ATTENTION, attention_column(story, query), attention_rows(query))


def attention_rows(query: AttentionQuery) -> list[str]:
    """Return the labels of the rows of `attention_column`."""
    return [PREDICTED, *(f"layer {layer}" for layer in query.layers)]


def _draw_words(story: Story, query: AttentionQuery) -> None:
    """Draw a row for each word of the first caption: which patches attend to it."""
    words = caption_words(story.run, int(story.labels[0]))

    def column(moment: Moment) -> Tensor:  # [1 + words, 3, H, W]
        weights = word_attention(story.pipeline, query, story.labels, moment)
        return _heatmaps(story, moment, weights[list(words)])

    _draw_maps(story, WORDS, column, [PREDICTED, *words.values()])


def _heatmaps(story: Story, moment: Moment, weights: Tensor) -> Tensor:
    """Return the first image as predicted, then under each of the weights [K, rows, columns]."""
    image = story.run.autoencoder.decode(moment.x0[:1]).cpu()
    image = pictures.enlarge(image, (story.scale, story.scale))
    copies = image.expand(len(weights), -1, -1, -1)
    return torch.cat([image, pictures.heat(copies, weights)])


def _draw_maps(
    story: Story, what: str, column: Callable[[Moment], Tensor], rows: list[str]
) -> None:
    def frame(moment: Moment) -> Image.Image:
        return pictures.grid(column(moment), None, len(rows), headings=rows)

    story.save(what, story.sheet(column, rows), [frame(moment) for moment in story.frames])


# -- flags ---------------------------------------------------------------------------------------


def labels_to_show(run: LoadedRun, config: ShowConfig) -> tuple[Tensor, list[str]]:
    """Return class ids [N], those of --classes in turn or some of all, and notes on them."""
    classes, notes = class_ids(config.classes, run.card)
    if config.classes is None:
        classes = pictures.spread(classes, config.num_images)
    count = len(classes)
    labels = [classes[i % count] for i in range(config.num_images)]
    return torch.tensor(labels), notes


def parse_times(text: str) -> Times:
    """Return a number of times, such as `8`, or the times, such as `0.2,0.5`."""
    # at most four digits: each time is a column of a picture
    if text.isdecimal() and len(text) < 5 and int(text) > 1:
        return int(text)
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if text.isdecimal() or not times or not all(0 <= time <= 1 for time in times):
        raise UserError(
            f"--times {text}",
            "a number of times, from 2 to 9999, or times from 0 (data) to 1 (noise), "
            "separated by commas",
            "such as --times 8, or --times 0.2,0.5,0.8",
        )
    return times


def parse_layers(text: str) -> list[int]:
    """Return layers such as `0,5`; none if the text is something else."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        return []
    return [int(part) for part in parts]


def select_moments(moments: Sequence[Moment], times: Times, process: Process) -> list[Moment]:
    """Return a number of moments, evenly spaced, or those nearest to the times, each once."""
    if isinstance(times, int):
        return evenly(moments, times)

    moment_times = [float(moment.t) / process.end for moment in moments]

    def nearest(time: float) -> int:
        distances = [abs(other - time) for other in moment_times]
        return distances.index(min(distances))

    return [moments[i] for i in dict.fromkeys(map(nearest, times))]


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, evenly spaced from the first to the last."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]
