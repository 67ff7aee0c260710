"""For --help of each command: what to type first, and which settings are basic."""

from dit.config.autoencoder import EncodeConfig, VaeConfig
from dit.config.editing import EditConfig
from dit.config.evaluation import (
    CompareConfig,
    EvalConfig,
    NllConfig,
    StatsConfig,
    SweepConfig,
)
from dit.config.help import Guide
from dit.config.play import PlayConfig
from dit.config.run_tools import (
    ConvertConfig,
    EmaConfig,
    ExportConfig,
    InfoConfig,
    ReportConfig,
)
from dit.config.sampling import SampleConfig, ShowConfig
from dit.config.training import ClassifierConfig, TrainConfig

GUIDES: dict[type, Guide] = {
    TrainConfig: Guide(
        (
            ("", "learn handwritten digits, in about three minutes on two cores"),
            ("--data photos --dry-run", "what a training on a folder of images would take"),
            ("--data photos --out runs/photos --resume auto", "train, or go on where it stopped"),
        ),
        (
            *("data", "preset", "out", "resume", "dry_run", "vae", "image_size", "model"),
            *("minutes", "steps", "epochs", "global_batch_size", "lr", "precision"),
            *("sample_every", "seed"),
        ),
    ),
    ClassifierConfig: Guide(
        (
            ("--run runs/photos", "train a classifier to guide this run"),
            ("--run runs/photos --dry-run", "what it would take"),
            ("--run runs/photos --steps 2000 --out runs/classifier", "train longer"),
        )
    ),
    SampleConfig: Guide(
        (
            ("--run runs/photos", "a grid with some images of each class"),
            ("--run runs/photos --classes cat dog --cfg-scale 2", "clearer images of two classes"),
            ("--run runs/photos --num-samples 1000 --out samples/photos", "a folder of images"),
        ),
        (
            *("run", "classes", "prompt", "per_class", "num_samples", "out", "cfg_scale"),
            *("sampler", "steps", "seed", "image_size", "batch_size"),
        ),
    ),
    EditConfig: Guide(
        (
            ("--run runs/photos --inpaint cat.png --mask mask.png", "paint the white part anew"),
            ("--run runs/photos --variations cat.png --strength 0.6", "images like this one"),
            ("--run runs/photos --interpolate --classes cat dog", "from a cat to a dog"),
        ),
        (
            *("run", "inpaint", "mask", "variations", "strength", "interpolate", "seeds"),
            *("frames", "classes", "prompt", "per_class", "out", "cfg_scale", "steps", "seed"),
        ),
    ),
    EvalConfig: Guide(
        (
            ("--run runs/photos --num-samples 1000", "score a run against its own images"),
            ("--run runs/photos --cfg-scale 1.5", "score it with guidance"),
            ("--samples my-samples --reference photos", "score images of any origin"),
        ),
        (
            *("run", "samples", "reference", "num_samples", "out", "cfg_scale", "sampler"),
            *("steps", "extractor", "batch_size", "seed"),
        ),
    ),
    ShowConfig: Guide(
        (
            ("backward runs/photos", "how four images arise from noise"),
            ("forward runs/photos", "how images are noised, and what the network predicts"),
            ("backward runs/photos --classes cat --times 12", "one class, in twelve steps"),
        ),
        (
            *("direction", "run", "classes", "prompt", "num_images", "times", "layers", "token"),
            *("out", "cfg_scale", "seed"),
        ),
    ),
    PlayConfig: Guide(
        (
            ("runs/photos", "open the address that is printed in a browser"),
            ("runs/photos --cfg-scale 2 --steps 20", "other values to start with"),
            ("runs/photos --host 0.0.0.0", "let the whole network use it"),
        ),
        ("run", "host", "port", "share", "cfg_scale", "sampler", "steps", "seed", "image_size"),
    ),
    SweepConfig: Guide(
        (
            ("--run runs/photos", "score guidance from 1 to 4"),
            ("--run runs/photos --cfg-scale 1,2 --steps 10,25", "all four combinations"),
            ("--run runs/photos --cfg-scale 1:3:0.25 --num-samples 5000", "finer, surer, slower"),
        ),
        ("run", "cfg_scale", "interval", "steps", "sampler", "num_samples", "out", "reference"),
    ),
    CompareConfig: Guide(
        (
            ("runs/a/evaluation runs/b/evaluation", "may the scores of two runs be compared?"),
            ("a/report.json b/report.json", "the same, of the files"),
        )
    ),
    StatsConfig: Guide(
        (
            ("--data photos --out photos.npz --image-size 64", "statistics of a folder"),
            ("--data digits --out digits.npz", "of the digits"),
            ("--data photos --out p.npz --extractor inception dinov2", "of two feature networks"),
        )
    ),
    NllConfig: Guide(
        (
            ("--run runs/pixels", "bits per dimension of 100 images of the run's own data"),
            ("--run runs/pixels --data photos --num-images 500", "of other images"),
            ("--run runs/pixels --method ode --exact", "without an estimate, slowly"),
        )
    ),
    EncodeConfig: Guide(
        (
            (
                "--data photos --out latents/photos --vae stabilityai/sd-vae-ft-ema",
                "a folder with one subfolder per class, at 256 px",
            ),
            (
                "--data icons --out latents/icons --vae tiny --image-size 64",
                "small colour images, with a bundled autoencoder",
            ),
            (
                "--data photos --out latents/mine --vae runs/vae --image-size 64",
                "with an autoencoder of `dit train-vae`",
            ),
            (
                "--data hf:OWNER/NAME --out hub --vae stabilityai/sd-vae-ft-ema",
                "a data set of the Hugging Face hub",
            ),
        ),
        ("data", "out", "vae", "image_size", "captions", "skip_damaged", "batch_size"),
    ),
    VaeConfig: Guide(
        (
            ("--data photos --image-size 64 --out runs/vae", "an autoencoder of your images"),
            ("--data photos --image-size 64 --out runs/vae --steps 5000", "longer and sharper"),
            ("--kind vq --out runs/vq --resume auto", "on the digits; go on where it stopped"),
        ),
        (
            *("data", "image_size", "out", "resume", "kind", "channels", "latent_channels"),
            *("steps", "batch_size", "lr", "sample_every", "seed"),
        ),
    ),
    EmaConfig: Guide(
        (
            ("runs/photos --ema-lengths 0.1", "a tenth of the steps so far"),
            ("runs/photos --ema-lengths 0.05 0.1 0.2", "three files"),
            ("runs/photos --ema-lengths 0.1 --step 2000", "as it was at an earlier step"),
        )
    ),
    ConvertConfig: Guide(
        (
            ("DiT-XL-2-256x256.pt xl2.safetensors --format dit", "a release of DiT"),
            ("SiT-XL-2-256x256.pt xl2.safetensors --format sit", "a release of SiT"),
            ("xl1.pt xl1.safetensors --vae va-vae --latent-stats stats.pt", "LightningDiT"),
        )
    ),
    ExportConfig: Guide(
        (
            ("runs/photos --out photos", "a folder to move: weights, autoencoder, model card"),
            ("runs/photos --to diffusers --out photos", "for DiffusionPipeline.from_pretrained"),
            ("runs/photos --to hub --repo OWNER/NAME --license mit", "upload it"),
        )
    ),
    ReportConfig: Guide((("runs/photos", "write runs/photos/report.html"),)),
    InfoConfig: Guide(
        (
            ("runs/photos", "a run: its settings, its newest checkpoint, checksums"),
            ("latents/photos", "latents of `dit encode`"),
            ("DiT-XL-2-256x256.pt", "a downloaded file, before `dit convert`"),
        )
    ),
}
"""By configuration. Without basic settings all are, and --help shows everything."""
