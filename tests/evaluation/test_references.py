"""References: each network has its own target, and statistics of a file precede those of images."""

import json

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU, random_pixels, save_images
from helpers.image_data import noise_file

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.inception import INCEPTION_FILE
from dit.evaluation.extractors.load import usual_network
from dit.evaluation.inputs import cache
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array, read_images
from dit.evaluation.inputs.statistics import Moments, Statistics
from dit.evaluation.metrics.frechet import fit, frechet, from_moments
from dit.evaluation.references import (
    Reference,
    choose_extractors,
    find_reference,
    prepare_reference,
    same_data,
    score_samples,
)
from dit.latents.store import LatentStore
from dit.utils.image_size import size_of

COUNTED = 5000  # images of the statistics, according to their file


class Network:
    """Some of the pixels as features, two more as the spatial layer; it counts its images."""

    def __init__(self, first, width, scale):
        self.first, self.width, self.scale, self.seen = first, width, scale, 0

    def __call__(self, images):
        self.seen += len(images)
        rows = images.float().flatten(1) * self.scale
        return Outputs(rows[:, self.first :][:, : self.width], None, rows[:, -2:])


def narrow():
    return Extractor(Network(0, 3, 0.01), "narrow", "n.pth", "a" * 64, "none", CPU, (3, 0, 2))


def wide():
    return Extractor(Network(20, 5, 0.1), "wide", "w.pth", "b" * 64, "none", CPU, (5, 0, 2))


def images(count, seed):
    return from_array(random_pixels(count, 4, 4, seed), f"images {seed}", None)


def of_images(count=50):
    return Reference("images", images(count, 1), None)


def moments(width, seed):
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(3 * width, width)))
    return rows.mean(0), rows.T.cov()


@pytest.fixture
def statistics(tmp_path):
    """Statistics of the narrow network alone."""
    networks = {"narrow": Moments(moments(3, 7), moments(2, 8))}
    return Statistics(tmp_path / "s.npz", networks, COUNTED)


def prepared(reference, *networks, count=10, scoring=None, ranks=None):
    names = [network.name for network in networks] if scoring is None else scoring
    return prepare_reference(reference, networks, names, count, 4, ranks or Ranks(), False)


def features(given, *networks):
    return extract(given, networks, 4, Ranks(), "features")


def assert_moments(gaussian, mean, covariance):
    assert (gaussian.mean - mean).abs().max() < 1e-9
    assert (gaussian.factor.T @ gaussian.factor - covariance).abs().max() < 1e-9


# -- targets ---------------------------------------------------------------------------------------


def test_images_give_each_network_its_own_features_and_gaussians():
    targets = prepared(of_images(), narrow(), wide()).targets
    found = features(images(50, 1), narrow(), wide()).networks
    assert list(targets) == ["narrow", "wide"]
    for name, target in targets.items():
        assert torch.equal(target.values, found[name].values)
        assert target.count == 50
        for gaussian, layer in (
            (target.gaussian, found[name].values.double()),
            (target.spatial, found[name].spatial.double()),
        ):
            assert_moments(gaussian, layer.mean(0), layer.T.cov())


@pytest.mark.parametrize("beside", [None, images(30, 1)])
def test_gaussians_are_those_of_the_file_also_with_images(statistics, beside):
    target = prepared(Reference("both", beside, statistics), narrow()).targets["narrow"]
    assert_moments(target.gaussian, *moments(3, 7))
    assert_moments(target.spatial, *moments(2, 8))
    assert target.count == COUNTED
    if beside is None:
        assert target.values is None
        assert target.missing == "the reference has statistics only, no images"
    else:
        assert torch.equal(target.values, features(beside, narrow()).networks["narrow"].values)


def test_scores_use_the_file_for_distances_and_the_images_for_the_rest(statistics):
    samples, network, real = features(images(30, 2), narrow()), narrow(), images(40, 1)
    both, file, pictures = (
        score_samples(samples, prepared(Reference("x", *given), network), ["narrow"], CPU)
        for given in ((real, statistics), (None, statistics), (real, None))
    )
    for name, layer, pair in (
        ("FD(narrow)", samples.networks["narrow"].values, moments(3, 7)),
        ("sFD(narrow)", samples.networks["narrow"].spatial, moments(2, 8)),
    ):
        expected = frechet(fit(layer), from_moments(*pair, "x"))
        assert both[name].value == file[name].value == pytest.approx(expected, rel=1e-9)
        assert both[name].reference == COUNTED
        assert pictures[name].value != pytest.approx(expected, rel=0.1)
    for name in ("KID(narrow)", "precision(narrow)", "coverage(narrow)"):
        assert both[name] == pictures[name]
        assert both[name].value is not None
        assert file[name].value is None


def test_a_network_without_statistics_keeps_the_images(statistics):
    both = Reference("both", images(30, 1), statistics)
    target = prepared(both, narrow(), wide()).targets["wide"]
    assert target.gaussian is None is target.spatial
    assert target.values.shape == (30, 5)
    assert target.missing == f"{statistics.path} has statistics of narrow, not of wide"


def test_a_file_without_spatial_statistics_is_the_reason(tmp_path):
    plain = Statistics(tmp_path / "s.npz", {"narrow": Moments(moments(3, 7))})
    target = prepared(Reference("both", images(30, 1), plain), narrow()).targets["narrow"]
    assert target.gaussian is not None
    assert target.spatial is None
    assert target.missing == f"{plain.path} has no spatial statistics"


# -- latents stand for their images ---------------------------------------------------------------


@pytest.fixture
def encoded(tmp_path):
    """Latents of six images, of which the second is damaged and was left out."""
    pictures = save_images(tmp_path / "pictures", random_pixels(6))
    (pictures / "000001.png").write_bytes(b"no picture")
    latents = tmp_path / "latents"
    flags = dict(vae="identity", image_size=8, skip_damaged=True, shard_size=4)
    encode(EncodeConfig(data=str(pictures), out=latents, **flags), Ranks())
    return latents


def test_the_images_of_latents_are_read_without_damaged_ones(encoded):
    reference = find_reference(str(encoded), (8, 8), crop=False)
    assert reference.name == str(encoded.parent / "pictures")
    assert reference.crop == 8
    expected = torch.from_numpy(np.delete(random_pixels(6), 1, axis=0)).permute(0, 3, 1, 2)
    assert torch.equal(reference.images.stack(range(5)), expected)
    assert same_data(str(encoded), reference.name)
    assert not same_data(str(encoded), str(encoded.parent))


def test_other_images_than_were_encoded_are_noted(encoded):
    save_images(encoded.parent / "pictures", random_pixels(1), ["new.png"])
    (encoded.parent / "pictures" / "000001.png").unlink()
    save_images(encoded.parent / "pictures", random_pixels(1), ["newer.png"])
    (note,) = find_reference(str(encoded), (8, 8), crop=False).images.notes
    assert note.endswith("changed since they were encoded (6 images then, 7 now)")


def test_the_images_of_captioned_latents_are_those_with_captions_in_their_order(tmp_path):
    root, latents = tmp_path / "pictures", tmp_path / "latents"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.png").write_bytes(noise_file(number))
    (root / "2.png").write_bytes(b"torn")
    rows = [{"file_name": f"{number}.png", "text": f"number {number}"} for number in (3, 2, 1)]
    lines = [json.dumps(row) for row in rows]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    flags = dict(vae="identity", image_size=8, captions=True, skip_damaged=True)
    encode(EncodeConfig(data=str(root), out=latents, **flags), Ranks())

    reference = find_reference(str(latents), (8, 8), crop=False).images
    assert reference.labels is None
    found = reference.stack(range(len(reference)))
    assert torch.equal(found, read_images(root, size_of(8, 8)).stack([3, 1]))

    lines[2] = lines[2].replace("number 1", "one")
    (root / "metadata.jsonl").write_text("\n".join(lines))
    changed = find_reference(str(latents), (8, 8), crop=False).images
    assert "changed since they were encoded (other names or captions)" in changed.notes[-1]


@pytest.mark.parametrize("key", ["text", "label"])
def test_of_a_listed_folder_only_the_images_of_the_run_are_read(tmp_path, key):
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.png").write_bytes(noise_file(number))
    rows = [{"file_name": f"{number}.png", key: f"number {number}"} for number in (3, 1)]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    captions = dict(conditioning="text", text_encoder="digits") if key == "text" else {}
    trained = TrainConfig(data=str(root), **captions)

    reference = find_reference(str(root), (8, 8), True, trained).images
    assert reference.labels == (None if key == "text" else ["number 3", "number 1"])
    listed = read_images(root, size_of(8, 8)).stack([3, 1])
    assert torch.equal(reference.stack(range(len(reference))), listed)
    # of another run, it is a folder like any other
    assert len(find_reference(str(root), (8, 8), True, TrainConfig()).images) == 4


def test_latents_of_earlier_versions_can_be_trained_on_but_do_not_know_their_images(encoded):
    for file in ("encoding.json", "index.json"):
        content = json.loads((encoded / file).read_text())
        assert content["format"] == 2
        for name in ("format", "data", "image_column", "label_column", "crop"):
            del content[name]
        (encoded / file).write_text(json.dumps(content))
    assert LatentStore(encoded).shape == (3, 8, 8)
    with pytest.raises(UserError, match="earlier version, do not say where their images are"):
        find_reference(str(encoded), (8, 8), crop=False)
    for file in ("encoding.json", "index.json"):
        content = json.loads((encoded / file).read_text())
        (encoded / file).write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match="latents of format 99"):
        LatentStore(encoded)


# -- real against real -----------------------------------------------------------------------------


def test_each_network_has_its_own_real_vs_real():
    both = prepared(of_images(), narrow(), wide()).real_vs_real
    alone = [prepared(of_images(), network).real_vs_real for network in (narrow(), wide())]
    assert both == alone[0] | alone[1]
    assert both["FD(wide)"].low > 10 * both["FD(narrow)"].high  # features are ten times as large


def test_real_vs_real_is_between_parts_of_the_reference():
    found = prepared(of_images(6), narrow(), count=3).real_vs_real["FD(narrow)"]
    values = features(images(6, 1), narrow()).networks["narrow"].values
    halves = torch.combinations(torch.arange(6), 3)  # of which each is listed with its complement
    pairs = zip(halves, halves.flip(0), strict=True)
    possible = torch.tensor([frechet(fit(values[a]), fit(values[b])) for a, b in pairs])
    for end in (found.low, found.high):
        assert (possible / end - 1).abs().min() < 1e-6
    assert (found.samples, found.reference) == (3, 3)


def test_real_vs_real_is_of_the_scoring_networks_at_the_number_of_samples():
    scored = prepared(of_images(), narrow(), wide(), scoring=["wide"])
    assert list(scored.targets) == ["narrow", "wide"]
    assert all("(wide)" in name for name in scored.real_vs_real)
    assert {part.samples for part in scored.real_vs_real.values()} == {10}
    assert prepared(of_images(), narrow(), count=None).real_vs_real == {}


def test_with_statistics_real_vs_real_has_no_distances(statistics):
    both = prepared(Reference("both", images(50, 1), statistics), narrow(), count=25).real_vs_real
    pictures = prepared(of_images(), narrow(), count=25).real_vs_real
    assert set(pictures) - set(both) == {"FD(narrow)", "sFD(narrow)"}
    assert both == {name: part for name, part in pictures.items() if name in both}
    assert "KID(narrow)" in both
    assert prepared(Reference("s", None, statistics), narrow()).real_vs_real == {}


# -- digest, mistakes, ranks -----------------------------------------------------------------------


def test_digest_is_of_images_and_statistics(statistics, tmp_path):
    networks = {"narrow": Moments(moments(3, 9), moments(2, 8))}
    other = Statistics(tmp_path / "s.npz", networks, COUNTED)
    kinds = [(images(9, seed), given) for seed in (1, 2) for given in (None, statistics, other)]
    kinds += [(None, statistics), (None, other)]
    digests = [prepared(Reference("x", *kind), narrow()).digest for kind in kinds]
    assert len(set(digests)) == len(kinds)
    assert {len(digest) for digest in digests} == {64}
    assert digests[0] == features(images(9, 1), narrow()).digest
    assert digests[-2:] == [statistics.digest, other.digest]


def test_statistics_that_are_no_covariance_are_named(tmp_path):
    mean, spread = moments(3, 7)
    pair = (mean, spread - 2 * torch.eye(3) * spread.trace())
    wrong = Statistics(tmp_path / "s.npz", {"narrow": Moments(pair)})
    with pytest.raises(UserError, match=r"the covariance of .*s\.npz has the eigenvalue -"):
        prepared(Reference("s", images(9, 1), wrong), narrow())


class OneOfTwo(Ranks):
    """One of two ranks: what rank 0 shares is kept for the other one."""

    box = None

    def barrier(self):
        pass

    def broadcast(self, value):
        if self.main:
            OneOfTwo.box = value
        return OneOfTwo.box


def test_all_ranks_refuse_a_reference_that_no_scoring_network_can_use(statistics):
    alone = Reference("s.npz", None, statistics)
    message = r"s\.npz cannot be compared with: .* statistics of narrow, not of wide"
    for rank in (0, 1):
        with pytest.raises(UserError, match=message):
            prepared(alone, narrow(), wide(), scoring=["wide"], ranks=OneOfTwo(rank, 2))
    # With a network that can use it, the other one is no mistake.
    first, second = (prepared(alone, narrow(), wide(), ranks=OneOfTwo(r, 2)) for r in (0, 1))
    assert first.targets["wide"].gaussian is None is not first.targets["narrow"].gaussian
    assert second.targets == second.real_vs_real == {}


def test_features_of_another_kind_of_device_are_not_taken_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    seen = []
    for kind in ("cpu", "cpu", "Some GPU"):
        monkeypatch.setattr(cache, "device_kind", lambda device, kind=kind: kind)
        network = narrow()
        prepare_reference(of_images(9), [network], ["narrow"], None, 4, Ranks(), True)
        seen.append(network.network.seen)
    assert seen == [9, 0, 9]


# -- which network ---------------------------------------------------------------------------------


def test_auto_takes_colour_cnn_where_inception_is_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (extractor,) = choose_extractors(["auto"], [], of_images().network, Ranks())
    assert extractor.name == "colour-cnn"
    assert "FD(colour-cnn) is not FID" in capsys.readouterr().err
    # a file of weights, or one in the cache, is meant to be read
    for weights in ([str(tmp_path / "none.pth")], []):
        with pytest.raises(UserError, match=r"none\.pth|no plain file"):
            choose_extractors(["auto"], weights, None, Ranks())
        cached = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(b"damaged")


def test_auto_is_inception_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert usual_network(["auto"], [], torch.device("cuda")) == ("inception", "")
    assert usual_network(["auto"], [], torch.device("cpu"))[0] == "colour-cnn"


def test_auto_is_the_network_of_statistics(statistics):
    assert Reference("s", images(9, 1), statistics).network == "narrow"
    unnamed = Statistics(statistics.path, {"": Moments(moments(3, 7))})
    assert Reference("s", None, unnamed).network == "inception"
