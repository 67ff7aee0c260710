"""The protocol record: right for every kind of reference, and for the constants of the scores."""

import json
from datetime import datetime

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU, random_pixels, save_images
from torch_fidelity.defaults import DEFAULTS

from dit.commands import stats as stats_module
from dit.config import StatsConfig
from dit.distributed.device import library_versions
from dit.distributed.ranks import Ranks
from dit.evaluation import protocol as module
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics import bootstrap, memorisation
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics import precision_recall as neighbours
from dit.evaluation.references import find_reference

REFERENCE_SHA = "4" * 64


def extractor(name="fake", widths=(3, 0, 0)):
    def means(images):
        return Outputs(images.float().mean((2, 3)))

    return Extractor(means, name, f"{name}.pth", name[0] * 64, f"of {name}", CPU, widths)


def folder(path, height=8, width=8):
    return str(save_images(path, random_pixels(5, height, width)))


def recorded(size=8, settings=None, name="digits", crop=False, labels=None, extractors=(), **more):
    """Return the protocol of three samples of this size."""
    samples = from_array(random_pixels(3, size, size), "samples/", labels)
    reference = find_reference(name, (size, size), crop)
    extractors = extractors or [extractor()]
    given = (samples, "5" * 64, settings or {}, reference, REFERENCE_SHA, extractors, CPU)
    return module.build_protocol(*given, **more)


# -- reference -------------------------------------------------------------------------------------


def expected(source, count, size, crop, statistics):
    section = {"source": source, "count": count, "size": size, "crop": crop}
    return {**section, "statistics": statistics, "sha256": REFERENCE_SHA}


def test_images(tmp_path):
    plain, wide = folder(tmp_path / "plain"), folder(tmp_path / "wide", 12, 10)
    digits = expected("digits", 1797, "32x32", "none", "computed")
    assert recorded(32)["reference"] == digits
    assert recorded(name=plain)["reference"] == expected(plain, 5, "8x8", "none", "computed")
    cropped = expected(wide, 5, "8x8", "ADM's, to 8x8", "computed")
    assert recorded(name=wide, crop=True)["reference"] == cropped


@pytest.mark.parametrize("crop", [False, True])
def test_statistics_by_others(tmp_path, crop):
    name = str(tmp_path / "foreign.npz")
    unknown = expected(name, "unknown", "unknown", "unknown", "from the file")
    np.savez(name, mu=np.zeros(3), sigma=np.eye(3))
    assert recorded(name=name, crop=crop)["reference"] == unknown
    np.savez(name, mu=np.zeros(3), sigma=np.eye(3), num_images=7000)
    assert recorded(name=name, crop=crop)["reference"] == {**unknown, "count": 7000}


@pytest.mark.parametrize(("image_size", "crop"), [(None, "none"), (8, "ADM's, to 8x8")])
def test_statistics_by_dit_stats(tmp_path, monkeypatch, image_size, crop):
    monkeypatch.setattr(stats_module, "choose_extractors", lambda *given: [extractor()])
    data, out = folder(tmp_path / "images"), tmp_path / "own.npz"
    stats_module.stats(StatsConfig(data=data, out=out, image_size=image_size, cache=False), Ranks())
    reference = expected(str(out), 5, "8x8", crop, "from the file")
    assert recorded(name=str(out))["reference"] == reference


def test_images_with_statistics(tmp_path):
    name = str(tmp_path / "both.npz")
    np.savez(name, arr_0=random_pixels(4), mu=np.zeros(3), sigma=np.eye(3), num_images=9)
    assert recorded(name=name)["reference"] == expected(name, 4, "8x8", "none", "from the file")


# -- samples and their settings --------------------------------------------------------------------


def test_samples():
    assert recorded(labels=["a", "b", "b"])["samples"] == {
        "source": "samples/",
        "count": 3,
        "size": "8x8",
        "labels": "2 classes, 1 to 2 images each",
        "pixels_sha256": "5" * 64,
    }
    assert module.describe_balance(None) == "unknown"
    assert module.describe_balance(["a", "b", "c"] * 4) == "3 classes, 4 images each"


def test_settings_that_were_not_recorded_are_unknown():
    unknown = dict.fromkeys(module.SAMPLING, "unknown")
    assert recorded()["sampling"] == unknown
    assert {"sampler", "steps", "cfg_scale", "seed", "weights_sha256", "vae"} <= set(unknown)
    known = {"steps": 20, "cfg_scale": 1.5, "eta": 0.0, "model": "DiT-Ti/4"}
    settings = {**known, "versions": {"torch": "2"}}
    assert recorded(settings=settings)["sampling"] == {**unknown, **known}


def test_channels_of_guidance_are_all_unless_named():
    assert recorded(settings={"cfg_channels": None})["sampling"]["cfg_channels"] == "all"
    assert recorded(settings={"cfg_channels": 3})["sampling"]["cfg_channels"] == 3


# -- networks, scores, software --------------------------------------------------------------------


def test_each_network_has_a_section():
    found = recorded(extractors=[extractor("one", (3, 10, 0)), extractor("two", (5, 0, 7))])
    sections = {name: entries for name, entries in found.items() if name.startswith("features")}
    assert list(sections) == ["features (one)", "features (two)"]
    assert sections["features (two)"] == {
        "weights": "two.pth",
        "weights_sha256": "t" * 64,
        "preprocessing": "of two",
        "widths (features, logits, spatial)": [5, 0, 7],
    }


def test_constants_are_the_published_ones_and_recorded():
    """KID's and the seed are torch-fidelity's (of 1801.01401), as are the 10 shuffled splits of IS
    (1606.03498); 5,000 images a split in order and 10,000 reference images are ADM's; k = 3 is of
    1904.06991, k = 5 of 2002.09797.
    """
    assert metrics.KID_SUBSETS == DEFAULTS["kid_subsets"] == 100
    assert metrics.KID_SUBSET_SIZE == DEFAULTS["kid_subset_size"] == 1000
    assert metrics.SEED == DEFAULTS["rng_seed"] == bootstrap.SEED == 2020
    assert metrics.IS_SPLITS == DEFAULTS["isc_splits"] == 10
    assert neighbours.NEIGHBOURS == DEFAULTS["prc_neighborhood"] == 3
    assert (metrics.REAL_VS_REAL_SPLITS, bootstrap.PARTS, memorisation.NEAR_COPY_SHARE) == (
        5,
        5,
        0.01,
    )
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
