"""README.md of an exported network: what it is, how to use it, its recipe, scores and a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit.config import OPTIMIZERS
from dit.report.evaluation_page import essentials
from dit.report.run_scores import Evaluation, read_evaluations
from dit.report.text import number
from dit.runs.card import RELEASE_DATA, ModelCard
from dit.sampling.image_grid import draw_grid
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.training.monitoring.previews import preview_settings
from dit.utils.files import printable, sha256, write_text
from dit.utils.image_size import format_size
from dit.utils.pictures import spread, write_png

README, PICTURE = "README.md", "sample.png"
CLASSES, PER_CLASS = 4, 2  # rows and columns of a picture that is drawn for the card
MOST_NAMES = 20  # of classes that are listed
USE_IN_DIT = """\
```bash
pip install diffusion-transformer
dit sample --run {name}
```
"""
USE_IN_DIFFUSERS = """\
In diffusers, with the same package beside it: its network and its sampler make the images, those of
`dit sample` at equal seeds.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="{name}", trust_remote_code=True)
image = pipe([{label!r}], guidance_scale={scale:g}, seed=0).images[0]
```
"""
USE_IN_STOCK = """\
```python
from diffusers import DiTPipeline

pipe = DiTPipeline.from_pretrained("{name}")
image = pipe([{id}], guidance_scale={scale:g}).images[0]
```

{remark}
"""


@dataclass(frozen=True)
class About:
    """What a model card says that the run does not know.

    Args:
        license: Of the weights, such as mit; `unknown` unless given.
        name: By which the network is loaded, as OWNER/NAME; that of its folder unless given.
    """

    license: str | None = None
    name: str | None = None


NOTHING_SAID = About()


def write_model_card(
    run: LoadedRun,
    out: Path,
    about: About,
    usage: str = USE_IN_DIT,
    remark: str = "",
) -> None:
    """Write README.md and sample.png into the folder of an exported network.

    Args:
        about: What the run does not know.
        usage: One or several of the texts above.
        remark: What their user should know.
    """
    card = run.card
    _write_picture(run, out / PICTURE)
    facts = dict(
        name=about.name or out.name,
        id=card.ids[0],
        label=card.class_name(card.ids[0]) if card.classes else card.ids[0],
        scale=preview_settings(card).cfg_scale,
        remark=remark,
    )
    sections = {
        "Use": usage.format(**facts),
        "Data": _data(card),
        "Recipe": _table(_recipe(run)),
        "Scores": _scores(run),
        "Licence": _licence(about.license),
    }
    title = f"# {card.network.model}, {format_size(run.image_size)} pixels"
    parts = [_metadata(card, about.license, "diffusers" if usage != USE_IN_DIT else "dit")]
    parts += [title, _what(run)]
    parts.append(f"![samples]({PICTURE})")
    parts += [f"## {name}\n\n{text.strip()}" for name, text in sections.items()]
    write_text(out / README, "\n\n".join(parts) + "\n")


def _metadata(card: ModelCard, license: str | None, library: str) -> str:
    """Return the YAML at the head of a card of the hub."""
    from huggingface_hub import ModelCardData

    condition = "text-to-image" if card.network.conditioning == "text" else None
    if card.unconditional:
        condition = "unconditional-image-generation"
    data = ModelCardData(
        license=license or "unknown",
        library_name=library,
        pipeline_tag=condition,
        datasets=card.config.data.split(":")[1] if _is_of_hub(card) else None,
        tags=["dit", "diffusion", "image-generation"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _is_of_hub(card: ModelCard) -> bool:
    return card.config.data.startswith("hf:")


# -- what, data, recipe ----------------------------------------------------------------------------


def _what(run: LoadedRun) -> str:
    card = run.card
    kind = {"text": "images of captions"}.get(card.network.conditioning, "images of classes")
    if card.unconditional:
        kind = "images"
    family = "diffusion transformer" if card.network.model.startswith("DiT") else "diffusion U-Net"
    return (
        f"A {family} that makes {kind}, trained with the package `diffusion-transformer` (`dit`)."
    )


def _data(card: ModelCard) -> str:
    name = "ImageNet" if card.config.data == RELEASE_DATA else Path(card.config.data).name
    text = [f"Trained on `{printable(name)}`."]
    if card.class_counts:
        text.append(f"{sum(card.class_counts):,} images of {len(card.classes):,} classes.")
    if card.network.conditioning != "text" and card.classes:
        names = ", ".join(printable(name) for name in card.classes[:MOST_NAMES])
        more = len(card.classes) - MOST_NAMES
        text.append(f"Classes: {names}{f', … ({more:,} more)' if more > 0 else ''}.")
    return " ".join(text)


def _recipe(run: LoadedRun) -> dict[str, str]:
    card, config, spec = run.card, run.card.config, run.card.network
    return {
        "network": f"{spec.model}, {spec.conditioning}, {spec.block} blocks",
        "latents": " x ".join(map(str, run.latent_shape)),
        "autoencoder": Path(config.vae).name if Path(config.vae).is_absolute() else config.vae,
        "process": "flow matching" if config.process == "flow" else f"DDPM, {config.process} betas",
        "objective": config.objective + (" and the variance" if config.learn_sigma else ""),
        "steps": f"{run.weights.step:,}",
        "batch": f"{config.global_batch_size:,}",
        "optimizer": f"{OPTIMIZERS[config.optimizer]}, lr {config.lr:g}",
        "average of the weights": f"EMA, {card.average}",
        "label dropout": f"{config.label_dropout:g}",
    }


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _licence(license: str | None) -> str:
    if license:
        return f"`{license}`."
    return "Not stated: `license: unknown`. That of the training images may bind the weights."


# -- scores and picture ----------------------------------------------------------------------------


def _scores(run: LoadedRun) -> str:
    """Return the scores of these very weights, newest first, each with its protocol."""
    evaluations, _ = read_evaluations(run.home)
    own = sha256(run.weights.path)
    texts = []
    for report in evaluations.values():
        if report["protocol"].get("sampling", {}).get("weights_sha256") == own:
            texts.append(_report(report))
    return "\n\n".join(texts) or "These weights were not scored."


def _report(report: Evaluation) -> str:
    lines = ["| score | value | real images |", "|---|---|---|"]
    for name, entry in report["scores"].items():
        if entry["value"] is not None:
            floor = entry["floor"]
            real = number(floor.mean) if floor else ""
            lines.append(f"| {name} | {number(entry['value'])} | {real} |")
    protocol: dict[str, dict[str, Any]] = report["protocol"]
    facts = [f"{name}: {value}" for name, value in essentials(protocol, report["scores"]).items()]
    return "\n".join([*lines, "", f"Protocol: {'; '.join(facts)}."])


def _write_picture(run: LoadedRun, file: Path) -> None:
    """Write the grid that training drew of these weights, or a small one."""
    drawn = run.home / "samples" / f"step-{run.weights.step:07d}.png"
    if drawn.is_file() and run.weights.path.parent.parent.name == "checkpoints":
        file.write_bytes(drawn.read_bytes())
        return
    classes = spread(run.card.ids, CLASSES)
    settings = replace(preview_settings(run.card), batch_size=CLASSES * PER_CLASS, precision="auto")
    write_png(draw_grid(build_pipeline(run, settings, classes), PER_CLASS), file)
