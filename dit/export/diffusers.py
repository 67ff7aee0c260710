"""A folder that diffusers loads, with our own pipeline, whose images are the same bit for bit.

model_index.json, pipeline.py   what diffusers reads first; names of the classes
transformer/                    the network: a weights file of ours, and network.py
vae/                            the autoencoder
README.md, sample.png           the model card
"""

import shutil
from pathlib import Path
from typing import Any

from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.export.folder import (
    VAE,
    claim_folder,
    copy_autoencoder,
    id_to_label,
    portable_card,
    refuse_own_code,
    save_folder,
)
from dit.export.model_card import (
    NOTHING_SAID,
    USE_IN_DIFFUSERS,
    USE_IN_DIT,
    About,
    write_model_card,
)
from dit.runs.formats.diffusers_folder import INDEX, TRANSFORMER
from dit.sampling.load import LoadedRun
from dit.utils.files import write_json, write_text

PIPELINE = Path(__file__).with_name("pipeline.py")
NETWORK = (
    '"""The network of this pipeline."""\n\nfrom dit.export.network import RunNetwork  # noqa\n'
)


def export_diffusers(
    run: LoadedRun, out: Path, *, stock: bool = False, about: About = NOTHING_SAID
) -> Path:
    """Save a network as a folder for `DiffusionPipeline.from_pretrained`; return it.

    Args:
        run: What to save: its EMA weights.
        out: New, empty, or a folder of `dit export`.
        stock: For diffusers' own DiTPipeline, which is another network in detail: the difference
            of the images is measured and printed. Otherwise for our pipeline, in the folder, which
            needs the package `dit` and makes the same images.
        about: What the model card says that the run does not know, such as the licence.

    Raises:
        UserError: A network that such a pipeline has not.
    """
    refuse_own_code(run)
    if stock:
        # torch.nn and diffusers take seconds to import
        from dit.export.stock import export_stock

        return export_stock(run, out, about)
    if isinstance(run.denoise.network, Captioned):
        raise UserError(
            f"{run.weights.path} with --conditioning text for diffusers",
            "a network of classes, or without",
            "export it in the format of this package, which draws its captions",
        )
    from dit.export.network import RunNetwork

    claim_folder(run, out)
    card = portable_card(run)
    if card.config.vae != "identity":
        copy_autoencoder(card.config.vae, out / VAE)
    network = RunNetwork(card.to_json(), run.weights.step)
    network.network.load_state_dict(run.weights.state_dict)
    network.save_pretrained(out / TRANSFORMER)
    write_text(out / TRANSFORMER / "network.py", NETWORK)
    shutil.copyfile(PIPELINE, out / PIPELINE.name)
    write_json(out / INDEX, _index(run))
    write_model_card(run, out, about, USE_IN_DIT + "\n" + USE_IN_DIFFUSERS)
    return out


def save_for_all(run: LoadedRun, out: Path, *, about: About = NOTHING_SAID) -> Path:
    """Save a network so that diffusers loads it too, if it can; return the folder."""
    if isinstance(run.denoise.network, Captioned):
        return save_folder(run, out, about=about)
    return export_diffusers(run, out, about=about)


def _index(run: LoadedRun) -> dict[str, Any]:
    """Return the content of model_index.json."""
    from diffusers import __version__

    codec = getattr(run.autoencoder.codec, "network", None)
    return {
        "_class_name": [PIPELINE.stem, "RunPipeline"],
        "_diffusers_version": __version__,
        "id2label": id_to_label(run.card),
        TRANSFORMER: ["network", "RunNetwork"],
        VAE: ["diffusers", type(codec).__name__] if codec else [None, None],
    }
