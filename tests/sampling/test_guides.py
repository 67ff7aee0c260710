"""Other networks that guide a run: which fit, what they change, and what is recorded of them."""

import dataclasses
import json
import shutil

import pytest
import torch
from helpers.samples import largest_difference

from dit.commands.evaluate import evaluate
from dit.commands.sample import sample
from dit.commands.sweep.points import Keys
from dit.config import EvalConfig, SampleConfig, SamplerConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import BUNDLED
from dit.errors import UserError
from dit.evaluation.samples import image_settings, settings_key
from dit.runs.checkpoint_files import find_weights
from dit.runs.weights import read_weights, write_weights
from dit.sampling.classes import class_ids
from dit.sampling.generate import sample_latents
from dit.sampling.guides import load_classifier
from dit.sampling.load import load_run, with_classifier_labels
from dit.sampling.pipeline import build_pipeline
from dit.sampling.protocol import protocol
from dit.sampling.sample_folder import sample_folder
from dit.utils.files import sha256

pytestmark = pytest.mark.usefixtures("small_networks")
CPU, ALONE = torch.device("cpu"), Ranks()
QUICK = SamplerConfig(sampler="heun", precision="fp32", steps=3, batch_size=4)
LABELS, INDICES = torch.tensor([1, 2, 3]), torch.arange(3)
CLASSIFIER = dict(model="Classifier-Ti/4", label_dropout=0.0)
ROLES = pytest.mark.parametrize("role", ["guide", "classifier"])


@pytest.fixture
def classifier(make_run):
    return make_run("classifier", **CLASSIFIER)


def in_role(role, **settings):
    """Settings of a run that guides in this role."""
    return {**CLASSIFIER, **settings} if role == "classifier" else settings


def flags(role, path):
    """Sampler flags that ask for it."""
    return dict(classifier=path) if role == "classifier" else dict(guide=path, cfg_scale=2.0)


def latents(run, **settings):
    pipeline = build_pipeline(run, dataclasses.replace(QUICK, **settings))
    return sample_latents(pipeline, LABELS, INDICES)


def refused(path, **settings):
    """The one line of the error."""
    with pytest.raises(UserError) as error:
        latents(load_run(path, CPU), **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what they change ------------------------------------------------------------------------------


@pytest.mark.portable
def test_a_run_as_its_own_guide_changes_nothing(tiny_run, make_run):
    """2406.02507, equation 3, with both networks the same, at any scale; another one changes it."""
    run = load_run(tiny_run, CPU)
    plain = latents(run)
    assert largest_difference(latents(run, guide=tiny_run, cfg_scale=3.0), plain) < 1e-4
    other = make_run("other", objective="x0")
    assert largest_difference(latents(run, guide=other, cfg_scale=3.0), plain) > 1e-2


def test_a_guide_needs_no_null_class(make_run, tiny_run):
    run = load_run(make_run(label_dropout=0.0), CPU)
    assert latents(run, guide=tiny_run, cfg_scale=2.0).isfinite().all()
    unconditional = load_run(make_run("unconditional", num_classes=0), CPU)
    weaker = make_run("weaker", num_classes=0, objective="x0")
    assert latents(unconditional, guide=weaker, cfg_scale=2.0).isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(process="linear", objective="eps", learn_sigma=True),
        dict(process="cosine"),
        dict(objective="x0"),
    ],
)
def test_a_classifier_guides_every_kind_of_run(make_run, settings):
    run = load_run(make_run(**settings), CPU)
    path = make_run("classifier", **CLASSIFIER, process=settings.get("process", "flow"))
    for sampler in ("ddpm", "ddim", "dpmpp_2m"):
        none, some, much = (
            latents(run, sampler=sampler, classifier=path, classifier_scale=scale)
            for scale in (0.0, 1.0, 4.0)
        )
        assert largest_difference(none, latents(run, sampler=sampler)) == 0
        assert 1e-5 < largest_difference(some, none) < largest_difference(much, none)


def test_a_classifier_makes_its_class_likelier(tiny_run, classifier):
    run, t = load_run(tiny_run, CPU), torch.tensor(0.1, dtype=torch.float64)
    network = load_classifier(run, classifier)
    likelihoods = []
    for scale in (0.0, 3.0, 30.0):
        images = latents(run, classifier=classifier, classifier_scale=scale)
        likelihoods.append(network.logits(images, t).log_softmax(1)[range(3), LABELS])
    assert (likelihoods[0] < likelihoods[1]).all()
    assert (likelihoods[1] < likelihoods[2]).all()


@pytest.mark.portable
def test_both_kinds_of_guidance_at_once_in_any_batch(tiny_run, classifier):
    run = load_run(tiny_run, CPU)
    by_classifier = dict(classifier=classifier, classifier_scale=3.0)
    both = latents(run, cfg_scale=2.0, **by_classifier)
    assert largest_difference(both, latents(run, cfg_scale=2.0)) > 1e-4
    assert largest_difference(both, latents(run, **by_classifier)) > 1e-4

    pipeline = build_pipeline(run, dataclasses.replace(QUICK, cfg_scale=2.0, **by_classifier))
    each = [sample_latents(pipeline, LABELS[i : i + 1], INDICES[i : i + 1]) for i in range(3)]
    assert largest_difference(both, torch.cat(each)) < 1e-4


def test_a_run_without_classes_gets_those_of_its_classifier(make_run, classifier, tmp_path):
    """2105.05233 guides unconditional models too: only the classifier gets the label."""
    path = make_run(num_classes=0)
    run = with_classifier_labels(load_run(path, CPU), classifier)
    assert class_ids(None, run.card)[0] == list(range(10))
    assert class_ids(("7",), run.card)[0] == [7]
    with pytest.raises(UserError, match="class ids from 0 to 9"):
        class_ids(("10",), run.card)

    plain = latents(run)
    assert largest_difference(plain, latents(load_run(path, CPU))) == 0
    guided = latents(run, classifier=classifier, classifier_scale=5.0)
    assert largest_difference(guided, plain) > 1e-3

    config = dataclasses.replace(QUICK, classifier=classifier)
    out = sample_folder(run, config, run.card.ids, 3, tmp_path / "samples", "png", ALONE)
    assert (out / "labels.csv").read_text().splitlines()[2] == "000001.png,1,1"
    grid = sample(SampleConfig(run=path, classifier=classifier, steps=2, per_class=1), ALONE)
    assert grid.is_file()


@ROLES
def test_grids_by_other_networks_have_other_names(make_run, role):
    run = make_run()
    others = [make_run(f"other{ema}", **in_role(role), ema=ema) for ema in (0.5, 0.9)]
    grids = {
        sample(
            SampleConfig(run=run, classes=("1",), per_class=1, steps=1, **flags(role, path)), ALONE
        )
        for path in others
    }
    assert len(grids) == 2
    assert all(grid.is_file() for grid in grids)


def test_a_classifier_is_resized_along_with_the_run(tiny_run, classifier):
    run = load_run(tiny_run, CPU, (8, 12))
    images = latents(run, image_size=(8, 12), classifier=classifier, guide=tiny_run, cfg_scale=2.0)
    assert images.shape == (3, 3, 8, 12)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name", "theirs", "ours"),
    [
        (dict(process="linear"), "process", "linear", "flow"),
        (dict(vae="digits"), "autoencoder", "digits", "identity"),
        (dict(latent_norm="data"), "latent statistics", "0.5±0.5", "of the autoencoder"),
        (dict(image_size=16), "latents of", "16x16", "8x8"),
        (dict(num_classes=7), "number of classes", "7", "10"),
    ],
)
@ROLES
def test_other_latents_noise_or_classes(tiny_run, make_run, role, settings, name, theirs, ours):
    other = make_run("other", **in_role(role, **settings))
    message = refused(tiny_run, **flags(role, other))
    for part in (f"--{role} {other}", name, theirs, ours, str(find_weights(tiny_run))):
        assert part in message


def with_card(run, *, step=9, settings=None, **changes):
    """A copy of the run's weights, its card changed."""
    weights = read_weights(find_weights(run))
    config = dataclasses.replace(weights.card.config, **settings or {})
    file = run.with_name(f"{run.name}-changed.safetensors")
    card = dataclasses.replace(weights.card, config=config, **changes)
    write_weights(file, weights.state_dict, card, step)
    return file


@ROLES
def test_other_class_names(tiny_run, make_run, role):
    other = with_card(make_run("other", **in_role(role)), classes=[*"012a456789"])
    message = refused(tiny_run, **flags(role, other))
    assert f"--{role} {other} has class 3 'a', {find_weights(tiny_run)} has '3'" in message

    run = load_run(with_card(make_run("named"), classes=[*"abcdefghij"]), CPU)
    # a converted release has ids for names
    ids = [str(i) for i in range(10)]
    released = make_run("released", **in_role(role))
    released = with_card(released, classes=ids, settings=dict(data="imagenet"))
    assert latents(run, **flags(role, released)).isfinite().all()


def test_classes_without_names_can_not_differ(make_run, classifier):
    named = with_card(classifier, classes=[*"abcdefghij"])
    run = with_classifier_labels(load_run(make_run(num_classes=0), CPU), named)
    assert latents(run, classifier=named).isfinite().all()


def test_the_same_autoencoder_under_another_path(make_run, tmp_path):
    shutil.copytree(BUNDLED["digits"], tmp_path / "vae")
    ours, theirs = make_run("ours", vae="digits"), make_run("theirs", vae=str(tmp_path / "vae"))
    assert latents(load_run(ours, CPU), guide=theirs, cfg_scale=2.0).isfinite().all()


def test_a_classifier_of_an_autoencoder_that_was_replaced(tiny_run, classifier):
    other = with_card(classifier, vae_sha256="5" * 64)
    message = refused(tiny_run, classifier=other)
    assert f"--classifier {other} has autoencoder identity (SHA-256 55555555), " in message


def test_times_of_training_may_differ(tiny_run, make_run):
    other = make_run("other", time_shift=3.0, time_sampling="uniform")
    assert latents(load_run(tiny_run, CPU), guide=other, cfg_scale=2.0).isfinite().all()


def test_networks_in_the_wrong_flag(tiny_run, classifier):
    message = refused(tiny_run, classifier=tiny_run)
    expected = f"--classifier {tiny_run} is a DiT-Ti/4; expected a run of `dit train-classifier`"
    assert expected in message
    wrong = f"{classifier} is a Classifier-Ti/4; expected a diffusion run; pass it as --classifier"
    assert wrong in refused(tiny_run, guide=classifier, cfg_scale=2.0)
    for use, config in (
        (sample, SampleConfig(run=classifier)),
        (evaluate, EvalConfig(run=classifier)),
    ):
        with pytest.raises(UserError, match="is a Classifier-Ti/4; expected a diffusion run"):
            use(config, ALONE)


def test_guidance_without_a_null_class(make_run):
    unconditional = make_run("unconditional", num_classes=0)
    assert "--cfg-scale 2 for a run without classes" in refused(unconditional, cfg_scale=2.0)
    undropped = make_run("undropped", label_dropout=0.0)
    message = refused(undropped, cfg_scale=2.0)
    assert "--cfg-scale 2 for a run trained with --label-dropout 0" in message


@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_flags_that_do_nothing(settings, message):
    with pytest.raises(UserError) as error:
        SamplerConfig(**settings)
    assert message in str(error.value)


@ROLES
def test_an_autoencoder_that_moved_names_the_network_that_wants_it(
    tiny_run, make_run, tmp_path, role
):
    gone = tmp_path / "gone"
    other = make_run(role, **in_role(role, vae=str(gone)))
    message = refused(tiny_run, **flags(role, other))
    assert message.startswith(f"--{role} {other}: --vae {gone} is not a folder")


# -- what is recorded ------------------------------------------------------------------------------


def test_the_protocol_names_guides_by_content(tiny_run, classifier):
    run = load_run(tiny_run, CPU)
    plain = protocol(build_pipeline(run, QUICK, [0]))
    assert not {"guide", "classifier", "classifier_scale", "trained_size"} & {*plain}
    by_both = dict(guide=tiny_run, cfg_scale=2.0, classifier=classifier, classifier_scale=3.0)
    pipeline = build_pipeline(run, dataclasses.replace(QUICK, **by_both), [0])
    record = json.loads(json.dumps(protocol(pipeline)))
    assert record["guide"] == "DiT-Ti/4 at step 3"
    assert record["guide_sha256"] == sha256(find_weights(tiny_run))
    assert (record["classifier"], record["classifier_scale"]) == ("Classifier-Ti/4 at step 3", 3.0)
    assert record["classifier_sha256"] == sha256(find_weights(classifier))


def test_keys_depend_on_weights_not_on_paths(tiny_run, classifier, make_run):
    run = load_run(tiny_run, CPU)
    keys = Keys(run, 5, "reference", [], 10)
    copy = make_run("moved", **CLASSIFIER)
    other = make_run("other", **CLASSIFIER, seed=1, ema=0.9)
    guides = ((classifier, 1.0), (copy, 1.0), (other, 1.0), (classifier, 2.0))

    for key in (lambda config: settings_key(run, config, 5), keys):
        ours, moved, another, stronger = (
            key(dataclasses.replace(QUICK, classifier=path, classifier_scale=scale))
            for path, scale in guides
        )
        assert ours == moved
        assert len({ours, another, stronger, key(QUICK)}) == 4
    optional = {"guide", "classifier", "classifier_scale", "image_size"}
    assert not optional & {*image_settings(run, QUICK)}
