"""Other networks that guide a run: what they may be, what they change, and what is recorded of them."""

import dataclasses
import json
import shutil

import pytest
import torch

from dit.commands.evaluate import evaluate
from dit.commands.sample import sample
from dit.commands.sweep.points import Keys
from dit.config import EvalConfig, SampleConfig, SamplerConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import BUNDLED
from dit.errors import UserError
from dit.evaluation.samples import image_settings, settings_key
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_weights, write_weights
from dit.sampling.folder import sample_folder
from dit.sampling.generate import sample_latents
from dit.sampling.guides import load_classifier
from dit.sampling.load import class_ids, load_run, with_classifier_labels
from dit.sampling.pipeline import build_pipeline
from dit.sampling.protocol import protocol
from dit.utils.files import sha256

pytestmark = pytest.mark.usefixtures("small_networks")
CPU, ALONE = torch.device("cpu"), Ranks()
QUICK = SamplerConfig(sampler="heun", precision="fp32", steps=3, batch_size=4)
LABELS, INDICES = torch.tensor([1, 2, 3]), torch.arange(3)
JUDGE = dict(model="Classifier-Ti/4", label_dropout=0.0)


@pytest.fixture
def classifier(make_run):
    return make_run("classifier", **JUDGE)


def latents(run, **settings):
    config = dataclasses.replace(QUICK, **settings)
    return sample_latents(run, build_pipeline(run, config), config, LABELS, INDICES)


def refused(run, **settings):
    """The one line that says why."""
    with pytest.raises(UserError) as error:
        latents(load_run(run, CPU), **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def furthest(a, b):
    return (a - b).abs().max().item()


# -- what they change --------------------------------------------------------------------------------------------


@pytest.mark.portable
def test_a_run_as_its_own_guide_changes_nothing(tiny_run, make_run):
    """Whatever the scale: 2406.02507, equation 3, with both networks the same; another one does change it."""
    run = load_run(tiny_run, CPU)
    plain = latents(run)
    assert furthest(latents(run, guide=tiny_run, cfg_scale=3.0), plain) < 1e-4
    other = make_run("other", objective="x0")
    assert furthest(latents(run, guide=other, cfg_scale=3.0), plain) > 1e-2


def test_a_guide_serves_where_there_is_no_null_class(make_run, tiny_run):
    run = load_run(make_run(label_dropout=0.0), CPU)
    assert latents(run, guide=tiny_run, cfg_scale=2.0).isfinite().all()
    deaf = load_run(make_run("deaf", num_classes=0), CPU)
    weaker = make_run("weaker", num_classes=0, objective="x0")
    assert latents(deaf, guide=weaker, cfg_scale=2.0).isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(process="linear", objective="eps", learn_sigma=True),
        dict(process="cosine"),
        dict(objective="x0"),
    ],
)
def test_classifier_guides_every_kind_of_run(make_run, settings):
    run = load_run(make_run(**settings), CPU)
    judge = make_run("classifier", **JUDGE, process=settings.get("process", "flow"))
    for sampler in ("ddpm", "ddim", "dpmpp_2m"):
        drawn = [
            latents(run, sampler=sampler, classifier=judge, classifier_scale=s)
            for s in (0.0, 1.0, 4.0)
        ]
        assert furthest(drawn[0], latents(run, sampler=sampler)) == 0
        assert 1e-5 < furthest(drawn[1], drawn[0]) < furthest(drawn[2], drawn[0])


def test_classifier_makes_its_class_likelier(tiny_run, classifier):
    run = load_run(tiny_run, CPU)
    judge, t = load_classifier(run, classifier), torch.tensor(0.1, dtype=torch.float64)
    sure = [
        judge.logits(latents(run, classifier=classifier, classifier_scale=s), t).log_softmax(1)[
            range(3), LABELS
        ]
        for s in (0.0, 3.0, 30.0)
    ]
    assert (sure[0] < sure[1]).all()
    assert (sure[1] < sure[2]).all()


def test_both_kinds_of_guidance_at_once(tiny_run, classifier):
    run = load_run(tiny_run, CPU)
    both = latents(run, cfg_scale=2.0, classifier=classifier, classifier_scale=2.0)
    assert furthest(both, latents(run, cfg_scale=2.0)) > 1e-4
    assert furthest(both, latents(run, classifier=classifier, classifier_scale=2.0)) > 1e-4


@pytest.mark.portable
def test_images_do_not_depend_on_batch_size(tiny_run, classifier):
    run = load_run(tiny_run, CPU)
    config = dataclasses.replace(QUICK, classifier=classifier, classifier_scale=3.0)
    plan = build_pipeline(run, config)
    each = [
        sample_latents(run, plan, config, LABELS[i : i + 1], INDICES[i : i + 1]) for i in range(3)
    ]
    assert furthest(sample_latents(run, plan, config, LABELS, INDICES), torch.cat(each)) < 1e-4


def test_a_run_without_classes_gets_those_of_its_classifier(make_run, classifier, tmp_path):
    """2105.05233 guides unconditional models too: the network hears no label, the classifier does."""
    path = make_run(num_classes=0)
    run = with_classifier_labels(load_run(path, CPU), classifier)
    assert class_ids(None, run.card) == list(range(10))
    assert class_ids("7", run.card) == [7]
    with pytest.raises(UserError, match="class ids from 0 to 9"):
        class_ids("10", run.card)
    drawn = latents(run, classifier=classifier, classifier_scale=5.0)
    plain = latents(run)
    assert furthest(plain, latents(load_run(path, CPU))) == 0
    assert furthest(drawn, plain) > 1e-3
    config = dataclasses.replace(QUICK, classifier=classifier)
    out = sample_folder(run, config, run.card.ids, 3, tmp_path / "samples", "png", ALONE)
    assert (out / "labels.csv").read_text().splitlines()[2] == "000001.png,1,1"
    grid = sample(SampleConfig(run=path, classifier=classifier, steps=2, per_class=1), ALONE)
    assert grid.is_file()


@pytest.mark.parametrize("role", ["guide", "classifier"])
def test_grids_by_other_networks_have_other_names(make_run, role):
    run, kind = make_run(), JUDGE if role == "classifier" else {}
    others = [make_run(f"other{scale}", **kind, ema=scale) for scale in (0.5, 0.9)]
    flags = dict(run=run, classes="1", per_class=1, steps=1, cfg_scale=2.0)
    grids = {sample(SampleConfig(**flags, **{role: other}), ALONE) for other in others}
    assert len(grids) == 2
    assert all(grid.is_file() for grid in grids)


def test_classifier_is_resized_along_with_the_run(tiny_run, classifier):
    run = load_run(tiny_run, CPU, (8, 12))
    drawn = latents(run, image_size=(8, 12), classifier=classifier, guide=tiny_run, cfg_scale=2.0)
    assert drawn.shape == (3, 3, 8, 12)


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "name", "there", "here"),
    [
        (dict(process="linear"), "process", "linear", "flow"),
        (dict(vae="digits"), "autoencoder", "digits", "identity"),
        (dict(latent_norm="data"), "latent statistics", "0.5±0.5", "of the autoencoder"),
        (dict(image_size=16), "latents of", "16x16", "8x8"),
        (dict(num_classes=7), "number of classes", "7", "10"),
    ],
)
@pytest.mark.parametrize("role", ["guide", "classifier"])
def test_another_kind_of_latents_noise_or_classes(
    tiny_run, make_run, role, theirs, name, there, here
):
    other = make_run("other", **({**JUDGE, **theirs} if role == "classifier" else theirs))
    said = refused(tiny_run, **{role: other}, **(dict(cfg_scale=2.0) if role == "guide" else {}))
    for part in (f"--{role} {other}", name, there, here, str(find_weights(tiny_run))):
        assert part in said


def renamed(run, *, step=9, classes=None, **settings):
    """The run once more, its card changed."""
    weights = read_weights(find_weights(run))
    config = dataclasses.replace(weights.card.config, **settings)
    card = dataclasses.replace(weights.card, classes=classes, config=config)
    file = run.with_name(f"{run.name}-renamed.safetensors")
    write_weights(file, weights.state_dict, card, step)
    return file


@pytest.mark.parametrize("role", ["guide", "classifier"])
def test_classes_of_other_names(tiny_run, make_run, role):
    other = renamed(
        make_run("other", **(JUDGE if role == "classifier" else {})), classes=[*"012a456789"]
    )
    settings = dict(cfg_scale=2.0) if role == "guide" else {}
    said = refused(tiny_run, **{role: other}, **settings)
    assert f"--{role} {other} has class 3 'a', {find_weights(tiny_run)} has '3'" in said
    ids = [str(i) for i in range(10)]
    run = load_run(renamed(make_run("named"), classes=[*"abcdefghij"]), CPU)
    released = renamed(
        make_run("released", **(JUDGE if role == "classifier" else {})),
        classes=ids,
        data="imagenet",
    )
    assert latents(run, **{role: released}, **settings).isfinite().all()  # whose names nobody told


def test_classes_without_names_can_not_differ(make_run, classifier):
    judge = renamed(classifier, classes=[*"abcdefghij"])
    run = with_classifier_labels(load_run(make_run(num_classes=0), CPU), judge)
    assert latents(run, classifier=judge).isfinite().all()


def test_the_same_autoencoder_elsewhere_is_the_same(make_run, tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "vae")
    here, there = make_run("here", vae="digits"), make_run("there", vae=str(tmp_path / "vae"))
    assert latents(load_run(here, CPU), guide=there, cfg_scale=2.0).isfinite().all()


def test_a_classifier_of_an_autoencoder_that_was_replaced(tiny_run, classifier, tmp_path):
    weights = read_weights(find_weights(classifier))
    judge = tmp_path / "judge.safetensors"
    write_weights(
        judge, weights.state_dict, dataclasses.replace(weights.card, vae_sha256="5" * 64), 1
    )
    assert f"--classifier {judge} has autoencoder identity (SHA-256 55555555), " in refused(
        tiny_run, classifier=judge
    )


def test_times_of_training_may_differ(tiny_run, make_run):
    other = make_run("other", time_shift=3.0, time_sampling="uniform")
    assert latents(load_run(tiny_run, CPU), guide=other, cfg_scale=2.0).isfinite().all()


def test_each_network_in_its_place(tiny_run, classifier, make_run):
    assert (
        f"--classifier {tiny_run} is a DiT-Ti/4; expected a run of `dit train-classifier`"
        in refused(tiny_run, classifier=tiny_run)
    )
    said = refused(tiny_run, guide=classifier, cfg_scale=2.0)
    assert (
        f"{classifier} is a Classifier-Ti/4; expected a diffusion run; pass it as --classifier"
        in said
    )
    for use, config in (
        (sample, SampleConfig(run=classifier)),
        (evaluate, EvalConfig(run=classifier)),
    ):
        with pytest.raises(UserError, match="is a Classifier-Ti/4; expected a diffusion run"):
            use(config, ALONE)


def test_guidance_without_a_null_class(make_run):
    deaf, undropped = make_run("deaf", num_classes=0), make_run("undropped", label_dropout=0.0)
    assert "--cfg-scale 2 for" in refused(deaf, cfg_scale=2.0)
    assert "knows no classes" in refused(deaf, cfg_scale=2.0)
    assert "was trained with --label-dropout 0" in refused(undropped, cfg_scale=2.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(guide="weak"), "--guide weak with --cfg-scale 1"),
        (dict(classifier_scale=2.0), "--classifier-scale 2 without --classifier"),
        (dict(classifier_scale=-1.0), "--classifier-scale -1"),
        (dict(cfg_interval=(0.1, 0.8)), "--cfg-interval 0.1 0.8 with --cfg-scale 1"),
        (dict(cfg_channels=3), "--cfg-channels 3 with --cfg-scale 1"),
        (dict(eta=0.5), "--eta 0.5 with --sampler auto"),
        (dict(eta=1.0, sampler="ddpm"), "--eta 1 with --sampler ddpm"),
        (dict(eta=1.5, sampler="ddim"), "--eta 1.5; expected a number from 0 to 1"),
    ],
)
def test_flags_that_do_nothing(settings, says):
    with pytest.raises(UserError) as error:
        SamplerConfig(**settings)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("flag", "settings", "scale"),
    [
        ("guide", {}, dict(cfg_scale=2.0)),
        ("classifier", JUDGE, dict(classifier_scale=2.0)),
    ],
)
def test_an_autoencoder_that_moved_names_the_network_that_wants_it(
    tiny_run, make_run, tmp_path, flag, settings, scale
):
    gone = tmp_path / "gone"
    other = make_run(flag, vae=str(gone), **settings)
    assert refused(tiny_run, **{flag: other}, **scale).startswith(
        f"--{flag} {other}: --vae {gone} is not a folder"
    )


# -- what is recorded --------------------------------------------------------------------------------------------


def test_records_tell_what_guided_by_its_content(tiny_run, classifier, make_run, tmp_path):
    run = load_run(tiny_run, CPU)
    plain = protocol(run, build_pipeline(run, QUICK), QUICK, [0])
    assert not {"guide", "classifier", "classifier_scale", "trained_size"} & {*plain}
    asked = dataclasses.replace(
        QUICK, guide=tiny_run, cfg_scale=2.0, classifier=classifier, classifier_scale=3.0
    )
    record = json.loads(json.dumps(protocol(run, build_pipeline(run, asked), asked, [0])))
    assert record["guide"] == "DiT-Ti/4 at step 3"
    assert record["guide_sha256"] == sha256(find_weights(tiny_run))
    assert (record["classifier"], record["classifier_scale"]) == ("Classifier-Ti/4 at step 3", 3.0)
    assert record["classifier_sha256"] == sha256(find_weights(classifier))


def test_keys_depend_on_weights_not_on_paths(tiny_run, classifier, make_run):
    run = load_run(tiny_run, CPU)
    keys = Keys(run, 5, "reference", [], 10)
    copy, other = make_run("moved", **JUDGE), make_run("other", **JUDGE, seed=1, ema=0.9)
    for of in (lambda config: settings_key(run, config, 5), keys):
        here, there, another, stronger = (
            of(dataclasses.replace(QUICK, classifier=path, classifier_scale=scale))
            for path, scale in ((classifier, 1.0), (copy, 1.0), (other, 1.0), (classifier, 2.0))
        )
        assert here == there
        assert len({here, another, stronger, of(QUICK)}) == 4
    assert not {"guide", "classifier", "classifier_scale", "image_size"} & {
        *image_settings(run, QUICK)
    }
