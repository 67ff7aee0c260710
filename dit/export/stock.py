"""A folder for diffusers' own DiTPipeline: what it can express of a run, and what remains.

It knows one null class, id 1000: the table of labels is padded to 1001 rows. It scales latents by
one number: statistics per channel are folded into the autoencoder's 1x1 convolutions. It embeds
times at frequencies 10000^(-i/127) where the release and this package have 10000^(-i/128): the
first layer that reads them is fitted anew to the 1000 times. An error of the fast waves remains.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dit.encoders.autoencoder import KLCodec
from dit.errors import UserError
from dit.export.folder import claim_folder, id_to_label
from dit.export.model_card import NOTHING_SAID, USE_IN_DIT, USE_IN_STOCK, About, write_model_card
from dit.export.stock_difference import measure
from dit.export.stock_networks import NULL, stock_autoencoder, stock_weights
from dit.runs.card import ModelCard
from dit.runs.formats.diffusers import diffusers_config, to_diffusers
from dit.runs.formats.diffusers_folder import INDEX, OBJECTIVES
from dit.sampling.load import LoadedRun
from dit.sampling.resolve import has_null_class
from dit.utils.files import write_json
from dit.utils.image_size import sides
from dit.utils.typed_json import read_json


def export_stock(run: LoadedRun, out: Path, about: About = NOTHING_SAID) -> Path:
    """Save a network for diffusers' DiTPipeline, measure the difference and print it.

    Raises:
        UserError: What DiTPipeline cannot express, by name.
    """
    from diffusers import DiTPipeline, DiTTransformer2DModel

    require_stock(run)
    claim_folder(run, out)
    spec = replace(run.card.network, num_classes=NULL, time_endpoint=True)
    state_dict = stock_weights(run.weights.state_dict, run.card)
    transformer = DiTTransformer2DModel(**diffusers_config(spec))
    transformer.load_state_dict(to_diffusers(state_dict, spec))
    pipeline = DiTPipeline(transformer, stock_autoencoder(run), stock_scheduler(run.card))
    pipeline.save_pretrained(out)
    # it saves no names of classes
    index = read_json(out / INDEX, dict[str, Any], "what was written", "export again")
    write_json(out / INDEX, {**index, "id2label": id_to_label(run.card)})

    difference = measure(run, out)
    print(difference)
    write_model_card(run, out, about, USE_IN_STOCK + "\n" + USE_IN_DIT, f"{difference}.")
    return out


def require_stock(run: LoadedRun) -> None:
    """Refuse what DiTTransformer2DModel, DiTPipeline and its schedulers cannot express."""
    card, spec = run.card, run.card.network
    height, width = sides(spec.input_size)
    reasons = {
        f"a {spec.model}": not spec.model.startswith("DiT-"),
        f"--conditioning {spec.conditioning}": spec.conditioning != "adaln-zero",
        f"--block {spec.block}": spec.block != "plain",
        "another size than that of training": run.trained_size is not None,
        "an inner head": spec.inner_head,
        "lengths of steps (--objective meanflow)": spec.interval,
        f"times scaled by {spec.time_scale:g}": spec.time_scale != 1,
        f"latents of {height} x {width}": height != width,
        f"{spec.num_classes:,} classes, more than {NULL:,}": spec.num_classes > NULL,
        "classes, but no null class (--label-dropout 0)": (
            spec.num_classes > 0 and not has_null_class(card)
        ),
        f"{card.config.process} betas": card.config.process not in ("linear", "flow"),
        f"--objective {card.config.objective} of a flow": (
            card.config.process == "flow" and card.config.objective != "v"
        ),
        f"--vae {card.config.vae}": not isinstance(run.autoencoder.codec, KLCodec),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(
                f"--stock for {run.weights.path} with {reason}",
                "what DiTPipeline has: a plain adaLN-Zero DiT of square latents of an "
                f"AutoencoderKL, at most {NULL:,} classes and a null class, linear betas or the "
                "velocity of a flow",
                "drop --stock: the folder's own pipeline makes the same images",
            )


def stock_scheduler(card: ModelCard) -> Any:
    """Return DPM-Solver++(2M) for the run's process, our `dpmpp_2m` but for the choice of times."""
    from diffusers import DPMSolverMultistepScheduler

    config = card.config
    if config.process == "flow":
        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.time_shift
        )
    names = {ours: theirs for theirs, ours in OBJECTIVES.items()}
    return DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=names[config.objective],
        timestep_spacing="trailing",
    )
