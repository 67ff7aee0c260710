"""The protocol record: true of every kind of reference, and of the constants behind the scores."""

import json
from datetime import datetime

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.defaults import DEFAULTS

from dit.commands import stats as stats_module
from dit.config import StatsConfig
from dit.distributed.device import library_versions
from dit.distributed.ranks import Ranks
from dit.evaluation import protocol as module
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics import bootstrap as uncertainty
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics import memorisation
from dit.evaluation.metrics import precision_recall as neighbours
from dit.evaluation.references import find_reference

CPU = torch.device("cpu")
REFERENCE_SHA = "4" * 64


def network(name="fake", widths=(3, 0, 0)):
    return Extractor(
        lambda images: Outputs(images.float().mean((2, 3))),
        name,
        f"{name}.pth",
        name[0] * 64,
        f"as {name} likes it",
        CPU,
        widths,
    )


def pixels(count, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def folder(path, count, height=8, width=8):
    path.mkdir()
    for i, image in enumerate(pixels(count, height, width)):
        Image.fromarray(image).save(path / f"{i}.png")
    return str(path)


def recorded(
    size=8, settings=None, name="digits", crop=False, resamples=0, labels=None, networks=None
):
    """The protocol of three samples of this size."""
    samples = from_array(pixels(3, size, size), "samples/", labels)
    return module.protocol(
        samples,
        "5" * 64,
        settings or {},
        find_reference(name, (size, size), crop),
        REFERENCE_SHA,
        networks or [network()],
        CPU,
        resamples,
    )


def reference(source, count, size, crop, statistics):
    return {
        "source": source,
        "count": count,
        "size": size,
        "crop": crop,
        "statistics": statistics,
        "sha256": REFERENCE_SHA,
    }


# -- reference -------------------------------------------------------------------------------------


def test_reference_digits():
    assert recorded(32)["reference"] == reference("digits", 1797, "32x32", "none", "computed")


def test_reference_folder(tmp_path):
    name = folder(tmp_path / "images", 5)
    assert recorded(name=name)["reference"] == reference(name, 5, "8x8", "none", "computed")


def test_reference_folder_cropped(tmp_path):
    name = folder(tmp_path / "images", 5, height=12, width=10)
    assert recorded(name=name, crop=True)["reference"] == reference(
        name, 5, "8x8", "ADM's, to 8x8", "computed"
    )


@pytest.mark.parametrize("crop", [False, True])
def test_reference_statistics_by_others(tmp_path, crop):
    name = str(tmp_path / "foreign.npz")
    np.savez(name, mu=np.zeros(3), sigma=np.eye(3))
    unknown = reference(name, "unknown", "unknown", "unknown", "from the file")
    assert recorded(name=name, crop=crop)["reference"] == unknown
    np.savez(name, mu=np.zeros(3), sigma=np.eye(3), num_images=7000)
    assert recorded(name=name, crop=crop)["reference"] == {**unknown, "count": 7000}


@pytest.mark.parametrize(("image_size", "crop"), [(None, "none"), (8, "ADM's, to 8x8")])
def test_reference_statistics_by_dit_stats(tmp_path, monkeypatch, image_size, crop):
    monkeypatch.setattr(
        stats_module, "choose_extractors", lambda names, weights, digits, ranks: [network()]
    )
    data, out = folder(tmp_path / "images", 6), tmp_path / "own.npz"
    stats_module.stats(StatsConfig(data=data, out=out, image_size=image_size, cache=False), Ranks())
    assert recorded(name=str(out))["reference"] == reference(
        str(out), 6, "8x8", crop, "from the file"
    )


def test_reference_images_with_statistics(tmp_path):
    name = str(tmp_path / "both.npz")
    np.savez(name, arr_0=pixels(4), mu=np.zeros(3), sigma=np.eye(3), num_images=9)
    assert recorded(name=name)["reference"] == reference(name, 4, "8x8", "none", "from the file")


# -- samples and how they were made ----------------------------------------------------------------


def test_samples_are_counted_and_named_by_their_pixels():
    assert recorded(8, name="digits", labels=["a", "b", "b"])["samples"] == {
        "source": "samples/",
        "count": 3,
        "size": "8x8",
        "labels": "2 classes, 1 to 2 images each",
        "pixels_sha256": "5" * 64,
    }


def test_balance_of_classes_in_words():
    assert module.balance(None) == "unknown"
    assert module.balance(["a", "b", "c"] * 4) == "3 classes, 4 images each"
    assert module.balance(["a"] * 9 + ["b"] * 2 + ["c"] * 5) == "3 classes, 2 to 9 images each"


def test_settings_that_were_not_recorded_are_unknown():
    bare = recorded()["sampling"]
    assert bare == dict.fromkeys(module.SAMPLING, "unknown")
    assert {
        "sampler",
        "steps",
        "cfg_scale",
        "cfg_interval",
        "cfg_channels",
        "seed",
        "precision",
        "weights_sha256",
        "vae",
        "vae_sha256",
    } <= set(bare)
    given = {
        "steps": 20,
        "cfg_scale": 1.5,
        "eta": 0.0,
        "model": "DiT-Ti/4",
        "versions": {"torch": "2"},
    }
    expected = {**bare, "steps": 20, "cfg_scale": 1.5, "eta": 0.0, "model": "DiT-Ti/4"}
    assert recorded(settings=given)["sampling"] == expected


def test_channels_of_guidance_are_all_unless_named():
    assert recorded(settings={"cfg_channels": None})["sampling"]["cfg_channels"] == "all"
    assert recorded(settings={"cfg_channels": 3})["sampling"]["cfg_channels"] == 3


# -- networks, scores, software --------------------------------------------------------------------


def test_each_network_has_a_section():
    found = recorded(networks=[network("one", (3, 10, 0)), network("two", (5, 0, 7))])
    sections = {name: entries for name, entries in found.items() if name.startswith("features")}
    assert sections == {
        f"features ({name})": {
            "weights": f"{name}.pth",
            "weights_sha256": name[0] * 64,
            "preprocessing": f"as {name} likes it",
            "widths (features, logits, spatial)": widths,
        }
        for name, widths in (("one", [3, 10, 0]), ("two", [5, 0, 7]))
    }


def test_what_is_published_is_what_is_computed_and_recorded():
    """The constants of the scores, and where they are from.

    KID: 100 subsets of 1000 and the seed 2020, torch-fidelity's (of 1801.01401). Inception score: 10 splits after
    shuffling, torch-fidelity's (1606.03498); 5,000 images a split in order, ADM's evaluator. Precision and recall:
    k = 3 (1904.06991) and 10,000 reference images, as in ADM's reference batches. Density and coverage: k = 5
    (2002.09797). Ours are 5 splits of real images for the floor, parts of 1/1 to 1/5 of the samples for the limit, and
    a near-copy's 1%.
    """
    assert metrics.KID_SUBSETS == DEFAULTS["kid_subsets"] == 100
    assert metrics.KID_SUBSET_SIZE == DEFAULTS["kid_subset_size"] == 1000
    assert metrics.SEED == DEFAULTS["rng_seed"] == uncertainty.SEED == 2020
    assert metrics.IS_SPLITS == DEFAULTS["isc_splits"] == 10
    assert metrics.IS_SPLIT == 5_000
    assert neighbours.NEIGHBOURS == DEFAULTS["prc_neighborhood"] == 3
    assert neighbours.DENSITY_NEIGHBOURS == 5
    assert metrics.PRC_REFERENCE == 10_000
    assert (metrics.FLOOR_SPLITS, uncertainty.PARTS, memorisation.SHARE) == (5, 5, 0.01)
    assert recorded(resamples=37)["scores"] == {
        "KID": "100 subsets of 1000 images, or of half the smaller set",
        "neighbours (precision, recall)": 3,
        "neighbours (density, coverage)": 5,
        "reference images (precision, recall, density, coverage)": "at most 10000",
        "IS": "splits of 5000 images in order",
        "IS (torch-fidelity)": "10 splits, shuffled",
        "subset seed": 2020,
        "bootstrap resamples": 37,
    }


def test_software_and_plain_json_values():
    found = recorded()
    assert json.loads(json.dumps(found)) == found
    software = found["software"]
    assert software["device"] == "CPU"
    assert datetime.fromisoformat(software["date"]).tzinfo is not None
    assert library_versions("torch", "numpy", "torch-fidelity").items() <= software.items()
    assert software["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
