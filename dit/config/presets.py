"""Named configurations, the starting point: what each costs and what it scores.

Scores without a source were measured with this package, see docs/performance.md.
"""

from collections.abc import Callable
from dataclasses import replace

from dit.config import TrainConfig


def digits() -> TrainConfig:
    """Handwritten digits at 32 px: DiT-Ti/2 by flow matching, with the bundled autoencoder.

    Cost: 560 steps of 64 images, 163 seconds on two threads of an AMD EPYC.
    Score: 98.8% of 500 samples are recognised as their class (real digits: 98.6%), with a Fréchet
    distance in digits-cnn of 0.904 (real vs. real: 0.66 to 0.89). dpmpp_2m, 25 steps, CFG 1.5.
    """
    return TrainConfig(preset="digits")


def modern() -> TrainConfig:
    """`digits` with a quarter of the weights, modern blocks and twice the steps, for small images.

    Cost: each image takes a third to a quarter of the seconds of `digits` (16 tokens, one core of a
    CPU), after a first compilation of one or two minutes, which needs a C++ compiler.
    Score: 99.6% of 500 samples are recognised as their class, with a Fréchet distance in digits-cnn
    of 0.875 (interval 0.49 to 1.26; `digits`: 0.904; not compiled on another processor: 99.4% and
    0.871). dpmpp_2m, 25 steps, CFG 1.5.
    """
    return replace(
        digits(),
        preset="modern",
        model="DiT-Mi/2",
        block="modern",
        compile=True,
        steps=1120,
        sample_every=280,
        ckpt_every=560,
    )


def photos(gpu: bool = False) -> TrainConfig:
    """Your own images, with modern blocks; the preset of any --data but digits.

    Autoencoder and image size follow from the images (`dit/latents/first_stage.py`), the steps from
    the speed of the machine.

    Cost: 15 minutes on a CPU, 30 on a GPU; --minutes, --steps or --epochs change it.
    Score: it depends on the images; docs/your-images.md has an example and what to look at.
    """
    return replace(
        digits(),
        preset="photos",
        block="modern",
        vae="tiny",
        image_size=64,
        latent_norm="data",
        model="DiT-S/2" if gpu else "DiT-Ti/4",
        global_batch_size=64 if gpu else 32,
        lr=1e-3 if gpu else 2e-3,
        minutes=30.0 if gpu else 15.0,
        sample_every=None,
        ckpt_every=None,
    )


def imagenet_256() -> TrainConfig:
    """ImageNet at 256 px by the recipe of 2212.09748; pass --data with latents or an image folder.

    Cost: DiT-XL/2 takes 712 GFLOP per training image, 7.3e19 FLOP for the 1.0e8 images of this
    preset. The paper's 7M steps are 1.8e9 images.
    Score: published FID-50K after 400K steps without guidance: XL/2 19.5, S/2 and B/4 68.4. After
    7M steps XL/2 has 9.62, and 2.27 with CFG 1.5. Not reproduced with this package yet.
    """
    return TrainConfig(
        preset="imagenet-256",
        data="imagenet",
        vae="stabilityai/sd-vae-ft-ema",
        image_size=256,
        model="DiT-XL/2",
        process="linear",
        objective="eps",
        learn_sigma=True,
        label_dropout=0.1,
        steps=400_000,
        global_batch_size=256,
        lr=1e-4,
        beta2=0.999,
        warmup=0,
        cooldown=0.0,
        clip=0.0,
        ema=0.9999,
        sample_every=10_000,
        ckpt_every=10_000,
        log_every=100,
    )


def imagenet_256_flow() -> TrainConfig:
    """ImageNet at 256 px by flow matching, with what fast-converging recipes share.

    These are velocity prediction, logit-normal times, latents of unit variance per channel, a
    larger batch and a larger learning rate (SiT 2401.08740, LightningDiT 2501.01423).

    Cost: as `imagenet-256`, 1.0e8 images.
    Score: not measured. Published FID-50K without guidance: SiT-XL/2 8.30 after 1,400 epochs;
    LightningDiT-XL/1 5.14 after 64, with another autoencoder and other blocks.
    """
    return TrainConfig(
        preset="imagenet-256-flow",
        data="imagenet",
        vae="stabilityai/sd-vae-ft-ema",
        image_size=256,
        model="DiT-XL/2",
        latent_norm="data",
        steps=100_000,
        global_batch_size=1024,
        lr=2e-4,
        beta2=0.95,
        cooldown=0.2,
        ema=0.9999,
        sample_every=5_000,
        ckpt_every=5_000,
        log_every=100,
    )


def imagenet_256_modern() -> TrainConfig:
    """`imagenet-256-flow` with modern blocks and the cosine of velocities (2501.01423).

    Times are shifted by the size of the latents, which changes nothing at 4 x 32 x 32.

    Further levers go on top, one flag each, in this order of published evidence: `--route 0.5`,
    `--optimizer muon`, `--conditioning tokens`.

    Cost: as `imagenet-256`, 1.0e8 images; XL/2 has 18 heads of 64.
    Score: not measured. It aims at the published FID-50K of the nearest recipe without guidance,
    with this autoencoder: 7.13 after 80 epochs (a user of it reports 8.97), where DiT-XL/2 has 9.62
    after 1,400. That one has heads of 72 and no QK-norm, which made its FID worse and longer
    trainings possible.
    """
    return replace(
        imagenet_256_flow(),
        preset="imagenet-256-modern",
        block="modern",
        cosine=1.0,
        time_shift="auto",
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "photos": photos,
    "modern": modern,
    "imagenet-256": imagenet_256,
    "imagenet-256-flow": imagenet_256_flow,
    "imagenet-256-modern": imagenet_256_modern,
}
