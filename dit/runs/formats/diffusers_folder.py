"""A pipeline of diffusers as a folder: its DiT, read as diffusers computes it.

model_index.json            names of the classes
transformer/config.json     DiTTransformer2DModel, and its weights beside it
scheduler/scheduler_config.json
vae/                        the autoencoder, which dit.encoders reads
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from dit.config import TrainConfig
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.formats.diffusers import from_diffusers
from dit.runs.formats.dit_release import release_config
from dit.runs.formats.foreign_file import open_foreign
from dit.runs.formats.state_dict import StateDict, as_float32
from dit.utils.stored_weights import find_stored_weights
from dit.utils.typed_json import read_json

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer", "vae"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORKS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second in folders of 2022
OURS = "RunNetwork"  # in folders of `dit export`, whose weights are a file of ours
PICKLED = "diffusion_pytorch_model.bin"  # weights of 2022; read without running code
COPY = "copy the folder again"
USUAL_FACTOR = 8  # pixels per latent of Stable Diffusion's autoencoder
OBJECTIVES: dict[str, Any] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


class TransformerConfig(TypedDict, total=False):
    """What is read of a transformer's config.json."""

    _class_name: str
    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    patch_size: int | None
    sample_size: int
    in_channels: int
    out_channels: int | None
    num_embeds_ada_norm: int | None
    norm_type: str
    norm_eps: float
    activation_fn: str


class SchedulerConfig(TypedDict, total=False):
    """What is read of scheduler_config.json."""

    _class_name: str
    num_train_timesteps: int
    beta_schedule: str
    beta_start: float
    beta_end: float
    trained_betas: list[float] | None
    prediction_type: str
    use_flow_sigmas: bool | None
    flow_shift: float | None
    shift: float | None
    rescale_betas_zero_snr: bool
    use_dynamic_shifting: bool


class PipelineIndex(TypedDict, total=False):
    """What is read of model_index.json."""

    id2label: dict[str, str] | None


class VaeConfig(TypedDict, total=False):
    """What is read of an autoencoder's config.json."""

    block_out_channels: list[int]


def find_network(folder: Path) -> Path | None:
    """Return the weights of the DiT in a pipeline's folder; None if it is no such folder.

    Raises:
        UserError: a pipeline of another network, or one without weights.
    """
    transformer = folder / TRANSFORMER
    config = transformer / "config.json"
    if not config.is_file():
        return None
    kind = _read(config, TransformerConfig).get("_class_name")
    if kind not in (*NETWORKS, OURS):
        raise UserError(
            f"{folder} is a pipeline of diffusers with a {kind}",
            f"a {NETWORKS[0]}",
            "only a DiT can be read",
        )
    if (transformer / PICKLED).is_file() and not any(transformer.glob("*.safetensors")):
        return transformer / PICKLED
    stored = find_stored_weights(transformer)
    if len(stored.files) > 1:
        raise UserError(
            f"{transformer} has its weights in {len(stored.files)} files",
            "one file",
            "load it in diffusers and save it again, with max_shard_size='100GB'",
        )
    return stored.listing


def is_diffusers_network(file: Path) -> bool:
    """Whether a file of weights lies in the transformer/ folder of a pipeline of diffusers."""
    if file.parent.name != TRANSFORMER or not (file.parent / "config.json").is_file():
        return False
    return _read(file.parent / "config.json", TransformerConfig).get("_class_name") in NETWORKS


def read_diffusers_weights(file: Path, spec: NetworkSpec) -> StateDict:
    """Return the weights of a pipeline's DiT with our names, float32."""
    state_dict = as_float32(open_foreign(file), file)
    for name, tensor in state_dict.items():
        if name.endswith("embedding_table.weight") and len(tensor) > spec.num_classes:
            state_dict[name] = torch.cat([tensor[: spec.num_classes], tensor[-1:]])
    return from_diffusers(state_dict, spec)


def read_diffusers_card(file: Path) -> ModelCard:
    """Return the card of a pipeline's DiT.

    Its network, process and classes are those of the folder. What the folder does not say is as in
    the release of DiT.
    """
    folder = file.parent.parent
    spec = _network(file.parent / "config.json")
    names = _class_names(folder / INDEX, spec.num_classes)
    # an exported DiT has rows without a class, which are copies of the null class
    spec = replace(spec, num_classes=len(names))
    config = release_config(spec, str(folder / VAE), image_size=_image_size(folder, spec))
    return ModelCard(config=_with_process(config, folder / SCHEDULER), network=spec, classes=names)


def _read(file: Path, kind: Any) -> Any:
    return read_json(file, kind, "a configuration of diffusers", COPY, nan=True)


# -- network ---------------------------------------------------------------------------------------


def _network(file: Path) -> NetworkSpec:
    """Return the network that a transformer's config.json describes."""
    config = _read(file, TransformerConfig)
    # diffusers' defaults
    heads = config.get("num_attention_heads", 16)
    head_size, depth = config.get("attention_head_dim", 72), config.get("num_layers", 28)
    channels, classes = config.get("in_channels", 4), config.get("num_embeds_ada_norm", 1000)
    _require_dit(file, config)

    wanted = dict(depth=depth, hidden_size=heads * head_size, num_heads=heads)
    size = next((name for name, known in SIZES.items() if known == wanted), None)
    if size is None or not classes:
        raise UserError(
            f"{file} has {depth} blocks, {heads} heads of {head_size} and {classes} classes",
            f"classes, and a size among {', '.join(SIZES)}",
            "only these can be read",
        )
    return NetworkSpec(
        model=f"DiT-{size}/{config.get('patch_size', 2)}",
        input_size=config.get("sample_size", 32),
        in_channels=channels,
        num_classes=classes,
        learn_sigma=config.get("out_channels") == 2 * channels,
        time_endpoint=True,
        mlp_norm_eps=config.get("norm_eps", 1e-5),
    )


def _require_dit(file: Path, config: TransformerConfig) -> None:
    """Refuse layers that a plain DiT has not."""
    channels = config.get("in_channels", 4)
    facts = {
        "norm_type": (config.get("norm_type", "ada_norm_zero"), ("ada_norm_zero",)),
        "activation_fn": (config.get("activation_fn", "gelu-approximate"), ("gelu-approximate",)),
        "out_channels": (config.get("out_channels"), (None, channels, 2 * channels)),
    }
    for name, (given, known) in facts.items():
        if given not in known:
            expected = " or ".join(str(value) for value in known if value is not None)
            raise UserError(f"{file} has {name} {given}", expected, "only a DiT can be read")


def _image_size(folder: Path, spec: NetworkSpec) -> int:
    """Return the side of the images: that of the latents, times the autoencoder's factor."""
    file = folder / VAE / "config.json"
    factor = USUAL_FACTOR
    if file.is_file():
        factor = 2 ** (len(_read(file, VaeConfig).get("block_out_channels", [0])) - 1)
    assert isinstance(spec.input_size, int)
    return factor * spec.input_size


# -- process and classes ---------------------------------------------------------------------------


def _with_process(config: TrainConfig, file: Path) -> TrainConfig:
    """Return the configuration with the noise process and the objective of a scheduler."""
    scheduler = _read(file, SchedulerConfig)
    name = scheduler.get("_class_name", "a scheduler")
    for setting in ("rescale_betas_zero_snr", "use_dynamic_shifting"):
        if scheduler.get(setting):
            raise UserError(f"{file} has {setting}", "a scheduler without", "it cannot be read")
    if name.startswith("FlowMatch") or scheduler.get("use_flow_sigmas"):
        shift = scheduler.get("flow_shift") or scheduler.get("shift") or 1.0
        return replace(config, process="flow", objective="v", time_shift=shift)

    prediction = scheduler.get("prediction_type", "epsilon")
    process = _betas(scheduler)
    if process is None or prediction not in OBJECTIVES:
        betas = scheduler.get("beta_schedule", "linear")
        given = f"{scheduler.get('beta_start', 1e-4):g} to {scheduler.get('beta_end', 0.02):g}"
        raise UserError(
            f"{file} is a {name} of {betas} betas, {given}, for prediction of {prediction}",
            f"linear betas, 0.0001 to 0.02, or squaredcos_cap_v2, of 1000 steps, for prediction of "
            f"{', '.join(OBJECTIVES)}; or flow matching",
            "only these can be sampled from",
        )
    return replace(config, process=process, objective=OBJECTIVES[prediction])


def _betas(scheduler: SchedulerConfig) -> Any:
    """Return our name of a scheduler's betas, if we have them."""
    if scheduler.get("num_train_timesteps", 1000) != 1000 or scheduler.get("trained_betas"):
        return None
    schedule = scheduler.get("beta_schedule", "linear")
    ends = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if schedule == "linear" and ends == (1e-4, 0.02):
        return "linear"
    return "cosine" if schedule == "squaredcos_cap_v2" else None


def _class_names(file: Path, count: int) -> list[str]:
    """Return the first name of each class, or all its names if the first is another's too.

    Classes after the last that has a name are left out: an exported DiT has rows without a class.
    """
    labels = (_read(file, PipelineIndex).get("id2label") if file.is_file() else None) or {}
    ids = [int(label) for label in labels if label.isdecimal() and int(label) < count]
    names = [labels.get(str(label), str(label)) for label in range(max(ids, default=-1) + 1)]
    first = [name.split(",")[0].strip() for name in names]
    if not names:
        return [str(label) for label in range(count)]
    return [
        short if short and first.count(short) == 1 else name
        for short, name in zip(first, names, strict=True)
    ]
