"""The data of a training in words: images, classes and latents."""

from dit.config import TrainConfig
from dit.data.counts import count_of, describe_count
from dit.encoders.autoencoder import Autoencoder
from dit.latents.store import Latents
from dit.runs.card import NetworkSpec
from dit.training.cost.assumed import AssumedAutoencoder, AssumedImageNet
from dit.utils.image_size import describe_size


def describe_data(config: TrainConfig, source: Latents, spec: NetworkSpec) -> str:
    """Return how many images and classes a network is trained on."""
    captions = spec.text_width is not None
    count = describe_count(len(source.labels), len(source.classes), captions)
    if source.classes and not spec.num_classes:
        count = f"{count_of(len(source.labels), 'image')}, unconditional"
    if isinstance(source, AssumedImageNet):
        count = f"not found here; ImageNet assumed, {count}"
    return f"{config.data}: {count}, flips {'on' if source.flips else 'off'}"


def describe_latents(config: TrainConfig, source: Latents, autoencoder: Autoencoder) -> str:
    shape = "x".join(map(str, source.shape))
    stage = f"{autoencoder.name} (factor {autoencoder.factor})"
    if isinstance(autoencoder, AssumedAutoencoder):
        stage += "; its weights are not here, their shapes are assumed"
    return f"{shape} from {describe_size(config.image_size)}, {stage}"
